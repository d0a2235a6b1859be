"""
Read the log of a job that is followed: an engine (:mod:`..steps`) that chooses what to ask for, and how often.

=========================  =========================================  ==================================================
what is read               when                                       how it is known where it belongs
=========================  =========================================  ==================================================
the log from its start     while it is small; at the job's end        the bytes that were shown are passed over, and
                                                                      have to be the same
its last lines             a large log whose lines tell the time      :mod:`.splice`
the log from its start,    every other large log, no more often       as above
now and then               than a share of 5 % of the time allows
=========================  =========================================  ==================================================

All of them are bytes of one file, and a position means the same in each. Heads before Ray 2.47 have
the text endpoint alone, where it means something else: that is chosen before the first byte, and kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiResponseError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.logs.buffer import LogBuffer
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.head_tail import HeadTail
from airflow_provider_rayjobs.jobs.logs.splice import anchor_of, known_part, seems_unchanged
from airflow_provider_rayjobs.jobs.logs.trickle import PIECE, ReadPolicy
from airflow_provider_rayjobs.jobs.models import JobDetails, JobType
from airflow_provider_rayjobs.jobs.requests import LogRequest
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
# A log that does not grow is left alone for longer and longer: up to so many rests.
_LONGEST_SKIP = 15
# From so many bytes on, asking for the end alone is cheaper than asking for all.
LARGE = 8 * 1024 * 1024
# Bytes of a log's end that are asked for, as a number of lines. So much that it reaches back to what was shown even
# where a program has quoted thousands of its own lines since: a shorter end might hold the quotation alone.
_END_BYTES = 4 * 1024 * 1024
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


class LogReader:
    """
    Reads one job's log, again and again, so that every line is shown once.

    :param state: of another reader, to go on where it has stopped.
    :param lines_limit: see :class:`.HeadTail`; no limit when not given.
    :param live: whether the log is shown while the job runs, too.
    :param turns: of a trigger, which shows no more than they allow, and leaves the rest to a worker.
    """

    def __init__(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        lines_limit: int | None = None,
        live: bool = True,
        turns: ReadPolicy | None = None,
    ) -> None:
        self.live = live
        self._lines_limit = lines_limit
        self._turns = turns
        # reads in a row that had more to show than they were allowed
        self._cuts = 0
        # seconds of the driver's clock: when anything is read again, and when all of it is
        self._next_read = 0.0
        self._next_whole = 0.0
        self._whole_rest = 0.0
        self._skips = self._skips_left = 0
        self.restore(state)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """
        Go on where another reader has stopped, before anything is read.

        :param state: of the other one; ``None`` begins at the log's first byte.
        """
        known = state or {}
        self.log = (
            LogCursor.from_state(state)
            if self._turns is None
            else LogCursor.from_state(state, record_bytes=PIECE, meter=self._turns.take)
        )
        # where the log is read from, once that is decided; a position means nothing in another source
        self.source: str | None = known.get("source")
        self.said_no_log = bool(known.get("said_no_log"))
        self.excerpt: HeadTail | None = None
        if self._lines_limit is not None:
            self.excerpt = HeadTail(self.log, self._lines_limit, live=self.live, shown=known.get("shown", 0))
        # what was shown when the log was last known to be what it seemed
        self._proved: Mapping[str, Any] = known.get("proved", self.log.state)
        self._said = set(known.get("said", ()))
        # seconds for which the log is to be left alone after the last read, so that reading takes its share at most
        self.rest = float(known.get("rest", 0))

    def resumed(self, state: Mapping[str, Any]) -> LogReader:
        """Return a reader with the same settings that goes on where another one has stopped."""
        return LogReader(state, lines_limit=self._lines_limit, live=self.live, turns=self._turns)

    @property
    def defers_to_worker(self) -> bool:
        """Tell whether there is something to show that this reader leaves to a worker, which is to come now."""
        return self._turns is not None and self._turns.defers_to_worker and self._cuts > 0

    @property
    def state(self) -> dict[str, Any]:
        """What a reader in another process needs to go on; plain JSON."""
        return self.log.state | {
            "source": self.source,
            "shown": self.excerpt.shown if self.excerpt else 0,
            "said_no_log": self.said_no_log,
            "proved": dict(self._proved),
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
            if self._turns is None:
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
        if before < self._next_read or not (self._turns is None or self._turns.begin(before)):
            return
        self.log.is_throttled = False
        longest = _FAILED_READ
        try:
            yield from self._choose_source(details)
            # where a large log ends is of no use to whoever is far from there, or does not know yet what was shown
            if self.source == FILE and self.log.position >= LARGE and self.log.recent and not self._cuts:
                yield from self._read_large(details, before, poll_interval)
            else:
                yield from self._read_whole(details)
                yield from self._say_late(details, poll_interval)
            longest = float("inf")
        except RayApiAddressError as error:
            yield from self._fall_back(details, error)
        except RayApiBusyError as error:
            yield from self._say_once(
                "busy", f"The log of job {details.name} cannot be read for the moment; nothing of it is lost. {error}"
            )
        except RayJobsError:
            pass
        after = yield Sleep(0)
        self.rest = REST * min(after - before, longest)
        self._next_read = after + self.rest
        if self._turns is not None:
            self._cuts = self._cuts + 1 if self.log.is_throttled else 0
            self._turns.end(after, is_throttled=self.log.is_throttled)
            if self._cuts == _MANY_CUTS and not self._turns.defers_to_worker:
                yield from self._say_once(
                    "trickle",
                    f"Job {details.name} prints more than a triggerer can show: its lines come in order here, but "
                    "late. The worker that resumes this task shows all the others, at full speed.",
                )

    def _read_large(self, details: JobDetails, now: float, poll_interval: float) -> Engine[None]:
        """Show what is new in a large log, with as little reading as can be."""
        now_there = details.seen_at or 0
        has_anchor = bool(anchor_of(self.log.recent, now_there))
        if now < self._next_whole and not has_anchor:
            return
        end = LogBuffer(2 * _END_BYTES)  # a line of any length may be among the last ones
        average = len(self.log.recent) / max(self.log.recent.count(b"\n"), 1)
        lines = max(int(_END_BYTES / max(average, 1)), 1)
        yield ReadLog(endpoints.get_log_file(details.name, str(details.driver_node_id), lines), end)
        data = end.data
        known = known_part(self.log.recent, data, now_there) if end.wants_more else None
        if known is not None:
            yield from self._take(data[known:])
            return
        if now < self._next_whole:
            return
        is_idle = end.wants_more and seems_unchanged(self.log.recent, data)
        if is_idle and self._skips_left:
            # New lines that look like the old ones are rare: the proof that there are none may wait, not for ever.
            self._skips_left -= 1
            self._next_whole = now + self._whole_rest
            return
        position = self.log.position
        yield from self._read_whole(details)
        is_idle = is_idle and self.log.position == position
        self._skips = self._skips_left = min(2 * self._skips + 1, _LONGEST_SKIP) if is_idle else 0
        yield from self._say_late(details, poll_interval)

    def _say_late(self, details: JobDetails, poll_interval: float) -> Engine[None]:
        is_late = self.log.position >= LARGE and self._whole_rest > poll_interval and not self.log.is_throttled
        if is_late and not anchor_of(self.log.recent, details.seen_at or 0):
            yield from self._say_once(
                "late",
                f"The log of job {details.name} is large ({self.log.position / 1e6:.0f} MB) and has to be read "
                f"from its start each time, so new lines are shown about every {self._whole_rest:.0f} s "
                "while the job runs, and all of them at its end.",
            )

    def _take(self, data: bytes) -> Engine[None]:
        """Show bytes that were proved to follow on those that were shown."""
        sink = self._sink
        sink.begin(self.log.position)
        for record in sink.feed(data):
            yield EmitRecord(record)
        for record in sink.flush():
            yield EmitRecord(record)

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
                yield from self._read_whole(details)
                yield from self._finish(details)
                return
            except RayJobsError as error:
                is_refused = isinstance(error, RayApiResponseError) and not isinstance(error, RayApiBusyError)
                if is_refused and (yield from self._fall_back(details, error)):
                    continue
                now = yield Sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                if self.log.position > position:  # a read that was cut off, but brought something
                    since, pause = now, _FIRST_PAUSE
                is_lost = isinstance(error, RayApiConnectionError | RayApiBusyError)
                if now < since + (END_OUTAGE_TIMEOUT if is_lost else END_ERROR_TIMEOUT):
                    continue
                # such as a state API that answers too many others
                if isinstance(error, RayApiBusyError) and (yield from self._fall_back(details, error)):
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
                "somebody cut or replaced it.",
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

    def _read_whole(self, details: JobDetails) -> Engine[None]:
        """Read the log from its start, passing over what was shown."""
        before = yield Sleep(0)
        if self.source == FILE:
            yield from self._take_all(details, endpoints.get_log_file(details.name, str(details.driver_node_id)))
        else:
            yield from self._take_all(details, endpoints.get_log_text(details.name))
        after = yield Sleep(0)
        self._whole_rest = REST * (after - before)
        self._next_whole = after + self._whole_rest

    def _take_all(self, details: JobDetails, request: LogRequest) -> Engine[None]:
        """Take all bytes of a read; if they are not those that were shown, show the log anew from where they were."""
        yield ReadLog(request, self._sink)
        if not self.log.is_mismatch:
            self._proved = self.log.state
        else:
            since = self._proved if self._proved["position"] < self.log.position else None
            yield LogMessage(
                f"The log of job {details.name} does not begin with the {self.log.position} bytes that were shown of "
                "it: somebody cut or replaced it, or its end was mistaken. It is shown again from byte "
                f"{since['position'] if since else 0} on.",
                logging.WARNING,
            )
            self.log = self.log.restarted(since)
            self._proved = LogCursor().state
            if self.excerpt is not None:
                self.excerpt.log = self.log
            yield from self._read_whole(details)

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
        if isinstance(error, RayApiAddressError | RayApiBusyError):
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
