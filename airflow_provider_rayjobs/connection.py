"""Read the description of a cluster from an Airflow connection or from Ray's environment variables."""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from airflow_provider_rayjobs import config, migration
from airflow_provider_rayjobs.jobs.access import Access, CredentialsError
from airflow_provider_rayjobs.jobs.redaction import raise_unchained, redact_address
from airflow_provider_rayjobs.jobs.tls import check_certificates
from airflow_provider_rayjobs.jobs.transport import check_address

if TYPE_CHECKING:
    import httpx
    from airflow.sdk import Connection

T = TypeVar("T")

DEFAULT_PORT = 8265
# Ray's own variables for the address of the Jobs API and for its token.
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# Where Ray generates a token for local clusters. ``ray start --head`` then requires that token.
# Source: Ray 2.60 ``_private/authentication/authentication_token_setup.py``.
_LOCAL_TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105  (a path)
# The type of each extra. A connection URI has every value as text: an object as JSON, a number as digits.
_TEXT, _OBJECT, _SECONDS = "text", "a JSON object with text values", "a number of seconds"
EXTRAS = {
    **dict.fromkeys(
        ("base_path", "dashboard_url", "history_url", "token", "token_file", "token_header", "auth"), _TEXT
    ),
    **dict.fromkeys(("client_cert", "client_key", "client_key_password", "proxy"), _TEXT),
    **dict.fromkeys(("headers", "auth_kwargs"), _OBJECT),
    **dict.fromkeys(("connect_timeout", "read_timeout"), _SECONDS),
    "verify": "text: system, off or the path of a certificate file",
}
_HISTORY_URL = re.compile(r"https?://[^\s/@?#{}]+[/?#](?:[^\s{}]|\{(?:submission_id|session)\})*")
# Extras that use a credential of the worker. The line in token_file is sent to the host of the connection.
_FILE_EXTRAS = ("token_file", "client_cert", "client_key")
# Extras that become the field of Access with the same name.
_ACCESS_EXTRAS = EXTRAS.keys() & {each.name for each in fields(Access)} - {"token", "auth"}


@dataclass(frozen=True)
class Cluster:
    """
    The cluster that a connection describes.

    :param address: the address of the Jobs API, e.g. ``https://ray.example.com/team-a``.
    :param dashboard_url: the address of the dashboard for browsers.
    :param access: credentials and TLS settings, without ``auth``.
    :param auth: the user's subclass of ``httpx.Auth``, as ``module.Class``.
    :param auth_kwargs: the arguments of that class.
    :param history_url: the template of a job's page that outlives the cluster.
    :param is_local_token: whether the token is that of Ray's local clusters, which must stay on this machine.
    """

    address: str
    dashboard_url: str
    access: Access = field(default_factory=Access)
    auth: str | None = None
    auth_kwargs: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    history_url: str = ""
    is_local_token: bool = False

    def at(self, address: str) -> Cluster:
        """Return a cluster with these credentials at another address. A token of this machine is not sent elsewhere."""
        if address == self.address:
            return self
        moved = replace(self, address=address, dashboard_url=address, history_url="")
        if self.is_local_token and not _stays_on_this_machine(address):
            return replace(moved, access=replace(self.access, token_file=None), is_local_token=False)
        return moved

    def job_url(self, submission_id: str) -> str:
        """Return the address of a job's page in the Ray dashboard."""
        return f"{self.dashboard_url}/#/jobs/{submission_id}"

    def job_history_url(self, submission_id: str, session: str | None) -> str:
        """Return the address of a job's page that outlives the cluster; "" if none is known."""
        if session is None and "{session}" in self.history_url:
            return ""
        return _fill_in(self.history_url, {"submission_id": submission_id, "session": session or ""})

    def full_access(self) -> Access:
        """
        Return the access with a new object of the user's ``auth`` class.

        :raises ValueError: the object cannot be created, or conflicts with another credential.
        """
        if self.auth is None:
            return self.access
        try:
            auth = find_auth(self.auth)(**self.auth_kwargs)
        except Exception as error:  # noqa: BLE001  (the user's class)
            # The error's text and traceback may contain the arguments, which are secret.
            wrong = " with auth_kwargs" if isinstance(error, TypeError) else ""
            message = f"extra auth {self.auth} cannot be created{wrong}: {type(error).__name__}."
            raise_unchained(ValueError(message) if wrong else CredentialsError(message))
        return replace(self.access, auth=auth, auth_secrets=tuple(self.auth_kwargs.values()))

    def secrets(self) -> Iterator[str]:
        """Yield every value that must be masked."""
        yield from self.access.secrets()
        yield from self.auth_kwargs.values()


