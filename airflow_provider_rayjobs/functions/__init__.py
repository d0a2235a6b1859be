"""A Python function as the package of a Ray job: its source, its arguments, and the program that calls it."""
