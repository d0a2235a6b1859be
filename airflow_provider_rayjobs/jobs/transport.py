"""Translate requests, answers and errors to and from httpx, for both clients. Nothing here sends a request."""

from __future__ import annotations

import email.utils
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import dataclass
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
)
from airflow_provider_rayjobs.jobs import redaction, tls
from airflow_provider_rayjobs.jobs.access import READ_TIMEOUT, Access
from airflow_provider_rayjobs.jobs.deadline import Deadline, DeadlineError
from airflow_provider_rayjobs.jobs.diagnosis import CHECK_ADDRESS, diagnose_failure
from airflow_provider_rayjobs.jobs.endpoints import BUSY, is_success
from airflow_provider_rayjobs.jobs.logs.json_text import JsonText
from airflow_provider_rayjobs.jobs.requests import Answer, AnyRequest, LogRequest, Request, UploadRequest, error_message
from airflow_provider_rayjobs.jobs.steps import LogSink, OnLog

_KEPT_HEADERS = ("location", "retry-after", "server", "www-authenticate")
# Most bytes of a JSON answer: a list of 90,000 jobs. Most bytes of any other answer: an error quotes 500 characters.
_MAX_JSON = 64 * 1024 * 1024
_MAX_OTHER = 64 * 1024
# Seconds for the first bytes of a log, and bytes per second of the slowest transfer of a log or a package. A fixed
# limit would end a large transfer on a slow network. Without a limit, a transfer of one byte per second would go on.
_LOG_TIMEOUT = 60.0
_SLOWEST_TRANSFER = 32 * 1024
# httpx reads them, in upper and in lower case.
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# Idle connections are closed; the number of requests at the same time is the caller's.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
# Errors of a request without an answer. On an event loop httpx does not translate a TLS alert after the handshake of
# TLS 1.3, for instance the alert that the server requires a client certificate.
_FAILURES = (httpx.HTTPError, ssl.SSLError, DeadlineError)
# Errors of a request that never left this machine, so that a retry is safe.
_NEVER_SENT = (
    httpx.ConnectError, httpx.ConnectTimeout, httpx.LocalProtocolError, httpx.PoolTimeout, httpx.ProxyError,
    httpx.UnsupportedProtocol,
)  # fmt: skip


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
            fact = f"HTTP 200, answer larger than {_MAX_JSON // 2**20} MiB"
            advice = f"Delete the records of old jobs. {CHECK_ADDRESS}"
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
        Raise errors of httpx as :class:`RayApiConnectionError` or its subclass for TLS.

        The errors of httpx stay chained to it. They may quote a malformed answer that repeats a credential.
        """
        try:
            yield
        except _FAILURES as error:
            sent: Mapping[str, str] = {}
            with suppress(AttributeError, RuntimeError):  # an error without its request
                sent = error.request.headers  # type: ignore[union-attr]
            redaction.redact_chain(error, (*self._access.secrets(), *redaction.header_secrets(sent)))
            raise self._connection_error(request, error) from error

    def _connection_error(self, request: AnyRequest, error: Exception) -> RayApiConnectionError:
        if isinstance(error, _AuthError):
            advice = "Its text is not shown: it may hold a secret."
            message = error_message(str(error), request, self.labelled_address, advice)
            return RayApiConnectionError(message, delivery=error.delivery)
        if isinstance(error, httpx.LocalProtocolError):
            # The error and its cause quote the invalid header.
            error.args = ("not shown, as it may hold a secret",)
            error.__cause__ = error.__context__ = None
        timeouts = self._timeout(request).as_dict() | {"total": getattr(error, "seconds", None)}
        kind, fact, advice = diagnose_failure(error, self.address, self._access, timeouts)
        cause = redaction.redact(f"{type(error).__name__}: {error}", self._access.secrets()).rstrip(":. ")
        was_sent = not isinstance(error, _NEVER_SENT) and kind is not RayApiTLSError
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

    def add(self, chunk: bytes) -> bool:
        """Add the next bytes, and tell whether there is room for more."""
        limit = _MAX_JSON if self.is_result else _MAX_OTHER
        self.is_too_large = len(self.content) + len(chunk) > limit
        self.content += chunk[: limit - len(self.content)]
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
            raise self._error("the JSON is cut off")
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
    """The user's authentication class raised an error. Its text is left out: it may quote a credential."""

    def __init__(self, message: str, delivery: Delivery) -> None:
        super().__init__(message)
        self.delivery = delivery


class _GuardedAuth(httpx.Auth):
    """Wraps the user's authentication class. Its errors become connection errors, because many are temporary."""

    def __init__(self, auth: httpx.Auth) -> None:
        self._auth = auth

    @contextmanager
    def _translate_errors(self) -> Iterator[list[httpx.Request]]:
        """Yield the list of the requests that the class has made; the caller fills it."""
        requests: list[httpx.Request] = []
        try:
            yield requests
        except Exception as error:  # noqa: BLE001  (user code)
            delivery = Delivery.MAY_HAVE_ARRIVED if requests else Delivery.NOT_SENT
            message = f"auth {type(self._auth).__name__} raised {type(error).__name__}"
            redaction.raise_unchained(_AuthError(message, delivery))

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        with (
            self._translate_errors() as requests,
            suppress(StopIteration),
            closing(self._auth.sync_auth_flow(request)) as flow,
        ):
            requests.append(next(flow))
            while True:
                requests.append(flow.send((yield requests[-1])))

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        with self._translate_errors() as requests, suppress(StopAsyncIteration):
            async with aclosing(self._auth.async_auth_flow(request)) as flow:
                requests.append(await anext(flow))
                while True:
                    requests.append(await flow.asend((yield requests[-1])))


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
    except (httpx.InvalidURL, ValueError):
        names = ", ".join(name for name in os.environ if name.lower() in _PROXY_VARIABLES and os.environ[name])
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
