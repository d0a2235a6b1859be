"""
Follow a job to its terminal status; engines (see :mod:`.steps`).

The client polls with short requests. A log tail would hold one of the 100 connections of the head's Jobs API until the
job ends. Once all of them are taken, the head hangs for all clients.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TypedDict

from airflow_provider_rayjobs.exceptions import (
    RayApiUnreachableError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import NO_LIMITS, Limits
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.pending import PendingReport
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, Send, Sleep, retry_pause, with_jitter

# Seconds between the first two polls. The delay grows up to ``poll_interval``, so that the end of a short job is
# noticed soon. The head needs 4 ms for a poll.
FIRST_DELAY = 0.5
DELAY_GROWTH = 1.4
# The random part of the delay between two polls. It spreads the polls of many followers that began together.
POLL_JITTER = 0.2
MIN_POLL_INTERVAL = 0.1  # a head answers about 250 polls a second, for all clients together
POLL_INTERVAL = 5.0
UNREACHABLE_TIMEOUT = 600.0
# Seconds. In an outage the delay grows to this, or stays at ``poll_interval`` if that is longer.
MAX_OUTAGE_DELAY = 30.0


class FollowOptions(TypedDict, total=False):
    """
    How to follow a job.

    - ``poll_interval``: most seconds between two polls, 5 by default; the first ones are faster.
    - ``unreachable_timeout``: seconds for which an outage is tolerated, 600 by default.
    - ``missing_timeout``: seconds for which an unknown job is tolerated, because it may still be submitted.
    """

    poll_interval: float
    unreachable_timeout: float
    missing_timeout: float


def follow_job(
    job: JobRef,
    *,
    poll_interval: float = POLL_INTERVAL,
    unreachable_timeout: float = UNREACHABLE_TIMEOUT,
    missing_timeout: float = 0.0,
    reader: LogReader | None = None,
    limits: Limits = NO_LIMITS,
    pending: PendingReport | None = None,
    time_left: float = math.inf,
    hand_over_after: float = math.inf,
) -> Engine[JobDetails]:
    """
    Follow a job to its terminal status.

    :param job: which job. The first poll completes it; each later answer must be about the same job.
    :param poll_interval: most seconds between two polls; the first polls follow each other faster, those in an outage
        more slowly.
    :param unreachable_timeout: seconds for which an outage is tolerated.
    :param missing_timeout: seconds for which an unknown job is tolerated, because it may still be submitted.
    :param reader: reads the job's log; ``None`` for no log.
    :param limits: how long the job may wait and run.
    :param pending: logs why the job does not start; ``None`` for no such messages.
    :param time_left: seconds of this try after which its ``execution_timeout`` expires, during an outage as well.
    :param hand_over_after: seconds after which another process follows a job that has not ended.
    :return: the ended job, after its whole log was emitted; or the running job, if :attr:`.LogReader.hands_over` or
        after ``hand_over_after``.
    :raises RayJobNotFoundError: the cluster does not know the job.
    :raises RayJobLostError: another job has its id, or the job is unknown since a restart of the head.
    :raises RayJobTimeoutError: a time limit expired; the job still runs.
    :raises RayApiUnreachableError: an outage exceeded ``unreachable_timeout``.
    """
    now = yield Sleep(0)
    outage = Outage(job.submission_id, unreachable_timeout)
    missing_until = now + missing_timeout
    give_up_at = now + time_left
    hand_over_at = now + hand_over_after
    max_delay = max(poll_interval, MIN_POLL_INTERVAL)
    delay = min(FIRST_DELAY, max_delay)
    unknown_status: JobStatus | None = None
    details: JobDetails | None = None
    # when the next time limit expires, by our clock
    limit_at = float("inf")
    while True:
        pause = with_jitter(delay, POLL_JITTER)
        try:
            details = yield from get_same_job(job)
        except RayJobNotFoundError:
            if now >= missing_until:
                raise
            yield from outage.record_success(now)
        except RayJobLostError:
            raise
        except RayJobsError as error:
            now = yield Sleep(0)
            yield from outage.record_failure(error, now)
            pause = outage.pause(error, now, delay)
            if limit_at <= now:  # it cannot be enforced before Ray answers
                limit_at = float("inf")
        else:
            now = yield Sleep(0)
            yield from outage.record_success(now)
            job = job.seen(details)
            if not details.status.is_known and details.status != unknown_status:
                unknown_status = details.status
                yield LogMessage(
                    f"Ray job {job.submission_id} has status {unknown_status}, which this client does not know. It is "
                    "followed as a job that has not ended.",
                    logging.WARNING,
                )
            limit_at = now + limits.remaining(details)
            if pending is not None:
                yield from pending.report(details, min(limit_at, give_up_at) - now)
                now = yield Sleep(0)
            if reader is not None:
                yield from reader.read(details, max_delay, limits.remaining(details))
                now = yield Sleep(0)
            limits.check(details)
            if details.status.is_terminal() or (reader is not None and reader.hands_over) or now >= hand_over_at:
                return details
        if now >= give_up_at:
            raise RayJobTimeoutError(
                f"Ray job {job.submission_id} did not end within the execution_timeout of this try.",
                limit="execution_timeout",
                details=details,
            )
        wake_at = min(give_up_at, hand_over_at if now < hand_over_at else math.inf)
        now = yield Sleep(min(pause, max(limit_at - now, FIRST_DELAY), wake_at - now))
        delay = min(delay * DELAY_GROWTH, max_delay)


def get_same_job(job: JobRef) -> Engine[JobDetails]:
    """
    Poll a job once.

    :raises RayJobNotFoundError: the cluster does not know the job.
    :raises RayJobLostError: another job has its id, or the job is unknown since a restart of the head.
    """
    try:
        details: JobDetails = yield Send(endpoints.get_job(job.submission_id))
    except RayJobNotFoundError as error:
        if job.session is None:
            raise
        version = yield Send(endpoints.get_version())
        if job.is_in(version.session_name):
            raise
        raise RayJobLostError(
            f"Ray job {job.submission_id} was lost: the head was restarted. The job was in session {job.session}, "
            f"and session {version.session_name} answers now. Submit the job again. {error}"
        ) from error
    if not job.is_same(details):
        raise RayJobLostError(
            f"Ray job {job.submission_id} was lost: another job at {job.address} has its id now. The head was "
            "restarted since, or the job was deleted and its id used again. Submit the job again."
        )
    return details


def poll_job(job: JobRef, reader: LogReader | None, pending: PendingReport | None = None) -> Engine[JobDetails]:
    """Poll a job once and emit the new part of its log. Raise the errors of :func:`get_same_job`."""
    details = yield from get_same_job(job)
    if pending is not None:
        yield from pending.report(details)
    if reader is not None:
        yield from reader.read(details)
    return details


@dataclass
class Outage:
    """
    A time without usable answers. It is logged once at its start and once at its end.

    Every error counts except "job not found". A proxy's error pages, expired credentials and a restarting head are
    temporary, and the job continues to run.
    """

    job: str
    timeout: float
    since: float | None = None
    delay: float = 0.0

    def record_failure(self, error: RayJobsError, now: float) -> Engine[None]:
        """Record a failed poll. Raise :class:`RayApiUnreachableError` if the outage exceeds its timeout."""
        if self.since is None:
            self.since = now
            yield LogMessage(
                f"No usable answer about Ray job {self.job}. The job may still be running. Retrying for "
                f"{self.timeout:.0f} s. {error}",
                logging.WARNING,
            )
        if now - self.since >= self.timeout:
            raise RayApiUnreachableError(
                f"No usable answer about Ray job {self.job} for {now - self.since:.0f} s (unreachable_timeout is "
                f"{self.timeout:.0f} s). The job may still be running: look for it on the cluster before you submit it "
                f"again. Last error: {error}"
            ) from error

    def pause(self, error: RayJobsError, now: float, poll_delay: float) -> float:
        """Return the seconds until the next poll: more after each failure, and not beyond the end of the timeout."""
        self.delay = min(max(2 * self.delay, poll_delay), max(MAX_OUTAGE_DELAY, poll_delay))
        since = now if self.since is None else self.since
        return max(min(retry_pause(self.delay, error), since + self.timeout - now), MIN_POLL_INTERVAL)

    def record_success(self, now: float) -> Engine[None]:
        """Record a usable answer."""
        if self.since is not None:
            yield LogMessage(f"Ray answers about job {self.job} again, after {now - self.since:.0f} s.")
            self.since = None
            self.delay = 0.0
