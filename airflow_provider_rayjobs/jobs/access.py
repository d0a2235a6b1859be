"""
How a client gets in: what it shows to Ray and to a proxy before it, whom it trusts, and which way it takes.

Nothing here sends anything. What is secret is in no repr and in no message: mistakes are said by the field's name.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    import httpx

# Where Ray looks for its token, in this order. It looks at the second only where the first is not there at all.
# Source: Ray 2.60 ``_private/authentication/http_token_authentication.py``.
AUTHORIZATION = "Authorization"
RAY_AUTHORIZATION = "X-Ray-Authorization"

# Certificates that are believed: those of this machine; any, which is no protection at all; or a file's.
SYSTEM = "system"
OFF = "off"

# Seconds to reach the head: it is near, or not there.
CONNECT_TIMEOUT = 10.0
# Seconds that the head may take for the next bytes of an answer. It answers most requests in milliseconds; what is
# allowed here is a head under load, short enough that a follower notices an outage within the minute.
READ_TIMEOUT = 30.0

# Characters of a secret that is looked for in texts: a shorter one is in every other word. As in Airflow's masker.
MIN_SECRET_LENGTH = 5
# And of a header's value whose name does not tell: "https" and "team-a" say nothing that others do not.
_MIN_HEADER_SECRET_LENGTH = 8
_TELLING_NAME = re.compile("auth|key|token|secret|cookie|passw|credential|signature|assertion|jwt", re.IGNORECASE)
# Characters of a path; what is longer is the content of a file.
_LONGEST_PATH = 1024
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# How OpenSSL finds a certificate in a folder.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
# What somebody means who writes one of these for ``verify``, and what no file is called.
_NO_FILE = ("true", "false", "yes", "no", "on", "1", "0")


@dataclass(frozen=True)
class Access:
    """
    What a client needs besides the address.

    ``Authorization`` belongs to one of ``login``, ``auth`` and ``headers`` where that is given, and to Ray's token
    otherwise; Ray's token then goes into ``X-Ray-Authorization``, which Ray reads where no ``Authorization`` reaches
    it.

    :param token: Ray's authentication token.
    :param token_file: the file that holds it, read again for each request: such tokens rotate.
    :param token_header: ``X-Ray-Authorization`` where a proxy keeps ``Authorization`` to itself although nothing here
        claims it.
    :param login: for the basic authentication of a proxy; with ``password``.
    :param headers: sent with each request.
    :param auth: any :class:`httpx.Auth`.
    :param verify: which certificates are believed: ``system``, ``off``, or a file (or a folder, as OpenSSL has them)
        of a private authority.
    :param client_cert: a PEM file with our certificate, for mTLS; its key may be in it.
    :param client_key: a PEM file with the certificate's key.
    :param client_key_password: of an encrypted key.
    :param proxy: through which all requests go, e.g. ``http://me:secret@proxy:3128``; what the environment says
        (``HTTPS_PROXY``, ``NO_PROXY``) when not given.
    :param connect_timeout: seconds to reach the head.
    :param read_timeout: seconds that it may take for the next bytes of an answer; a submission's answer has two
        minutes in any case.
    :raises ValueError: for what can never work, naming the field.
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

    def __post_init__(self) -> None:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file were both given; leave one out")
        if self.token is not None:
            _check_token("the token", self.token)
        if (self.login is None) != (self.password is None):
            raise ValueError("login and password make the basic authentication of a proxy together; one is missing")
        if self.login is not None and ":" in self.login:
            raise ValueError("login holds a colon, which basic authentication cannot send")
        for name in ("token_file", "verify", "client_cert", "client_key"):
            _check_path(name, getattr(self, name))
        for name, value in self.headers.items():
            _check_header(name, value)
        self._check_token_header()
        self._check_tls()
        if self.proxy is not None:
            _check_proxy(self.proxy)
        for name, seconds in (("connect_timeout", self.connect_timeout), ("read_timeout", self.read_timeout)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a number of seconds, more than 0, not {seconds!r}")

    def _check_token_header(self) -> None:
        if self.token_header not in (None, AUTHORIZATION, RAY_AUTHORIZATION):
            # not what it is: that may be the token
            raise ValueError(f"token_header is {AUTHORIZATION} or {RAY_AUTHORIZATION}, and nothing else")
        if self.token_header is not None and not self.has_token:
            raise ValueError("token_header was given without a token that goes there; give one, or leave it out")
        owners = self._owners()
        if len(owners) > 1:
            raise ValueError(f"{' and '.join(owners)} both claim the header {AUTHORIZATION}; leave one out")
        if self.has_token and self.token_header_name.lower() in {name.lower() for name in self.headers}:
            raise ValueError(f"headers holds {self.token_header_name}, where the token goes; leave one out")
        if owners and self.token_header == AUTHORIZATION:
            raise ValueError(f"token_header is {AUTHORIZATION}, which belongs to {owners[0]}; leave one out")

    def _check_tls(self) -> None:
        if not isinstance(self.verify, str) or not self.verify or self.verify.lower() in _NO_FILE:
            raise ValueError(
                f"verify is {SYSTEM!r} (this machine's certificates), {OFF!r} (no check) or the path of a file with "
                f"the certificates to believe, not {self.verify!r}"
            )
        if self.client_cert is None and (self.client_key is not None or self.client_key_password is not None):
            raise ValueError("client_key was given without client_cert, the certificate that it belongs to")

    def _owners(self) -> list[str]:
        """Return what claims ``Authorization`` besides Ray's token."""
        claims = {
            "login": self.login is not None,
            "auth": self.auth is not None,
            "headers": AUTHORIZATION.lower() in {name.lower() for name in self.headers},
        }
        return [name for name, is_claimed in claims.items() if is_claimed]

    @property
    def has_token(self) -> bool:
        """Tell whether there is a token for Ray."""
        return self.token is not None or self.token_file is not None

    @property
    def token_header_name(self) -> str:
        """The header that Ray's token goes into."""
        return self.token_header or (RAY_AUTHORIZATION if self._owners() else AUTHORIZATION)

    def request_headers(self) -> dict[str, str]:
        """
        Return what a request is sent with; the token's file is read for it.

        :raises OSError: the file cannot be read.
        :raises ValueError: it holds no token.
        """
        headers = dict(self.headers)
        if self.login is not None:
            headers[AUTHORIZATION] = f"Basic {_basic(self.login, self.password or '')}"
        if (token := self.current_token()) is not None:
            headers[self.token_header_name] = f"Bearer {token}"
        return headers

    def current_token(self) -> str | None:
        """Return Ray's token as it is now."""
        if self.token_file is None:
            return self.token
        token = Path(self.token_file).read_bytes().decode("ascii", errors="replace").strip()
        if not token:
            raise ValueError(f"token_file {self.token_file} is empty")
        _check_token(f"the token in token_file {self.token_file}", token)
        return token

    def describe(self) -> str:
        """Return what is shown to whom, without any of it: for messages on who was not let in."""
        shown = []
        if self.has_token:
            place = f"from {self.token_file} " if self.token_file else ""
            shown.append(f"a token {place}in {self.token_header_name}")
        if self.login is not None:
            shown.append(f"basic authentication in {AUTHORIZATION}")
        if self.auth is not None:
            shown.append(f"what {type(self.auth).__name__} adds")
        if self.headers:
            shown.append(f"the headers {', '.join(sorted(self.headers))}")
        if self.client_cert is not None:
            shown.append("a client certificate")
        return " and ".join(shown) or "no credentials"

    def secrets(self) -> Iterator[str]:
        """Yield all that must be seen nowhere, in each form that it takes; the token's file as it is now."""
        try:
            given = [self.current_token()]
        except (OSError, ValueError):
            given = []
        given += [self.password, self.client_key_password]
        for name, value in self.headers.items():
            if is_sensitive_name(name):
                given += secret_variants(value)
            elif len(value) >= _MIN_HEADER_SECRET_LENGTH:
                given.append(value)
        if self.login is not None:
            given.append(_basic(self.login, self.password or ""))
        if self.proxy is not None and (password := urlsplit(self.proxy).password):
            user = unquote(urlsplit(self.proxy).username or "")
            given += [password, unquote(password), _basic(user, unquote(password))]
        yield from (secret for secret in given if secret)

    def redact(self, text: str, sent: Iterable[str] = ()) -> str:
        """
        Return somebody else's words without what is secret in them: a proxy may quote what it does not like.

        :param sent: further secrets, such as the token that was sent before the token's file changed.
        """
        secrets = {secret for secret in (*self.secrets(), *sent) if len(secret) >= MIN_SECRET_LENGTH}
        written = {form for secret in secrets for form in _ways_to_write(secret)}
        # the longest first: of "abcdef-1" nothing shall be left where "abcdef" is secret as well
        for form in sorted(written, key=len, reverse=True):
            text = text.replace(form, "***")
        return text

    def describe_token_file_error(self, error: OSError | ValueError) -> str:
        """Return what is wrong with the token's file."""
        return (
            f"token_file{_shown(self.token_file or '')} cannot be read: {error.strerror}"
            if isinstance(error, OSError)
            else str(error)
        )

    def check_files(self) -> None:
        """
        Look at each file that is named.

        :raises ValueError: for one that cannot be read, or that does not hold what it should.
        """
        self.check_token_file()
        self.check_certificates()

    def check_token_file(self) -> None:
        """
        Look at the token's file alone.

        :raises ValueError: it cannot be read, or holds no token.
        """
        if self.token_file is not None:
            try:
                self.current_token()
            except OSError as error:
                raise ValueError(self.describe_token_file_error(error)) from None

    def check_certificates(self) -> None:
        """
        Look at the files of certificates; once for each state of them, as it takes up to 25 ms.

        :raises ValueError: for one that cannot be read, or that does not hold what it should.
        """
        if self.verify not in (SYSTEM, OFF) or self.client_cert is not None:
            _check_certificates(self.verify, self.client_cert, self.client_key, self.client_key_password, self.mtimes())

    def mtimes(self) -> tuple[int, ...]:
        """Return when each file of certificates was changed, in nanoseconds; 0 for one that is not there."""
        paths = (None if self.verify in (SYSTEM, OFF) else self.verify, self.client_cert, self.client_key)
        return tuple(0 if path is None else _changed_at(path) for path in paths)

    def tls(self, *, with_certificate: bool = True) -> ssl.SSLContext:
        """
        Return the TLS settings; 25 ms where the machine's certificates are read.

        :param with_certificate: whether our own certificate may be shown.
        :raises ValueError: for a file that cannot be read, or that does not hold what it should.
        """
        if self.verify == OFF:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.verify == SYSTEM:
            context = _system_tls()
        else:
            context = _private_tls(self.verify)
        if with_certificate and self.client_cert is not None:
            self._show_certificate(context, self.client_cert)
        return context

    def _show_certificate(self, context: ssl.SSLContext, client_cert: str) -> None:
        for name, path in (("client_cert", client_cert), ("client_key", self.client_key)):
            if path is not None:
                _check_file(name, path)
        try:
            # a password in any case: OpenSSL would ask a terminal for one
            context.load_cert_chain(client_cert, self.client_key, password=self.client_key_password or "")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "not PEM, or client_key_password missing or wrong"
            raise ValueError(
                f"client_cert {client_cert} and client_key {self.client_key or '(in the same file)'} are no "
                f"certificate with its key: {reason}"
            ) from None

    @property
    def proxy_origin(self) -> str:
        """The proxy's address without what is secret in it; empty for none."""
        if self.proxy is None:
            return ""
        parts = urlsplit(self.proxy)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


@lru_cache
def _check_certificates(
    verify: str, client_cert: str | None, client_key: str | None, password: str | None, _mtimes: tuple[int, ...]
) -> None:
    Access(verify=verify, client_cert=client_cert, client_key=client_key, client_key_password=password).tls()


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116  (Path.stat() is the same, and slower)
    except OSError:
        return 0


def _system_tls() -> ssl.SSLContext:
    """Believe what this machine does, and certifi's list, as a container may have no list of its own."""
    import certifi  # noqa: PLC0415  (httpx brings it)

    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        context.load_verify_locations(certifi.where())
    return context


def _private_tls(path: str) -> ssl.SSLContext:
    is_folder = os.path.isdir(path)  # noqa: PTH112  (Path.is_dir() raises for a long name)
    if not is_folder:
        _check_file("verify", path)
    elif not any(_HASHED_NAME.fullmatch(entry.name) for entry in Path(path).iterdir()):
        raise ValueError(f"verify: the folder {path} holds no certificates by their hashes (openssl rehash)")
    try:
        return ssl.create_default_context(capath=path) if is_folder else ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"verify: {path} holds no certificates in PEM form") from None


