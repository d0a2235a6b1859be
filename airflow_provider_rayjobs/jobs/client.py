"""
The clients: the one room that does I/O. Each sends one request, or drives one engine (:mod:`.steps`).

``RayJobsClient`` blocks, ``AsyncRayJobsClient`` lives on an event loop; their methods are the same, one line
each, over the same engines.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack, assert_never
from urllib.parse import urlsplit

import httpx

from airflow_provider_rayjobs import __version__
from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiConnectionError,
    RayApiTLSError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import endpoints, follow
from airflow_provider_rayjobs.jobs.access import READ_TIMEOUT, Access, is_sensitive_name, secret_variants
from airflow_provider_rayjobs.jobs.diagnosis import diagnose_failure
from airflow_provider_rayjobs.jobs.logs.download import LogFile, get_job_logs, save_job_logs
from airflow_provider_rayjobs.jobs.logs.json_text import JsonText
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails, RayVersion
from airflow_provider_rayjobs.jobs.packages.submit import CodeOptions, submit_with_code
from airflow_provider_rayjobs.jobs.requests import Answer, AnyRequest, LogRequest, Request, UploadRequest
from airflow_provider_rayjobs.jobs.steps import (
    EmitRecord,
    Engine,
    Finished,
    LogMessage,
    LogSink,
    ReadLog,
    RunBlocking,
    Send,
    Sleep,
    Step,
    Upload,
    advance,
    send,
)

T = TypeVar("T")
OnLog = Callable[[str], object]
OnToken = Callable[[str], object]

# Seconds for which a method goes on trying when the cluster does not answer.
RETRY_TIMEOUT = 30.0
_LOG_CHUNK = 64 * 1024
# What of an answer's headers tells who answers.
_TELLING_HEADERS = ("location", "server", "www-authenticate")
# What a request may end in without an answer. On an event loop httpx lets through what a server says after TLS 1.3's
# handshake, such as that it wants a client's certificate.
_FAILURES = (httpx.HTTPError, ssl.SSLError)
# What never left this machine: such a request may be sent again whatever it asks for.
_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.LocalProtocolError,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class LoggerLike(Protocol):
    """A logger, as far as it is needed here: Python's, structlog's and Airflow's all are one."""

    def log(self, level: int, message: Any, /, *args: Any) -> Any:
        """Log a message of a level."""


