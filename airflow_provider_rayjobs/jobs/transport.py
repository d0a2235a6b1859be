"""Translate requests, answers and errors to and from httpx, for both clients. Nothing here sends a request."""

from __future__ import annotations

import email.utils
import logging
import os
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx

from airflow_provider_rayjobs import __version__
from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiResponseError,
    RayApiTLSError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import redaction, tls
from airflow_provider_rayjobs.jobs.access import READ_TIMEOUT, Access
from airflow_provider_rayjobs.jobs.deadline import Deadline
from airflow_provider_rayjobs.jobs.diagnosis import CHECK_ADDRESS, diagnose_failure
from airflow_provider_rayjobs.jobs.endpoints import BUSY, cut_off, is_success
from airflow_provider_rayjobs.jobs.logs.json_text import JsonText
from airflow_provider_rayjobs.jobs.requests import Answer, AnyRequest, LogRequest, Request, UploadRequest, error_message
from airflow_provider_rayjobs.jobs.steps import LogSink, OnLog

_KEPT_HEADERS = ("location", "retry-after", "server", "www-authenticate")
# Most bytes of an answer that is no result: an error quotes 500 characters.
_MAX_OTHER = 64 * 1024
# Most bytes of an answer that an authentication class holds in memory.
_MAX_OF_AUTH = 64 * 1024 * 1024
# Seconds for the first bytes of a log, and bytes per second of the slowest transfer of a log or a package. A fixed
# limit would end a large transfer on a slow network. Without a limit, a transfer of one byte per second would go on.
_LOG_TIMEOUT = 60.0
_SLOWEST_TRANSFER = 32 * 1024
# httpx reads them, in upper and in lower case.
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# Idle connections are closed; the number of requests at the same time is the caller's.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
# Marks a request of an authentication class that another one to the same server went before.
_FOLLOWS = "airflow_provider_rayjobs.follows"
# What h11 accepts as the value of a header.
_HEADER_VALUE = re.compile(rb"([^\x00\s]+([ \t]+[^\x00\s]+)*)?")
# Errors of a request that never left this machine, so that a retry is safe.
_NEVER_SENT = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.LocalProtocolError, httpx.PoolTimeout, httpx.ProxyError,
    httpx.UnsupportedProtocol,
)  # fmt: skip


# httpcore logs the password of a SOCKS proxy at level DEBUG.
logging.getLogger("httpcore.socks").addFilter(lambda record: " auth=" not in record.getMessage())


