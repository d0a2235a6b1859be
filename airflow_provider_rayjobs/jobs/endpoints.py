"""
The Ray Jobs REST API: for each endpoint, the request and how to read its answer.

Source: Ray 2.60 ``dashboard/modules/job/job_head.py`` and ``dashboard/modules/state/state_head.py``. Ray's HTTP status
is ambiguous: a 500 may mean that the submission id is taken. So Ray's wording decides which error an answer is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiPackageNotFoundError,
    RayApiRejectedError,
    RayApiResponseError,
    RayJobExistsError,
    RayJobNotFoundError,
    RayJobNotTerminalError,
)
from airflow_provider_rayjobs.jobs import redaction
from airflow_provider_rayjobs.jobs.diagnosis import CHECK_ADDRESS, Diagnosis, diagnose_answer
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobDetails, JobSubmission, RayVersion
from airflow_provider_rayjobs.jobs.requests import (
    Answer,
    AnyRequest,
    LogRequest,
    Request,
    UploadRequest,
    error_message,
    is_html,
)

T = TypeVar("T")

# Seconds. A client that hangs up during a submission can leave a job PENDING forever (ray-project/ray issue 62766).
SUBMIT_TIMEOUT = 120.0
# Seconds. A head needs 30 s for a list of 100,000 jobs, and a slow network as long to carry it.
_LIST_TIMEOUT = 120.0
# Bytes of a list of 90,000 jobs.
_LIST_SIZE = 64 * 1024 * 1024
# Statuses of a head, or of a reverse proxy before it, that cannot answer now.
BUSY = (429, 502, 503, 504)
# Bytes of an answer with status 200 in which the title of a page is looked for.
_MOST_OF_A_PAGE = 64 * 1024
# Seconds for the head to send a whole log: a gigabyte over a slow network.
_LOG_TIMEOUT = 3600


def get_version() -> Request[RayVersion]:
    """Describe the request for the Ray version and the Ray session."""
    return Request("connect to Ray", "GET", "/api/version", RayVersion.from_json, endpoint="get_version")


def submit_job(submission: JobSubmission) -> Request[str]:
    """Describe the submission of a job. It is idempotent: Ray rejects a second job with the same id."""
    return Request(
        f"submit job {submission.submission_id}",
        "POST",
        "/api/jobs/",  # without the last slash Ray answers 404
        lambda answer: _check_id(submission.submission_id, answer.get("submission_id") or answer["job_id"]),
        payload=submission.to_json(),
        timeout=SUBMIT_TIMEOUT,
        endpoint="submit_job",
    )


def get_job(submission_id: str) -> Request[JobDetails]:
    """Describe the request for a job's state, by its submission id or its Ray Core job id (``02000000``)."""
    return Request(
        f"get job {submission_id}",
        "GET",
        _job_path(submission_id),
        lambda answer: _details_of(submission_id, answer),
        with_time=lambda details, time: replace(details, seen_at=time),
        job=submission_id,
        endpoint="get_job",
    )


def _details_of(submission_id: str, answer: Any) -> JobDetails:
    details = JobDetails.from_json(answer)
    _check_id(submission_id, details.submission_id, details.job_id)
    return details


class _AnotherJobError(ValueError):
    """The answer is about another job, for instance from a proxy's cache."""


def _check_id(expected: str, *given: str | None) -> str:
    if expected not in given:
        raise _AnotherJobError
    return expected


def list_jobs() -> Request[list[JobDetails]]:
    """Describe the request for all jobs that the cluster remembers, interactive ones (type DRIVER) included."""
    return Request(
        "list jobs",
        "GET",
        "/api/jobs/",
        lambda answer: [JobDetails.from_json(job) for job in answer],
        timeout=_LIST_TIMEOUT,
        with_time=lambda jobs, time: [replace(job, seen_at=time) for job in jobs],
        max_bytes=_LIST_SIZE,
        endpoint="list_jobs",
    )


def list_records() -> Request[JobRecords]:
    """Describe the request of :func:`list_jobs` for a caller that polls and decodes only some of the jobs."""
    return Request(
        "list jobs",
        "GET",
        "/api/jobs/",
        JobRecords,
        with_time=lambda records, time: replace(records, time=time),
        decode=_split_records,
        max_bytes=_LIST_SIZE,
        endpoint="list_jobs",
    )


