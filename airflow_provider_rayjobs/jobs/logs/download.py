"""Download the log of a job as it is now, into memory or into a file."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from airflow_provider_rayjobs.exceptions import RayApiBusyError, RayApiResponseError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.logs.reader import FILE, best_source
from airflow_provider_rayjobs.jobs.models import JobDetails, JobType
from airflow_provider_rayjobs.jobs.steps import Engine, ReadLog, send, with_retries


class LogCopy:
    """A :class:`.LogSink` that writes the bytes of a log into a file."""

    needs_more = True

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def begin(self) -> None:
        """Discard the bytes of an earlier read."""
        self._file.seek(0)
        self._file.truncate()

    def feed(self, data: bytes) -> Iterator[str]:
        self._file.write(data)
        return iter(())

    def flush(self, *, is_cut: bool = False) -> Iterator[str]:  # noqa: ARG002
        return iter(())


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces the file at ``path`` when it is complete. An error leaves the old file."""
    # Not the name of the file and more: it may have the greatest length.
    part = path.with_name(f"{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def get_job_logs(submission_id: str, retry_timeout: float) -> Engine[str]:
    """Return a job's log so far as one text; bytes that are not UTF-8 become replacement characters."""
    file = BytesIO()
    yield from save_job_logs(submission_id, file, retry_timeout)
    return file.getvalue().decode("utf-8", errors="replace")


def save_job_logs(submission_id: str, file: BinaryIO, retry_timeout: float) -> Engine[int]:
    """Write a job's log so far into a file, and return its size in bytes."""
    log = LogCopy(file)
    details: JobDetails = yield from send(endpoints.get_job(submission_id), retry_timeout)
    if details.type == JobType.SUBMISSION and (yield from best_source(details, retry_timeout)) == FILE:
        try:
            request = endpoints.get_log_file(details.name, str(details.driver_node_id))
            yield from with_retries(ReadLog(request, log), retry_timeout)
            return file.tell()
        except RayApiBusyError:
            raise  # the text endpoint has other line ends, so it is no substitute for a file that exists
        except RayApiResponseError:
            pass  # no file yet, or no state API: the answer of the text endpoint says which
    yield from with_retries(ReadLog(endpoints.get_log_text(submission_id), log), retry_timeout)
    return file.tell()
