"""The result of a job that SUCCEEDED."""

from __future__ import annotations

import base64
import hashlib
import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiResponseError,
    RayJobResultError,
    RayPackageError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.logs.messages import JobMessages, Result, StoredResult
from airflow_provider_rayjobs.task.results import read_result

JOB = JobDetails(JobType.SUBMISSION, JobStatus.SUCCEEDED, submission_id="job-1")


STORED = b'{"a": 1}'


def read(messages: JobMessages, error: Exception | None = None, **options: Any) -> tuple[Any, list[str]]:
    """Return the result and the warnings."""
    warnings: list[str] = []
    reader: Any = SimpleNamespace(messages=messages, end_error=error)
    options = {"read_stored": lambda size: STORED} | options
    result = read_result(reader, JOB, "http://a:8265", lambda text, *args: warnings.append(text % args), **options)
    return result, warnings


@pytest.mark.parametrize("value", [None, 0, {"a": [1]}])
def test_result(value: Any) -> None:
    """The value is returned, ``None`` as well."""
    assert read(JobMessages(Result(value), results=1)) == (value, [])


def test_last_of_several_results() -> None:
    """The last whole result counts, with a warning, whatever else is broken."""
    result, warnings = read(JobMessages(Result(3), results=2, broken=1))

    assert result == 3
    assert warnings == ["Ray job job-1 pushed 2 results. The last one counts."]


def test_result_of_a_log_that_was_not_read_to_its_end() -> None:
    """A whole result counts, although the rest of the log cannot be read."""
    assert read(JobMessages(Result(3), results=1), RayApiBusyError("busy")) == (3, [])


@pytest.mark.parametrize(
    ("messages", "error", "text", "is_final"),
    [
        (JobMessages(), None, "but pushed no result. Call push_result", True),
        (JobMessages(broken=1), None, "but its result is broken: it was not written completely", True),
        (JobMessages(), RayApiConnectionError("away"), "but its result cannot be read. away", False),
        (JobMessages(), RayApiBusyError("busy"), "but its result cannot be read. busy", False),
        (JobMessages(), RayApiResponseError("gone", status_code=500), "but its result cannot be read. gone", True),
        (JobMessages(), RayApiBusyError("busy", status_code=500), "but its result cannot be read. busy", False),
        (JobMessages(), RayApiAddressError("not Ray", status_code=404), "but its result cannot be read. not", False),
        (JobMessages(), RayApiAuthError("no login", status_code=401), "but its result cannot be read. no", False),
        (JobMessages(Result("x", is_pickled=True), results=1), None, "but its result is pickled, and", True),
        (JobMessages(Result([2**64]), results=1), None, "but its result cannot be an XCom: result[0] is an", True),
        (JobMessages(Result("\ud800"), results=1), None, "but its result cannot be an XCom: result is text", True),
        (JobMessages(Result(float("inf")), results=1), None, "but its result cannot be an XCom: result is inf", True),
    ],
)
def test_result_that_cannot_be_read(messages: JobMessages, error: Any, text: str, is_final: bool) -> None:
    """The error names the job and the reason. It is final if no retry can read the result."""
    with pytest.raises(RayJobResultError) as raised:
        read(messages, error)

    assert str(raised.value).startswith(f"Ray job job-1 at http://a:8265 SUCCEEDED, {text}")
    assert raised.value.is_final is is_final


def test_no_reader() -> None:
    """Without a reader the result is unknown, and a retry may read it."""
    with pytest.raises(RayJobResultError, match="cannot be read") as raised:
        read_result(None, JOB, "http://a:8265", print, read_stored=lambda size: b"")

    assert not raised.value.is_final


def stored(content: bytes = STORED, **changes: Any) -> JobMessages:
    result = StoredResult(len(content), hashlib.sha256(content).hexdigest())
    return JobMessages(replace(result, **changes), results=1)


def test_stored_result() -> None:
    """A large result is read from the package storage, no more of it than the job has written."""
    sizes: list[int] = []

    assert read(stored(), read_stored=lambda size: sizes.append(size) or STORED) == ({"a": 1}, [])
    assert sizes == [len(STORED)]


def unavailable(size: int) -> bytes:
    raise RayPackageError("away")


@pytest.mark.parametrize(
    ("messages", "text", "is_final"),
    [
        (stored(b"other"), "cannot be used: the file has 8 bytes, and not the 5 that the job has written.", True),
        (stored(size=101 * 2**20), "cannot be used: it has 105906176 bytes, and the limit is 104857600.", True),
        (stored(sha256="0"), "cannot be used: the file has 8 bytes", True),
        (stored(is_pickled=True), "but its result is pickled, and result_serializer is json", True),
    ],
)
def test_stored_result_that_cannot_be_used(messages: JobMessages, text: str, is_final: bool) -> None:
    """A file with other contents is never a result."""
    with pytest.raises(RayJobResultError, match=text) as raised:
        read(messages)

    assert raised.value.is_final


def test_storage_that_does_not_answer() -> None:
    """The next try can read the stored result."""
    with pytest.raises(RayJobResultError, match="stored result cannot be read. away") as raised:
        read(stored(), read_stored=unavailable)

    assert not raised.value.is_final


def test_pickled_result_is_unpickled_only_on_request() -> None:
    """A pickle from the cluster is opened only if the user has chosen cloudpickle for results."""
    messages = JobMessages(Result(base64.b64encode(pickle.dumps({1, 2})).decode(), is_pickled=True), results=1)

    assert read(messages, may_unpickle=True) == ({1, 2}, [])
    with pytest.raises(RayJobResultError, match="cannot be unpickled: EOFError"):
        read(JobMessages(Result("", is_pickled=True), results=1), may_unpickle=True)
