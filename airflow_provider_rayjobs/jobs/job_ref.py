"""
Which job is meant.

An id is not enough. After a restart of its head, Ray gives a Ray Core job id to another job, and accepts a submission
id again. So every answer about a job is compared with a :class:`JobRef`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.submission import NONCE


@dataclass(frozen=True)
class JobRef:
    """
    One job of one cluster.

    :param address: where the job was submitted or first seen.
    :param submission_id: its submission id, or the Ray Core job id of an interactive job.
    :param session: the Ray session of that cluster; ``None`` if unknown, or if the head has no session names.
    :param nonce: the submission nonce in the job's metadata; ``None`` if unknown, or for a job of another client.
    :param start_time: Ray's start time of the job, Unix milliseconds; ``None`` before its first poll.
    """

    address: str
    submission_id: str
    session: str | None = None
    nonce: str | None = None
    start_time: int | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read the result of :meth:`to_json`. Ignore the keys of later versions."""
        return cls(**{each.name: stored[each.name] for each in fields(cls) if each.name in stored})

    def to_json(self) -> dict[str, Any]:
        """Return the reference as JSON types."""
        return asdict(self)

    def is_same(self, details: JobDetails) -> bool:
        """Tell whether an answer is about this job. It has the same id, which alone does not tell."""
        if self.nonce is not None:  # unique, so nothing else needs to be compared
            return details.metadata.get(NONCE) == self.nonce
        return self.start_time is None or details.start_time == self.start_time

    def is_in(self, session: str | None) -> bool:
        """Tell whether the job may be in a Ray session."""
        return self.session is None or session == self.session

    def seen(self, details: JobDetails, session: str | None = None) -> Self:
        """Return the reference completed by an answer about this job."""
        return replace(
            self,
            session=self.session or session,
            nonce=self.nonce or details.metadata.get(NONCE),
            start_time=self.start_time or details.start_time,
        )
