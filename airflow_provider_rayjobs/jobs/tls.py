"""TLS contexts: the certificates that the client trusts, and the certificate that it sends."""

from __future__ import annotations

import os
import re
import ssl
from functools import lru_cache
from pathlib import Path

from airflow_provider_rayjobs.jobs.access import OFF, SYSTEM, Access, CredentialsError, check_regular_file
from airflow_provider_rayjobs.jobs.redaction import describe_unreadable

# The names by which OpenSSL finds certificates in a folder.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")


def create_context(access: Access) -> ssl.SSLContext:
    """Read the certificates (25 ms for this machine's), or raise :class:`ValueError` for an unusable file."""
    if access.verify == OFF:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif access.verify == SYSTEM:
        context = _trust_system()
    else:
        context = _trust(access.verify)
    if access.client_cert is not None:
        _load_client_certificate(context, access.client_cert, access.client_key, access.client_key_password)
    return context


def check_certificates(access: Access) -> None:
    """Raise :class:`ValueError` for an unusable certificate file. Files are read again only after a change."""
    if access.verify not in (SYSTEM, OFF) or access.client_cert is not None:
        fields = access.verify, access.client_cert, access.client_key, access.client_key_password
        _check_certificates(*fields, certificate_mtimes(access))


@lru_cache
def _check_certificates(
    verify: str, client_cert: str | None, client_key: str | None, password: str | None, _mtimes: tuple[int, ...]
) -> None:
    create_context(Access(verify=verify, client_cert=client_cert, client_key=client_key, client_key_password=password))


def certificate_mtimes(access: Access) -> tuple[int, ...]:
    """
    Return a number for each certificate file that changes with the file; 0 for a missing file.

    Files out of an image or an archive may all have the same modification time, even one in the future.
    """
    paths = (None if access.verify in (SYSTEM, OFF) else access.verify, access.client_cert, access.client_key)
    return tuple(0 if path is None else _mtime(path) for path in paths)


def _mtime(path: str) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116  (Path.stat() is the same, and slower)
    except OSError:
        return 0
    return status.st_mtime_ns + status.st_ctime_ns


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
    try:
        if is_folder and not any(_HASHED_NAME.fullmatch(entry.name) for entry in Path(path).iterdir()):
            raise CredentialsError(f"verify: the folder {path} holds no hashed certificates. Run openssl rehash there.")
        return ssl.create_default_context(capath=path) if is_folder else ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise CredentialsError(f"verify: {path} holds no certificates in PEM form.") from None
    except OSError as error:  # not readable, or replaced since the check
        raise CredentialsError(describe_unreadable("verify", path, error)) from None


def _load_client_certificate(context: ssl.SSLContext, cert: str, key: str | None, password: str | None) -> None:
    _check_readable("client_cert", cert)
    if key is not None:
        _check_readable("client_key", key)
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password=password or "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not PEM, or client_key_password missing or wrong"
        raise CredentialsError(
            f"client_cert {cert} and client_key {key or '(in the same file)'} are not a certificate and its key: "
            f"{reason}."
        ) from None
    except OSError as error:  # replaced since the check
        raise CredentialsError(describe_unreadable("client_cert or client_key", cert, error)) from None


def _check_readable(field: str, path: str) -> None:
    try:
        check_regular_file(path)
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise CredentialsError(describe_unreadable(field, path, error)) from None