class _RecordIds(msgspec.Struct):
    submission_id: str | None = None
    job_id: str | None = None


_split_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_ids = msgspec.json.Decoder(_RecordIds).decode


def _split_records(content: bytes) -> dict[str | None, msgspec.Raw]:
    """
    Return the records of a list by their ids, without decoding them: 5,000 jobs are 3.5 MB of JSON.

    As in Ray's ``find_job_by_ids``, an interactive job precedes a submission with its id, and the Ray Core job id of a
    submission's driver names the submission, too.
    """
    submissions: dict[str | None, msgspec.Raw] = {}
    drivers: dict[str | None, msgspec.Raw] = {}
    cores: dict[str | None, msgspec.Raw] = {}
    try:
        records = _split_list(content)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    for record in records:
        with suppress(msgspec.DecodeError):
            ids = _read_ids(record)
            if ids.submission_id is None:
                cores[ids.job_id] = record
            else:
                submissions[ids.submission_id] = record
                drivers[ids.job_id] = record
    return submissions | drivers | cores


@dataclass(frozen=True)
class JobRecords:
    """The undecoded records of all jobs by their ids, as of ``time`` (Unix milliseconds by the head's clock)."""

    by_id: Mapping[str | None, msgspec.Raw] = field(repr=False)
    time: int = 0

    def find(self, request: Request[T]) -> T | None:
        """Return the result of a request for a job's state. ``None`` if the list has no usable record of the job."""
        record = self.by_id.get(request.job)
        if record is None or request.with_time is None:
            return None
        try:
            return request.with_time(request.read(msgspec.json.decode(record)), self.time)
        except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError):
            return None


def stop_job(submission_id: str) -> Request[bool]:
    """Describe the request to stop a job. Ray answers before the job stops, or ``False`` if it has ended already."""
    path = f"{_job_path(submission_id)}/stop"
    return Request(
        f"stop job {submission_id}", "POST", path, lambda answer: bool(answer["stopped"]), endpoint="stop_job"
    )


def delete_job(submission_id: str) -> Request[bool]:
    """Describe the request to delete Ray's record of an ended job. A second request fails: the job is unknown."""
    path = _job_path(submission_id)
    return Request(
        f"delete job {submission_id}",
        "DELETE",
        path,
        lambda answer: bool(answer["deleted"]),
        idempotent=False,
        endpoint="delete_job",
    )


def get_cluster_status() -> Request[ClusterResources]:
    """Describe the request for the cluster's resources, as the autoscaler reports them."""
    return Request(
        "get the cluster's resources",
        "GET",
        "/api/cluster_status",
        ClusterResources.from_json,
        with_time=ClusterResources.at,
        endpoint="get_cluster_status",
    )


def get_package(name: str) -> Request[None]:
    """Describe the request that looks for a package. Ray keeps the package for 600 s after this request."""
    return Request(
        f"look for package {name}",
        "GET",
        _package_path(name),
        lambda _: None,
        expects_json=False,
        endpoint="get_package",
    )


def put_package(name: str, size: int) -> UploadRequest:
    """Describe the upload of a package of less than 100 MiB. Ray may delete it unless :func:`get_package` follows."""
    return UploadRequest(f"upload package {name}", _package_path(name), size)


def get_log_text(submission_id: str) -> LogRequest:
    r"""
    Describe the request for a driver's whole log as text, which every Ray version has.

    The head holds the log in memory, turns ``\r\n`` and ``\r`` into ``\n``, and fails for bytes that are not UTF-8. So
    its log offsets differ from those of :func:`get_log_file`.
    """
    return LogRequest(f"read the log of job {submission_id}", f"{_job_path(submission_id)}/logs", is_json=True)


def get_log_file(submission_id: str, node_id: str, last_lines: int = -1) -> LogRequest:
    """
    Describe the request for a driver's log file, as bytes (Ray 2.47 and later).

    The request names the file. Given a ``submission_id``, the head would search all jobs that it ever ran.

    :param last_lines: only so many lines from the end.
    """
    return LogRequest(
        f"read the log of job {submission_id}",
        "/api/v0/logs/file",
        # By default the head cuts the answer off after 30 s.
        {
            "node_id": node_id,
            "filename": log_name(submission_id),
            "lines": str(last_lines),
            "timeout": str(_LOG_TIMEOUT),
        },
    )


