"""
Stop or delete a job; engines (see :mod:`.steps`).

Ray's stop is asynchronous: Ray answers before the job has ended, and a PENDING job is stopped only when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from airflow_provider_rayjobs.exceptions import Delivery, RayApiRejectedError, RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.requests import Request
from airflow_provider_rayjobs.jobs.steps import Engine, Send, Sleep, send, with_jitter

T = TypeVar("T")

# Seconds in which a stop must be confirmed. Ray gives the processes of a job 3 s after SIGTERM.
STOP_TIMEOUT = 30.0
# Seconds after a job's end in which Ray 2.60 still writes to its record. A record that is deleted in this time comes
# back without metadata, as FAILED (observed; source: ``JobInfoStorageClient.put_status``).
_SETTLING_TIME = 5.0
_FIRST_DELAY = 0.5
_MAX_DELAY = 3.0
_MIN_REQUEST_TIMEOUT = 1.0


@dataclass(frozen=True)
class StopResult:
    """
    The result of a stop.

    :param has_ended: true also for a job that is unknown, is another submission's, or will be stopped when it starts.
    :param summary: the result as a sentence for the log.
    :param details: the job as last seen; ``None`` if it was never seen, is unknown, or another job has its id.
    """

    has_ended: bool
    summary: str
    details: JobDetails | None = None


def stop_and_wait(
    job: JobRef, timeout: float = STOP_TIMEOUT, *, may_arrive: bool = False, is_brief: bool = False
) -> Engine[StopResult]:
    """
    Stop a job, repeat the stop until the job has ended, and return the result. A timeout is a result, not an error.

    :param job: which job. Another job with its id is left alone.
    :param timeout: seconds for all requests and delays; at least one request is sent.
    :param may_arrive: whether the job's submission may still arrive. Then an unknown job is polled again.
    :param is_brief: whether to return as soon as Ray has accepted the stop.
    :raises RayApiRejectedError: the job is of type DRIVER, which Ray cannot stop.
    """
    name = job.submission_id
    now = yield Sleep(0)
    deadline = now + timeout
    delay = _FIRST_DELAY
    details: JobDetails | None = None
    is_accepted = False
    last_error = ""
    while True:
        try:
            details = yield Send(_with_timeout(endpoints.get_job(name), deadline - now, timeout))
            if not job.is_same(details):
                return StopResult(True, f"Another job at {job.address} has the id {name} now. It is left alone.")
            if (summary := _summarize(job, details, is_accepted)) is not None:
                return StopResult(True, summary, details)
            job, may_arrive, last_error = job.seen(details), False, ""
            now = yield Sleep(0)
            stop = _with_timeout(endpoints.stop_job(name), deadline - now, timeout)
            is_accepted = (yield Send(stop)) or is_accepted
            if is_accepted and is_brief:
                return StopResult(False, f"Ray accepted the stop of job {name}.", details)
        except RayJobNotFoundError as error:
            if not may_arrive:
                return StopResult(True, f"The cluster does not know job {name}. There is nothing to stop.")
            last_error = f" Last error: {error}"
        except RayApiRejectedError as error:
            if error.delivery is Delivery.REFUSED:
                raise
            last_error = f" Last error: {error}"
        except RayJobsError as error:
            last_error = f" Last error: {error}"
        now = yield Sleep(0)
        if now + delay > deadline:
            summary = (
                f"The end of job {name} could not be confirmed within {timeout:.12g} s. Its last known status is "
                f"{details.status if details else 'unknown'}. The job may still be running: look for it at "
                f"{job.address}.{last_error}"
            )
            return StopResult(False, summary, details)
        now = yield Sleep(with_jitter(delay))
        if not is_brief:  # a signal handler has no time for long delays
            delay = min(delay * 2, _MAX_DELAY)


def _summarize(job: JobRef, details: JobDetails, is_accepted: bool) -> str | None:
    """Return why a job needs no further stop; ``None`` for a job that must be stopped."""
    if details.status.is_terminal():
        return f"Job {job.submission_id} ended with status {details.status}."
    if details.status == JobStatus.PENDING and is_accepted:
        return f"Job {job.submission_id} has not started. Ray stops it when it starts."
    return None


def delete_ended_job(submission_id: str, retry_timeout: float) -> Engine[bool]:
    """
    Delete Ray's record of a job that has ended, after Ray's last write to it.

    :param retry_timeout: seconds for which a failed request is retried.
    :raises RayJobNotTerminalError: the job has not ended.
    :raises RayJobNotFoundError: the cluster does not know the job.
    """
    details: JobDetails = yield from send(endpoints.get_job(submission_id), retry_timeout)
    if details.end_time is not None and details.seen_at is not None:
        # At most the whole time, as the clocks of a proxy and of the head may differ by hours.
        yield Sleep(min(max(_SETTLING_TIME - (details.seen_at - details.end_time) / 1000, 0), _SETTLING_TIME))
    return (yield from send(endpoints.delete_job(submission_id), retry_timeout))


def _with_timeout(request: Request[T], remaining: float, total: float) -> Request[T]:
    """Limit a request to the remaining time, and to a third of all, so that a slow answer leaves time for another."""
    return replace(request, timeout=min(request.timeout, max(min(remaining, total / 3), _MIN_REQUEST_TIMEOUT)))
