"""
Measure the peak memory of a process that follows a job with a log of 1 GB.

The baseline is the same process for a log of 1 kB. Both jobs have ended before they are followed, so that the log
arrives at full speed. The process discards the log records. Target: at most 32 MiB more than the baseline.
"""

from __future__ import annotations

import subprocess
import sys

from airflow_provider_rayjobs.jobs import RayJobsClient
from benchmarks.printing_jobs import MB, driver_log, run_printing_job
from benchmarks.results import Result, Target
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
    """Follow both jobs, each in a new process."""
    with RayHead() as head, RayJobsClient(head.address) as client:
        small = _peak_memory(head, client, SMALL)
        large = _peak_memory(head, client, LARGE)
    return [
        Result("peak memory, log of 1 GB vs 1 kB", large, "MiB", small),
        Result("additional peak memory, log of 1 GB", large - small, "MiB", target=Target("value", "<=", 32)),
    ]


def _peak_memory(head: RayHead, client: RayJobsClient, size: int) -> float:
    job = run_printing_job(client, size)
    command = [sys.executable, "-W", "ignore", "-c", CODE, client.address, job.name]
    received, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    written = driver_log(head, job.name).stat().st_size  # includes the lines that Ray adds
    if int(received) != written:
        raise RuntimeError(f"The log is incomplete: {received} of {written} bytes. The result would be meaningless.")
    return float(peak)
