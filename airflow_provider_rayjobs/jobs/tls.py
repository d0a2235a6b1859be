"""TLS: which certificates the client trusts, and which certificate it sends."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from airflow_provider_rayjobs.jobs.redaction import describe_unreadable

# Values of ``verify`` that are no path: trust the certificates of this machine; trust any, which protects from nothing.
SYSTEM = "system"
OFF = "off"
# Values of ``verify`` that are meant as a switch and name no file.
_SWITCHES = ("true", "false", "yes", "no", "on", "1", "0")
# The names by which OpenSSL finds certificates in a folder.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")


@dataclass(frozen=True)
class TLSSettings:
    """
    The TLS fields of :class:`~.access.Access`.

    :raises ValueError: for a field that can never work, naming it.
    """

    verify: str = SYSTEM
    client_cert: str | None = None
    client_key: str | None = None
    client_key_password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.verify, str) or not self.verify or self.verify.lower() in _SWITCHES:
            raise ValueError(
                f"verify is {SYSTEM!r} (this machine's certificates), {OFF!r} (no check) or the path of a file with "
                f"the certificates to believe, not {self.verify!r}"
            )
        if self.client_cert is None and (self.client_key is not None or self.client_key_password is not None):
            raise ValueError("client_key was given without client_cert, the certificate that it belongs to")

    def create_context(self) -> ssl.SSLContext:
        """
        Read the certificates, which takes 25 ms for those of this machine.

        :raises ValueError: for a file that is unreadable or has other content.
        """
        if self.verify == OFF:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.verify == SYSTEM:
            context = _trust_system()
        else:
            context = _trust(self.verify)
        if self.client_cert is not None:
            self._load_client_certificate(context, self.client_cert)
        return context

    def check_files(self) -> None:
        """
        Read the named files, once for each state of them: that takes up to 25 ms.

        :raises ValueError: for a file that is unreadable or has other content.
        """
        if self.verify not in (SYSTEM, OFF) or self.client_cert is not None:
            _check_files(self, self.mtimes())

    def mtimes(self) -> tuple[int, ...]:
        """Return the modification time of each named file in nanoseconds, 0 for a missing file."""
        paths = (None if self.verify in (SYSTEM, OFF) else self.verify, self.client_cert, self.client_key)
        return tuple(0 if path is None else _mtime(path) for path in paths)

    def _load_client_certificate(self, context: ssl.SSLContext, client_cert: str) -> None:
        for name, path in (("client_cert", client_cert), ("client_key", self.client_key)):
            if path is not None:
                _check_readable(name, path)
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(client_cert, self.client_key, password=self.client_key_password or "")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "not PEM, or client_key_password missing or wrong"
            raise ValueError(
                f"client_cert {client_cert} and client_key {self.client_key or '(in the same file)'} are no "
                f"certificate with its key: {reason}"
            ) from None


@lru_cache
def _check_files(settings: TLSSettings, _mtimes: tuple[int, ...]) -> None:
    settings.create_context()


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116  (Path.stat() is the same, and slower)
    except OSError:
        return 0


def _trust_system() -> ssl.SSLContext:
    """Trust this machine's certificates, and certifi's: a container may have none of its own."""
    import certifi  # noqa: PLC0415  (httpx brings it)

    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        context.load_verify_locations(certifi.where())
    return context


def _trust(path: str) -> ssl.SSLContext:
    is_folder = os.path.isdir(path)  # noqa: PTH112  (Path.is_dir() raises for a long name)
    if not is_folder:
        _check_readable("verify", path)
    elif not any(_HASHED_NAME.fullmatch(entry.name) for entry in Path(path).iterdir()):
        raise ValueError(f"verify: the folder {path} holds no certificates by their hashes (openssl rehash)")
    try:
        return ssl.create_default_context(capath=path) if is_folder else ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"verify: {path} holds no certificates in PEM form") from None


def _check_readable(field: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ValueError(describe_unreadable(field, path, error)) from None