class HttpCodec:
    """Translates requests into arguments for httpx, and its responses and errors into ours."""

    def __init__(self, address: str, access: Access, label: str, on_token: Callable[[str], object] | None) -> None:
        self.address = address
        self.labelled_address = f"{address} ({label})" if label else address
        self._label = label
        self._access = access
        self._needs_tls = any(urlsplit(url).scheme == "https" for url in (address, access.proxy or ""))
        self._on_token = on_token

    def client_settings(self, transport: Any) -> dict[str, Any]:
        """Return the arguments for an httpx client, blocking or async."""
        access = self._access
        # Reading certificates takes 25 ms. A client without an https URL gets a context that trusts none.
        context = tls.create_context(access) if self._needs_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return {
            "base_url": self.address,
            # Ray rejects writes with the User-Agent of a browser.
            "headers": {
                "User-Agent": f"airflow-provider-rayjobs/{__version__}",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
            "timeout": access.connect_timeout,
            "follow_redirects": False,  # they would carry credentials to another host
            "verify": context,
            "proxy": None if access.proxy is None else _proxy(access.proxy, context),
            "auth": _GuardedAuth(access.auth) if access.auth else None,
            "transport": transport,
            "limits": _LIMITS,
            # Keep no cookies: a proxy may set another one with each answer.
            "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=())),
        }

    def certificates(self) -> tuple[int, ...]:
        """Return a value that changes when a certificate file is replaced."""
        return tls.certificate_mtimes(self._access) if self._needs_tls else ()

    @contextmanager
    def naming_unusable_file(self, kind: str, request: AnyRequest) -> Iterator[None]:
        """Raise the :class:`ValueError` of an unusable file as an error of the connection, as it may be temporary."""
        try:
            yield
        except ValueError as error:
            message = error_message(f"{kind} is not usable", request, self.labelled_address, str(error))
            raise RayApiConnectionError(message, delivery=Delivery.NOT_SENT) from None

    def encode(self, request: AnyRequest) -> dict[str, Any]:
        """Read the token file, and return the arguments for one request."""
        access = self._access
        with self.naming_unusable_file("Token file", request):
            headers = access.request_headers()
        if self._on_token is not None and access.token_file is not None:
            self._on_token(headers[access.token_header_name].removeprefix("Bearer "))
        if isinstance(request, UploadRequest):
            headers |= {"Content-Length": str(request.size), "Content-Type": "application/octet-stream"}
        return {
            "method": request.method,
            "url": request.path,
            "params": request.params,
            "json": request.payload,
            "timeout": self._timeout(request),
            "headers": headers,
        }

    def _timeout(self, request: AnyRequest) -> httpx.Timeout:
        timeout = self._seconds(request)
        return httpx.Timeout(timeout, connect=min(self._access.connect_timeout, timeout))

    def _seconds(self, request: AnyRequest) -> float:
        return self._access.read_timeout if request.timeout == READ_TIMEOUT else request.timeout

    def deadline(self, request: AnyRequest) -> Deadline:
        """Begin the time limit of a whole request."""
        seconds = self._seconds(request)
        if isinstance(request, LogRequest):
            if request.deadline is not None:
                return Deadline(request.deadline)
            return Deadline(max(seconds, _LOG_TIMEOUT), _SLOWEST_TRANSFER)
        if isinstance(request, UploadRequest):
            seconds += request.size / _SLOWEST_TRANSFER
        return Deadline(seconds)

    def refuse_compressed(self, request: AnyRequest, response: httpx.Response) -> None:
        """Refuse a compressed answer, which may be of any size when it is unpacked. No request asks for one."""
        if response.headers.get("content-encoding", "").strip().lower() in ("", "identity"):
            return
        code = response.status_code
        fact = f"HTTP {code}, not an answer of the Ray Jobs API (compressed)"
        message = error_message(fact, request, self.labelled_address, CHECK_ADDRESS)
        # A proxy that cannot answer now is temporary, whatever its page is.
        kind = RayApiBusyError if code in BUSY else RayApiAddressError
        raise kind(message, status_code=code, delivery=Delivery.FOREIGN)

    def decode(self, response: httpx.Response, body: Body) -> Answer:
        """Translate a response and the part of its body that was read."""
        if body.is_too_large and body.is_result:
            fact = f"HTTP 200, answer larger than {body.limit // 2**20} MiB"
            advice = f"A list of jobs is shorter if the records of old jobs are deleted. {CHECK_ADDRESS}"
            message = error_message(fact, body.request, self.labelled_address, advice)
            raise RayApiResponseError(message, status_code=200)
        content = bytes(body.content)
        if body.is_too_large:
            # A secret in the last line may be cut in half, and half a secret is not redacted.
            content = content.rpartition(b"\n")[0] or content
        return Answer(
            response.status_code,
            content,
            self.address,
            response.headers.get("content-type", ""),
            _time_of(response.headers.get("date")),
            {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS},
            self._access,
            tuple(redaction.header_secrets(response.request.headers)),
            self._label,
        )

    @contextmanager
    def translate_errors(self, request: AnyRequest) -> Iterator[None]:
        """
        Raise every error of a request without an answer as :class:`RayApiConnectionError` or its subclass for TLS.

        httpx translates most errors of the packages below it, but not all: for instance those of ``socksio``, some of
        ``h11`` and ``ssl``, and a redirect to an invalid address.

        The errors stay chained to it. They may quote a malformed answer that repeats a credential.
        """
        try:
            yield
        except RayJobsError:
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and "client has been closed" in str(error):
                raise  # a mistake of the caller
            sent = _request_of(error)
            headers = {} if sent is None else sent.headers
            redaction.redact_chain(error, (*self._access.secrets(), *redaction.header_secrets(headers)))
            raise self._connection_error(request, error) from error

    def _connection_error(self, request: AnyRequest, error: Exception) -> RayApiConnectionError:
        if isinstance(error, _AuthError):
            message = error_message(str(error), request, self.labelled_address, error.advice)
            return RayApiConnectionError(message, delivery=error.delivery)
        timeouts = self._timeout(request).as_dict() | {"total": getattr(error, "seconds", None)}
        kind, fact, advice = diagnose_failure(error, self.address, self._access, timeouts)
        cause = redaction.redact(f"{type(error).__name__}: {error}", self._access.secrets()).rstrip(":. ")
        was_sent = not isinstance(error, _NEVER_SENT) and kind is not RayApiTLSError
        if self._access.auth is not None:
            sent = _request_of(error)
            was_sent = was_sent or sent is None or sent.extensions.get(_FOLLOWS) is True
        return kind(
            f"{error_message(fact, request, self.labelled_address, advice)} Cause: {cause}.",
            delivery=Delivery.MAY_HAVE_ARRIVED if was_sent else Delivery.NOT_SENT,
        )


class Body:
    """The body of an answer, up to a limit. The rest of a larger one is not read."""

    def __init__(self, request: AnyRequest, response: httpx.Response) -> None:
        self.request = request
        self.content = bytearray()
        self.is_too_large = False
        # whether the body is a result in JSON; any other is only quoted
        self.is_result = isinstance(request, Request) and request.expects_json and response.status_code == 200
        self.limit = request.max_bytes if isinstance(request, Request) and self.is_result else _MAX_OTHER

    def add(self, chunk: bytes) -> bool:
        """Add the next bytes, and tell whether there is room for more."""
        self.is_too_large = len(self.content) + len(chunk) > self.limit
        self.content += chunk[: self.limit - len(self.content)]
        return not self.is_too_large


class LogReceiver:
    """Feeds a log to a sink, and emits the sink's records. The log is the answer itself, or a text in its JSON."""

    # Bytes that are fed at once. A sink needs more time for many small pieces.
    _CHUNK: ClassVar[int] = 64 * 1024

    def __init__(self, request: LogRequest, log: LogSink, emit: OnLog, codec: HttpCodec) -> None:
        self._request = request
        self._log = log
        self._emit = emit
        self._address = codec.labelled_address
        self._json = JsonText() if request.is_json else None
        self._waiting = bytearray()

    def accepts(self, response: httpx.Response) -> bool:
        """Tell whether a response is a log. If so, begin to read it."""
        content_type = response.headers.get("content-type", "")
        if is_log := is_success(response.status_code, content_type, is_json=self._request.is_json):
            self._log.begin()
        return is_log

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes of the answer, and tell whether the sink needs more."""
        self._waiting += chunk
        return self.drain() if len(self._waiting) >= self._CHUNK else True

    def drain(self) -> bool:
        """Feed the bytes that have arrived to the sink, and tell whether it needs more."""
        data, self._waiting = bytes(self._waiting), bytearray()
        try:
            data = self._json.decode(data) if self._json else data
        except ValueError as error:
            raise self._error(str(error)) from error
        self._emit_all(self._log.feed(data))
        return self._log.needs_more

    def finish(self) -> None:
        """End the read at the end of the answer, which is the current end of the log."""
        if not self.drain():
            return
        if self._json and not self._json.is_whole:
            raise cut_off(self._request, self._address)
        self._emit_all(self._log.flush())

    def end_early(self) -> None:
        """End a read that was cut off: show the whole lines that have arrived."""
        if self.drain():
            self._emit_all(self._log.flush(is_cut=True))

    def _emit_all(self, records: Iterator[str]) -> None:
        for record in records:
            self._emit(record)

    def _error(self, reason: str) -> RayApiAddressError:
        fact = f"HTTP 200, not an answer of the Ray Jobs API ({reason})"
        message = error_message(fact, self._request, self._address, CHECK_ADDRESS)
        return RayApiAddressError(message, status_code=200, delivery=Delivery.FOREIGN)


@dataclass(frozen=True)
class UploadBytes:
    """The content of an upload. Each iteration starts at the first byte: httpx may resend it after a challenge."""

    chunks: Callable[[], Iterator[bytes]]

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks()


@dataclass(frozen=True)
class AsyncUploadBytes:
    """:class:`UploadBytes` for the async client. Reading blocks the event loop for less than 1 ms per chunk."""

    chunks: Callable[[], Iterator[bytes]]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks():
            yield chunk


class _AuthError(httpx.RequestError):
    """The user's authentication class failed. The text of its own error is left out: it may quote a credential."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice
        self.delivery = Delivery.MAY_HAVE_ARRIVED


class _GuardedAuth(httpx.Auth):
    """
    Wraps the user's authentication class, which may send several requests for one request of ours.

    Its errors become connection errors, because many are temporary. Each of its requests has the time limits of ours,
    and each answer that is read before the last one has a size limit.
    """

    def __init__(self, auth: httpx.Auth) -> None:
        self._auth = auth
        self._name = f"auth {type(auth).__name__}"

    @contextmanager
    def _translate_errors(self) -> Iterator[list[httpx.Request]]:
        """Yield the list of the requests that the class has made; the caller fills it."""
        requests: list[httpx.Request] = []
        try:
            yield requests
        except Exception as error:  # noqa: BLE001  (user code)
            failure = error
            if not isinstance(failure, _AuthError):
                message = f"{self._name} raised {type(error).__name__}"
                failure = _AuthError(message, "Its text is not shown: it may hold a secret.")
            failure.delivery = Delivery.MAY_HAVE_ARRIVED if requests else Delivery.NOT_SENT
            redaction.raise_unchained(failure)

    def _prepare(self, request: httpx.Request, ours: httpx.Request, sent: list[httpx.Request]) -> httpx.Request:
        """Check a request of the class, and give it what ``ours`` has: the time limits."""
        for name, value in request.headers.raw:
            # Checked here, as h11's error quotes the value, and httpcore logs that error at level DEBUG.
            if not _HEADER_VALUE.fullmatch(value):
                advice = f"Check {self._name}: its value of the header {name.decode('ascii', 'replace')} is not valid."
                raise _AuthError("Request is not valid HTTP", advice)
        has_predecessor = any(each.url.netloc == ours.url.netloc for each in sent)
        request.extensions = {**ours.extensions, **request.extensions, _FOLLOWS: has_predecessor}
        sent.append(request)
        return request

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        limited: list[_LimitedStream] = []
        with (
            self._translate_errors() as sent,
            suppress(StopIteration),
            closing(self._auth.sync_auth_flow(request)) as flow,
        ):
            following = next(flow)
            while True:
                response = yield self._prepare(following, request, sent)
                limited.append(_LimitedStream(response, self._name))
                following = flow.send(response)
        for each in limited:
            each.lift()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        limited: list[_LimitedStream] = []
        with self._translate_errors() as sent, suppress(StopAsyncIteration):
            async with aclosing(self._auth.async_auth_flow(request)) as flow:
                following = await anext(flow)
                while True:
                    response = yield self._prepare(following, request, sent)
                    limited.append(_LimitedStream(response, self._name))
                    following = await flow.asend(response)
        for each in limited:
            each.lift()


class _LimitedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """
    Limits the size of an answer that an authentication class reads, or that httpx reads before it sends the next.

    The limit is lifted for the last answer, which the client reads. A class with ``requires_response_body`` has read
    that one as well.
    """

    def __init__(self, response: httpx.Response, name: str) -> None:
        self._stream: Any = response.stream
        self._name = name
        # Unpacked, a compressed answer has up to a thousand times its size.
        self._limit: float = _MAX_OTHER if "content-encoding" in response.headers else _MAX_OF_AUTH
        response.stream = self

    def lift(self) -> None:
        self._limit = float("inf")

    def _count(self, chunk: bytes) -> bytes:
        self._limit -= len(chunk)
        if self._limit < 0:
            sizes = f"{_MAX_OF_AUTH // 2**20} MiB, or {_MAX_OTHER // 2**10} KiB if it is compressed"
            raise _AuthError("Answer too large", f"{self._name} lets httpx hold each answer in memory, up to {sizes}.")
        return chunk

    def __iter__(self) -> Iterator[bytes]:
        yield from map(self._count, self._stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield self._count(chunk)

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _request_of(error: Exception) -> httpx.Request | None:
    with suppress(AttributeError, RuntimeError):  # an error of another package, or without its request
        return error.request  # type: ignore[attr-defined,no-any-return]
    return None


def check_address(address: str) -> str:
    """Return an http or https URL without a final slash. Raise :class:`ValueError` for any other address."""
    shown = redaction.redact_address(address)
    try:
        parts = urlsplit(address)
        httpx.URL(address)
        _ = parts.port  # raises for an invalid port
        (parts.hostname or "").encode("idna")  # raises for an invalid host name
    except (ValueError, httpx.InvalidURL):
        # The text of the cause may contain a password.
        redaction.raise_unchained(ValueError(f"{shown} is not a valid address: its host or its port is wrong."))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # ray:// belongs to Ray Client, another service
        raise ValueError(f"{shown} is not the address of a Ray dashboard, such as http://ray-head:8265 (not ray://).")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"the address of {parts.hostname!r} must hold no credentials, query or fragment.")
    return address.rstrip("/")


@contextmanager
def naming_proxy_variables() -> Iterator[None]:
    """Name the environment variables of an HTTP proxy that httpx cannot use. Their values may hold a password."""
    try:
        yield
    except (ImportError, httpx.InvalidURL, ValueError) as error:
        names = ", ".join(name for name in os.environ if name.lower() in _PROXY_VARIABLES and os.environ[name])
        if isinstance(error, ImportError):
            message = (
                f"the environment variables {names} name a SOCKS proxy, which needs the package socksio: install it."
            )
        else:
            advice = "Correct them: write an IPv6 address as ::1, and escape special characters of a password."
            message = f"the environment variables {names} hold an address that is not usable. {advice}"
        redaction.raise_unchained(ValueError(message))


def _proxy(url: str, context: ssl.SSLContext) -> httpx.Proxy:
    scheme = urlsplit(url).scheme
    if scheme.startswith("socks") and find_spec("socksio") is None:
        raise ValueError(f"proxy has the scheme {scheme}, which needs the package socksio: install it.")
    return httpx.Proxy(url, ssl_context=context if scheme == "https" else None)


def _time_of(date: str | None) -> int:
    """Return the time of a ``Date`` header in Unix milliseconds; without one, this machine's time."""
    try:
        return int(email.utils.parsedate_to_datetime(date or "").timestamp() * 1000)
    except (ValueError, OverflowError):
        return int(time.time() * 1000)
