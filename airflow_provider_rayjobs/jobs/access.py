"""Access to a cluster: credentials, TLS settings, HTTP proxy, timeouts. No repr and no error holds a secret."""

from __future__ import annotations

import base64
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from airflow_provider_rayjobs.jobs.redaction import describe_unreadable, header_secrets, url_secrets

if TYPE_CHECKING:
    import httpx

# The headers from which Ray reads its token. Ray reads the second only in a request without the first.
# Source: Ray 2.60 ``_private/authentication/http_token_authentication.py``.
AUTHORIZATION = "Authorization"
RAY_AUTHORIZATION = "X-Ray-Authorization"

# Values of ``verify`` besides a path: trust this machine's certificates, or check no certificate.
SYSTEM = "system"
OFF = "off"
_NOT_PATHS = ("", "true", "false", "yes", "no", "on", "1", "0")

# Seconds to connect to the head. A reachable head accepts a connection within milliseconds.
CONNECT_TIMEOUT = 10.0
# Seconds for a whole request: enough for a head under load, and an outage is noticed within a minute.
READ_TIMEOUT = 30.0

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Headers that describe how a message is sent. Another value makes requests invalid, or answers unreadable.
_OUR_HEADERS = ("accept-encoding", "content-length", "transfer-encoding")
# Bytes of the largest token that is read from a file. A server accepts headers of 8 to 64 KiB.
_MAX_TOKEN = 64 * 1024
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


class CredentialsError(ValueError):
    """The credentials cannot be used at the moment: their files may be replaced. A retry may succeed."""


