"""
HTTP for both clients, in the terms of httpx: client settings, request arguments, responses and errors.

Nothing here sends anything: the clients do.
"""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import httpx

from airflow_provider_rayjobs import __version__
from airflow_provider_rayjobs.exceptions import RayApiAddressError, RayApiConnectionError, RayApiTLSError
from airflow_provider_rayjobs.jobs.access import READ_TIMEOUT, Access
from airflow_provider_rayjobs.jobs.diagnosis import diagnose_failure
from airflow_provider_rayjobs.jobs.logs.json_text import JsonText
from airflow_provider_rayjobs.jobs.redaction import is_sensitive_name, redact_address, secret_variants
from airflow_provider_rayjobs.jobs.requests import Answer, AnyRequest, LogRequest, UploadRequest, name_place
from airflow_provider_rayjobs.jobs.steps import LogMessage, LogSink, OnLog, Upload

OnToken = Callable[[str], object]

# Bytes of a log that are handled at once.
LOG_CHUNK = 64 * 1024
# Response headers that identify what answered.
_IDENTIFYING_HEADERS = ("location", "server", "www-authenticate")
# A request without an answer ends in one of these. On an event loop httpx does not translate a TLS alert that arrives
# after the handshake of TLS 1.3, for instance that the server requires a client certificate.
_FAILURES = (httpx.HTTPError, ssl.SSLError)
# The request never left this machine, so sending it again is safe.
_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.LocalProtocolError,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class HttpCodec:
    """
    Translates requests into arguments for httpx, and its responses and errors into ours.

    :param address: of the cluster, checked.
    :param label: the caller's name for the address.
    :param on_token: called with each token that is read from a token file, before it is sent.
    """

    def __init__(self, address: str, access: Access, label: str = "", on_token: OnToken | None = None) -> None:
        self.address = address
        self.place = name_place(address, label)
        self._label = label
        self._access = access
        self._on_token = on_token

    def client_settings(self) -> dict[str, Any]:
        """Return the arguments of both kinds of httpx client. Redirects would carry credentials to another host."""
        access = self._access
        # TLS settings take 25 ms; a client without any https URL gets some that trust no certificate
        needs_tls = any(urlsplit(url).scheme == "https" for url in (self.address, access.proxy or ""))
        tls = access.tls.create_context() if needs_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return {
            "base_url": self.address,
            # Ray refuses every write with the User-Agent of a browser.
            "headers": {"User-Agent": f"airflow-provider-rayjobs/{__version__}", "Accept": "*/*"},
            "timeout": access.connect_timeout,
            "follow_redirects": False,
            "verify": tls,
            "proxy": None if access.proxy is None else _proxy(access.proxy, tls),
            "auth": _GuardedAuth(access.auth) if access.auth else None,
        }

    def encode(self, request: AnyRequest) -> dict[str, Any]:
        """Return the arguments of one request."""
        access = self._access
        timeout = access.read_timeout if request.timeout == READ_TIMEOUT else request.timeout
        headers = self._headers(request)
        if isinstance(request, UploadRequest):
            headers |= {"Content-Length": str(request.size), "Content-Type": "application/octet-stream"}
        return {
            "method": request.method,
            "url": request.path,
            "params": request.params,
            "json": request.body,
            "timeout": httpx.Timeout(timeout, connect=min(access.connect_timeout, timeout)),
            "headers": headers,
        }

    def _headers(self, request: AnyRequest) -> dict[str, str]:
        access = self._access
        try:
            headers = access.request_headers()
        except ValueError as error:
            raise RayApiConnectionError(
                f"Could not {request.purpose} at {self.place}: there is no token to send. {error}", sent=False
            ) from None
        if self._on_token is not None and access.token_file is not None:
            bearer = headers.get(access.token_header_name, "")
            if token := bearer.removeprefix("Bearer "):
                self._on_token(token)
        return headers

    def decode(self, response: httpx.Response) -> Answer:
        """Return a response, whose content was read, without httpx."""
        return Answer(
            response.status_code,
            response.content,
            self.address,
            response.headers.get("content-type", ""),
            _time_of(response.headers.get("date")),
            {name: response.headers[name] for name in _IDENTIFYING_HEADERS if name in response.headers},
            self._access,
            tuple(
                secret
                for name, value in response.request.headers.items()
                if is_sensitive_name(name)
                for secret in secret_variants(value)
            ),
            self._label,
        )

    @contextmanager
    def translate_errors(self, request: AnyRequest) -> Iterator[None]:
        """
        Translate the errors of httpx.

        :raises RayApiConnectionError: or its subclass for TLS.
        """
        try:
            yield
        except _FAILURES as error:
            raise self._connection_error(request, error) from error

    def _connection_error(self, request: AnyRequest, error: Exception) -> RayApiConnectionError:
        if isinstance(error, _AuthError):
            return RayApiConnectionError(f"Could not {request.purpose} at {self.place}: {error}", sent=False)
        if isinstance(error, httpx.LocalProtocolError):
            # It quotes the header that cannot be sent, and so does its cause.
            error.args = ("what was to be sent is no HTTP",)
            error.__cause__ = error.__context__ = None
        kind, advice = diagnose_failure(error, self.address, self._access)
        said = self._access.redact(str(error))
        return kind(
            f"Could not {request.purpose}: no answer from {self.place} ({type(error).__name__}: {said}). {advice}",
            sent=not isinstance(error, _NEVER_SENT) and kind is not RayApiTLSError,
        )


