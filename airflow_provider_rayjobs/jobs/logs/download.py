"""The log of a job as it is now, had at once: as a text, or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from airflow_provider_rayjobs.exceptions import RayApiResponseError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.logs.buffer import LogBuffer
from airflow_provider_rayjobs.jobs.logs.reader import FILE, best_source
from airflow_provider_rayjobs.jobs.models import JobDetails, JobType
from airflow_provider_rayjobs.jobs.steps import Engine, LogSink, ReadLog, send, with_retries


class LogFile:
    """
    A log that goes to a file, byte for byte; a context manager.

    It is written beside its place and moved there when it is whole: a download that fails leaves what was there.

    :param path: of the file; its directory has to be there.
    """

    wants_more = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._part = path.with_name(f"{path.name}.part")
        self._file: BinaryIO = self._part.open("wb")

    def begin(self) -> None:
        """Say that a new read begins; what came before is forgotten."""
        self._file.seek(0)
        self._file.truncate()
        self.size = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """Write the next bytes of a read; there is nothing to show."""
        self._file.write(data)
        self.size += len(data)
        return iter(())

    def flush(self) -> Iterator[str]:
        """Do nothing: nothing waits to be shown."""
        return iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            self._part.replace(self.path)
        else:
            self._part.unlink()


def get_job_logs(submission_id: str, retry_timeout: float) -> Engine[str]:
    """Return a driver's log so far as one text; it is held in memory."""
    log = LogBuffer()
    yield from _download(submission_id, log, retry_timeout)
    return log.text


def save_job_logs(submission_id: str, file: LogFile, retry_timeout: float) -> Engine[int]:
    """Write a driver's log so far to a file, and return how many bytes it has."""
    yield from _download(submission_id, file, retry_timeout)
    return file.size


def _download(submission_id: str, log: LogSink, retry_timeout: float) -> Engine[None]:
    details: JobDetails = yield from send(endpoints.get_job(submission_id), retry_timeout)
    if details.type == JobType.SUBMISSION and (yield from best_source(details, retry_timeout)) == FILE:
        try:
            yield from with_retries(
                ReadLog(endpoints.get_log_file(details.name, str(details.driver_node_id)), log), retry_timeout
            )
            return
        except RayApiResponseError:
            pass  # no such file yet, or no state API: the text endpoint tells which
    yield from with_retries(ReadLog(endpoints.get_log_text(submission_id), log), retry_timeout)
