"""
Read the log of a job that is followed: an engine (:mod:`..steps`) that chooses what to ask for, and how often.

The log is always read from its start. The bytes that were shown before are passed over and compared by their
checksum; a log with other bytes was replaced, and is shown again from its start. After a read the log is left
alone for 24 times as long as the read took.

The log comes from the file endpoint. Heads before Ray 2.47 have the text endpoint alone, where a position
means something else: that is chosen before the first byte, and kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiConnectionError,
    RayApiResponseError,
    RayApiUnavailableError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.head_tail import HeadTail
from airflow_provider_rayjobs.jobs.models import JobDetails, JobType
from airflow_provider_rayjobs.jobs.steps import EmitRecord, Engine, LogMessage, ReadLog, Sleep, send

# The places that a log is read from, as a position of one is remembered.
FILE = "file"
TEXT = "text"
# The state API's file endpoint changed its form between 2.44 and 2.47: older heads prefix each chunk of the
# body.
FILE_ENDPOINT_SINCE = (2, 47)

# A read of the log takes the head's and the worker's time in proportion to the log. Waiting 24 times as long
# as the last read took keeps that share at 4 %, whatever the log's size.
REST = 24
# From so many bytes on it is said once if a running job's lines come later than at the next poll.
LARGE = 8 * 1024 * 1024
# Seconds that a read that failed counts for at most.
_FAILED_READ = 1.0
# A job whose turns were cut short so many times in a row prints more than its share, and no mere burst.
_MANY_CUTS = 3
# Seconds to go on asking for the log of a job that has ended: when no answer comes, and when it is an error. That is
# mostly final (the node is gone), but a head that is being restarted also says so for a moment.
END_OUTAGE_TIMEOUT = 60.0
END_ERROR_TIMEOUT = 5.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 10.0


class ReadPolicy(Protocol):
    """When a reader may read the log of a running job, and how much of it it may show."""

    @property
    def record_bytes(self) -> int:
        """Bytes of the log in one record."""

    @property
    def hands_over(self) -> bool:
        """Whether the caller stops following and shows the log itself as soon as there is something to show."""

    def begin(self, now: float) -> bool:
        """Tell whether the log may be read now."""

    def take(self, record: bytes) -> bool:
        """Tell whether a record may be shown; if so, it is shown."""

    def end(self, *, is_throttled: bool) -> None:
        """Take note that the read is over, and whether it had more to show than it was allowed."""


class LogReader:
    """
    Reads one job's log, again and again, so that every line is shown once.

    :param state: of another reader, to go on where it has stopped.
    :param lines_limit: see :class:`.HeadTail`; no limit when not given.
    :param live: whether the log is shown while the job runs, too.
    :param policy: limits what is shown while the job runs; nothing is shown after its end.
    """

    def __init__(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        lines_limit: int | None = None,
        live: bool = True,
        policy: ReadPolicy | None = None,
    ) -> None:
        self.live = live
        self._lines_limit = lines_limit
        self._policy = policy
        # reads in a row that had more to show than they were allowed
        self._cuts = 0
        # seconds of the driver's clock
        self._next_read = 0.0
        self.restore(state)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """
        Go on where another reader has stopped, before anything is read.

        :param state: of the other one; ``None`` begins at the log's first byte.
        """
        known = state or {}
        self.log = (
            LogCursor.from_state(state)
            if self._policy is None
            else LogCursor.from_state(state, record_bytes=self._policy.record_bytes, meter=self._policy.take)
        )
        # where the log is read from, once that is decided; a position means nothing in another source
        self.source: str | None = known.get("source")
        self.said_no_log = bool(known.get("said_no_log"))
        self.excerpt: HeadTail | None = None
        if self._lines_limit is not None:
            self.excerpt = HeadTail(self.log, self._lines_limit, live=self.live, shown=known.get("shown", 0))
        self._said = set(known.get("said", ()))
        # seconds for which the log is to be left alone after the last read, so that reading takes its share at most
        self.rest = float(known.get("rest", 0))

    def resumed(self, state: Mapping[str, Any]) -> LogReader:
        """Return a reader with the same settings that goes on where another one has stopped."""
        return LogReader(state, lines_limit=self._lines_limit, live=self.live, policy=self._policy)

    @property
    def hands_over(self) -> bool:
        """Tell whether the caller is to stop following and to show the log itself: there is something to show."""
        return self._policy is not None and self._policy.hands_over and self._cuts > 0

    @property
    def state(self) -> dict[str, Any]:
        """What a reader in another process needs to go on; plain JSON."""
        return self.log.state | {
            "source": self.source,
            "shown": self.excerpt.shown if self.excerpt else 0,
            "said_no_log": self.said_no_log,
            "said": sorted(self._said),
            "rest": self.rest,
        }

    def read(self, details: JobDetails, poll_interval: float = 0.0) -> Engine[None]:
        """
        Show what is new in the log of a job that was just looked at.

        :param poll_interval: seconds within which lines are expected to be shown; if they cannot be, that is said.
        """
        if details.type == JobType.DRIVER:
            if not self.said_no_log:
                self.said_no_log = True
                yield LogMessage(
                    f"Job {details.name} was started interactively (type DRIVER): Ray's Jobs API has no log of it. "
                    "Its output goes to the terminal, or wherever its driver runs."
                )
        elif details.driver_node_id is None:
            pass  # not started, or never: there is no file yet, and Ray's message says why
        elif details.status.is_terminal():
            if self._policy is None:
                yield from self._read_to_end(details)
        elif self.live:
            yield from self._read_more(details, poll_interval)

    # -- while the job runs ---------------------------------------------------------------------------------------

    def _read_more(self, details: JobDetails, poll_interval: float) -> Engine[None]:
        """
        Show what a running job has printed since the last read, unless it is too early for the next one.

        A failure is passed over: the next read, or the one after the job's end, makes up for it.
        """
        if self.excerpt is not None and self.excerpt.is_waiting:
            yield from self._say_once(
                "limit",
                f"{self.excerpt.shown} lines of the log of job {details.name} are shown as they come, as "
                f"log_lines_limit is {self.excerpt.limit}; its last ones follow when the job has ended.",
            )
            return
        before = yield Sleep(0)
        if before < self._next_read or not (self._policy is None or self._policy.begin(before)):
            return
        self.log.is_throttled = False
        longest = _FAILED_READ
        try:
            yield from self._choose_source(details)
            yield from self._read_log(details)
            longest = float("inf")
        except RayApiAddressError as error:
            yield from self._fall_back(details, error)
        except RayApiUnavailableError as error:
            yield from self._say_once(
                "busy", f"The log of job {details.name} cannot be read for the moment; nothing of it is lost. {error}"
            )
        except RayJobsError:
            pass
        after = yield Sleep(0)
        self.rest = REST * min(after - before, longest)
        self._next_read = after + self.rest
        if longest > _FAILED_READ and self.log.position >= LARGE and self.rest > poll_interval:
            yield from self._say_late(details)
        if self._policy is not None:
            self._cuts = self._cuts + 1 if self.log.is_throttled else 0
            self._policy.end(is_throttled=self.log.is_throttled)
            if self._cuts == _MANY_CUTS and not self._policy.hands_over:
                yield from self._say_once(
                    "trickle",
                    f"Job {details.name} prints more than a triggerer can show: its lines come in order here, but "
                    "late. The worker that resumes this task shows all the others, at full speed.",
                )

    def _say_late(self, details: JobDetails) -> Engine[None]:
        if not self.log.is_throttled:
            yield from self._say_once(
                "late",
                f"The log of job {details.name} is large ({self.log.position / 1e6:.0f} MB) and is read from its "
                f"start each time, so new lines are shown about every {self.rest:.0f} s while the job runs, and all "
                "of them at its end.",
            )

    # -- when it has ended ----------------------------------------------------------------------------------------

    def _read_to_end(self, details: JobDetails) -> Engine[None]:
        """Show all that is left of the log of a job that has ended; what cannot be had is said, never fatal."""
        if self.excerpt is not None:
            self.excerpt.is_ending = True
        since = yield Sleep(0)
        pause = _FIRST_PAUSE
        while True:
            position = self.log.position
            try:
                yield from self._choose_source(details)
                yield from self._read_log(details)
                yield from self._finish(details)
                return
            except RayJobsError as error:
                is_refused = isinstance(error, RayApiResponseError) and not isinstance(error, RayApiUnavailableError)
                if is_refused and (yield from self._fall_back(details, error)):
                    continue
                now = yield Sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                if self.log.position > position:  # a read that was cut off, but brought something
                    since, pause = now, _FIRST_PAUSE
                is_lost = isinstance(error, RayApiConnectionError | RayApiUnavailableError)
                if now < since + (END_OUTAGE_TIMEOUT if is_lost else END_ERROR_TIMEOUT):
                    continue
                # such as a state API that answers too many others
                if isinstance(error, RayApiUnavailableError) and (yield from self._fall_back(details, error)):
                    continue
                yield LogMessage(
                    f"The log of job {details.name} is not complete here: {self.log.position} bytes were shown, the "
                    f"rest cannot be read. The file is {_place_of(details)}. {error}",
                    logging.WARNING,
                )
                return

    def _finish(self, details: JobDetails) -> Engine[None]:
        if self.log.read_to < self.log.position:
            yield LogMessage(
                f"The log of job {details.name} has fewer bytes now than the {self.log.position} that were shown: "
                "it was cut or replaced.",
                logging.WARNING,
            )
        records = self.log.finish() if self.excerpt is None else self.excerpt.finish()
        for number, record in enumerate(records):
            if number == 0 and self.excerpt is not None and self.excerpt.left_out:
                yield LogMessage(
                    f"{self.excerpt.left_out} lines of the log were left out here, as log_lines_limit is "
                    f"{self.excerpt.limit}; its last ones follow. The whole log is {_place_of(details)}, and "
                    "RayJobsHook.save_job_logs writes it to a file."
                )
            yield EmitRecord(record)

    # -- what both are made of ------------------------------------------------------------------------------------

    @property
    def _sink(self) -> LogCursor | HeadTail:
        return self.log if self.excerpt is None else self.excerpt

    def _read_log(self, details: JobDetails) -> Engine[None]:
        """Read the log and show what is new; all of it if it does not begin with what was shown."""
        if self.source == FILE:
            request = endpoints.get_log_file(details.name, str(details.driver_node_id))
        else:
            request = endpoints.get_log_text(details.name)
        yield ReadLog(request, self._sink)
        if self.log.is_mismatch:
            yield LogMessage(
                f"The log of job {details.name} does not begin with the {self.log.position} bytes that were shown of "
                "it: it was cut or replaced. It is shown again from its start.",
                logging.WARNING,
            )
            self.log.restart()
            yield ReadLog(request, self._sink)

    def _choose_source(self, details: JobDetails) -> Engine[None]:
        if self.source is None:
            self.source = yield from best_source(details)
            if self.source == TEXT:
                yield from self._say_once(
                    "text",
                    f"The log of job {details.name} is read as text, as this head's Ray is too old to give the file.",
                )

    def _fall_back(self, details: JobDetails, error: RayJobsError) -> Engine[bool]:
        """Read the text instead of the file; only before the first byte, as a position means something else in it."""
        if self.source != FILE or self.log.position:
            return False
        self.source = TEXT
        if isinstance(error, RayApiAddressError | RayApiUnavailableError):
            yield from self._say_once(
                "text", f"The log of job {details.name} is read as text, as the head does not give the file. {error}"
            )
        return True

    def _say_once(self, what: str, message: str) -> Engine[None]:
        if what not in self._said:
            self._said.add(what)
            yield LogMessage(message)


def best_source(details: JobDetails, retry_timeout: float = 0.0) -> Engine[str]:
    """Choose where a log is read from: the file as it is, or its text where the head is too old for that."""
    if details.driver_node_id is None:
        return TEXT
    try:
        version = yield from send(endpoints.get_version(), retry_timeout)
    except RayApiAddressError:
        return TEXT
    return FILE if version.release() >= FILE_ENDPOINT_SINCE else TEXT


def _place_of(details: JobDetails) -> str:
    return f"{endpoints.log_name(details.name)} in Ray's log directory on node {details.driver_node_id}"
