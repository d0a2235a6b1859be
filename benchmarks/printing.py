"""Jobs that print, for the benchmarks: lines of 100 bytes, each with its number, as cheap as can be."""

from __future__ import annotations

import time
from pathlib import Path

from airflow_provider_rayjobs.jobs import JobDetails, RayJobsClient
from sandbox.ray_head import RayHead

LINE = 100  # bytes, with the newline
MB = 1_000_000
_PATIENCE = 120.0


def line(number: int) -> str:
    """Return one line, without its newline."""
    return f"{number:09d} {'.' * (LINE - 11)}"


def entrypoint(size: int, then: str = "true") -> str:
    """
    Return a job's command.

    :param size: bytes to print, as fast as possible.
    :param then: the shell command to go on with.
    """
    # awk needs a tenth of Python's time for it
    program = (
        f'BEGIN {{ dots = sprintf("%{LINE - 11}s", ""); gsub(/ /, ".", dots); '
        f'for (i = 0; i < {size // LINE}; i++) printf "%09d %s\\n", i, dots }}'
    )
    # Ray writes a line of its own just after it started a driver: it would land in the middle of one of ours
    return f"sleep 1; awk '{program}'; {then}"


def print_and_end(client: RayJobsClient, size: int) -> JobDetails:
    """Run a job that prints so many bytes, and return it when it has ended."""
    submission_id = client.submit_job(entrypoint(size))
    details = client.follow_job(submission_id, poll_interval=0.5)
    if details.status != "SUCCEEDED":
        raise RuntimeError(f"the job that prints is {details.status}: {details.message}")
    return details


def log_file(head: RayHead, submission_id: str) -> Path:
    """Return where a head on this machine keeps a driver's log."""
    return logs(head) / f"job-driver-{submission_id}.log"


def logs(head: RayHead) -> Path:
    """Return where a head on this machine keeps all logs."""
    return head.directory / "session_latest" / "logs"


def wait_until_printed(head: RayHead, submission_id: str, size: int) -> None:
    """Wait until a driver has printed so many bytes."""
    deadline = time.monotonic() + _PATIENCE
    path = log_file(head, submission_id)
    while not (path.is_file() and path.stat().st_size >= size):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} is not {size} bytes long after {_PATIENCE:.0f} s")
        time.sleep(0.2)