class _BaseClient:
    """What both clients share: where the cluster is, how to introduce ourselves, what a failure means."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        access: Access | None = None,
        retry_timeout: float = RETRY_TIMEOUT,
        logger: LoggerLike | None = None,
        on_token: OnToken | None = None,
    ) -> None:
        self.address = check_address(address)
        if token is not None and access is not None:
            raise ValueError("token and access were both given; access has a token of its own")
        self._access = access or Access(token=token)
        self._on_token = on_token
        self.retry_timeout = retry_timeout
        self._logger: LoggerLike = logger or logging.getLogger(__name__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def _settings(self) -> dict[str, Any]:
        """
        Return what both kinds of httpx client are made with.

        Redirects are not followed: they lead elsewhere, and what lets us in here is nobody else's business.
        """
        access = self._access
        # TLS settings take 25 ms; where none is spoken, some that believe nobody do
        needs_tls = any(urlsplit(url).scheme == "https" for url in (self.address, access.proxy or ""))
        tls = access.tls() if needs_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return {
            "base_url": self.address,
            # A browser's User-Agent is refused by Ray on every write.
            "headers": {"User-Agent": f"airflow-provider-rayjobs/{__version__}", "Accept": "*/*"},
            "timeout": access.connect_timeout,
            "follow_redirects": False,
            "verify": tls,
            "proxy": None if access.proxy is None else _proxy(access.proxy, tls),
            "auth": _Guarded(access.auth) if access.auth else None,
        }

    def _arguments(self, request: AnyRequest) -> dict[str, Any]:
        access = self._access
        timeout = access.read_timeout if request.timeout == READ_TIMEOUT else request.timeout
        try:
            headers = access.request_headers()
        except (OSError, ValueError) as error:
            raise RayApiConnectionError(
                f"Could not {request.purpose} at {self.address}: there is no token to send. "
                f"{access.describe_token_file_error(error)}",
                sent=False,
            ) from None
        if self._on_token is not None and access.token_file is not None:
            bearer = headers.get(access.token_header_name, "")
            if token := bearer.removeprefix("Bearer "):
                self._on_token(token)
        arguments = {
            "method": request.method,
            "url": request.path,
            "params": request.params,
            "json": request.body,
            "timeout": httpx.Timeout(timeout, connect=min(access.connect_timeout, timeout)),
            "headers": headers,
        }
        if isinstance(request, UploadRequest):
            headers |= {"Content-Length": str(request.size), "Content-Type": "application/octet-stream"}
        return arguments

    def _answer(self, response: httpx.Response) -> Answer:
        return Answer(
            response.status_code,
            response.content,
            self.address,
            response.headers.get("content-type", ""),
            _time_of(response.headers.get("date")),
            {name: response.headers[name] for name in _TELLING_HEADERS if name in response.headers},
            self._access,
            tuple(
                secret
                for name, value in response.request.headers.items()
                if is_sensitive_name(name)
                for secret in secret_variants(value)
            ),
        )

    def _connection_error(self, request: AnyRequest, error: Exception) -> RayApiConnectionError:
        """Translate httpx's errors, here and nowhere else."""
        address = self.address
        if isinstance(error, _AuthError):
            return RayApiConnectionError(f"Could not {request.purpose} at {address}: {error}", sent=False)
        if isinstance(error, httpx.LocalProtocolError):
            # It quotes the header that cannot be sent, and so does what it was raised from.
            error.args = ("what was to be sent is no HTTP",)
            error.__cause__ = error.__context__ = None
        kind, advice = diagnose_failure(error, address, self._access)
        said = self._access.redact(str(error))
        return kind(
            f"Could not {request.purpose}: no answer from {address} ({type(error).__name__}: {said}). {advice}",
            sent=not isinstance(error, _NEVER_SENT) and kind is not RayApiTLSError,
        )

    def _note(self, note: LogMessage) -> None:
        self._logger.log(note.level, "%s", note.message)


