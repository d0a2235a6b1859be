"""A program that uses a module of its own."""

import sys

from forecast_tools import describe

print(describe(sys.argv[-1]))
