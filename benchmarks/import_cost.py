"""
Measure the time and memory that importing the operators adds to importing Airflow's BaseOperator.

Every DAG file that uses the provider pays this cost at each parse. Each round runs in a new process. The baseline is
the import of BaseOperator alone. Target: at most 0.15 s and 10 MB.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks.results import Result, Target

ROUNDS = 5
CODE = """
import resource, time
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = time.perf_counter()
from airflow.sdk import BaseOperator
middle, base_memory = time.perf_counter(), used()
import airflow_provider_rayjobs.operators
print([middle - start, time.perf_counter() - middle, base_memory, used() - base_memory])
"""


def measure() -> list[Result]:
    """Return the medians of all rounds."""
    rounds = [_measure_imports() for _ in range(ROUNDS + 1)][1:]  # the first round fills the disk cache
    base_seconds, seconds, base_memory, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
    return [
        Result("additional import time, vs BaseOperator", seconds, "s", base_seconds, Target("value", "<=", 0.15)),
        Result("additional import memory, vs BaseOperator", memory, "MB", base_memory, Target("value", "<=", 10)),
    ]


def _measure_imports() -> list[float]:
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: list[float] = json.loads(output.splitlines()[-1])
    return figures
