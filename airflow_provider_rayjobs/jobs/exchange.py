"""Send one request and receive its answer, blocking or on an event loop. The two classes are twins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.deadline import Deadline, observe_deadlines
from airflow_provider_rayjobs.jobs.requests import Answer, AnyRequest, LogRequest
from airflow_provider_rayjobs.jobs.steps import LogSink, OnLog
from airflow_provider_rayjobs.jobs.transport import (
    AsyncUploadBytes,
    Body,
    HttpCodec,
    LogReceiver,
    UploadBytes,
    naming_proxy_variables,
)

Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Transport = httpx.BaseTransport | httpx.AsyncBaseTransport

# Most requests that an async client sends at the same time. The others wait for their turn here, because the cost of
# httpx's own queue grows with the square of its length. Log reads have turns of their own, so that no status poll waits
# for a log. Ten triggerers and a few workers stay below the 100 connections of a head.
REQUESTS_AT_ONCE = 4
LOG_READS_AT_ONCE = 4

# Takes the place of the network for all clients of this process: the fake cluster of :mod:`..testing`.
process_transport: Transport | None = None


@dataclass(eq=False)
class _Pool(Generic[Http]):
    """The connections that were made with one state of the certificate files; closed when its last user leaves."""

    http: Http
    settings: dict[str, Any]
    certificates: tuple[int, ...]
    users: set[object] = field(default_factory=set)


class _Exchange(Generic[Http]):
    _http_type: type[Http]

    def __init__(self, codec: HttpCodec, transport: Transport | None = None) -> None:
        self._codec = codec
        self._transport = transport or process_transport
        self._pool: _Pool[Http] = self._new_pool()

    def _new_pool(self) -> _Pool[Http]:
        certificates = self._codec.certificates()
        return self._pool_of(self._codec.client_settings(self._transport), certificates)

    def _pool_of(self, settings: dict[str, Any], certificates: tuple[int, ...]) -> _Pool[Http]:
        with naming_proxy_variables():
            return _Pool(self._http_type(**settings), settings, certificates, {self})

    def _renew(self, request: AnyRequest) -> _Pool[Http] | None:
        """Make new connections if a certificate file was replaced, and return the old ones."""
        is_closing = self not in self._pool.users
        if is_closing or self._pool.certificates == self._codec.certificates():
            return None
        old = self._pool
        with self._codec.naming_unusable_file("Certificate file", request):
            self._pool = self._new_pool()
        return old

    @property
    def is_closed(self) -> bool:
        return self._pool.http.is_closed


class BlockingExchange(_Exchange[httpx.Client]):
    """Exchanges requests and answers with a cluster."""

    _http_type = httpx.Client

    def request(self, request: AnyRequest, content: UploadBytes | None = None) -> Answer:
        """Send one request and return its answer."""
        arguments = self._codec.encode(request)
        with self._in_time(request, self._codec.deadline(request)), self._open(request, arguments, content) as response:
            return self._answer(request, response)

    def read_log(self, request: LogRequest, log: LogSink, emit: OnLog) -> None:
        """Feed a log to a sink, and emit the sink's records. An error of ``emit`` is raised unchanged."""
        receiver = LogReceiver(request, log, emit, self._codec)
        arguments = self._codec.encode(request)
        deadline = self._codec.deadline(request)
        with ExitStack() as stack:
            with self._in_time(request, deadline):
                response = stack.enter_context(self._open(request, arguments))
                if not receiver.accepts(response):
                    raise endpoints.error_for_answer(request, self._answer(request, response))
            chunks = response.iter_bytes()
            while True:
                try:
                    with self._in_time(request, deadline):
                        chunk = next(chunks, None)
                except RayJobsError:
                    receiver.end_early()
                    raise
                if chunk is None:
                    return receiver.finish()
                deadline.extend(len(chunk))
                if not receiver.feed(chunk):
                    return None

    def _answer(self, request: AnyRequest, response: httpx.Response) -> Answer:
        body = Body(request, response)
        for chunk in response.iter_bytes():
            if not body.add(chunk):
                break
        return self._codec.decode(response, body)

    @contextmanager
    def _in_time(self, request: AnyRequest, deadline: Deadline) -> Iterator[None]:
        with self._codec.translate_errors(request), deadline.enforced():
            yield

    @contextmanager
    def _open(
        self, request: AnyRequest, arguments: dict[str, Any], content: UploadBytes | None = None
    ) -> Iterator[httpx.Response]:
        if (old := self._renew(request)) is not None:
            self._leave(old, self)
        pool, user = self._pool, object()
        pool.users.add(user)
        try:
            with pool.http.stream(**arguments, content=content, extensions={"trace": observe_deadlines}) as response:
                self._codec.refuse_compressed(request, response)
                yield response
        finally:
            self._leave(pool, user)

    def _leave(self, pool: _Pool[httpx.Client], user: object) -> None:
        pool.users.discard(user)
        if not pool.users:
            pool.http.close()

    def close(self) -> None:
        self._leave(self._pool, self)


