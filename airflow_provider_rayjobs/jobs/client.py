"""
The clients. Each sends single requests, and drives engines (:mod:`.steps` is their contract).

``RayJobsClient`` blocks, ``AsyncRayJobsClient`` runs on an event loop. They are twins: the same methods, one line each,
over the same engines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack, assert_never

import httpx

from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import endpoints, follow
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.logs.download import LogFile, get_job_logs, save_job_logs
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails, RayVersion
from airflow_provider_rayjobs.jobs.packages.submit import CodeOptions, submit_with_code
from airflow_provider_rayjobs.jobs.requests import LogRequest, Request
from airflow_provider_rayjobs.jobs.steps import (
    EmitRecord,
    Engine,
    Finished,
    LogMessage,
    LogSink,
    OnLog,
    ReadLog,
    RunBlocking,
    Send,
    Sleep,
    Step,
    Upload,
    advance,
    send,
)
from airflow_provider_rayjobs.jobs.transport import (
    LOG_CHUNK,
    AsyncUploadContent,
    HttpCodec,
    LogReceiver,
    OnToken,
    UploadContent,
    check_address,
)

T = TypeVar("T")

# Seconds for which a method retries a request that fails.
RETRY_TIMEOUT = 30.0


class LoggerLike(Protocol):
    """A logger: that of Python, of structlog or of the caller's framework."""

    def log(self, level: int, message: Any, /, *args: Any) -> Any:
        """Log a message of a level."""


