"""
Follow a job to its end, and read its log: engines, without I/O and without a clock (:mod:`.steps` is their
contract).

Following is polling with short requests. A connection held open on the head, as a log tail holds one until
the job ends, is one of a hundred that its Jobs API has; the hundredth hangs the head for everybody.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypedDict

from airflow_provider_rayjobs.exceptions import (
    RayJobLostError,
    RayJobNotFoundError,
    RayJobsAddressError,
    RayJobsConnectionError,
    RayJobsError,
    RayJobsResponseError,
    RayJobsUnavailableError,
    RayJobsUnreachableError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.limits import NO_LIMITS, Limits
from airflow_provider_rayjobs.jobs.logs import LogText, WholeLog
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.steps import Engine, Note, ReadLog, Send, Show, Sleep, repeated, send

# Seconds between the first looks at a job, and how they grow: a job that ends after a second is seen to have
# ended within the next, and one that runs for hours costs the head 4 ms every ``poll_interval``.
FIRST_PAUSE = 0.5
GROWTH = 1.4
SHORTEST_PAUSE = 0.1  # whatever is asked for: a head answers about 250 looks a second, for all of its followers
POLL_INTERVAL = 5.0
UNREACHABLE_TIMEOUT = 600.0

# A read of the log takes the head's and the worker's time in proportion to the log. Waiting 19 times as long
# as the last read took keeps that share at 5 %, whatever the log's size.
LOG_READ_REST = 19
# Seconds to go on asking for the log of a job that has ended: when no answer comes, and when it is an error. That is
# mostly final (the node is gone), but a head that is being restarted also says so for a moment.
LOG_PATIENCE = 60.0
LOG_ERROR_PATIENCE = 5.0
# The state API's file endpoint changed its form between 2.44 and 2.47: older heads prefix each chunk of the
# body.
FILE_ENDPOINT_SINCE = (2, 47)


class FollowOptions(TypedDict, total=False):
    """
    How to follow a job, all in seconds.

    ``poll_interval``
        between two looks, once the first quick ones are over; 5 when not given.
    ``unreachable_timeout``
        without a usable answer that are borne in a row; 600 when not given.
    ``missing_timeout``
        for which "no such job" is borne: somebody may be about to submit it; 0 when not given.
    """

    poll_interval: float
    unreachable_timeout: float
    missing_timeout: float


def follow_job(
    submission_id: str,
    *,
    poll_interval: float = POLL_INTERVAL,
    unreachable_timeout: float = UNREACHABLE_TIMEOUT,
    missing_timeout: float = 0.0,
    reader: LogReader | None = None,
    live: bool = True,
    limits: Limits = NO_LIMITS,
    session: str | None = None,
) -> Engine[JobDetails]:
    """
    Follow a job to its terminal status.

    :param submission_id: a submission id, or the Ray Core job id of an interactive job.
    :param poll_interval: seconds between two looks, once the first quick ones are over.
    :param unreachable_timeout: seconds without a usable answer that are borne in a row.
    :param missing_timeout: seconds for which "no such job" is borne: somebody may be about to submit it.
    :param reader: of the job's log; ``None`` reads none.
    :param live: read the log while the job runs, not only after its end.
    :param limits: how long the job may wait and run.
    :param session: the cluster's name for the life in which the job was submitted.
    :return: the job as it ended; every line of its log was shown before.
    :raises RayJobNotFoundError: the cluster does not know the job.
    :raises RayJobLostError: it does not, and it was started anew since the submission.
    :raises RayJobTimeoutError: a limit is over; the job goes on until somebody stops it.
    :raises RayJobsUnreachableError: ``unreachable_timeout`` is over.
    """
    now = yield Sleep(0)
    outage = Outage(submission_id, unreachable_timeout)
    missing_until = now + missing_timeout
    longest_pause = max(poll_interval, SHORTEST_PAUSE)
    pause = min(FIRST_PAUSE, longest_pause)
    unknown: JobStatus | None = None
    remaining = float("inf")
    while True:
        try:
            details: JobDetails = yield from _get_job(submission_id, session)
        except RayJobNotFoundError:
            if now >= missing_until:
                raise
            yield from outage.over(now)
        except RayJobLostError:
            raise
        except RayJobsError as error:
            now = yield Sleep(0)
            yield from outage.bear(error, now)
            remaining = float("inf")
        else:
            yield from outage.over(now)
            if not details.status.is_known and details.status != unknown:
                unknown = details.status
                yield Note(
                    f"Ray says that job {submission_id} is {unknown}, a status that this version of the provider "
                    "does not know; it is followed as a job that has not ended.",
                    logging.WARNING,
                )
            if reader is not None:
                yield from reader.read(details, live=live)
            if details.status.is_terminal():
                return details
            limits.check(details)
            remaining = max(limits.remaining(details), FIRST_PAUSE)
        now = yield Sleep(min(pause, remaining))
        pause = min(pause * GROWTH, longest_pause)


def _get_job(submission_id: str, session: str | None) -> Engine[JobDetails]:
    """
    Look at a job.

    :raises RayJobLostError: the cluster does not know it, and its session is another one.
    """
    try:
        details: JobDetails = yield Send(endpoints.get_job(submission_id))
        return details
    except RayJobNotFoundError as error:
        if session is not None:
            version = yield Send(endpoints.get_version())
            if version.session_name != session:
                raise RayJobLostError(
                    f"Ray job {submission_id} was lost with its cluster: it was submitted in session {session}, and "
                    f"{version.session_name} answers now. Jobs die with their head. {error}"
                ) from error
        raise


def look(submission_id: str, reader: LogReader | None, *, live: bool) -> Engine[JobDetails]:
    """Look at a job once and show what is new in its log: one round of :func:`follow_job`."""
    details: JobDetails = yield Send(endpoints.get_job(submission_id))
    if reader is not None:
        yield from reader.read(details, live=live)
    return details


def get_job_logs(submission_id: str, patience: float) -> Engine[str]:
    """Return a driver's log so far as one text; it is held in memory."""
    details: JobDetails = yield from send(endpoints.get_job(submission_id), patience)
    if details.type == JobType.SUBMISSION and (yield from _best_source(details, patience)) == _FILE:
        whole = WholeLog()
        try:
            yield from repeated(
                ReadLog(endpoints.get_log_file(details.name, str(details.driver_node_id)), whole), patience
            )
            return whole.text
        except RayJobsResponseError:
            pass  # no such file yet, or no state API: the text endpoint tells which
    text: str = yield from send(endpoints.get_job_logs(submission_id), patience)
    return text