@dataclass(frozen=True)
class Access:
    """
    Everything that a client needs besides the address.

    The header ``Authorization`` carries Ray's token. If ``login``, ``auth`` or ``headers`` sets that header, the
    client sends the token in ``X-Ray-Authorization``. Ray reads it if a reverse proxy removes ``Authorization``.

    :param token: Ray's authentication token.
    :param token_file: a file with the token. The client reads it for each request, because such tokens rotate.
    :param token_header: another header for the token: ``X-Ray-Authorization`` if a proxy removes ``Authorization``.
    :param login: the user for basic authentication at a reverse proxy; requires ``password``.
    :param headers: sent with each request.
    :param auth: any :class:`httpx.Auth`.
    :param auth_secrets: secrets that ``auth`` holds, which no error may quote.
    :param verify: trusted certificates: ``system``, ``off``, or the file (or OpenSSL folder) of a private authority.
    :param client_cert: a PEM file with the client's certificate, for mTLS; its key may be in it, or in ``client_key``.
    :param client_key_password: the password of an encrypted key.
    :param proxy: the HTTP proxy, e.g. ``http://me:secret@proxy:3128``; by default that of the environment variables.
    :param connect_timeout: seconds to connect to the head.
    :param read_timeout: seconds for a whole request, of a log only for its next bytes; a submission always has 120.
    :raises ValueError: a field cannot work; the error names it.
    """

    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    token_header: str | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    auth: httpx.Auth | None = field(default=None, repr=False)
    verify: str = SYSTEM
    client_cert: str | None = None
    client_key: str | None = None
    client_key_password: str | None = field(default=None, repr=False)
    proxy: str | None = field(default=None, repr=False)
    connect_timeout: float = CONNECT_TIMEOUT
    read_timeout: float = READ_TIMEOUT
    auth_secrets: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file are both given. Leave one out.")
        if self.token is not None:
            _check_token("the token", self.token)
        if (self.login is None) != (self.password is None):
            raise ValueError("login and password belong together, for basic authentication. One is missing.")
        if self.login is not None and ":" in self.login:
            raise ValueError("login contains a colon, which basic authentication cannot send.")
        for name in ("token_file", "verify", "client_cert", "client_key"):
            path = getattr(self, name)
            # Checked first: an error about a missing file would quote a pasted key.
            if isinstance(path, str) and ("-----BEGIN" in path or len(path) > 1024 or not path.isprintable()):
                raise ValueError(f"{name} must be the path of a file, not its content. Write the content to a file.")
        for name, value in self.headers.items():
            _check_header(name, value)
        self._check_token_header()
        self._check_tls()
        if self.proxy is not None:
            _check_proxy(self.proxy)
        for name, seconds in (("connect_timeout", self.connect_timeout), ("read_timeout", self.read_timeout)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a number of seconds greater than 0, not {seconds!r}.")

    def _check_token_header(self) -> None:
        if self.token_header not in (None, AUTHORIZATION, RAY_AUTHORIZATION):
            # The value is not quoted: it may be the token.
            raise ValueError(f"token_header must be {AUTHORIZATION} or {RAY_AUTHORIZATION}.")
        if self.token_header is not None and not self.has_token:
            raise ValueError("token_header is given without a token. Set token or token_file, or leave it out.")
        fields = self._authorization_fields()
        if len(fields) > 1:
            raise ValueError(f"{' and '.join(fields)} both set the header {AUTHORIZATION}. Leave one out.")
        if self.has_token and self.token_header_name.lower() in map(str.lower, self.headers):
            raise ValueError(f"headers sets {self.token_header_name}, which carries the token. Leave one out.")
        if fields and self.token_header == AUTHORIZATION:
            raise ValueError(f"token_header is {AUTHORIZATION}, which {fields[0]} sets. Leave one out.")

    def _check_tls(self) -> None:
        if not isinstance(self.verify, str) or self.verify.lower() in _NOT_PATHS:
            raise ValueError(
                f"verify must be {SYSTEM!r} (this machine's certificates), {OFF!r} (no check) or the path of a file "
                f"with trusted certificates, not {self.verify!r}."
            )
        if self.client_cert is None and (self.client_key is not None or self.client_key_password is not None):
            raise ValueError("client_key is given without client_cert, its certificate.")

    def _authorization_fields(self) -> list[str]:
        """Return the names of the fields, other than the token's, that set the header ``Authorization``."""
        in_headers = AUTHORIZATION.lower() in map(str.lower, self.headers)
        is_set = {"login": self.login is not None, "auth": self.auth is not None, "headers": in_headers}
        return [name for name in is_set if is_set[name]]

    @property
    def has_token(self) -> bool:
        return self.token is not None or self.token_file is not None

    @property
    def token_header_name(self) -> str:
        return self.token_header or (RAY_AUTHORIZATION if self._authorization_fields() else AUTHORIZATION)

    @property
    def proxy_origin(self) -> str:
        """The HTTP proxy's address without its credentials; empty for none."""
        parts = urlsplit(self.proxy or "")
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if self.proxy else ""

    def request_headers(self) -> dict[str, str]:
        """Return the headers of one request, or raise :class:`CredentialsError` for an unusable token file."""
        headers = dict(self.headers)
        if self.login is not None:
            headers[AUTHORIZATION] = f"Basic {_basic(self.login, self.password or '')}"
        if (token := self.current_token()) is not None:
            headers[self.token_header_name] = f"Bearer {token}"
        return headers

    def current_token(self) -> str | None:
        """Return Ray's current token, or raise :class:`CredentialsError` for an unusable token file."""
        if self.token_file is None:
            return self.token
        try:
            check_regular_file(self.token_file)
            with Path(self.token_file).open("rb") as file:
                token = file.read(_MAX_TOKEN + 1).decode("ascii", errors="replace").strip()
        except OSError as error:
            raise CredentialsError(describe_unreadable("token_file", self.token_file, error)) from None
        if len(token) > _MAX_TOKEN:
            raise CredentialsError(f"token_file {self.token_file} holds more than {_MAX_TOKEN // 1024} KiB.")
        try:
            _check_token(f"the token in token_file {self.token_file}", token)
        except ValueError as error:  # the file may be half written
            raise CredentialsError(str(error)) from None
        return token

    def describe(self) -> str:
        """Name the credentials that a request carries, without their values."""
        source = f"from {self.token_file} " if self.token_file else ""
        is_sent = {
            f"a token {source}in {self.token_header_name}": self.has_token,
            f"basic authentication in {AUTHORIZATION}": self.login is not None,
            f"the credentials of {type(self.auth).__name__}": self.auth is not None,
            f"the headers {', '.join(sorted(self.headers))}": self.headers,
            "a client certificate": self.client_cert is not None,
        }
        return " and ".join(name for name, is_given in is_sent.items() if is_given) or "no credentials"

    def secrets(self) -> Iterator[str]:
        """Yield every secret in each form in which the client sends it, with the current token of a token file."""
        try:
            given = [self.current_token()]
        except ValueError:
            given = []
        given += [self.password, self.client_key_password, *self.auth_secrets, *header_secrets(self.headers)]
        if self.login is not None:
            given.append(_basic(self.login, self.password or ""))
        # The environment's proxies count too: a proxy may repeat their login.
        for proxy in filter(None, (self.proxy, *getproxies().values())):
            given += _proxy_secrets(proxy)
        yield from filter(None, given)


def check_regular_file(path: str) -> None:
    """Raise :class:`OSError` for a missing file, and for a FIFO or a device: opening or reading one may block."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (Path.stat() is the same, and slower)
        raise OSError(errno.EINVAL, "Not a regular file")


def _proxy_secrets(proxy: str) -> Iterator[str]:
    """Yield the password of an HTTP proxy in each form in which httpx sends it, and a token in the place of a user."""
    with suppress(ValueError):  # the environment may hold anything
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if password:
            yield from (parts.password or "", password, _basic(user, password))
        yield from url_secrets(f"http://{parts.netloc}")


def _check_token(subject: str, token: str) -> None:
    _check_header_value(subject, token)
    if token.lower().startswith("bearer "):
        raise ValueError(f"{subject} begins with 'Bearer ', which the client adds. Give the token alone.")


def _check_header(name: str, value: str) -> None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        # A name with a colon is not quoted: the text after the colon may be a secret.
        shown = repr(name) if ":" not in str(name) else "a name with a colon"
        raise ValueError(f"headers: {shown} is not a valid header name.")
    if not isinstance(value, str):
        raise ValueError(f"headers: the value of {name} must be text, not {type(value).__name__}.")
    if name.lower() in _OUR_HEADERS:
        raise ValueError(f"headers sets {name}, which the client sets itself. Leave it out.")
    _check_header_value(f"headers: the value of {name}", value)


def _check_header_value(subject: str, value: str) -> None:
    if not value.strip(" "):
        raise ValueError(f"{subject} is empty.")
    if value != value.strip(" "):
        raise ValueError(f"{subject} begins or ends with a space.")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{subject} contains a character that no HTTP header can hold, such as a newline.")


def _check_proxy(proxy: str) -> None:
    try:
        parts = urlsplit(proxy)
        _ = parts.port
        is_address = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname)
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment or parts.path not in ("", "/"):
        # The value is not quoted: it may contain a password.
        raise ValueError(
            "proxy must be an address such as http://proxy:3128 or http://user:password@proxy:3128, with one of the "
            f"schemes {', '.join(_PROXY_SCHEMES)}."
        )


def _basic(login: str, password: str) -> str:
    return base64.b64encode(f"{login}:{password}".encode()).decode()