class RayJobsClient(_BaseClient):
    """
    A blocking client of the Ray Jobs API.

    :param address: of the head's dashboard, e.g. ``http://ray-head:8265`` or ``https://ray.example.com/team-a``.
    :param token: Ray's authentication token, sent as ``Authorization: Bearer``; short for ``Access(token=...)``.
    :param access: everything else that it may take to get in: :class:`~.access.Access`.
    :param retry_timeout: seconds for which a method goes on trying when the cluster does not answer.
    :param logger: where notes on outages and incomplete logs go.
    :param on_token: called with the token before each request that shows one from a token's file: such tokens change,
        and whoever masks them in a log has to know.
    :param transport: httpx's, for tests.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        access: Access | None = None,
        retry_timeout: float = RETRY_TIMEOUT,
        logger: LoggerLike | None = None,
        on_token: OnToken | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(
            address,
            token=token,
            access=access,
            retry_timeout=retry_timeout,
            logger=logger,
            on_token=on_token,
        )
        self._http = httpx.Client(transport=transport, **self._settings())

    def get_version(self) -> RayVersion:
        """Return what answers: its Ray version and session."""
        return self.run(send(endpoints.get_version(), self.retry_timeout))

    def submit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        """
        Submit a job, exactly once whatever happens to the answers, and return its submission id.

        Local code that its runtime environment names (``working_dir``, ``py_modules``, files of requirements) is packed
        and sent first, unless the cluster has it. Relative paths are those of the working directory.

        :param entrypoint: a shell command; or a list of its arguments, which is quoted.
        :param options: :class:`~.submission.SubmissionOptions`, and ``package_secrets``: whether files that look like
            secrets are packed, or patterns for those that are.
        :raises ValueError: for what can never work; nothing was submitted.
        :raises RayPackageError: for local code that cannot be packed; nothing was submitted.
        """
        return self.run(submit_with_code(entrypoint, options, self.retry_timeout))

    def get_job(self, submission_id: str) -> JobDetails:
        """Return a job's current state; the id may be a Ray Core job id as well."""
        return self.run(send(endpoints.get_job(submission_id), self.retry_timeout))

    def list_jobs(self) -> list[JobDetails]:
        """Return all jobs that the cluster remembers, interactive ones included. 0.3 ms of the head for each."""
        return self.run(send(endpoints.list_jobs(), self.retry_timeout))

    def stop_job(self, submission_id: str) -> bool:
        """Ask for a job to be stopped; ``False`` if it had ended. It may take seconds until it has stopped."""
        return self.run(send(endpoints.stop_job(submission_id), self.retry_timeout))

    def delete_job(self, submission_id: str) -> bool:
        """Delete what the cluster remembers of a job that has ended."""
        return self.run(send(endpoints.delete_job(submission_id), self.retry_timeout))

    def get_job_logs(self, submission_id: str) -> str:
        """Return a driver's log so far as one text, held in memory."""
        return self.run(get_job_logs(submission_id, self.retry_timeout))

    def save_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """
        Write a driver's log so far to a file, byte for byte, and return how many bytes it has.

        It is held in memory nowhere. A head before Ray 2.47 gives the log as text, with its line ends changed.

        :param path: of the file; an existing one is replaced when all of the log is there.
        """
        with LogFile(Path(path)) as file:
            return self.run(save_job_logs(submission_id, file, self.retry_timeout))

    def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """
        Follow a job to its terminal status, whichever it is, and return it.

        :param on_log: called with each record of the job's log, many lines without the last newline, as they
            come.
        """
        return self.run(follow.follow_job(submission_id, reader=_reader(on_log), **options), on_log)

    def run(self, engine: Engine[T], on_log: OnLog | None = None) -> T:
        """Drive an engine to its end; ``on_log`` is given the records that it shows."""
        show = on_log or _ignore
        with closing(engine):
            step = advance(engine)
            while not isinstance(step, Finished):
                try:
                    outcome = self._do(step, show)
                except RayJobsError as error:
                    outcome = error
                step = advance(engine, outcome)
            return step.value

    def _do(self, step: Step, show: OnLog) -> Any:
        match step:
            case Send(request):
                return self.send(request)
            case ReadLog(request, log):
                return self._read_log(request, log, show)
            case Upload(request):
                return self._upload(request, _Chunks(step, self._note))
            case RunBlocking(call):
                return call()
            case EmitRecord(record):
                return show(record)
            case LogMessage():
                return self._note(step)
            case Sleep(seconds):
                if seconds:
                    time.sleep(seconds)
                return time.monotonic()
            case _:
                assert_never(step)

    def send(self, request: Request[T]) -> T:
        """Send one request, once."""
        try:
            response = self._http.request(**self._arguments(request))
        except _FAILURES as error:
            raise self._connection_error(request, error) from error
        return endpoints.parse_answer(request, self._answer(response))

    def _read_log(self, request: LogRequest, log: LogSink, show: OnLog) -> None:
        try:
            with self._http.stream(**self._arguments(request)) as response:
                if not endpoints.is_log(response.status_code, response.headers.get("content-type", "")):
                    response.read()
                    raise endpoints.error_for_answer(request, self._answer(response))
                body = _Body(request, self.address)
                log.begin()
                for chunk in response.iter_bytes(_LOG_CHUNK):
                    for record in log.feed(body.decode(chunk)):
                        show(record)
                    if not log.wants_more:
                        return
                body.check()
        except _FAILURES as error:
            raise self._connection_error(request, error) from error
        for record in log.flush():
            show(record)

    def _upload(self, request: UploadRequest, chunks: _Chunks) -> None:
        try:
            response = self._http.request(content=chunks, **self._arguments(request))
        except _FAILURES as error:
            raise self._connection_error(request, error) from error
        endpoints.check_upload(request, self._answer(response))

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
        retry_timeout: float = RETRY_TIMEOUT,
        logger: LoggerLike | None = None,
        on_token: OnToken | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(
            address,
            token=token,
            access=access,
            retry_timeout=retry_timeout,
            logger=logger,
            on_token=on_token,
        )
        self._http = httpx.AsyncClient(transport=transport, **self._settings())

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
        """See :meth:`RayJobsClient.save_job_logs`; the file is written on the event loop, in pieces of 64 KiB."""
        with LogFile(Path(path)) as file:
            return await self.run(save_job_logs(submission_id, file, self.retry_timeout))

    async def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """See :meth:`RayJobsClient.follow_job`; ``on_log`` is called on the event loop and must not block it."""
        return await self.run(follow.follow_job(submission_id, reader=_reader(on_log), **options), on_log)

    async def run(self, engine: Engine[T], on_log: OnLog | None = None) -> T:
        """See :meth:`RayJobsClient.run`."""
        show = on_log or _ignore
        with closing(engine):
            step = advance(engine)
            while not isinstance(step, Finished):
                try:
                    outcome = await self._do(step, show)
                except RayJobsError as error:
                    outcome = error
                step = advance(engine, outcome)
            return step.value

    async def _do(self, step: Step, show: OnLog) -> Any:
        match step:
            case Send(request):
                return await self.send(request)
            case ReadLog(request, log):
                return await self._read_log(request, log, show)
            case Upload(request):
                return await self._upload(request, _ChunksOnALoop(_Chunks(step, self._note)))
            case RunBlocking(call):
                return await _in_a_thread(call)
            case EmitRecord(record):
                return show(record)
            case LogMessage():
                return self._note(step)
            case Sleep(seconds):
                if seconds:
                    await asyncio.sleep(seconds)
                return time.monotonic()
            case _:
                assert_never(step)

    async def send(self, request: Request[T]) -> T:
        """Send one request, once."""
        try:
            response = await self._http.request(**self._arguments(request))
        except _FAILURES as error:
            raise self._connection_error(request, error) from error
        return endpoints.parse_answer(request, self._answer(response))

    async def _read_log(self, request: LogRequest, log: LogSink, show: OnLog) -> None:
        try:
            async with self._http.stream(**self._arguments(request)) as response:
                if not endpoints.is_log(response.status_code, response.headers.get("content-type", "")):
                    await response.aread()
                    raise endpoints.error_for_answer(request, self._answer(response))
                body = _Body(request, self.address)
                log.begin()
                async for chunk in response.aiter_bytes(_LOG_CHUNK):
                    for record in log.feed(body.decode(chunk)):
                        show(record)
                    if not log.wants_more:
                        return
                body.check()
        except _FAILURES as error:
            raise self._connection_error(request, error) from error
        for record in log.flush():
            show(record)

    async def _upload(self, request: UploadRequest, chunks: _ChunksOnALoop) -> None:
        try:
            response = await self._http.request(content=chunks, **self._arguments(request))
        except _FAILURES as error:
            raise self._connection_error(request, error) from error
        endpoints.check_upload(request, self._answer(response))

    async def aclose(self) -> None:
        """Close the connections that are kept for the next request."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def check_address(address: str) -> str:
    """
    Return a cluster's address without a last slash.

    :raises ValueError: for what is not an http or https URL, and for one that holds credentials.
    """
    shown = redact_address(address)
    try:
        parts = urlsplit(address)
        httpx.URL(address)
        _ = parts.port  # raises for what is no port
        (parts.hostname or "").encode("idna")  # and this for what is no host's name
    except (ValueError, httpx.InvalidURL):
        # not their words: they quote what may be a password
        raise ValueError(f"{shown} is no address: its host is no name, or its port no number up to 65535") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{shown} is not the address of a Ray dashboard; it looks like http://ray-head:8265 (the ray:// "
            "address of Ray Client is another service)"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"the address of a Ray dashboard holds no credentials, query or fragment (at {parts.hostname!r}); the "
            "token has a field of its own"
        )
    return address.rstrip("/")


def redact_address(address: str) -> str:
    """Return of what may be an address what may be shown: no query, and nothing where there may be a password."""
    return "what holds an @" if "@" in address else repr(re.split("[?#]", address, maxsplit=1)[0])


def _proxy(url: str, tls: ssl.SSLContext) -> httpx.Proxy:
    scheme = urlsplit(url).scheme
    if scheme.startswith("socks") and find_spec("socksio") is None:
        raise ValueError(f"proxy is of schema {scheme}, for which the package socksio has to be installed")
    return httpx.Proxy(url, ssl_context=tls if scheme == "https" else None)


class _AuthError(httpx.RequestError):
    """A user's own authentication failed, with whatever error of its own."""

    def __init__(self, auth: httpx.Auth, error: Exception) -> None:
        # not what the error says: it may quote what was to be sent
        super().__init__(f"auth {type(auth).__name__} failed with {type(error).__name__}.")