def find_auth(path: str) -> type[httpx.Auth]:
    """
    Import the class that a connection names as ``auth``, e.g. ``my_company.iap.IapAuth``.

    :raises ValueError: the module or the class is missing, or the class is not a subclass of ``httpx.Auth``.
    :raises CredentialsError: the module raises an error. It may fetch credentials, which a retry may get.
    """
    import httpx  # noqa: PLC0415

    module, _, name = path.rpartition(".")
    try:
        imported = importlib.import_module(module or path)
    except ImportError as error:
        raise ValueError(f"extra auth {path!r} cannot be imported: {error}. Give it as module.Class.") from None
    except Exception as error:  # noqa: BLE001  (the user's module)
        message = f"extra auth {path!r} cannot be imported: {type(error).__name__} in its module."
        raise_unchained(CredentialsError(message))
    found = getattr(imported, name, None)
    if found is None:
        raise ValueError(f"extra auth {path!r} cannot be imported: no class {name}. Give it as module.Class.")
    if not (isinstance(found, type) and issubclass(found, httpx.Auth)):
        raise ValueError(f"extra auth {path!r} is not a subclass of httpx.Auth. Derive the class from it.")
    return found


def parse_connection(connection: Connection, *, check_token_file: bool = True) -> Cluster:
    """
    Read a connection's fields.

    The host is a name or a URL such as ``https://ray.example.com/team-a``; the other fields complete it. The default
    port is 443 for https and 8265 for http.

    :param check_token_file: whether a missing token file is an error. While a job is followed it is an outage, because
        token rotation replaces the file.
    :raises ValueError: a field is invalid, unknown or contradicts another, or a file cannot be read. The error names
        the field.
    """
    with naming_source(f"connection {connection.conn_id}"):
        cluster = _cluster_of(connection, _read_extra(connection))
        if check_token_file:
            cluster.access.current_token()  # raises for an unusable token file
    return cluster


def parse_environment(*, check_token_file: bool = True) -> Cluster:
    """
    Read Ray's environment variables.

    For a head on this machine, the token may also be in the file that Ray generates in the home directory.

    :param check_token_file: see :func:`parse_connection`.
    :raises ValueError: a variable is missing or invalid. The error names it.
    """
    with naming_source(f"environment variable {ADDRESS_VARIABLE}"):
        address = check_address(os.environ.get(ADDRESS_VARIABLE, ""))
    token, token_file = (os.environ.get(name) or None for name in TOKEN_VARIABLES)
    is_local_token = False
    if token is None and token_file is None and _stays_on_this_machine(address):
        token_file = _local_token_file()
        is_local_token = token_file is not None
    with naming_source(f"environment variable {' or '.join(TOKEN_VARIABLES)}"):
        access = Access(token=token and token.strip(), token_file=None if token else token_file)
        if check_token_file:
            access.current_token()  # raises for an unusable token file
    return Cluster(address, dashboard_url=address, access=access, is_local_token=is_local_token)


def _stays_on_this_machine(address: str) -> bool:
    """Tell whether requests go to a loopback address, and not through an HTTP proxy of the environment."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if host != "localhost":
        try:
            is_loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            return False
    proxies = getproxies()
    # Not proxy_bypass(): on macOS it obeys system settings that httpx ignores.
    exceptions = {each.strip() for each in proxies.get("no", "").split(",")}
    return proxies.keys().isdisjoint((parts.scheme, "all")) or not exceptions.isdisjoint((host, "*"))


def _local_token_file() -> str | None:
    # Path.home() raises for a user without a home directory.
    file = os.path.expanduser(_LOCAL_TOKEN_FILE)  # noqa: PTH111
    return file if os.path.isfile(file) else None  # noqa: PTH113


@contextmanager
def naming_source(source: str) -> Iterator[None]:
    """Prefix a ``ValueError`` with the connection or variable that caused it."""
    try:
        yield
    except ValueError as error:
        kind = CredentialsError if isinstance(error, CredentialsError) else ValueError
        raise kind(f"{source}: {error}") from None


def _cluster_of(connection: Connection, extra: Mapping[str, Any]) -> Cluster:
    address = _address_of(connection, extra.get("base_path", ""))
    if "auth" in extra:
        if extra["auth"] not in config.names("allowed_auth_classes"):
            raise ValueError(_describe_forbidden("auth", "a class", "allowed_auth_classes"))
        find_auth(extra["auth"])
    elif "auth_kwargs" in extra:
        raise ValueError("extra auth_kwargs is set without auth. Set extra auth to the class that takes them.")
    access = _access_of(connection, extra)
    if access.client_cert is not None and urlsplit(address).scheme == "http":
        raise ValueError("extra client_cert is set, but http sends no certificate. Set schema to https.")
    return Cluster(
        address,
        dashboard_url=check_address(extra.get("dashboard_url") or address),
        history_url=_check_history_url(extra.get("history_url", "")),
        access=access,
        auth=extra.get("auth"),
        auth_kwargs=extra.get("auth_kwargs", {}),
    )


def _check_history_url(template: str) -> str:
    """Return the template of a job's page, or raise :class:`ValueError`. Fields may stand after the host only."""
    if not template:
        return ""
    with suppress(ValueError):
        if _HISTORY_URL.fullmatch(template) and "{submission_id}" in template and urlsplit(template).hostname:
            return template
    raise ValueError(
        "extra history_url is not usable. Give an http or https URL without credentials. It needs {submission_id} "
        "after the host and may have {session}, the name of Ray's session."
    )


