"""Ray jobs that print numbered lines of 100 bytes and use little CPU for it."""

from __future__ import annotations

import time
from pathlib import Path

from airflow_provider_rayjobs.jobs import JobDetails, RayJobsClient
from sandbox.ray_head import RayHead

LINE = 100  # bytes, including the newline
MB = 1_000_000
_PRINT_TIMEOUT = 120.0


def log_line(number: int) -> str:
    """Return the line with this number, without its newline."""
    return f"{number:09d} {'.' * (LINE - 11)}"


def printing_entrypoint(size: int, then: str = "true") -> str:
    """
    Return an entrypoint that prints ``size`` bytes as fast as possible.

    :param then: the shell command that runs afterwards.
    """
    # awk needs a tenth of the time that Python needs.
    program = (
        f'BEGIN {{ dots = sprintf("%{LINE - 11}s", ""); gsub(/ /, ".", dots); '
        f'for (i = 0; i < {size // LINE}; i++) printf "%09d %s\\n", i, dots }}'
    )
    # Ray writes a line to the log just after the start of the driver. Without the pause, it may split a printed line.
    return f"sleep 1; awk '{program}'; {then}"


def run_printing_job(client: RayJobsClient, size: int) -> JobDetails:
    """Run a job that prints ``size`` bytes, and return it once it has succeeded."""
    submission_id = client.submit_job(printing_entrypoint(size))
    details = client.follow_job(submission_id, poll_interval=0.5)
    if details.status != "SUCCEEDED":
        raise RuntimeError(f"The printing job is {details.status}: {details.message}")
    return details


def driver_log(head: RayHead, submission_id: str) -> Path:
    """Return the path of a job's driver log."""
    return log_directory(head) / f"job-driver-{submission_id}.log"


def log_directory(head: RayHead) -> Path:
    """Return the directory of all logs of a local head."""
    return head.directory / "session_latest" / "logs"


def wait_until_printed(head: RayHead, submission_id: str, size: int) -> None:
    """Wait until a job has printed ``size`` bytes."""
    deadline = time.monotonic() + _PRINT_TIMEOUT
    path = driver_log(head, submission_id)
    while not (path.is_file() and path.stat().st_size >= size):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} has fewer than {size} bytes after {_PRINT_TIMEOUT:.0f} s.")
        time.sleep(0.2)