class _BaseClient:
    """The part of both clients that sends nothing."""

    def __init__(
        self,
        address: str,
        token: str | None,
        access: Access | None,
        label: str,
        retry_timeout: float,
        logger: LoggerLike | None,
        on_token: OnToken | None,
    ) -> None:
        if token is not None and access is not None:
            raise ValueError("token and access were both given; access has a token of its own")
        self.address = check_address(address)
        self.retry_timeout = retry_timeout
        self._codec = HttpCodec(self.address, access or Access(token=token), label, on_token)
        self._logger: LoggerLike = logger or logging.getLogger(__name__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def _show(self, step: EmitRecord | LogMessage, emit: OnLog) -> None:
        match step:
            case EmitRecord(record):
                emit(record)
            case LogMessage():
                self._log(step)
            case _:
                assert_never(step)

    def _log(self, message: LogMessage) -> None:
        self._logger.log(message.level, "%s", message.message)


class RayJobsClient(_BaseClient):
    """
    A blocking client of the Ray Jobs API.

    :param address: of the head's dashboard, e.g. ``http://ray-head:8265`` or ``https://ray.example.com/team-a``.
    :param token: Ray's authentication token, sent as ``Authorization: Bearer``; short for ``Access(token=...)``.
    :param access: all other credentials, TLS settings, the HTTP proxy and timeouts: :class:`~.access.Access`.
    :param label: the caller's name for the address: errors add it, e.g. ``http://ray-head:8265 (production)``.
    :param retry_timeout: seconds for which a method retries a request that fails.
    :param logger: for messages on outages and incomplete logs.
    :param on_token: called with a token from a token file before each request that sends it. Such tokens change, and
        the caller may want to mask them in its logs.
    :param transport: httpx's, for tests.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        access: Access | None = None,
        label: str = "",
        retry_timeout: float = RETRY_TIMEOUT,
        logger: LoggerLike | None = None,
        on_token: OnToken | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(address, token, access, label, retry_timeout, logger, on_token)
        self._http = httpx.Client(transport=transport, **self._codec.client_settings())

    def get_version(self) -> RayVersion:
        """Return the Ray version of the cluster, and its session."""
        return self.run(send(endpoints.get_version(), self.retry_timeout))

    def submit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        """
        Submit a job exactly once, even if an answer is lost, and return its submission id.

        The local code in its runtime environment (``working_dir``, ``py_modules``, requirements files) is packed and
        uploaded first, unless the cluster has it. Relative paths start at the working directory.

        :param entrypoint: a shell command; or a list of its arguments, which is quoted.
        :param options: :class:`~.submission.SubmissionOptions`, and ``package_secrets``: whether files that look like
            secrets are packed, or patterns for those that are.
        :raises ValueError: for an option that can never work; nothing was submitted.
        :raises RayPackageError: for local code that cannot be packed; nothing was submitted.
        """
        return self.run(submit_with_code(entrypoint, options, self.retry_timeout))

    def get_job(self, submission_id: str) -> JobDetails:
        """Return a job's current state; the id may be a Ray Core job id as well."""
        return self.run(send(endpoints.get_job(submission_id), self.retry_timeout))

    def list_jobs(self) -> list[JobDetails]:
        """Return all jobs that the cluster remembers, interactive ones included. Each costs the head 0.3 ms."""
        return self.run(send(endpoints.list_jobs(), self.retry_timeout))

    def stop_job(self, submission_id: str) -> bool:
        """Ask Ray to stop a job, which takes seconds; return ``False`` if it has ended before."""
        return self.run(send(endpoints.stop_job(submission_id), self.retry_timeout))

    def delete_job(self, submission_id: str) -> bool:
        """Delete the cluster's record of a job that has ended."""
        return self.run(send(endpoints.delete_job(submission_id), self.retry_timeout))

    def get_job_logs(self, submission_id: str) -> str:
        """Return the present log of a driver as one text, held in memory."""
        return self.run(get_job_logs(submission_id, self.retry_timeout))

    def save_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """
        Write the present log of a driver to a file, without holding it in memory, and return its size in bytes.

        The file has the log's bytes. A head before Ray 2.47 gives the log as text, with its line ends changed.

        :param path: an existing file is replaced when the download is complete.
        """
        with LogFile(Path(path)) as file:
            return self.run(save_job_logs(submission_id, file, self.retry_timeout))

    def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """
        Follow a job to its terminal status, and return it.

        :param on_log: called with each record of the job's log as it arrives: many lines, without the last newline.
        """
        engine = follow.follow_job(submission_id, reader=LogReader() if on_log else None, **options)
        return self.run(engine, on_log)

    def run(self, engine: Engine[T], on_log: OnLog | None = None) -> T:
        """Drive an engine to its end, and call ``on_log`` with the records that it emits."""
        with closing(engine):
            step = advance(engine)
            while not isinstance(step, Finished):
                try:
                    outcome = self._perform(step, on_log or _ignore)
                except RayJobsError as error:
                    outcome = error
                step = advance(engine, outcome)
            return step.value

    def _perform(self, step: Step, emit: OnLog) -> Any:
        match step:
            case Send(request):
                return self.send(request)
            case ReadLog(request, log):
                return self._read_log(request, log, emit)
            case Upload():
                return self._upload(step)
            case RunBlocking(call):
                return call()
            case Sleep(seconds):
                if seconds:
                    time.sleep(seconds)
                return time.monotonic()
            case _:
                return self._show(step, emit)

    def send(self, request: Request[T]) -> T:
        """Send one request, once."""
        with self._codec.translate_errors(request):
            response = self._http.request(**self._codec.encode(request))
        return endpoints.parse_answer(request, self._codec.decode(response))

    def _read_log(self, request: LogRequest, log: LogSink, emit: OnLog) -> None:
        codec = self._codec
        with codec.translate_errors(request), self._http.stream(**codec.encode(request)) as response:
            if not endpoints.is_log(response.status_code, response.headers.get("content-type", "")):
                response.read()
                raise endpoints.error_for_answer(request, codec.decode(response))
            receiver = LogReceiver(request, log, emit, codec.place)
            for chunk in response.iter_bytes(LOG_CHUNK):
                if not receiver.feed(chunk):
                    return
        receiver.finish()

    def _upload(self, step: Upload) -> None:
        with self._codec.translate_errors(step.request):
            content = UploadContent(step, self._log)
            response = self._http.request(content=content, **self._codec.encode(step.request))
        endpoints.check_upload(step.request, self._codec.decode(response))

    def close(self) -> None:
        """Close the connections that are kept for the next request."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRayJobsClient(_BaseClient):
    """:class:`RayJobsClient` for an event loop: the same arguments, the same methods, awaited."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        access: Access | None = None,
        label: str = "",
        retry_timeout: float = RETRY_TIMEOUT,
        logger: LoggerLike | None = None,
        on_token: OnToken | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(address, token, access, label, retry_timeout, logger, on_token)
        self._http = httpx.AsyncClient(transport=transport, **self._codec.client_settings())

    async def get_version(self) -> RayVersion:
        """See :meth:`RayJobsClient.get_version`."""
        return await self.run(send(endpoints.get_version(), self.retry_timeout))

    async def submit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        """See :meth:`RayJobsClient.submit_job`."""
        return await self.run(submit_with_code(entrypoint, options, self.retry_timeout))

    async def get_job(self, submission_id: str) -> JobDetails:
        """See :meth:`RayJobsClient.get_job`."""
        return await self.run(send(endpoints.get_job(submission_id), self.retry_timeout))

    async def list_jobs(self) -> list[JobDetails]:
        """See :meth:`RayJobsClient.list_jobs`."""
        return await self.run(send(endpoints.list_jobs(), self.retry_timeout))

    async def stop_job(self, submission_id: str) -> bool:
        """See :meth:`RayJobsClient.stop_job`."""
        return await self.run(send(endpoints.stop_job(submission_id), self.retry_timeout))

    async def delete_job(self, submission_id: str) -> bool:
        """See :meth:`RayJobsClient.delete_job`."""
        return await self.run(send(endpoints.delete_job(submission_id), self.retry_timeout))

    async def get_job_logs(self, submission_id: str) -> str:
        """See :meth:`RayJobsClient.get_job_logs`."""
        return await self.run(get_job_logs(submission_id, self.retry_timeout))

    async def save_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """See :meth:`RayJobsClient.save_job_logs`; the file is written on the event loop, in chunks of 64 KiB."""
        with LogFile(Path(path)) as file:
            return await self.run(save_job_logs(submission_id, file, self.retry_timeout))

    async def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """See :meth:`RayJobsClient.follow_job`; ``on_log`` is called on the event loop and must not block it."""
        engine = follow.follow_job(submission_id, reader=LogReader() if on_log else None, **options)
        return await self.run(engine, on_log)

    async def run(self, engine: Engine[T], on_log: OnLog | None = None) -> T:
        """See :meth:`RayJobsClient.run`."""
        with closing(engine):
            step = advance(engine)
            while not isinstance(step, Finished):
                try:
                    outcome = await self._perform(step, on_log or _ignore)
                except RayJobsError as error:
                    outcome = error
                step = advance(engine, outcome)
            return step.value

    async def _perform(self, step: Step, emit: OnLog) -> Any:
        match step:
            case Send(request):
                return await self.send(request)
            case ReadLog(request, log):
                return await self._read_log(request, log, emit)
            case Upload():
                return await self._upload(step)
            case RunBlocking(call):
                return await _run_in_thread(call)
            case Sleep(seconds):
                if seconds:
                    await asyncio.sleep(seconds)
                return time.monotonic()
            case _:
                return self._show(step, emit)

    async def send(self, request: Request[T]) -> T:
        """Send one request, once."""
        with self._codec.translate_errors(request):
            response = await self._http.request(**self._codec.encode(request))
        return endpoints.parse_answer(request, self._codec.decode(response))

    async def _read_log(self, request: LogRequest, log: LogSink, emit: OnLog) -> None:
        codec = self._codec
        with codec.translate_errors(request):
            async with self._http.stream(**codec.encode(request)) as response:
                if not endpoints.is_log(response.status_code, response.headers.get("content-type", "")):
                    await response.aread()
                    raise endpoints.error_for_answer(request, codec.decode(response))
                receiver = LogReceiver(request, log, emit, codec.place)
                async for chunk in response.aiter_bytes(LOG_CHUNK):
                    if not receiver.feed(chunk):
                        return
        receiver.finish()

    async def _upload(self, step: Upload) -> None:
        with self._codec.translate_errors(step.request):
            content = AsyncUploadContent(step, self._log)
            response = await self._http.request(content=content, **self._codec.encode(step.request))
        endpoints.check_upload(step.request, self._codec.decode(response))

    async def aclose(self) -> None:
        """Close the connections that are kept for the next request."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _run_in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call beside the event loop, always to its end: cancelled callers close what it works with."""
    work = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        work.exception()  # marks it as retrieved
        raise cancelled
    return work.result()


def _ignore(record: str) -> None:
    """Take a log record without ``on_log``."""
