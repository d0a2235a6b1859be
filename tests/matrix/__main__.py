"""
Run the tests on several versions::

    python -m tests.matrix                             # all cells; takes hours
    python -m tests.matrix airflow-3.1 --tests unit    # one cell, one suite
    python -m tests.matrix --short                     # the short run; records nothing
    python -m tests.matrix --lock airflow-3.1.8        # write the constraints of an environment again

The tests are run from the environment that has the default versions. Each Python must be installed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from sandbox.processes import interrupt_on_signals

from .cells import CELLS, LOCKS, SHORT, SUITES, Cell
from .environments import ROOT, python_of_head, python_of_tests, versions, write_lock
from .results import TABLE, Result, count, failures, save, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("cells", nargs="*", help=f"default: all of {', '.join(CELLS)}")
    parser.add_argument("--tests", choices=SUITES, help="default: those of the cell")
    parser.add_argument("--short", action="store_true", help="run the tests that find most per minute")
    parser.add_argument("--lock", choices=LOCKS, help="only write the constraints of this environment")
    arguments = parser.parse_args()
    if unknown := set(arguments.cells) - set(CELLS):
        parser.error(f"unknown cell: {', '.join(sorted(unknown))}. Available: {', '.join(CELLS)}.")
    if arguments.lock:
        write_lock(arguments.lock)
        return 0
    interrupt_on_signals()
    if arguments.short:
        return run_all([(CELLS[cell], suite) for cell, suite in SHORT], is_recorded=False)
    chosen = [CELLS[name] for name in arguments.cells or CELLS]
    return run_all([(cell, arguments.tests or cell.suite) for cell in chosen])


def run_all(chosen: list[tuple[Cell, str]], *, is_recorded: bool = True) -> int:
    """Run suites on cells. Return 1 if one of them failed that may not fail."""
    outcomes = []
    for cell, suite in chosen:
        started = time.monotonic()
        result = run(cell, suite)
        print(f"== {cell.name}, {suite}: {result or 'no result'}, {time.monotonic() - started:.0f} s", flush=True)
        outcomes.append((cell, suite, result))
        if result and is_recorded:
            TABLE.parent.mkdir(exist_ok=True)
            TABLE.write_text(table(save(result)), encoding="utf-8")
    failed = failures(outcomes)
    print(f"Failed: {', '.join(failed)}" if failed else "No failure.")
    return bool(failed)


def run(cell: Cell, suite: str) -> Result | None:
    """Run a suite on a cell. There is no result if an installation failed, or pytest itself."""
    try:
        python, head = python_of_tests(cell), python_of_head(cell)
    except subprocess.CalledProcessError as error:
        print(error)
        return None
    found = versions(python)
    with tempfile.TemporaryDirectory(prefix="matrix-") as directory:
        report = Path(directory) / "report.xml"
        # Other packages deprecate other things than those of constraints.txt, for which a warning is an error.
        warnings = ["-W", "default"] if cell.lock else []
        pytest = [python, "-m", "pytest", "-q", "-n", "2", *SUITES[suite].arguments, *warnings, f"--junitxml={report}"]
        environment = os.environ | {"RAY_HEAD_PYTHON": str(head)}
        with subprocess.Popen(pytest, cwd=ROOT, env=environment, start_new_session=True) as tests:
            try:
                tests.wait()
            except BaseException:
                os.killpg(tests.pid, signal.SIGTERM)  # each process of pytest stops its Ray heads and Airflows
                raise
        if tests.returncode not in {0, 1}:
            return None
        numbers = count(report)
    return Result(
        cell.name, suite, found["airflow"], found["python"], versions(head)["ray"],
        datetime.now(UTC).date().isoformat(), **numbers, may_fail=cell.may_fail,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