class _Guarded(httpx.Auth):
    """
    A user's own authentication, whose errors become failures of the connection.

    They may pass, as those of a metadata server do, and shall not end the watch over a job.
    """

    def __init__(self, auth: httpx.Auth) -> None:
        self._auth = auth

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        flow = self._auth.sync_auth_flow(request)
        answer: httpx.Response | None = None
        with closing(flow):
            while True:
                try:
                    request = next(flow) if answer is None else flow.send(answer)
                except StopIteration:
                    return
                except Exception as error:  # noqa: BLE001  (a class of the user's)
                    raise _AuthError(self._auth, error) from None
                answer = yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        flow = self._auth.async_auth_flow(request)
        answer: httpx.Response | None = None
        async with aclosing(flow):
            while True:
                try:
                    request = await (anext(flow) if answer is None else flow.asend(answer))
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001  (a class of the user's)
                    raise _AuthError(self._auth, error) from None
                answer = yield request


class _Body:
    """What an answer holds of a log: its bytes as they are, or as the text in JSON."""

    def __init__(self, request: LogRequest, address: str) -> None:
        self._json = JsonText() if request.is_json else None
        self._about = f"Could not {request.purpose} at {address}"

    def decode(self, chunk: bytes) -> bytes:
        """Return the log's next bytes."""
        if self._json is None:
            return chunk
        try:
            return self._json.decode(chunk)
        except ValueError as error:
            raise RayApiAddressError(f"{self._about}: {error}", status_code=200) from error

    def check(self) -> None:
        """Make sure that the answer has come to its end."""
        if self._json is not None and not self._json.is_whole:
            raise RayApiAddressError(f"{self._about}: the answer is not what the Ray Jobs API says.", status_code=200)


class _Chunks:
    """The body of an upload, from its start each time: an authentication may send it again when it was challenged."""

    def __init__(self, step: Upload, note: Callable[[LogMessage], object]) -> None:
        self._step = step
        self._note = note

    def __iter__(self) -> Iterator[bytes]:
        return self._step.chunks(time.monotonic, self._note)


class _ChunksOnALoop:
    """The same, read on the event loop: each piece takes a fraction of a millisecond."""

    def __init__(self, chunks: _Chunks) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


async def _in_a_thread(call: Callable[[], T]) -> T:
    """Do what blocks beside the event loop, to its end: who is cancelled must not close what it still works with."""
    work = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        work.exception()  # seen: nobody asks for it any more
        raise cancelled
    return work.result()


def _reader(on_log: OnLog | None) -> LogReader | None:
    return LogReader() if on_log else None


def _time_of(date: str | None) -> int:
    """Return an answer's own time, or ours where a proxy took it away: Unix milliseconds."""
    try:
        return int(email.utils.parsedate_to_datetime(date or "").timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)


def _ignore(record: str) -> None:
    """Take a record of a log that nobody reads."""
