"""
The Ray Jobs REST API as descriptions: for each endpoint what to send and how to read the answer, without
sending.

Source: Ray ``dashboard/modules/job/job_head.py`` and ``dashboard/modules/state/state_head.py``, read and
tried with Ray 2.60. A status code alone never tells what happened there: a 500 may carry the traceback of a
plain "this id is taken", so the text decides where the code cannot.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar
from urllib.parse import quote

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiRejectedError,
    RayApiResponseError,
    RayApiUnavailableError,
    RayJobExistsError,
    RayJobNotFoundError,
    RayJobNotTerminalError,
    RayPackageNotFoundError,
)
from airflow_provider_rayjobs.jobs.diagnosis import CHECK_ADDRESS, diagnose_answer
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobDetails, JobSubmission, RayVersion
from airflow_provider_rayjobs.jobs.requests import Answer, AnyRequest, LogRequest, Request, UploadRequest

T = TypeVar("T")

# A client that leaves in the middle of a submission can leave a job PENDING for ever (ray-project/ray 62766).
SUBMIT_TIMEOUT = 120.0
# Seconds in which the head's agent has to send a log: a gigabyte through a slow network.
_LOG_TIMEOUT = 3600


def get_version() -> Request[RayVersion]:
    """Describe the request for the Ray version and the session of what answers."""
    return Request(
        "get the Ray version",
        "GET",
        "/api/version",
        lambda answer: RayVersion(
            version=str(answer["version"]),
            ray_version=str(answer["ray_version"]),
            session_name=answer.get("session_name"),
        ),
    )


def submit_job(submission: JobSubmission) -> Request[str]:
    """
    Describe the submission of a job; answered by its submission id.

    It may be repeated, as its id is ours: Ray refuses an id twice, with :class:`RayJobExistsError`.

    :raises RayApiRejectedError: on sending, when Ray cannot accept the request as it is.
    """
    return Request(
        f"submit job {submission.submission_id}",
        "POST",
        "/api/jobs/",  # without the last slash Ray answers 404
        lambda answer: str(answer.get("submission_id") or answer["job_id"]),
        body=submission.to_json(),
        timeout=SUBMIT_TIMEOUT,
    )


def get_job(submission_id: str) -> Request[JobDetails]:
    """
    Describe the request for a job's current state.

    :param submission_id: the id of the submission, or a Ray Core job id such as ``02000000``.
    :raises RayJobNotFoundError: on sending, when the cluster does not know the id.
    """
    return Request(
        f"get job {submission_id}",
        "GET",
        _job_path(submission_id),
        JobDetails.from_json,
        stamp=lambda details, time: replace(details, seen_at=time),
    )


def list_jobs() -> Request[list[JobDetails]]:
    """Describe the request for all jobs that the cluster remembers, interactive ones (type DRIVER) included."""
    return Request("list jobs", "GET", "/api/jobs/", lambda answer: [JobDetails.from_json(job) for job in answer])


def stop_job(submission_id: str) -> Request[bool]:
    """
    Describe the request to stop a job; answered by whether there was anything to stop.

    Ray answers before the job has ended. Asking again does no harm.

    :raises RayApiRejectedError: on sending, for a job of type DRIVER.
    """
    return Request(
        f"stop job {submission_id}",
        "POST",
        f"{_job_path(submission_id)}/stop",
        lambda answer: bool(answer["stopped"]),
    )


def delete_job(submission_id: str) -> Request[bool]:
    """
    Describe the request to delete what Ray remembers of an ended job.

    Not repeatable: when the first answer is lost, the second says that there is no such job.

    :raises RayJobNotTerminalError: on sending, for a job that has not ended.
    :raises RayApiRejectedError: on sending, for a job of type DRIVER.
    """
    return Request(
        f"delete job {submission_id}",
        "DELETE",
        _job_path(submission_id),
        lambda answer: bool(answer["deleted"]),
        idempotent=False,
    )


def get_cluster_status() -> Request[ClusterResources]:
    """Describe the request for what the cluster has, as the autoscaler's report tells it."""
    return Request("get the cluster's resources", "GET", "/api/cluster_status", ClusterResources.from_json)


def get_package(name: str) -> Request[None]:
    """
    Ask whether the cluster holds a package. It keeps one that was asked for, for 600 s, until a job uses it.

    :raises RayPackageNotFoundError: on sending, when it does not.
    """
    return Request(f"look for package {name}", "GET", _package_path(name), lambda _: None, has_content=False)


def put_package(name: str, size: int) -> UploadRequest:
    """
    Describe the upload of a package. One that is there already is replaced; unlike a question it keeps nothing alive.

    :param size: in bytes; Ray's HTTP server takes less than 100 MiB.
    """
    return UploadRequest(f"upload package {name}", _package_path(name), size)


def get_log_text(submission_id: str) -> LogRequest:
    r"""
    Describe the request for a driver's whole log as text.

    Every Ray version has it, but the head holds the log in memory for it, turns ``\r\n`` and ``\r`` into
    ``\n``, and fails for bytes that are not UTF-8. So positions in it mean nothing in :func:`get_log_file`.

    :raises RayApiRejectedError: on sending, for a job of type DRIVER.
    """
    return LogRequest(f"read the log of job {submission_id}", f"{_job_path(submission_id)}/logs", is_json=True)