def _fill_in(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: quote(values[found[1]], safe=""), template)


def _access_of(connection: Connection, extra: Mapping[str, Any]) -> Access:
    login, password, token = connection.login or None, connection.password or None, extra.get("token")
    # With a login, the password belongs to it. Without a login, the password is Ray's token.
    if password is not None and login is None:
        if duplicates := extra.keys() & {"token", "token_file"}:
            raise ValueError(
                f"password and extra {min(duplicates)} both contain a token, as login is empty. Remove one."
            )
        token, password = password, None
    extras = {name: extra[name] for name in _ACCESS_EXTRAS & extra.keys()}
    access = Access(token=token, login=login, password=password, **extras)
    for name in _FILE_EXTRAS:
        if name in extra and not _is_allowed_file(extra[name]):
            raise ValueError(_describe_forbidden(name, "a file of the worker", "allowed_files"))
    check_certificates(access)
    return access


def _is_allowed_file(path: str) -> bool:
    """Tell whether the configuration lets connections use a file. Only ``*`` is a pattern; it matches no slash."""
    given = PurePosixPath(path)
    patterns = [each.replace("[", "[[]").replace("?", "[?]") for each in config.names("allowed_files")]
    return ".." not in given.parts and any(each.startswith("/") and given.match(each) for each in patterns)


def _describe_forbidden(extra: str, kind: str, option: str) -> str:
    # The value is not quoted: it may be a token in the wrong field.
    return (
        f"extra {extra} names {kind} that connections may not use. An administrator of Airflow can add it to {option} "
        f"in the section [{config.SECTION}] of its configuration (environment variable {config.variable(option)})."
    )


def _address_of(connection: Connection, base_path: str) -> str:
    host = (connection.host or "").strip()
    try:
        given = urlsplit(host if "://" in host else f"//{host}")
        port_in_host = given.port
    except ValueError:
        # The error's text may contain a password.
        raise_unchained(ValueError("host is not an address. Give a host name or a URL, with a port up to 65535."))
    if not given.hostname:
        raise ValueError("host is empty. Give the name or the URL of the Ray head, e.g. http://ray-head:8265.")
    if given.username or given.password or given.query or given.fragment:
        raise ValueError("host contains more than an address. Use login, password or token for credentials.")
    schema = _resolve_part("schema", given.scheme, (connection.schema or "").lower()) or "http"
    port = _resolve_part("port", port_in_host, connection.port) or (None if schema == "https" else DEFAULT_PORT)
    path = _resolve_part("extra base_path", given.path.strip("/"), base_path.strip("/"))
    name = f"[{given.hostname}]" if ":" in given.hostname else given.hostname
    return check_address(f"{schema}://{name}{f':{port}' if port else ''}{f'/{path}' if path else ''}")


def _resolve_part(name: str, in_host: T, in_field: T) -> T:
    """Return a part of the address from the host or from its own field. If they differ, raise an error."""
    if in_host and in_field and in_host != in_field:
        shown = [redact_address(str(given)).strip("'") for given in (in_host, in_field)]
        raise ValueError(f"{name} is {shown[1]}, but host contains {shown[0]}. Remove one of them.")
    return in_host or in_field


def _read_extra(connection: Connection) -> Mapping[str, Any]:
    try:
        given = json.loads(connection.extra or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        # The text of extra may contain a secret.
        raise ValueError('extra is not a JSON object such as {"base_path": "/team-a"}.')
    # Airflow's form stores an empty field as "" or null.
    extra = {name: value for name, value in given.items() if value not in (None, "", {})}
    if unknown := extra.keys() - EXTRAS.keys():
        hint = migration.describe_extras(sorted(unknown))
        advice = hint or f"The extras are {', '.join(sorted(EXTRAS))}."
        raise ValueError(f"unknown extra {', '.join(sorted(unknown))}. {advice}")
    return {name: _read_value(name, value) for name, value in extra.items()}


def _read_value(name: str, value: Any) -> Any:
    """Convert an extra to its type. The error omits text values, which may be secret."""
    wrong = type(value).__name__
    if EXTRAS[name] == _SECONDS:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            with suppress(ValueError):
                return float(value)
            wrong = repr(value)
    elif EXTRAS[name] == _OBJECT:
        if isinstance(value, str):
            wrong = "invalid JSON"
            with suppress(ValueError):
                value = json.loads(value)
                wrong = type(value).__name__
        if isinstance(value, dict):
            not_text = [key for key, text in value.items() if not isinstance(text, str)]
            if not not_text:
                return value
            wrong = f"one in which {not_text[0]!r} is {type(value[not_text[0]]).__name__}"
    elif isinstance(value, str):
        return value
    raise ValueError(f"extra {name} must be {EXTRAS[name]}, not {wrong}.")
