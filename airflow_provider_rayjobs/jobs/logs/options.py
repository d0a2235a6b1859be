"""What a task shows of its job's log, and the readers that do: on a worker, and in a trigger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_rayjobs.jobs.logs.reader import LogReader, ReadPolicy


@dataclass(frozen=True)
class LogOptions:
    """
    What a task shows of its job's log.

    :param fetch_logs: ``live`` as it comes, ``on_completion`` after the job's end, ``never`` not at all.
    :param lines_limit: lines that are shown at most; no limit when not given.
    :param flush_interval: seconds after which a deferred task comes back to a worker to show what has gathered; it
        does not when not given.
    """

    fetch_logs: str = "live"
    lines_limit: int | None = None
    flush_interval: float | None = None

    @property
    def is_live(self) -> bool:
        """Tell whether the log is shown while the job runs."""
        return self.fetch_logs == "live"

    def reader(self, state: Mapping[str, Any] | None = None, *, policy: ReadPolicy | None = None) -> LogReader | None:
        """
        Return a reader of the job's log; ``None`` where there is nothing for it to show.

        :param state: of another reader, to go on where it has stopped.
        :param policy: see :class:`.LogReader`.
        """
        if self.fetch_logs == "never" or (policy is not None and not self.is_live):
            return None
        return LogReader(state or None, live=self.is_live, lines_limit=self.lines_limit, policy=policy)

    def to_json(self) -> dict[str, Any]:
        """Return what may be stored with a trigger."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> LogOptions:
        """Read what :meth:`to_json` made."""
        return cls(**stored)


LOGS_OFF = LogOptions(fetch_logs="never")
