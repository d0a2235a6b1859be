"""The jobs of a cluster that have ended, out of the list of all its jobs."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from airflow_provider_rayjobs.jobs.endpoints import JobRecords
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus

# Records that are looked at before other coroutines get a turn, about 1 ms.
_AT_ONCE = 500


class _Summary(msgspec.Struct):
    status: str
    submission_id: str | None = None
    job_id: str | None = None
    start_time: int | None = None
    end_time: int | None = None


_read_summary = msgspec.json.Decoder(_Summary).decode


@dataclass(frozen=True)
class EndedJob:
    """
    A job that has ended.

    :param name: the submission id, or the Ray Core job id of an interactive job.
    :param started_at: Unix milliseconds. With the name it identifies the job, as Ray gives an id again.
    :param ended_at: Unix milliseconds, by the clock of the job's node.
    """

    name: str
    started_at: int
    ended_at: int
    _record: msgspec.Raw

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.started_at

    def details(self) -> JobDetails:
        """
        Decode the whole record.

        :raises ValueError: the record is broken.
        """
        return JobDetails.from_json(msgspec.json.decode(self._record))


async def find_ended(records: JobRecords) -> list[EndedJob]:
    """Return the jobs that have ended, in the order of their ends. Records that cannot be read are left out."""
    found: dict[tuple[str, int], EndedJob] = {}
    for number, record in enumerate(records.by_id.values(), start=1):
        with suppress(msgspec.DecodeError):
            summary = _read_summary(record)
            name, started = summary.submission_id or summary.job_id, summary.start_time or 0
            if name and JobStatus(summary.status).is_terminal():
                job = EndedJob(name, started, summary.end_time or started, record)
                found[job.key] = job
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return sorted(found.values(), key=lambda job: job.ended_at)


# Milliseconds for which a job may be found after its end. Clocks of nodes differ, and Ray writes an end some time after
# it.
SLACK = 600_000


class EndedMemory:
    """
    Tells which ended jobs are new.

    A job is new if it has ended since a moment and was not found yet. The moment lags :data:`SLACK` behind the earlier
    of the last two lists.

    :param since: the moment, Unix milliseconds.
    :param taken: the jobs that have ended since then and were taken, with the times of their ends.
    """

    def __init__(self, since: int, taken: Mapping[tuple[str, int], int]) -> None:
        self.since = since
        self._taken = dict(taken)
        self._last_time: int | None = None
        # all jobs in the last list: whatever its time, none of them is new any more
        self._listed: set[tuple[str, int]] = set()

    @classmethod
    def starting(cls, time: int) -> Self:
        """Return an empty memory that begins with a list of this time."""
        return cls(time - SLACK, {})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(stored["since"], {(name, started): ended for name, started, ended in stored["taken"]})

    @classmethod
    def merged(cls, memories: Sequence[Self]) -> Self:
        """Return a memory of what any of these has taken."""
        taken: dict[tuple[str, int], int] = {}
        for each in memories:
            taken |= each._taken  # noqa: SLF001
        return cls(max(each.since for each in memories), taken)

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored. It stays valid until the next job is taken."""
        return {
            "version": 1,
            "since": self.since,
            "taken": [[*key, ended] for key, ended in self._taken.items() if ended >= self.since],
        }

    def find_new(self, jobs: Sequence[EndedJob], time: int) -> list[EndedJob]:
        """Return the new ones of all ended jobs in a list of this time."""
        first = bisect_left(jobs, self.since, key=lambda job: job.ended_at)
        new = [job for job in jobs[first:] if job.key not in self._listed and job.key not in self._taken]
        if self._last_time is not None:
            # two lists in a row must tell a time: a single wrong one would hide jobs, or repeat them
            if (latest := max(self._last_time, time)) < self.since:
                self.since = latest - SLACK
            else:
                self.since = max(self.since, min(self._last_time, time) - SLACK)
        self._last_time = time
        self._listed = {job.key for job in jobs}
        return new

    def take(self, job: EndedJob) -> None:
        """Note that a new job was wanted."""
        self._taken = {key: ended for key, ended in self._taken.items() if ended >= self.since}
        self._taken[job.key] = job.ended_at