@dataclass
class Outage:
    """
    A time in which a cluster gives no usable answer: said once when it begins and once when it is over.

    Anything but "no such job" counts: a proxy's error page, credentials that are being rotated and a head
    that restarts pass, and the job runs on meanwhile.
    """

    job: str
    timeout: float
    since: float | None = None

    def bear(self, error: RayJobsError, now: float) -> Engine[None]:
        """
        Take note of a failure.

        :raises RayJobsUnreachableError: when it has lasted for too long.
        """
        if self.since is None:
            self.since = now
            yield Note(
                f"Lost sight of job {self.job}, which may well run on; trying again for {self.timeout:.0f} s. {error}",
                logging.WARNING,
            )
        if now - self.since >= self.timeout:
            raise RayJobsUnreachableError(
                f"Could not see job {self.job} for {now - self.since:.0f} s (unreachable_timeout is "
                f"{self.timeout:.0f} s). It may still run: look at the cluster before you start it again. "
                f"Last error: {error}"
            ) from error

    def over(self, now: float) -> Engine[None]:
        """Take note of an answer."""
        if self.since is not None:
            yield Note(f"Job {self.job} is in sight again after {now - self.since:.0f} s.")
            self.since = None


# Where a log is read from. A byte position means something else in each, so one is chosen before the first
# byte and kept.
_FILE = "file"
_TEXT = "text"


