"""
What importing the provider adds to importing Airflow's BaseOperator: seconds and memory, each in its own process.

Every DAG file that uses the provider pays this at each parse. Wanted: at most 0.15 s and 10 MB.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks.results import Result, Wanted

ROUNDS = 5
CODE = """
import resource, time
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began = time.perf_counter()
from airflow.sdk import BaseOperator
between, before = time.perf_counter(), used()
import airflow_provider_rayjobs.operators
print([between - began, time.perf_counter() - between, before, used() - before])
"""


def measure() -> list[Result]:
    """Return the medians of some rounds."""
    rounds = [_round() for _ in range(ROUNDS + 1)][1:]  # the first fills the disk's cache
    base_seconds, seconds, base_memory, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
    return [
        Result("time beside BaseOperator's", seconds, "s", base_seconds, Wanted("value", "<=", 0.15)),
        Result("memory beside BaseOperator's", memory, "MB", base_memory, Wanted("value", "<=", 10)),
    ]


def _round() -> list[float]:
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: list[float] = json.loads(output.splitlines()[-1])
    return figures