def log_name(submission_id: str) -> str:
    """Return the name of a driver's log file."""
    return f"job-driver-{submission_id}.log"


_SURROGATE = re.compile(r"[\ud800-\udfff]")


def is_job_id(value: object) -> bool:
    """Tell whether a value may be the id of a job: a path with it leads to no other endpoint, and can be encoded."""
    return isinstance(value, str) and value not in ("", ".", "..") and not _SURROGATE.search(value)


def _job_path(submission_id: str) -> str:
    if not is_job_id(submission_id):
        raise ValueError(f"{submission_id!r} is no id of a job.")
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _package_path(name: str) -> str:
    return f"/api/packages/gcs/{quote(name, safe='')}"


def parse_answer(request: Request[T], answer: Answer) -> T:
    """Return the result of a request, or raise a subclass of :class:`RayApiResponseError`."""
    if not request.expects_json:
        check_answer(request, answer)
        return request.read(None)
    if answer.status_code != 200:
        raise error_for_answer(request, answer)
    try:
        result = request.read(request.decode(answer.content))
        return request.with_time(result, answer.time) if request.with_time else result
    except _AnotherJobError:
        fact = f"HTTP {answer.status_code}, the answer is about another job"
        advice = "Check the reverse proxy before Ray: it must not cache answers."
        message = error_message(fact, request, answer.labelled_address, advice)
        raise RayApiResponseError(message, status_code=answer.status_code, delivery=Delivery.FOREIGN) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if _is_cut_off(answer.content.strip(), error):
            raise cut_off(request, answer.labelled_address) from error
        raise error_for_answer(request, answer) from error


def _is_cut_off(content: bytes, error: Exception) -> bool:
    """Tell whether the end of some JSON is missing. A server that declares no length may hang up at any byte."""
    if not isinstance(error, ValueError) or content[:1] not in (b"{", b"["):
        return False
    return content[-1:] not in (b"}", b"]") or (isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc))


def cut_off(request: AnyRequest, address: str) -> RayApiConnectionError:
    """Return the error for an answer in JSON whose end is missing."""
    fact = "Connection lost, the JSON of the answer is cut off"
    return RayApiConnectionError(error_message(fact, request, address, "Check the reverse proxy before Ray."))


def check_answer(request: AnyRequest, answer: Answer) -> None:
    """Raise an error if a request about a package has failed. Ray's answer is empty, a proxy's page is not."""
    if not is_success(answer.status_code, answer.content_type) or answer.content:
        raise error_for_answer(request, answer)


def is_success(status_code: int, content_type: str, *, is_json: bool = False) -> bool:
    """
    Tell whether an answer that is not parsed, such as a log, is neither an error nor a page of a proxy.

    :param is_json: whether Ray sends JSON. Ray's log files are text or bytes.
    """
    is_proxys = is_html(content_type) or (not is_json and content_type.lower().startswith("application/json"))
    return status_code == 200 and not is_proxys


def error_for_answer(request: AnyRequest, answer: Answer) -> RayApiResponseError:
    """Return the error for an unsuccessful or unexpected answer."""
    if answer.status_code == 200:
        # Maybe 64 MiB of JSON. Of such an answer an error quotes no more than the title of a page.
        answer = replace(answer, content=answer.content[:_MOST_OF_A_PAGE])
    kind, fact, advice = diagnose_answer(answer) or _diagnose_status(answer)
    message = error_message(f"HTTP {answer.status_code}, {fact}", request, answer.labelled_address, advice)
    if quoted := _quote(answer, request):
        message = f"{message} The answer says: {quoted}{'' if quoted.endswith('.') else '.'}"
    error = kind(message, status_code=answer.status_code, delivery=_delivery_of(kind, answer))
    error.retry_after = answer.retry_after
    return error


# Ray's words in an error: token authentication, aiohttp's size limit, a traceback, unknown jobs and packages, no agent.
_RAYS_WORDS = re.compile(
    r"(Unauthorized|Forbidden): .*authentication token|Maximum request body size|Traceback \(most recent call last\)"
    r"|submission type jobs|(Job|Package) .* does not exist|No available agent",
    re.DOTALL,
)
# A head that is starting has no job agent yet. Ray 2.40 calls a method of None then.
_NO_AGENT = re.compile(r"try again later|'NoneType' object has no attribute '\w+_internal'")
# What Ray 2.40 answers to a body that is too large: HTTP 500 with a traceback of aiohttp's error.
_TOO_LARGE_BEFORE_413 = "HTTPRequestEntityTooLarge"
# Characters at the start and at the end of an answer in which Ray's words are. In a text without a limit, the regular
# expression would need a time that grows with the square of its length.
_ENDS = 2000
_REFUSALS = (
    RayApiAuthError, RayApiPackageNotFoundError, RayApiRejectedError, RayJobExistsError, RayJobNotFoundError,
    RayJobNotTerminalError,
)  # fmt: skip