class LogReader:
    """Reads one job's log, again and again, from one source."""

    def __init__(self, log: LogText, source: str | None = None) -> None:
        self.log = log
        # where the log is read from, once that is decided; a position means nothing in another source
        self.source = source
        self._next_read = 0.0
        self.said_no_log = False

    def read(self, details: JobDetails, *, live: bool = True) -> Engine[None]:
        """
        Show what is new in the log of a job that was just looked at.

        :param live: whether to read while the job runs, too.
        """
        if details.type == JobType.DRIVER:
            if not self.said_no_log:
                self.said_no_log = True
                yield Note(
                    f"Job {details.name} was started interactively (type DRIVER): Ray's Jobs API has no log of it. "
                    "Its output goes to the terminal, or wherever its driver runs."
                )
        elif details.driver_node_id is None:
            pass  # not started, or never: there is no file yet, and Ray's message says why
        elif details.status.is_terminal():
            yield from self._read_to_end(details)
        elif live:
            yield from self._read_more(details)

    def _read_more(self, details: JobDetails) -> Engine[None]:
        """
        Show what a running job has printed since the last read, unless it is too early for the next one.

        A failure is passed over in silence: the next read, or the one after the job's end, makes up for it.
        """
        before = yield Sleep(0)
        if before < self._next_read:
            return
        try:
            yield from self._read(details)
        except RayJobsAddressError:
            if self.log.position == 0:
                self.source = _TEXT  # a head without the state API
        except RayJobsError:
            pass
        after = yield Sleep(0)
        self._next_read = after + LOG_READ_REST * (after - before)

    def _read_to_end(self, details: JobDetails) -> Engine[None]:
        """Show all that is left of the log of a job that has ended; what cannot be had is said, never fatal."""
        began = yield Sleep(0)
        pause = FIRST_PAUSE
        while True:
            try:
                yield from self._read(details)
                for record in self.log.finish():
                    yield Show(record)
                return
            except RayJobsError as error:
                is_refused = isinstance(error, RayJobsResponseError) and not isinstance(error, RayJobsUnavailableError)
                if self.source == _FILE and self.log.position == 0 and is_refused:
                    self.source = _TEXT  # no such file, or no state API: the text endpoint may have it
                    continue
                now = yield Sleep(pause)
                pause *= 2
                is_lost = isinstance(error, RayJobsConnectionError | RayJobsUnavailableError)
                if now < began + (LOG_PATIENCE if is_lost else LOG_ERROR_PATIENCE):
                    continue
                yield Note(
                    f"The log of job {details.name} is not complete here: {self.log.position} bytes were shown, the "
                    f"rest cannot be read. The file is job-driver-{details.name}.log in Ray's log directory on node "
                    f"{details.driver_node_id}. {error}",
                    logging.WARNING,
                )
                return

    def _read(self, details: JobDetails) -> Engine[None]:
        if self.source is None:
            self.source = yield from _best_source(details)
        if self.source == _FILE:
            yield ReadLog(endpoints.get_log_file(details.name, str(details.driver_node_id)), self.log)
            return
        text: str = yield Send(endpoints.get_job_logs(details.name))
        self.log.begin()
        for record in self.log.feed(text.encode(errors="replace")):
            yield Show(record)
        for record in self.log.flush():
            yield Show(record)


def _best_source(details: JobDetails, patience: float = 0.0) -> Engine[str]:
    """Choose where a log is read from: the file as it is, or its text where the head is too old for that."""
    if details.driver_node_id is None:
        return _TEXT
    try:
        version = yield from send(endpoints.get_version(), patience)
    except RayJobsAddressError:
        return _TEXT
    return _FILE if version.release() >= FILE_ENDPOINT_SINCE else _TEXT
