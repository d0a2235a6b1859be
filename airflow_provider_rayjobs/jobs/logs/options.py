"""What is shown of a job's log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_rayjobs.jobs.logs.reader import LogReader, ReadPolicy


@dataclass(frozen=True)
class LogOptions:
    """
    What is shown of a job's log.

    :param fetch_logs: ``live`` shows it while the job runs, ``on_completion`` after its end, ``never`` not at all.
    :param lines_limit: most lines that are shown; no limit when not given.
    :param flush_interval: seconds after which a caller that cannot show new lines well stops following, so that another
        one shows them; never when not given.
    """

    fetch_logs: str = "live"
    lines_limit: int | None = None
    flush_interval: float | None = None

    def reader(self, state: Mapping[str, Any] | None = None, *, policy: ReadPolicy | None = None) -> LogReader | None:
        """Return a :class:`.LogReader` with these options; ``None`` if it had nothing to show."""
        is_live = self.fetch_logs == "live"
        if self.fetch_logs == "never" or (policy is not None and not is_live):
            return None
        return LogReader(state, live=is_live, lines_limit=self.lines_limit, policy=policy)

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> LogOptions:
        """Read what :meth:`to_json` returned."""
        return cls(**stored)


LOGS_OFF = LogOptions(fetch_logs="never")