def get_log_file(submission_id: str, node_id: str, lines: int = -1) -> LogRequest:
    """
    Describe the request for a driver's log file, byte for byte (Ray 2.47 and later).

    By the file's name: asked by ``submission_id`` the head looks through every job it ever ran. What is read is the
    file as it is at the time of the request.

    :param node_id: where the driver runs, ``JobDetails.driver_node_id``.
    :param lines: so many of the last; -1 for all.
    """
    return LogRequest(
        f"read the log of job {submission_id}",
        "/api/v0/logs/file",
        # without a time-out of ours the head cuts a read off after 30 s
        {"node_id": node_id, "filename": log_name(submission_id), "lines": str(lines), "timeout": str(_LOG_TIMEOUT)},
    )


def log_name(submission_id: str) -> str:
    """Return the name of a driver's log file."""
    return f"job-driver-{submission_id}.log"


def parse_answer(request: Request[T], answer: Answer) -> T:
    """
    Turn an answer into what was asked for.

    :raises RayApiResponseError: one of its subclasses, when the answer is something else.
    """
    # where no content is expected, nothing else would tell a page of a login from Ray's own answer
    if answer.status_code != 200 or (not request.has_content and answer.content_type.startswith("text/html")):
        raise error_for_answer(request, answer)
    try:
        result = request.read(json.loads(answer.content) if request.has_content else None)
        return request.stamp(result, answer.time) if request.stamp else result
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        advice = diagnosis[1] if (diagnosis := diagnose_answer(answer)) else CHECK_ADDRESS
        raise RayApiAddressError(
            f"Could not {request.purpose} at {answer.place}: the answer is {_kind_of(answer)}, not what the Ray "
            f"Jobs API says. {advice}",
            status_code=answer.status_code,
        ) from error


def is_log(status_code: int, content_type: str) -> bool:
    """Tell whether an answer holds a log, and not an error or the page of a proxy."""
    return status_code == 200 and not content_type.startswith("text/html")


def check_upload(request: UploadRequest, answer: Answer) -> None:
    """
    Make sure that an upload has arrived.

    :raises RayApiResponseError: one of its subclasses, when the answer says something else.
    """
    if answer.status_code != 200 or answer.content_type.startswith("text/html"):
        raise error_for_answer(request, answer)


def error_for_answer(request: AnyRequest, answer: Answer) -> RayApiResponseError:
    """Return the error that an answer other than 200 means: by Ray's words first, then by the status code."""
    kind, advice = _classify(answer)
    said = _summarize(answer.redact(answer.text))
    message = f"Could not {request.purpose} at {answer.place}: HTTP {answer.status_code}. {advice}"
    return kind(f"{message} It said: {said}" if said else message, status_code=answer.status_code)


def _classify(answer: Answer) -> tuple[type[RayApiResponseError], str]:  # noqa: PLR0912  (a table)
    """Return an answer's error class and what the reader can do about it."""
    text = answer.text
    if diagnosis := diagnose_answer(answer):
        return diagnosis
    match answer.status_code:
        case 200:
            return RayApiAddressError, f"What came is not the answer. {CHECK_ADDRESS}"
        case 500 if "Please use a different submission_id" in text:
            return (
                RayJobExistsError,
                "This submission id belongs to another job of this cluster; choose another.",
            )
        case 500 if "try again later" in text:
            return RayApiUnavailableError, "The cluster is not ready for it."
        case 500 if "non-terminal state" in text:
            return RayJobNotTerminalError, "The job has not ended; stop it and wait for its end first."
        case 400 if "submission type jobs" in text:
            return RayApiRejectedError, (
                "The job was started interactively (type DRIVER): Ray's Jobs API lists such jobs, and that is all. "
                "Whoever runs its driver can stop it and has its log."
            )
        case 400:
            return (
                RayApiRejectedError,
                "Ray cannot accept this request; an older Ray also refuses newer fields.",
            )
        case 404 if text.startswith("Job ") and text.endswith("does not exist"):
            return RayJobNotFoundError, (
                "The cluster does not know it: a wrong id, a deleted job, or a cluster that was started anew since."
            )
        case 404 if text.startswith("Package ") and text.endswith("does not exist"):
            return RayPackageNotFoundError, "The cluster does not hold it."
        case 413:
            return RayApiRejectedError, (
                "That is more than the server takes. Ray's own limit is 100 MiB; less than that is a proxy before it "
                "(nginx: client_max_body_size). Raise it, exclude what the job does not need, or give a URI of the "
                "package."
            )
        case 429 | 502 | 503 | 504:
            return RayApiUnavailableError, "The head, or a proxy before it, is not able to answer now."
        case 404 | 405:
            return RayApiAddressError, f"This is not a Ray dashboard, or not its address. {CHECK_ADDRESS}"
        case _:
            return RayApiResponseError, "The head's own logs (dashboard_JobHead.log) may tell more."


def _job_path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _package_path(name: str) -> str:
    return f"/api/packages/gcs/{quote(name, safe='')}"


def _kind_of(answer: Answer) -> str:
    return answer.content_type.partition(";")[0] or "of no stated type"


def _summarize(text: str, limit: int = 500) -> str:
    """Return what an answer says in a few words: of a traceback its last line, of a page of HTML nothing."""
    if text.startswith("<"):
        return ""
    if "Traceback (most recent call last)" in text:
        text = text.rstrip("\n .").rpartition("\n")[2]
    return text if len(text) <= limit else f"{text[:limit]} ..."
