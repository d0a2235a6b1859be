"""
The memory that following a job takes: the peak of a process that follows a job with a log of 1 GB to its end.

Beside it the same process for a log of 1 kB. Both jobs have ended before, so that the log comes as fast as it can; the
records are thrown away, as Airflow hands them on. Wanted: at most 32 MiB more.
"""

from __future__ import annotations

import subprocess
import sys

from airflow_provider_rayjobs.jobs import RayJobsClient
from benchmarks.printing import MB, log_file, print_and_end
from benchmarks.results import Result, Wanted
from sandbox.ray_head import RayHead

SMALL, LARGE = 1_000, 1_000 * MB
CODE = """
import resource, sys
from airflow_provider_rayjobs.jobs import RayJobsClient
address, submission_id = sys.argv[1:]
size = 0
def count(record):
    global size
    size += len(record) + 1
with RayJobsClient(address) as client:
    client.follow_job(submission_id, on_log=count)
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure() -> list[Result]:
    """Follow both jobs, each in a process of its own."""
    with RayHead() as head, RayJobsClient(head.address) as client:
        small = _peak(head, client, SMALL)
        large = _peak(head, client, LARGE)
    return [
        Result("peak for a log of 1 GB, beside 1 kB", large, "MiB", small),
        Result("more for a log of 1 GB", large - small, "MiB", wanted=Wanted("value", "<=", 32)),
    ]


def _peak(head: RayHead, client: RayJobsClient, size: int) -> float:
    job = print_and_end(client, size)
    command = [sys.executable, "-W", "ignore", "-c", CODE, client.address, job.name]
    shown, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    printed = log_file(head, job.name).stat().st_size  # Ray's own words come on top
    if int(shown) != printed:
        raise RuntimeError(f"{shown} of {printed} bytes were shown: the figure would mean nothing")
    return float(peak)
