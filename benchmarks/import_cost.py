"""
What importing the provider adds to importing Airflow's BaseOperator: seconds and memory, each in its own process.

Wanted: at most 0.15 s and 10 MB.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 5
CODE = """
import resource, time
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began = time.perf_counter()
from airflow.sdk import BaseOperator
between, before = time.perf_counter(), used()
import airflow_provider_rayjobs.operators
print([between - began, time.perf_counter() - between, used() - before])
"""


def main() -> None:
    """Measure and print a table; keep the figures in benchmarks/results.json."""
    rounds = [
        json.loads(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", CODE], check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
        )
        for _ in range(ROUNDS + 1)
    ][1:]  # the first fills the disk's cache
    base, seconds, megabytes = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"from airflow.sdk import BaseOperator         {base:6.3f} s   median of {ROUNDS}")
    more = f"+ {seconds:6.3f} s   + {megabytes:.1f} MB   {seconds / base:.1%} more"
    print(f"import airflow_provider_rayjobs.operators  {more}")
    results = [
        {
            "name": "import seconds",
            "value": round(seconds, 4),
            "unit": "s",
            "baseline": round(base, 4),
            "ratio": round(seconds / base, 4),
        },
        {"name": "import memory", "value": round(megabytes, 2), "unit": "MB", "baseline": None, "ratio": None},
    ]
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
