"""A test whose program needs 20 s to stop, longer than execnet leaves to a process of ``pytest -n 2``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from sandbox.processes import Program, clean_environment

IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(300)
"""


def test_waits(tmp_path: Path):
    program = Program([sys.executable, "-c", IGNORES_SIGTERM], clean_environment(), tmp_path / "log")
    try:
        program.wait_until(lambda: program.tail() == "ready", "the program", 30)
        Path(os.environ["PID_FILE"]).write_text(str(program.pid))
        time.sleep(300)
    finally:
        program.stop()
