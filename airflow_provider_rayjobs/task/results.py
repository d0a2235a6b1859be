"""The result of a job that SUCCEEDED, out of the messages in its log."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from typing import Any

from airflow_provider_rayjobs.exceptions import (
    RayApiBusyError,
    RayJobResultError,
    RayPackageError,
)
from airflow_provider_rayjobs.in_job import ResultError, check
from airflow_provider_rayjobs.jobs.logs.messages import StoredResult
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails

# Most bytes of a result in the package storage.
MAX_STORED = 100 * 1024 * 1024


def read_result(
    reader: LogReader | None,
    details: JobDetails,
    address: str,
    warn: Callable[..., object],
    *,
    read_stored: Callable[[int], bytes],
    may_unpickle: bool = False,
) -> Any:
    """
    Return the last whole result that a job pushed.

    :param reader: has read the job's log to its end.
    :param warn: called with a message and its arguments if there are several results.
    :param read_stored: returns the file of a large result, of which it reads no more than so many bytes and one.
    :param may_unpickle: whether a pickled result is accepted. It can run any code in this process.
    :raises RayJobResultError: there is no whole result, or the log cannot be read.
    """
    name = f"Ray job {details.name} at {address} SUCCEEDED"
    error = reader.end_error if reader is not None else None
    result = reader.messages.result if reader is not None else None
    if reader is None or result is None:
        if error is not None or reader is None:
            # Ray answers 500 if the file or its node is gone. After another answer the next try may read the log.
            is_gone = not isinstance(error, RayApiBusyError) and getattr(error, "status_code", 0) == 500
            raise RayJobResultError(f"{name}, but its result cannot be read. {error or ''}", is_final=is_gone)
        if reader.messages.broken:
            fact = "its result is broken: it was not written completely, or its checksum is wrong"
            raise RayJobResultError(f"{name}, but {fact}. Look for a full disk on its node.", is_final=True)
        raise RayJobResultError(
            f"{name}, but pushed no result. Call push_result of airflow_provider_rayjobs.in_job at its end.",
            is_final=True,
        )
    if reader.messages.results > 1:
        warn("Ray job %s pushed %d results. The last one counts.", details.name, reader.messages.results)
    if isinstance(result, StoredResult):
        try:
            if result.size > MAX_STORED:
                raise ValueError(f"it has {result.size} bytes, and the limit is {MAX_STORED}")
            result = result.parse(read_stored(result.size))
        except RayPackageError as missing:
            # the storage may answer the next try
            raise RayJobResultError(f"{name}, but its stored result cannot be read. {missing}") from missing
        except ValueError as broken:
            raise RayJobResultError(f"{name}, but its stored result cannot be used: {broken}.", is_final=True) from None
    if not result.is_pickled:
        try:
            check(result.value, "result")  # a program in another language did not
        except ResultError as error:
            raise RayJobResultError(f"{name}, but its result cannot be an XCom: {error}", is_final=True) from None
        return result.value
    if not may_unpickle:
        fact = "its result is pickled, and result_serializer is json"
        raise RayJobResultError(f"{name}, but {fact}. Nothing was unpickled.", is_final=True)
    try:
        return pickle.loads(base64.b64decode(result.value))  # noqa: S301  (the user chose it)
    except Exception as failure:
        fact = f"its result cannot be unpickled: {type(failure).__name__}: {failure}"
        raise RayJobResultError(f"{name}, but {fact}", is_final=True) from failure
