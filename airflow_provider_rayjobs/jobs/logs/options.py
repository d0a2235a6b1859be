"""The user's choice when to show a job's log, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from airflow_provider_rayjobs.jobs.logs.reader import LogReader, ReadPolicy


@dataclass(frozen=True)
class LogOptions:
    """
    When a job's log is shown, and how many lines of it.

    :param fetch_logs: ``live`` shows it while the job runs, ``on_completion`` after its end, ``never`` not at all.
    :param lines_limit: most lines that are shown; no limit when not given.
    :param flush_interval: seconds after which :func:`.follow_job` returns at new lines; another process shows them.
    """

    fetch_logs: str = "live"
    lines_limit: int | None = None
    flush_interval: float | None = None

    def reader(
        self, state: Mapping[str, Any] | None = None, *, policy: ReadPolicy | None = None, messages: bool = False
    ) -> LogReader | None:
        """
        Return a :class:`.LogReader` with these options; ``None`` if there is nothing to read.

        :param messages: whether the messages of the job's program are needed, even if no line is shown.
        """
        is_live = self.fetch_logs == "live"
        if policy is not None and not is_live:
            return None
        if self.fetch_logs == "never":
            return LogReader(state, live=False, lines_limit=0) if messages else None
        return LogReader(state, live=is_live, lines_limit=self.lines_limit, policy=policy)

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> LogOptions:
        """Read the result of :meth:`to_json`. Ignore the keys of other versions."""
        return cls(**{each.name: stored[each.name] for each in fields(cls) if each.name in stored})


LOGS_OFF = LogOptions(fetch_logs="never")
