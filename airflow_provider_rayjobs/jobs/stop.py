"""
End a job, and clear it away; engines (:mod:`.steps` is their contract).

Ray's stop is fire and forget. It answers before anything has ended, and a PENDING job hears of it only when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from airflow_provider_rayjobs.exceptions import RayApiRejectedError, RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.requests import Request
from airflow_provider_rayjobs.jobs.steps import Engine, Send, Sleep, send
from airflow_provider_rayjobs.jobs.submission import NONCE

T = TypeVar("T")

# Seconds in which a stop has to be confirmed: Ray itself gives the processes of a job 3 s after SIGTERM.
STOP_TIMEOUT = 30.0
# Seconds after a job's end in which Ray 2.60 still writes to its record. Deleted in between, the record comes back,
# without metadata, and FAILED (``JobInfoStorageClient.put_status``; seen).
_SETTLING_TIME = 5.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 3.0
_SHORTEST_TIMEOUT = 1.0


@dataclass(frozen=True)
class StopResult:
    """
    What came of a stop.

    :param has_ended: whether the job has ended, does not exist, or was stopped before it started.
    :param summary: the same as a sentence for the log.
    :param details: the job as it was seen last; ``None`` where it was not seen, or is unknown.
    """

    has_ended: bool
    summary: str
    details: JobDetails | None = None


def stop_and_wait(submission_id: str, timeout: float = STOP_TIMEOUT, nonce: str | None = None) -> Engine[StopResult]:
    """
    Stop a job, again and again until it is over; what cannot be confirmed in time is told, not raised.

    A PENDING job that took the stop counts as stopped: Ray ends it when it starts.

    :param timeout: seconds for all of it; one request is made in any case.
    :param nonce: by which a job of ours is known; another one is left alone.
    :raises RayApiRejectedError: for a job of type DRIVER, which Ray stops for nobody.
    """
    began = now = yield Sleep(0)
    pause = _FIRST_PAUSE
    details: JobDetails | None = None
    has_taken_it = False
    seen = "it was not seen at all"
    while True:
        try:
            details = yield Send(_within(endpoints.get_job(submission_id), began + timeout - now))
            if nonce is not None and details.metadata.get(NONCE) != nonce:
                summary = f"Job {submission_id} is not ours, as its metadata says; it is left alone."
                return StopResult(True, summary, details)
            if details.status.is_terminal():
                return StopResult(True, f"Job {submission_id} is over: {details.status}.", details)
            if details.status == JobStatus.PENDING and has_taken_it:
                return StopResult(True, f"Job {submission_id} has not started; Ray ends it when it does.", details)
            seen = f"it was {details.status} when it was seen last"
            now = yield Sleep(0)
            stop = _within(endpoints.stop_job(submission_id), began + timeout - now)
            has_taken_it = (yield Send(stop)) or has_taken_it
        except RayJobNotFoundError:
            return StopResult(True, f"The cluster does not know job {submission_id}; there is nothing to stop.")
        except RayApiRejectedError:
            raise
        except RayJobsError as error:
            seen = f"{seen.partition(';')[0]}; last error: {error}"
        now = yield Sleep(0)
        if now - began + pause > timeout:
            return StopResult(
                False,
                f"The end of job {submission_id} could not be confirmed within {timeout:.12g} s: {seen}. It may run "
                "on: look for it on the cluster.",
                details,
            )
        now = yield Sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def delete_ended_job(submission_id: str, retry_timeout: float) -> Engine[None]:
    """
    Delete what Ray remembers of a job that has ended, once Ray has written the last of it.

    :param retry_timeout: seconds for which failures that may pass are borne.
    :raises RayJobNotTerminalError: the job has not ended.
    :raises RayJobNotFoundError: the cluster does not know it.
    """
    details: JobDetails = yield from send(endpoints.get_job(submission_id), retry_timeout)
    if details.end_time is not None and details.seen_at is not None:
        yield Sleep(max(_SETTLING_TIME - (details.seen_at - details.end_time) / 1000, 0))
    yield from send(endpoints.delete_job(submission_id), retry_timeout)


def _within(request: Request[T], seconds: float) -> Request[T]:
    return replace(request, timeout=min(request.timeout, max(seconds, _SHORTEST_TIMEOUT)))
