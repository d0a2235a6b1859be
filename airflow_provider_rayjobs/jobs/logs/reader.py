"""
Read the log of a followed job, and show every line once: an engine (:mod:`..steps`).

- Ray cannot send a log from an offset on. So each read asks for the whole log, from its first byte.
- :class:`.LogCursor` skips the bytes before the log offset and verifies their checksum. The reader shows the bytes
  after it and moves the offset. An interrupted read loses nothing.
- A wrong checksum means that the log was cut or replaced. The reader logs a warning and shows the log from its start.
- After a read the reader rests for 24 times as long as the read took, so that reading takes 4 % of the time.
- After the job's end the reader retries until a read is complete. Then it also shows a last line without a newline.
- A reader in another process continues from :attr:`LogReader.state`.

Heads since Ray 2.47 send the log file, older ones only its text. Their offsets differ, so the reader chooses one source
before it shows the first byte, and keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
from airflow_provider_rayjobs.jobs.models import JobDetails, JobType
from airflow_provider_rayjobs.jobs.steps import EmitRecord, Engine, LogMessage, ReadLog, Sleep, send

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
# Most seconds of a failed read that count for the rest. A timeout says nothing about the log's size.
_FAILED_READ = 1.0
# Throttled reads in a row before a notice. Fewer may be a short burst.
_MANY_THROTTLED_READS = 3
# Seconds of retries after the job's end: without an answer, and with an error answer. Most error answers are final, for
# example if the node is gone, but a restarting head sends them as well.
END_OUTAGE_TIMEOUT = 60.0
END_ERROR_TIMEOUT = 5.0
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
    :param lines_limit: see :class:`.HeadTail`; no limit when not given.
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
        self._next_read = 0.0  # in seconds of the driver's clock
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
        self._sink: LogCursor | HeadTail = self._limiter or self.log
        self.source: str | None = known.get("source")
        # keys of the notices that were logged, so that none is repeated
        self.notices = set(known.get("notices", ()))
        # seconds to wait between the last read and the next one
        self.rest = float(known.get("rest", 0))

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
        }

    @property
    def hands_over(self) -> bool:
        """Tell whether new lines wait for another process; see :class:`ReadPolicy`."""
        return self._policy is not None and self._policy.hands_over and self._throttled_reads > 0

    def read(self, details: JobDetails, poll_interval: float = 0.0) -> Engine[None]:
        """
        Show the new lines of a job's log.

        :param details: the job as polled just now.
        :param poll_interval: seconds; a notice explains why new lines of a large log come later than that.
        """
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
            yield from self._read_running(details, poll_interval)

    # -- while the job runs ---------------------------------------------------------------------------------------

    def _read_running(self, details: JobDetails, poll_interval: float) -> Engine[None]:
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
        self.log.is_throttled = False
        is_complete = yield from self._try_read(details)
        ended = yield Sleep(0)
        self.rest = REST * (ended - began if is_complete else min(ended - began, _FAILED_READ))
        self._next_read = ended + self.rest
        self._throttled_reads = self._throttled_reads + 1 if self.log.is_throttled else 0
        if self._policy is not None:
            self._policy.end(is_throttled=self.log.is_throttled)
        yield from self._notify_of_delay(details, is_large=is_complete and self.rest > poll_interval)

    def _try_read(self, details: JobDetails) -> Engine[bool]:
        """Read the log, and tell whether that succeeded. After a failure a later read shows the lines."""
        try:
            yield from self._choose_source(details)
            yield from self._read_log(details)
        except RayApiAddressError as error:
            yield from self._fall_back(details, error)
        except RayApiBusyError as error:
            yield from self._notify_once(
                "busy",
                f"The log of job {details.name} cannot be read for the moment; nothing of it is lost. {error}",
            )
        except RayJobsError:
            pass
        else:
            return True
        return False

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
            now = yield Sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            if self.log.offset > offset:  # the interrupted read made progress
                since, pause = now, _FIRST_PAUSE
            is_outage = is_busy or isinstance(error, RayApiConnectionError)
            if now < since + (END_OUTAGE_TIMEOUT if is_outage else END_ERROR_TIMEOUT):
                continue
            if is_busy and (yield from self._fall_back(details, error)):
                continue
            yield LogMessage(
                f"The log of job {details.name} is not complete here: {self.log.offset} bytes were shown, the rest "
                f"cannot be read. The file is {_location_of(details)}. {error}",
                logging.WARNING,
            )
            return
        yield from self._finish(details)

    def _finish(self, details: JobDetails) -> Engine[None]:
        """Show the last records after a complete read."""
        if self.log.bytes_read < self.log.offset:
            yield LogMessage(
                f"The log of job {details.name} has fewer bytes now than the {self.log.offset} that were shown: it was "
                "cut or replaced.",
                logging.WARNING,
            )
        records = list(self._sink.finish())
        if self._limiter is not None and self._limiter.left_out:
            yield LogMessage(
                f"{self._limiter.left_out} lines of the log were left out here, as log_lines_limit is "
                f"{self._limiter.limit}; its last ones follow. The whole log is {_location_of(details)}, and "
                "save_job_logs of the hook or client writes it to a file."
            )
        for record in records:
            yield EmitRecord(record)

    # -- both -----------------------------------------------------------------------------------------------------

    def _read_log(self, details: JobDetails) -> Engine[None]:
        """Read the log and show its new lines. If the log was replaced, read it again and show it from its start."""
        if self.source == FILE:
            request = endpoints.get_log_file(details.name, str(details.driver_node_id))
        else:
            request = endpoints.get_log_text(details.name)
        yield ReadLog(request, self._sink)
        if self.log.is_mismatch:
            yield LogMessage(
                f"The log of job {details.name} no longer begins with the {self.log.offset} bytes that were shown: "
                "it was cut or replaced. It is shown again from its start.",
                logging.WARNING,
            )
            self.log.restart()
            yield ReadLog(request, self._sink)

    def _choose_source(self, details: JobDetails) -> Engine[None]:
        if self.source is None:
            self.source = yield from best_source(details)
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


def best_source(details: JobDetails, retry_timeout: float = 0.0) -> Engine[str]:
    """Return the best source of a log: its file, or its text from a head that does not send the file."""
    if details.driver_node_id is None:
        return TEXT
    try:
        version = yield from send(endpoints.get_version(), retry_timeout)
    except RayApiAddressError:
        return TEXT
    return FILE if version.release() >= FILE_ENDPOINT_SINCE else TEXT


def _location_of(details: JobDetails) -> str:
    return f"{endpoints.log_name(details.name)} in Ray's log directory on node {details.driver_node_id}"