class LogReceiver:
    """
    Passes a log, which is an answer's body or a text in its JSON, to a sink, and emits the sink's records.

    :param place: of the cluster, for errors.
    """

    def __init__(self, request: LogRequest, log: LogSink, emit: OnLog, place: str) -> None:
        self._json = JsonText() if request.is_json else None
        self._log = log
        self._emit = emit
        self._about = f"Could not {request.purpose} at {place}"
        log.begin()

    def feed(self, chunk: bytes) -> bool:
        """Pass on the next bytes of the answer, and return whether the sink can use more."""
        try:
            data = self._json.decode(chunk) if self._json else chunk
        except ValueError as error:
            raise RayApiAddressError(f"{self._about}: {error}", status_code=200) from error
        for record in self._log.feed(data):
            self._emit(record)
        return self._log.wants_more

    def finish(self) -> None:
        """Take the end of the answer as the present end of the log."""
        if self._json and not self._json.is_whole:
            raise RayApiAddressError(f"{self._about}: the answer is not what the Ray Jobs API says.", status_code=200)
        for record in self._log.flush():
            self._emit(record)


@dataclass(frozen=True)
class UploadContent:
    """The bytes of an upload, from the start in each iteration: after a challenge httpx sends a request again."""

    upload: Upload
    log: Callable[[LogMessage], object]

    def __iter__(self) -> Iterator[bytes]:
        return self.upload.chunks(time.monotonic, self.log)


@dataclass(frozen=True)
class AsyncUploadContent:
    """:class:`UploadContent`, read on the event loop: each chunk takes a fraction of a millisecond."""

    upload: Upload
    log: Callable[[LogMessage], object]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.upload.chunks(time.monotonic, self.log):
            yield chunk


class _AuthError(httpx.RequestError):
    """The user's authentication class raised an error. Its text is left out, as it may quote a credential."""

    def __init__(self, auth: httpx.Auth, error: Exception) -> None:
        super().__init__(f"auth {type(auth).__name__} failed with {type(error).__name__}.")


class _GuardedAuth(httpx.Auth):
    """The user's authentication class. Its errors become connection errors: many pass, as a metadata server's do."""

    def __init__(self, auth: httpx.Auth) -> None:
        self._auth = auth

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        flow = self._auth.sync_auth_flow(request)
        response: httpx.Response | None = None
        with closing(flow):
            while True:
                try:
                    request = next(flow) if response is None else flow.send(response)
                except StopIteration:
                    return
                except Exception as error:  # noqa: BLE001  (code of the user's)
                    raise _AuthError(self._auth, error) from None
                response = yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        flow = self._auth.async_auth_flow(request)
        response: httpx.Response | None = None
        async with aclosing(flow):
            while True:
                try:
                    request = await (anext(flow) if response is None else flow.asend(response))
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001  (code of the user's)
                    raise _AuthError(self._auth, error) from None
                response = yield request


def check_address(address: str) -> str:
    """
    Return a cluster's address without a last slash.

    :raises ValueError: for anything but an http or https URL, and for a URL that holds credentials.
    """
    shown = redact_address(address)
    try:
        parts = urlsplit(address)
        httpx.URL(address)
        _ = parts.port  # raises for an invalid port
        (parts.hostname or "").encode("idna")  # raises for an invalid host name
    except (ValueError, httpx.InvalidURL):
        # without their text, which may quote a password
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


def _proxy(url: str, tls: ssl.SSLContext) -> httpx.Proxy:
    scheme = urlsplit(url).scheme
    if scheme.startswith("socks") and find_spec("socksio") is None:
        raise ValueError(f"proxy is of schema {scheme}, for which the package socksio has to be installed")
    return httpx.Proxy(url, ssl_context=tls if scheme == "https" else None)


def _time_of(date: str | None) -> int:
    """Return the time of a ``Date`` header, or this machine's where a proxy removed it: Unix milliseconds."""
    try:
        return int(email.utils.parsedate_to_datetime(date or "").timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)
