"""
Follow a job to its end: an engine, without I/O and without a clock (:mod:`.steps` is its contract).

Following is polling with short requests. A connection held open on the head, as a log tail holds one until
the job ends, is one of a hundred that its Jobs API has; the hundredth hangs the head for everybody.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypedDict

from airflow_provider_rayjobs.exceptions import (
    RayApiUnreachableError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.limits import NO_LIMITS, Limits
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, Send, Sleep

# Seconds between the first looks at a job, and how they grow: a job that ends after a second is seen to have
# ended within the next, and one that runs for hours costs the head 4 ms every ``poll_interval``.
FIRST_PAUSE = 0.5
GROWTH = 1.4
SHORTEST_PAUSE = 0.1  # whatever is asked for: a head answers about 250 looks a second, for all of its followers
POLL_INTERVAL = 5.0
UNREACHABLE_TIMEOUT = 600.0


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
    :param limits: how long the job may wait and run.
    :param session: the cluster's name for the life in which the job was submitted.
    :return: the job as it ended, every line of its log having been shown; where the reader hands the log over to
        somebody else (:attr:`.LogReader.hands_over`), the job as it is when that is due.
    :raises RayJobNotFoundError: the cluster does not know the job.
    :raises RayJobLostError: it does not, and it was started anew since the submission.
    :raises RayJobTimeoutError: a limit is over; the job goes on until somebody stops it.
    :raises RayApiUnreachableError: ``unreachable_timeout`` is over.
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
            yield from outage.record_success(now)
        except RayJobLostError:
            raise
        except RayJobsError as error:
            now = yield Sleep(0)
            yield from outage.record_failure(error, now)
            remaining = float("inf")
        else:
            yield from outage.record_success(now)
            if not details.status.is_known and details.status != unknown:
                unknown = details.status
                yield LogMessage(
                    f"Ray says that job {submission_id} is {unknown}, a status that this version of the provider "
                    "does not know; it is followed as a job that has not ended.",
                    logging.WARNING,
                )
            if reader is not None:
                yield from reader.read(details, longest_pause)
            if details.status.is_terminal():
                return details
            limits.check(details)
            if reader is not None and reader.hands_over:
                return details
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


def poll_job(submission_id: str, reader: LogReader | None) -> Engine[JobDetails]:
    """Look at a job once and show what is new in its log: one round of :func:`follow_job`."""
    details: JobDetails = yield Send(endpoints.get_job(submission_id))
    if reader is not None:
        yield from reader.read(details)
    return details


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

    def record_failure(self, error: RayJobsError, now: float) -> Engine[None]:
        """
        Take note of a failure.

        :raises RayApiUnreachableError: when it has lasted for too long.
        """
        if self.since is None:
            self.since = now
            yield LogMessage(
                f"Lost sight of job {self.job}, which may well run on; trying again for {self.timeout:.0f} s. {error}",
                logging.WARNING,
            )
        if now - self.since >= self.timeout:
            raise RayApiUnreachableError(
                f"Could not see job {self.job} for {now - self.since:.0f} s (unreachable_timeout is "
                f"{self.timeout:.0f} s). It may still run: look at the cluster before you start it again. "
                f"Last error: {error}"
            ) from error

    def record_success(self, now: float) -> Engine[None]:
        """Take note of an answer."""
        if self.since is not None:
            yield LogMessage(f"Job {self.job} is in sight again after {now - self.since:.0f} s.")
            self.since = None
