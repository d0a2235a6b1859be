"""Print colours and indentation, then a line for each file that appears in the folder of the first argument."""

from __future__ import annotations

import sys
import time
from pathlib import Path

print("\033[32mgreen\033[0m and \033[1;31mbold red\033[0m\n    four blanks\n\n\tafter a blank line", flush=True)
for part in ("part-2", "part-3"):
    while not Path(sys.argv[1], part).exists():
        time.sleep(0.2)
    print(f"{part} has been released", flush=True)
