"""The two clients, blocking and async: they send single requests, and drive engines (see :mod:`.steps`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, Unpack, assert_never

from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import endpoints, follow, steps
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.exchange import AsyncExchange, BlockingExchange, Transport
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.logs.download import get_job_logs, save_job_logs, whole_file
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails, RayVersion
from airflow_provider_rayjobs.jobs.requests import AnyRequest, Request
from airflow_provider_rayjobs.jobs.steps import Engine, OnLog, send
from airflow_provider_rayjobs.jobs.stop import delete_ended_job
from airflow_provider_rayjobs.jobs.submit import CodeOptions, submit_with_code
from airflow_provider_rayjobs.jobs.transport import AsyncUploadBytes, HttpCodec, UploadBytes, check_address

T = TypeVar("T")
E = TypeVar("E", BlockingExchange, AsyncExchange)

# Seconds for which a method retries a request that fails.
RETRY_TIMEOUT = 30.0


# Entered around each request. It sees the error of a request that fails, and must raise none of its own.
Observer = Callable[[AnyRequest], AbstractContextManager[object]]


class LoggerLike(Protocol):
    def log(self, level: int, message: Any, /, *args: Any) -> Any: ...


class _Callback:
    """Calls ``on_log``, and tells its errors from those of the cluster."""

    def __init__(self, on_log: OnLog | None) -> None:
        self._on_log = on_log
        self._error: Exception | None = None

    def __call__(self, record: str) -> None:
        if self._on_log is not None:
            try:
                self._on_log(record)
            except Exception as error:
                self._error = error
                raise

    def reraise(self, error: Exception) -> None:
        """Raise an error again if it came from ``on_log``."""
        if error is self._error:
            raise error


class _BaseClient(Generic[E]):
    _exchange_type: type[E]

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        access: Access | None = None,
        label: str = "",
        retry_timeout: float = RETRY_TIMEOUT,
        logger: LoggerLike | None = None,
        on_token: Callable[[str], object] | None = None,
        observer: Observer | None = None,
        transport: Transport | None = None,
    ) -> None:
        if token is not None and access is not None:
            raise ValueError("token and access are both given. Put the token into access.")
        self.address = check_address(address)
        self.retry_timeout = retry_timeout
        self._logger: LoggerLike = logger or logging.getLogger(__name__)
        self._observed: Observer = observer or (lambda _: nullcontext())
        self._codec = HttpCodec(self.address, access or Access(token=token), label, on_token)
        self._http: E = self._exchange_type(self._codec, transport)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def log(self, message: steps.LogMessage) -> None:
        """Log a message of an engine."""
        self._logger.log(message.level, "%s", message.message)


class RayJobsClient(_BaseClient[BlockingExchange]):
    """
    A blocking client of the Ray Jobs API.

    :param address: the address of the dashboard, e.g. ``http://ray-head:8265`` or ``https://ray.example.com/team-a``.
    :param token: Ray's authentication token, sent as ``Authorization: Bearer``; short for ``Access(token=...)``.
    :param access: all other credentials, TLS settings, the HTTP proxy and timeouts: :class:`~.access.Access`.
    :param label: the caller's name for the address: errors add it, e.g. ``http://ray-head:8265 (production)``.
    :param retry_timeout: seconds for which a method retries a request that fails.
    :param logger: receives messages about outages and incomplete logs.
    :param on_token: called with the token of a token file before each request, so that a new one can be masked in logs.
    :param observer: returns a context manager for each request, which is entered while the request is sent.
    :param transport: an httpx transport, for tests.
    """

    _exchange_type = BlockingExchange

    def get_version(self) -> RayVersion:
        """Return the Ray version and the Ray session of the cluster."""
        return self.run(send(endpoints.get_version(), self.retry_timeout))

    def submit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        """
        Submit a job exactly once, even if an answer is lost, and return its submission id.

        The client first uploads the local code of the runtime environment (``working_dir``, ``py_modules``,
        requirements files), unless the cluster has it. Relative paths start at the current directory.

        :param entrypoint: a shell command; or a list of arguments, which the client quotes for the shell.
        :param options: see :class:`~.submission.SubmissionOptions` and :class:`~.submit.CodeOptions`.
        :raises ValueError: an option cannot work; nothing was submitted.
        :raises RayPackageError: the local code cannot be packed; nothing was submitted.
        """
        return self.run(submit_with_code(entrypoint, options, self.retry_timeout))

    def get_job(self, submission_id: str) -> JobDetails:
        """Return a job's current state, by its submission id or its Ray Core job id."""
        return self.run(send(endpoints.get_job(submission_id), self.retry_timeout))

    def list_jobs(self) -> list[JobDetails]:
        """Return all jobs that the cluster remembers, interactive ones included. The head needs 0.3 ms for each job."""
        return self.run(send(endpoints.list_jobs(), self.retry_timeout))

    def stop_job(self, submission_id: str) -> bool:
        """Ask Ray to stop a job, without waiting for its end. Return ``False`` if it has ended already."""
        return self.run(send(endpoints.stop_job(submission_id), self.retry_timeout))

    def delete_job(self, submission_id: str) -> bool:
        """Delete Ray's record of a job that has ended, 5 s after its end at the earliest: Ray may restore it before."""
        return self.run(delete_ended_job(submission_id, self.retry_timeout))

    def get_job_logs(self, submission_id: str) -> str:
        """Return the current log of a driver as one text."""
        return self.run(get_job_logs(submission_id, self.retry_timeout))

    def save_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """
        Write the current log of a driver to a file, without holding it in memory, and return its size in bytes.

        A failed download leaves an existing file unchanged. Heads before Ray 2.47 change the line ends of the log.
        """
        with whole_file(Path(path)) as file:
            return self.run(save_job_logs(submission_id, file, self.retry_timeout))

    def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """Follow a job to its terminal status; ``on_log`` gets log records: many lines, without a final newline."""
        engine = follow.follow_job(
            JobRef(self.address, submission_id), reader=LogReader() if on_log else None, **options
        )
        return self.run(engine, on_log)

    def run(self, engine: Engine[T], on_log: OnLog | None = None) -> T:
        """Run an engine to its end, and call ``on_log`` with the records that it emits."""
        emit = _Callback(on_log)
        with closing(engine):
            step = steps.advance(engine)
            while not isinstance(step, steps.Finished):
                try:
                    outcome = self.perform(step, emit)
                except RayJobsError as error:
                    emit.reraise(error)
                    outcome = error
                step = steps.advance(engine, outcome)
            return step.value

    def perform(self, step: steps.Step, emit: OnLog) -> Any:
        """Perform one step of an engine, and return its result."""
        match step:
            case steps.Send(request):
                return self.send(request)
            case steps.ReadLog(request, log):
                with self._observed(request):
                    return self._http.read_log(request, log, emit)
            case steps.Upload(request) as upload:
                content = UploadBytes(lambda: upload.chunks(time.monotonic, self.log))
                with self._observed(request):
                    return endpoints.check_answer(request, self._http.request(request, content))
            case steps.RunBlocking(call):
                return call()
            case steps.EmitRecord(record):
                return emit(record)
            case steps.LogMessage():
                return self.log(step)
            case steps.Sleep(seconds):
                if seconds:
                    time.sleep(seconds)
                return time.monotonic()
            case _:
                assert_never(step)

    def send(self, request: Request[T]) -> T:
        """Send one request, once."""
        with self._observed(request):
            return endpoints.parse_answer(request, self._http.request(request))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncRayJobsClient(_BaseClient[AsyncExchange]):
    """:class:`RayJobsClient` for an event loop, with the same arguments and methods."""

    _exchange_type = AsyncExchange

    async def get_version(self) -> RayVersion:
        return await self.run(send(endpoints.get_version(), self.retry_timeout))

    async def submit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        return await self.run(submit_with_code(entrypoint, options, self.retry_timeout))

    async def get_job(self, submission_id: str) -> JobDetails:
        return await self.run(send(endpoints.get_job(submission_id), self.retry_timeout))

    async def list_jobs(self) -> list[JobDetails]:
        return await self.run(send(endpoints.list_jobs(), self.retry_timeout))

    async def stop_job(self, submission_id: str) -> bool:
        return await self.run(send(endpoints.stop_job(submission_id), self.retry_timeout))

    async def delete_job(self, submission_id: str) -> bool:
        return await self.run(delete_ended_job(submission_id, self.retry_timeout))

    async def get_job_logs(self, submission_id: str) -> str:
        return await self.run(get_job_logs(submission_id, self.retry_timeout))

    async def save_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """See :meth:`RayJobsClient.save_job_logs`; the file is written on the event loop, in chunks of 64 KiB."""
        with whole_file(Path(path)) as file:
            return await self.run(save_job_logs(submission_id, file, self.retry_timeout))

    async def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """See :meth:`RayJobsClient.follow_job`; ``on_log`` is called on the event loop and must not block it."""
        engine = follow.follow_job(
            JobRef(self.address, submission_id), reader=LogReader() if on_log else None, **options
        )
        return await self.run(engine, on_log)

    async def run(self, engine: Engine[T], on_log: OnLog | None = None) -> T:
        return await drive(engine, self.perform, on_log)

    async def perform(self, step: steps.Step, emit: OnLog) -> Any:
        match step:
            case steps.Send(request):
                return await self.send(request)
            case steps.ReadLog(request, log):
                with self._observed(request):
                    return await self._http.read_log(request, log, emit)
            case steps.Upload(request) as upload:
                content = AsyncUploadBytes(lambda: upload.chunks(time.monotonic, self.log))
                with self._observed(request):
                    return endpoints.check_answer(request, await self._http.request(request, content))
            case steps.RunBlocking(call):
                return await _run_in_thread(call)
            case steps.EmitRecord(record):
                return emit(record)
            case steps.LogMessage():
                return self.log(step)
            case steps.Sleep(seconds):
                if seconds:
                    await asyncio.sleep(seconds)
                return time.monotonic()
            case _:
                assert_never(step)

    async def send(self, request: Request[T]) -> T:
        with self._observed(request):
            return endpoints.parse_answer(request, await self._http.request(request))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def drive(
    engine: Engine[T], perform: Callable[[steps.Step, OnLog], Awaitable[Any]], on_log: OnLog | None = None
) -> T:
    """Run an engine on an event loop; ``perform`` performs its steps."""
    emit = _Callback(on_log)
    with closing(engine):
        step = steps.advance(engine)
        while not isinstance(step, steps.Finished):
            try:
                outcome = await perform(step, emit)
            except RayJobsError as error:
                emit.reraise(error)
                outcome = error
            step = steps.advance(engine, outcome)
        return step.value


async def _run_in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call in a thread. A cancelled caller waits for its end: the call may use files of the caller."""
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