def _check_file(name: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{name}:{_shown(path) or ' it'} cannot be read: {error.strerror}") from None


def _check_path(name: str, path: str | None) -> None:
    """Refuse what is pasted into the field of a path, before anybody looks for a file of such a name and says so."""
    if isinstance(path, str) and ("-----BEGIN" in path or len(path) > _LONGEST_PATH or not path.isprintable()):
        raise ValueError(f"{name} is the content, not the path of a file; write it to a file and give its path")


def _shown(path: str) -> str:
    """Return a path for a message that says that there is no such file; what has no folder may be a secret."""
    return f" {path}" if "/" in path else ""


def is_sensitive_name(name: str) -> bool:
    """Tell whether a header's name says that its value is secret."""
    return bool(_TELLING_NAME.search(name))


def secret_variants(value: str) -> list[str]:
    """Return a secret header's value, and what stands in it behind a scheme such as ``Bearer``."""
    _, _, rest = value.partition(" ")
    return [value, rest.strip()] if rest.strip() else [value]


def _ways_to_write(secret: str) -> set[str]:
    """Return a text as it is in a log, in an address, in a page, in JSON."""
    return {secret, quote(secret, safe=""), html.escape(secret), json.dumps(secret)[1:-1]}


def _check_token(what: str, token: str) -> None:
    if not token or token != token.strip(" "):
        raise ValueError(f"{what} {'has a blank at an end' if token.strip() else 'is empty'}")
    if not (token.isascii() and token.isprintable()):
        raise ValueError(f"{what} holds a character that no HTTP header can hold, such as a newline at its end")
    if token.lower().startswith("bearer "):
        raise ValueError(f"{what} begins with 'Bearer ', which is added by itself; give the token alone")


def _check_header(name: str, value: str) -> None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        # what stands behind a colon is the value
        shown = repr(name) if ":" not in str(name) else "what holds a colon"
        raise ValueError(f"headers: {shown} is no name of an HTTP header")
    if not isinstance(value, str):
        raise ValueError(f"headers: the value of {name} must be text, not {type(value).__name__}")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"headers: the value of {name} holds a character that no HTTP header can hold")
    if not value or value != value.strip(" "):
        raise ValueError(f"headers: the value of {name} {'has a blank at an end' if value.strip() else 'is empty'}")


def _check_proxy(proxy: str) -> None:
    # no word of what it holds besides its host: there may be a password in it
    try:
        parts = urlsplit(proxy)
        _ = parts.port
        is_address = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname)
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError(
            f"proxy is no address of a proxy; it looks like http://proxy:3128 or http://user:password@proxy:3128, with "
            f"a schema of {', '.join(_PROXY_SCHEMES)}"
        )


def _basic(login: str, password: str) -> str:
    return base64.b64encode(f"{login}:{password}".encode()).decode()
