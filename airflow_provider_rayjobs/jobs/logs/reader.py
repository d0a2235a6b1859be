"""
Read the log of a followed job, and show every line once: an engine (:mod:`..steps`).

- Ray cannot send a log from an offset on. So each read asks for the whole log, from its first byte.
- :class:`.LogCursor` skips the bytes before the log offset and verifies their checksum. The reader shows the bytes
  after it and moves the offset. An interrupted read loses nothing.
- A wrong checksum means that the log was cut or replaced. The reader logs a warning and shows the log from its start.
- While the job runs, a read has a deadline: ``poll_interval``, and no later than the job's next time limit. If a read
  shows nothing new in that time, the next one has twice as long, up to a minute.
- After a read the reader rests for 24 times as long as the read took, so that reading takes 4 % of the time.
- After the job's end the reader retries until a read is complete. Then it also shows a last line without a newline. If
  the reads make no progress, it shows the last lines.
- A reader in another process continues from :attr:`LogReader.state`.
- The messages of the job's program (:mod:`.messages`) are not shown. The reader shows its progress every 10 s at most.

Heads since Ray 2.47 send the log file, older ones only its text. Their offsets differ, so the reader chooses one source
before it shows the first byte, and keeps it.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiResponseError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.logs.cursor import RECORD_BYTES, LogCursor
from airflow_provider_rayjobs.jobs.logs.head_tail import HeadTail
from airflow_provider_rayjobs.jobs.logs.messages import JobMessages, MessageFilter, Progress, without_messages
from airflow_provider_rayjobs.jobs.logs.tail import TAIL_LINES, LogTail
from airflow_provider_rayjobs.jobs.models import JobDetails, JobType
from airflow_provider_rayjobs.jobs.steps import EmitRecord, Engine, LogMessage, ReadLog, Sleep, retry_pause, send
from airflow_provider_rayjobs.jobs.submission import NONCE

# The sources of a log.
FILE = "file"
TEXT = "text"
# Between 2.44 and 2.47 the state API's file endpoint changed: older heads prefix each chunk of the body.
FILE_ENDPOINT_SINCE = (2, 47)
# The key of the notice that a job has no log.
NO_LOG = "no log"

# A read takes the head's and the reader's time in proportion to the log. A rest of 24 times as long keeps that at 4 %.
REST = 24
# Bytes of a log from which on a notice explains late lines by its size.
LARGE = 8 * 1024 * 1024
# Fewest and most seconds for a read while the job runs. A log of 600 MB is read in a minute at 10 MB/s.
MIN_READ_TIMEOUT = 1.0
MAX_READ_TIMEOUT = 60.0
# Reads in a row that are cut off before a notice. A single one may be a lost connection.
_MANY_CUT_READS = 2
# Throttled reads in a row before a notice. Fewer may be a short burst.
_MANY_THROTTLED_READS = 3
# Fewest seconds between two progress messages.
PROGRESS_INTERVAL = 10.0
# Seconds of retries after the job's end: without an answer, and with an error answer. Most error answers are final, for
# example if the node is gone, but a restarting head sends them as well.
END_OUTAGE_TIMEOUT = 60.0
END_ERROR_TIMEOUT = 5.0
_TAIL_TIMEOUT = 30.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 10.0


class ReadPolicy(Protocol):
    """
    When a reader may read the log of a running job, and which records it may show.

    ``record_bytes``
        bytes of the log in one record.
    ``hands_over``
        whether :func:`.follow_job` returns as soon as there are new lines, so that another process shows them.
    ``notice``
        last sentence of the message about a job that prints more than may be shown; no message if empty.
    """

    record_bytes: int
    hands_over: bool
    notice: str

    def begin(self, now: float) -> bool:
        """Tell whether the log may be read now."""

    def take(self, record: bytes) -> bool:
        """Tell whether the reader may show a record. If so, it does."""

    def end(self, *, is_throttled: bool) -> None:
        """End a read; ``is_throttled`` if a record was refused."""


class LogReader:
    """
    Reads one job's log.

    :param state: of the reader to continue.
    :param lines_limit: see :class:`.HeadTail`; no limit when not given. With 0 lines the reader only reads messages.
    :param live: whether the log is shown while the job runs; otherwise after its end.
    :param policy: limits the records shown while the job runs. With a policy, no record is shown after the job's end.
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
        self._throttled_reads = 0
        self._cut_reads = 0
        # in seconds of the driver's clock
        self._next_read = 0.0
        # why the log could not be read to its end
        self.end_error: RayJobsError | None = None
        self.restore(state)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from the state of another reader, ``None`` for the log's start. Only before the first read."""
        known = state or {}
        policy = self._policy
        self.log = LogCursor(
            known.get("offset", 0),
            known.get("checksum", 0),
            record_bytes=policy.record_bytes if policy else RECORD_BYTES,
            may_show=policy.take if policy else None,
        )
        self._limiter: HeadTail | None = None
        if self._lines_limit is not None:
            self._limiter = HeadTail(self.log, self._lines_limit, live=self.live, shown=known.get("lines_shown", 0))
        self._sink = MessageFilter(self._limiter or self.log)
        self.source: str | None = known.get("source")
        # keys of the notices that were logged, so that none is repeated
        self.notices = set(known.get("notices", ()))
        # seconds to wait between the last read and the next one
        self.rest = float(known.get("rest", 0))
        # seconds for a read; grows while reads show nothing new
        self._read_timeout = float(known.get("read_timeout", 0))
        # the checksum of the progress that was shown last, and when, Unix milliseconds of the head's clock
        self._shown_progress = int(known.get("progress", 0))
        self._shown_at = int(known.get("progress_at", 0))

    @property
    def state(self) -> dict[str, Any]:
        """Plain JSON from which a reader in another process continues."""
        return {
            "version": 1,
            "offset": self.log.offset,
            "checksum": self.log.checksum,
            "source": self.source,
            "lines_shown": self._limiter.shown if self._limiter else 0,
            "notices": sorted(self.notices),
            "rest": self.rest,
            "read_timeout": self._read_timeout,
            "progress": self._shown_progress,
            "progress_at": self._shown_at,
        }

    @property
    def messages(self) -> JobMessages:
        """The messages in the log, as of the last complete read; the progress is that of any read."""
        return replace(self._sink.messages, progress=self._sink.progress)

    @property
    def progress(self) -> Progress | None:
        """The last progress that any read has found."""
        return self._sink.progress

    @property
    def hands_over(self) -> bool:
        """Tell whether new lines wait for another process; see :class:`ReadPolicy`."""
        return self._policy is not None and self._policy.hands_over and self._throttled_reads > 0

    def read(self, details: JobDetails, poll_interval: float = 0.0, remaining: float = float("inf")) -> Engine[None]:
        """
        Show the new lines of a job's log.

        :param details: the job as polled just now.
        :param poll_interval: seconds; a read should take no longer. 0 for a caller without a next poll.
        :param remaining: seconds until the next time limit of the job expires; a read takes no longer.
        """
        self._sink.nonce = details.metadata.get(NONCE)
        if details.type == JobType.DRIVER:
            yield from self._notify_once(
                NO_LOG,
                f"Job {details.name} was started interactively (type DRIVER): Ray's Jobs API has no log of it. Its "
                "output is where its driver runs.",
            )
        elif details.driver_node_id is None:
            pass  # the job has not started, so there is no file; if it never did, Ray's message says why
        elif details.status.is_terminal():
            if self._policy is None:
                yield from self._read_to_end(details)
        elif self.live:
            yield from self._read_running(details, poll_interval, remaining)

    # -- while the job runs ---------------------------------------------------------------------------------------

    def _read_running(self, details: JobDetails, poll_interval: float, remaining: float) -> Engine[None]:
        if self._limiter is not None and self._limiter.is_waiting:
            yield from self._notify_once(
                "limit",
                f"The first {self._limiter.shown} lines of the log of job {details.name} were shown. As "
                f"log_lines_limit is {self._limiter.limit}, the last ones follow when the job has ended.",
            )
            return
        began = yield Sleep(0)
        if began < self._next_read or (self._policy is not None and not self._policy.begin(began)):
            return
        timeout = min(max(poll_interval or MAX_READ_TIMEOUT, self._read_timeout), remaining)
        timeout = max(timeout, MIN_READ_TIMEOUT)
        offset, self.log.bytes_read, self.log.is_throttled = self.log.offset, 0, False
        error = yield from self._try_read(details, timeout)
        ended = yield Sleep(0)
        took = ended - began
        self.rest = max(REST * took, error.retry_after if isinstance(error, RayApiBusyError) else 0)
        self._next_read = ended + self.rest
        if took > 0.9 * timeout and self.log.bytes_read and self.log.offset == offset:
            self._read_timeout = min(2 * timeout, MAX_READ_TIMEOUT)
        self._throttled_reads = self._throttled_reads + 1 if self.log.is_throttled else 0
        yield from self._show_progress(details.seen_at or 0)
        if self._policy is not None:
            self._policy.end(is_throttled=self.log.is_throttled)
        yield from self._notify_of_cut(details, error, took)
        yield from self._notify_of_delay(details, is_large=error is None and self.rest > poll_interval)

    def _try_read(self, details: JobDetails, timeout: float) -> Engine[RayJobsError | None]:
        """Read the log, and return the error if that failed. A later read then shows the lines."""
        try:
            yield from self._choose_source(details, timeout)
            yield from self._read_log(details, timeout)
        except RayJobsError as error:
            if isinstance(error, RayApiAddressError):
                yield from self._fall_back(details, error)
            elif isinstance(error, RayApiBusyError):
                yield from self._notify_once(
                    "busy",
                    f"The log of job {details.name} cannot be read for the moment; nothing of it is lost. {error}",
                )
            return error
        return None

    def _show_progress(self, now: int) -> Engine[None]:
        record = f"Progress: {self._sink.progress}"
        checksum = zlib.crc32(record.encode())
        if self._sink.progress is None or checksum == self._shown_progress:
            return
        if 0 < now < self._shown_at + PROGRESS_INTERVAL * 1000:
            return
        if self._policy is None or self._policy.take(record.encode()):
            self._shown_progress, self._shown_at = checksum, now
            yield EmitRecord(record)

    def _notify_of_cut(self, details: JobDetails, error: RayJobsError | None, took: float) -> Engine[None]:
        """Log a notice if reads in a row were cut off after a part of the log."""
        is_cut = isinstance(error, RayApiConnectionError) and self.log.bytes_read > 0
        self._cut_reads = self._cut_reads + 1 if is_cut else 0
        if self._cut_reads >= _MANY_CUT_READS:
            yield from self._notify_once(
                "cut",
                f"The log of job {details.name} cannot be read to its end while the job runs: the last read was cut "
                f"off after {took:.0f} s, at byte {self.log.bytes_read}. Each read begins at the first byte, so lines "
                "beyond that point are shown late, or after the job's end. If a load balancer limits the time of an "
                f"answer, raise that limit. {error}",
            )

    def _notify_of_delay(self, details: JobDetails, *, is_large: bool) -> Engine[None]:
        if self._policy is not None and self._policy.notice and self._throttled_reads >= _MANY_THROTTLED_READS:
            yield from self._notify_once(
                "throttled",
                f"Job {details.name} prints more than can be shown while it runs. Its lines are shown in order, but "
                f"late. {self._policy.notice}",
            )
        elif is_large and self.log.offset >= LARGE and not self.log.is_throttled:
            yield from self._notify_once(
                "large",
                f"The log of job {details.name} is large ({self.log.offset / 1e6:.0f} MB) and is read from its start "
                f"each time. New lines are shown about every {self.rest:.0f} s while the job runs, and all of them at "
                "its end.",
            )

    # -- after the job's end --------------------------------------------------------------------------------------

    def _read_to_end(self, details: JobDetails) -> Engine[None]:
        """Show the rest of the log after the job's end. An unreadable log is a warning, not an error."""
        if self._limiter is not None:
            self._limiter.is_ending = True
        since = yield Sleep(0)
        pause = _FIRST_PAUSE
        while True:
            offset = self.log.offset
            try:
                yield from self._choose_source(details)
                yield from self._read_log(details)
                break
            except RayJobsError as failure:
                error = failure
            is_busy = isinstance(error, RayApiBusyError)
            is_answer = isinstance(error, RayApiResponseError)
            if is_answer and not is_busy and (yield from self._fall_back(details, error)):
                continue
            now = yield Sleep(retry_pause(pause, error))
            pause = min(pause * 2, _LONGEST_PAUSE)
            if self.log.offset > offset:  # the interrupted read made progress
                since, pause = now, _FIRST_PAUSE
            is_outage = is_busy or isinstance(error, RayApiConnectionError)
            if now < since + (END_OUTAGE_TIMEOUT if is_outage else END_ERROR_TIMEOUT):
                continue
            if is_busy and (yield from self._fall_back(details, error)):
                continue
            yield from self._show_tail(details, error)
            return
        yield from self._finish(details)

    def _show_tail(self, details: JobDetails, error: RayJobsError) -> Engine[None]:
        """Show the last lines of a log that cannot be read to its end, after a warning about the missing ones."""
        self.end_error = error
        self._sink.messages.result = None  # the last one may be in the missing bytes
        missing = f"The log of job {details.name} is not complete here: {self.log.offset} bytes were shown"
        location = f"The file is {_location_of(details)}. {error}"
        tail = LogTail(TAIL_LINES)
        try:
            if self.source != FILE:
                raise error
            request = endpoints.get_log_file(details.name, str(details.driver_node_id), TAIL_LINES)
            yield ReadLog(replace(request, deadline=_TAIL_TIMEOUT), tail)
        except RayJobsError:
            yield LogMessage(f"{missing}, the rest cannot be read. {location}", logging.WARNING)
            if self._limiter is not None:
                yield from self._show_last(details, list(self._limiter.kept()))
            return
        if tail.is_whole_log:
            self._sink.begin()
            for record in self._sink.feed(tail.data):
                yield EmitRecord(record)
            if not self.log.is_mismatch:
                self.end_error = None
                yield from self._finish(details)
                return
        yield LogMessage(
            f"{missing}, and the rest cannot be read from there. Its last lines follow. The bytes between byte "
            f"{self.log.offset} and these lines are missing, unless the lines repeat what was shown. {location}",
            logging.WARNING,
        )
        self.log.finish_with(without_messages(tail.data))
        last_lines: LogCursor | HeadTail = LogCursor()
        if self._limiter is not None:
            last_lines = HeadTail(LogCursor(), self._limiter.limit - self._limiter.shown, live=False)
            last_lines.is_ending = True
        ending = MessageFilter(last_lines)
        ending.nonce = self._sink.nonce
        records = [*ending.feed(tail.data), *ending.finish()]
        if ending.messages.result or ending.messages.failure:
            self._sink.messages = ending.messages
        for record in records:
            yield EmitRecord(record)

    def _finish(self, details: JobDetails) -> Engine[None]:
        """Show the last records after a complete read."""
        if self.log.bytes_read < self.log.offset:
            yield LogMessage(
                f"The log of job {details.name} has fewer bytes now than the {self.log.offset} that were shown: it was "
                "cut or replaced.",
                logging.WARNING,
            )
        yield from self._show_last(details, list(self._sink.finish()))

    def _show_last(self, details: JobDetails, records: list[str]) -> Engine[None]:
        """Show the last records, after a notice about the lines that the limit left out."""
        if self._limiter is not None and self._limiter.limit and self._limiter.left_out:
            yield LogMessage(
                f"{self._limiter.left_out} lines of the log were left out here, as log_lines_limit is "
                f"{self._limiter.limit}; its last ones follow. The whole log is {_location_of(details)}, and "
                "save_job_logs of the hook or client writes it to a file."
            )
        for record in records:
            yield EmitRecord(record)

    # -- both -----------------------------------------------------------------------------------------------------

    def _read_log(self, details: JobDetails, timeout: float | None = None) -> Engine[None]:
        """Read the log and show its new lines. If the log was replaced, read it again and show it from its start."""
        if self.source == FILE:
            request = endpoints.get_log_file(details.name, str(details.driver_node_id))
        else:
            request = endpoints.get_log_text(details.name)
        request = replace(request, deadline=timeout)
        yield ReadLog(request, self._sink)
        if self.log.is_mismatch:
            yield LogMessage(
                f"The log of job {details.name} no longer begins with the {self.log.offset} bytes that were shown: "
                "it was cut or replaced. It is shown again from its start.",
                logging.WARNING,
            )
            self.log.restart()
            yield ReadLog(request, self._sink)

    def _choose_source(self, details: JobDetails, timeout: float = MAX_READ_TIMEOUT) -> Engine[None]:
        if self.source is None:
            self.source = yield from best_source(details, timeout=timeout)
            if self.source == TEXT:
                yield from self._notify_once(
                    "text", f"The log of job {details.name} is read as text: Ray before 2.47 does not send the file."
                )

    def _fall_back(self, details: JobDetails, error: RayJobsError) -> Engine[bool]:
        """Change from the file to the text unless bytes of the file were shown, and tell whether it was changed."""
        if self.source != FILE or self.log.offset:
            return False
        self.source = TEXT
        if isinstance(error, RayApiAddressError | RayApiBusyError):
            yield from self._notify_once(
                "text", f"The log of job {details.name} is read as text: the head does not send the file. {error}"
            )
        return True

    def _notify_once(self, key: str, message: str) -> Engine[None]:
        if key not in self.notices:
            self.notices.add(key)
            yield LogMessage(message)


def best_source(details: JobDetails, retry_timeout: float = 0.0, *, timeout: float = MAX_READ_TIMEOUT) -> Engine[str]:
    """Return the best source of a log: its file, or its text from a head that does not send the file."""
    if details.driver_node_id is None:
        return TEXT
    request = endpoints.get_version()
    try:
        version = yield from send(replace(request, timeout=min(request.timeout, timeout)), retry_timeout)
    except RayApiAddressError:
        return TEXT
    return FILE if version.release() >= FILE_ENDPOINT_SINCE else TEXT


def _location_of(details: JobDetails) -> str:
    return f"{endpoints.log_name(details.name)} in Ray's log directory on node {details.driver_node_id}"