def _handshake_closer() -> Callable[[str, Mapping[str, Any]], Awaitable[None]]:
    """Return a callback for httpcore's ``trace``. It closes a connection whose handshake is cut off; httpcore won't."""
    stream: Any = None

    async def observe(event: str, info: Mapping[str, Any]) -> None:
        nonlocal stream
        if event.endswith(".connect_tcp.complete"):
            stream = info["return_value"]
        elif event.endswith((".start_tls.failed", ".setup_socks5_connection.failed")) and stream is not None:
            await stream.aclose()

    return observe


class AsyncExchange(_Exchange[httpx.AsyncClient]):
    """:class:`BlockingExchange` for an event loop."""

    _http_type = httpx.AsyncClient

    def __init__(self, codec: HttpCodec, transport: Transport | None = None) -> None:
        super().__init__(codec, transport)
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._log_turns = asyncio.Semaphore(LOG_READS_AT_ONCE)

    async def request(self, request: AnyRequest, content: AsyncUploadBytes | None = None) -> Answer:
        async with self._turns if content is None else self._log_turns:  # an upload takes long, too
            arguments = self._codec.encode(request)
            deadline = self._codec.deadline(request)
            async with self._in_time(request, deadline), self._open(request, arguments, content) as response:
                return await self._answer(request, response)

    async def read_log(self, request: LogRequest, log: LogSink, emit: OnLog) -> None:
        receiver = LogReceiver(request, log, emit, self._codec)
        async with self._log_turns, AsyncExitStack() as stack:
            arguments = self._codec.encode(request)
            deadline = self._codec.deadline(request)
            async with self._in_time(request, deadline):
                response = await stack.enter_async_context(self._open(request, arguments))
                if not receiver.accepts(response):
                    raise endpoints.error_for_answer(request, await self._answer(request, response))
            chunks = response.aiter_bytes()
            while True:
                try:
                    async with self._in_time(request, deadline):
                        chunk = await anext(chunks, None)
                except RayJobsError:
                    receiver.end_early()
                    raise
                if chunk is None:
                    return receiver.finish()
                deadline.extend(len(chunk))
                if not receiver.feed(chunk):
                    return None

    async def _answer(self, request: AnyRequest, response: httpx.Response) -> Answer:
        body = Body(request, response)
        async for chunk in response.aiter_bytes():
            if not body.add(chunk):
                break
        return self._codec.decode(response, body)

    @asynccontextmanager
    async def _in_time(self, request: AnyRequest, deadline: Deadline) -> AsyncIterator[None]:
        with self._codec.translate_errors(request):
            async with deadline.enforced_async():
                yield

    @asynccontextmanager
    async def _open(
        self, request: AnyRequest, arguments: dict[str, Any], content: AsyncUploadBytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        if (old := self._renew(request)) is not None:
            await self._leave(old, self)
        pool, user = self._pool, object()
        pool.users.add(user)
        try:
            extensions = {"trace": _handshake_closer()}
            async with pool.http.stream(**arguments, content=content, extensions=extensions) as response:
                self._codec.refuse_compressed(request, response)
                yield response
        except asyncio.CancelledError:  # also of a deadline
            self._retire(pool)
            raise
        finally:
            await self._leave(pool, user)

    def _retire(self, pool: _Pool[httpx.AsyncClient]) -> None:
        """
        Use other connections from now on.

        If a request is cancelled as its connection opens or its answer ends, httpcore 1.0 never closes the connection.
        Each such connection would stay until the client is closed, and occupy one of the pool's places.
        """
        if pool is self._pool and self in pool.users:
            self._pool = self._pool_of(pool.settings, pool.certificates)
            pool.users.discard(self)

    async def _leave(self, pool: _Pool[httpx.AsyncClient], user: object) -> None:
        pool.users.discard(user)
        if not pool.users:
            await pool.http.aclose()

    async def aclose(self) -> None:
        await self._leave(self._pool, self)
