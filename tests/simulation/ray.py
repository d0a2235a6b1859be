"""
The simulated Ray cluster: that of ``airflow_provider_rayjobs.testing``, and what can go wrong in it.

- A job prints numbered lines while it runs. It shows the values of all earlier jobs, and pushes its own one before it
  succeeds.
- The head may be away for some time, and no job end on its own while :attr:`Cluster.ends_are_held`.
- A deleted record may come back as FAILED, without metadata.
- Interactive jobs only have a Ray Core job id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from airflow_provider_rayjobs.testing import cluster
from airflow_provider_rayjobs.testing.cluster import TERMINAL, Reply, message_line

_SAMPLES = Path(__file__).parents[1] / "samples" / "2.60.0"


@cache
def sample(name: str) -> str:
    """Return a recorded answer of Ray 2.60."""
    return (_SAMPLES / name).read_text()


@dataclass(frozen=True)
class Plan(cluster.Plan):
    """
    What a job does.

    :param lines: printed evenly while the job runs.
    """

    pending: float = 1.0
    runs: float = 7.0
    stop_takes: float = 1.0
    lines: int = 7


@dataclass
class Job(cluster.Job):
    """A job and what really happened to it."""

    is_deleted: bool = False
    # the submission arrived when its sender could not stop the job any more
    is_late: bool = False
    # a repetition of a submission arrived after the record of its job was deleted
    is_repetition: bool = False
    # a number of the sender's choice, for checks
    generation: int = 0
    # when a client first got an answer about the job, by the number of its try
    seen: dict[int, float] = field(default_factory=dict)

    @property
    def is_living(self) -> bool:
        """
        Tell whether the job runs or may run on.

        A job whose stop Ray accepted while it was PENDING does not count: it runs for a moment, then Ray stops it.
        """
        if self.is_lost or self.status in TERMINAL:
            return False
        return self.stop_accepted is None or (self.run_at is not None and self.stop_accepted >= self.run_at)

    @property
    def name(self) -> str:
        return f"{self.submission_id or self.core_id}/{self.session[-1]}"

    @property
    def value(self) -> str:
        """What the program of the job pushes at its end."""
        return f"value of job {self.number} in {self.session}"

    def all_lines(self, printed: int | None = None) -> list[str]:
        """Return the lines of the log, each with the job and its number."""
        count = self.plan.lines if printed is None else printed
        return [f"job {self.number} line {number} of {self.submission_id}" for number in range(count)]


class Cluster(cluster.Cluster):
    """A head and its jobs."""

    job_type = Job

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.is_up = True
        self.ends_are_held = False
        self._held: list[Job] = []

    def go_down(self) -> None:
        """Let the head die, and all jobs with it."""
        self.is_up = False
        self.restart()

    def come_up(self) -> None:
        self.is_up = True

    def hold_ends(self, *, held: bool) -> None:
        """Let no living job end on its own while this is on, so that an orphaned one is found."""
        self.ends_are_held = held
        if not held:
            for job in self._held:
                self._end_by_itself(job)
            self._held = []

    def _end_by_itself(self, job: Job) -> None:
        if self.ends_are_held:
            self._held.append(job)
        else:
            super()._end_by_itself(job)

    def delete_record(self, submission_id: str, *, comes_back: bool = False) -> None:
        """Delete the record of an ended job. One that comes back is FAILED and has no metadata."""
        job = self.jobs.get(submission_id)
        if job is None or job.status not in TERMINAL:
            return
        super().delete_record(submission_id)
        job.is_deleted = True
        if comes_back:
            self.jobs[submission_id] = replace(
                job,
                submission={**job.submission, "metadata": {}},
                status="FAILED",
                exit_code=None,
                message="Job supervisor actor died.",
            )

    def connect_driver(self, plan: Plan) -> Job:
        """Begin an interactive job, which only has a Ray Core job id."""
        job = Job({}, plan, self.session, self._clock.now, len(self.every_job), core_id=self._next_core_id())
        self._add(str(job.core_id), job)
        self._start(job)
        return job

    def handle(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Reply:
        if path == "/api/cluster_status":
            return Reply(200, sample("cluster_status.json").encode(), "application/json; charset=utf-8")
        return super().handle(method, path, query, body)

    def printed(self, job: Job) -> int:
        """Return how many whole lines a job has printed."""
        if job.run_at is None:
            return 0
        until = self._clock.now if job.end_time is None else job.end_time
        share = min((until - job.run_at) / job.plan.runs, 1.0) if job.plan.runs else 1.0
        return int(share * job.plan.lines + 1e-6)

    def log_of(self, job: Job) -> bytes:
        """Return the log so far. A running job is in the middle of a line. After its value it shows another one."""
        lines = job.all_lines(self.printed(job))
        text = "".join(map(_result, self.every_job[: job.number])) + "".join(f"{line}\n" for line in lines)
        if job.status == "RUNNING" and len(lines) < job.plan.lines:
            text += job.all_lines(len(lines) + 1)[-1][:9]
        if job.status == "SUCCEEDED":
            text += _result(job) + '##ray_job ffffffffffffffff result "another value"\n'
        return text.encode()

    def details_of(self, job: Job) -> dict[str, Any]:
        details = super().details_of(job)
        if job.submission_id is not None:
            return details
        kept = ("status", "start_time", "end_time", "error_type", "driver_exit_code", "job_id")
        return json.loads(sample("job_driver.json")) | {name: details[name] for name in kept}


def _result(job: Job) -> str:
    return message_line(job, "result", job.value)