def _delivery_of(kind: type[RayApiResponseError], answer: Answer) -> Delivery:
    """Tell whether Ray refused a request in its own words. A 500 of Ray may come after the request's effect."""
    text = answer.text
    ends = (text[:_ENDS], text[-_ENDS:])
    is_rays = any(map(_RAYS_WORDS.search, ends)) and not is_html(answer.content_type)
    if not is_rays:
        return Delivery.FOREIGN
    return Delivery.REFUSED if issubclass(kind, _REFUSALS) else Delivery.MAY_HAVE_ARRIVED


def _diagnose_status(answer: Answer) -> Diagnosis[RayApiResponseError]:
    text = answer.text
    match answer.status_code:
        case 200:
            content = answer.content_type.partition(";")[0] or "no content type"
            return RayApiAddressError, f"not an answer of the Ray Jobs API ({content})", CHECK_ADDRESS
        case 500 if "Please use a different submission_id" in text:
            return RayJobExistsError, "the submission id is taken", "Another job of the cluster has it. Use another id."
        case 500 if _NO_AGENT.search(text):
            return RayApiBusyError, "the cluster is not ready", "Try again later."
        case 500 if "non-terminal state" in text:
            return RayJobNotTerminalError, "the job has not ended", "Stop it and wait for its end first."
        case 400 if "submission type jobs" in text:
            advice = "Ray's Jobs API only lists such jobs. Stop it, or read its log, where its driver runs."
            return RayApiRejectedError, "not possible for an interactive job (type DRIVER)", advice
        case 400:
            advice = "Correct it. An older Ray also rejects fields that it does not know."
            return RayApiRejectedError, "Ray rejected the request", advice
        case 404 if text.startswith("Job ") and text.endswith("does not exist"):
            advice = "The id is wrong, the job was deleted, or the head was restarted since."
            return RayJobNotFoundError, "job not found", advice
        case 404 if text.startswith("Package ") and text.endswith("does not exist"):
            return RayApiPackageNotFoundError, "package not found", "The cluster does not hold it."
        case code if code == 413 or (code == 500 and _TOO_LARGE_BEFORE_413 in text):
            advice = (
                "Ray's limit is 100 MiB. A reverse proxy may have a lower one (nginx: client_max_body_size): raise it. "
                "Or exclude files that the job does not need, or give the URI of a package."
            )
            return RayApiRejectedError, "request too large", advice
        case code if code in BUSY:
            advice = "The head, or a reverse proxy, cannot answer now."
            return RayApiBusyError, HTTPStatus(code).phrase.lower(), advice
        case 404 | 405:
            return RayApiAddressError, "this is not the Ray Jobs API", CHECK_ADDRESS
        case _:
            advice = "See dashboard_JobHead.log on the head, or dashboard.log of an older Ray."
            return RayApiResponseError, "unexpected status", advice


def _quote(answer: Answer, request: AnyRequest, limit: int = 500) -> str:
    """
    Quote an error, or the last line of a traceback. Quote no HTML, and no 200: it may hold ``env_vars``.

    An error of a proxy may repeat the request, with the ``env_vars`` of a submission.
    """
    if answer.status_code == 200 or answer.text.startswith("<"):
        return ""
    payload: Mapping[str, Any] = request.payload or {}
    # Ray shows these on the page of the job, and a task has some of them in ``env_vars`` too.
    shown = {payload.get("submission_id"), *(payload.get("metadata") or {}).values()}
    env_vars = (payload.get("runtime_env") or {}).get("env_vars") or {}
    text = redaction.redact(answer.redact(answer.text), (value for value in env_vars.values() if value not in shown))
    if "Traceback (most recent call last)" in text:
        text = text.rstrip("\n .").rpartition("\n")[2]
    return text if len(text) <= limit else f"{text[:limit]} ..."
