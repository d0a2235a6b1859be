"""All jobs that the heads ever listed. A head that restarts forgets them."""

from __future__ import annotations

import threading
import time
from typing import Any

from chaos_invariants import SeenJob

from sandbox.task_runs import run_of

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LOST = "LOST"


class JobLedger:
    """Keeps the last state of each job."""

    def __init__(self) -> None:
        # by submission id and start: another job may have the same id after a restart
        self._jobs: dict[tuple[str, int], SeenJob] = {}
        self._runs: dict[tuple[str, int], tuple[str, str]] = {}
        self._lock = threading.Lock()

    def record(self, jobs: list[dict[str, Any]]) -> None:
        """Record the jobs of a list."""
        with self._lock:
            for job in jobs:
                key = (job["submission_id"], job["start_time"])
                seen = self._jobs.setdefault(key, SeenJob(job["submission_id"], "", job["start_time"] / 1000))
                if seen.status == LOST:
                    continue  # the list is older than the end of its head
                seen.status = job["status"]
                if seen.status in _ENDED:
                    seen.end = job["end_time"] / 1000
                elif seen.status == "RUNNING" and seen.seen_running is None:
                    seen.seen_running = time.time()
                # the record of a deleted job may come back without metadata
                self._runs.setdefault(key, run_of(job))

    def lose_living_jobs(self, at: float) -> list[str]:
        """Record that the head was killed with all jobs that lived, and return their ids."""
        with self._lock:
            lost = [job for job in self._jobs.values() if job.end is None]
            for job in lost:
                job.status, job.end = LOST, at
        return [job.submission_id for job in lost]

    def jobs_of(self, run: tuple[str, str]) -> list[SeenJob]:
        """Return the jobs of a DAG run, oldest first."""
        with self._lock:
            return sorted(
                (self._jobs[key] for key, each in self._runs.items() if each == run), key=lambda job: job.start
            )
