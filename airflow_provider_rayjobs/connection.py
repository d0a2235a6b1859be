"""What an Airflow connection says about a cluster; nothing is asked of the cluster here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.redaction import redact_address
from airflow_provider_rayjobs.jobs.tls import check_certificates
from airflow_provider_rayjobs.jobs.transport import check_address

if TYPE_CHECKING:
    import httpx
    from airflow.sdk import Connection

T = TypeVar("T")

DEFAULT_PORT = 8265
# What an extra may hold. A URI and a form have text for everything: an object is then its JSON, a number its digits.
_TEXT, _OBJECT, _SECONDS = "text", "an object of text to text", "a number of seconds"
EXTRAS = {
    "base_path": _TEXT,
    "dashboard_url": _TEXT,
    "token": _TEXT,
    "token_file": _TEXT,
    "token_header": _TEXT,
    "headers": _OBJECT,
    "auth": _TEXT,
    "auth_kwargs": _OBJECT,
    "verify": _TEXT,
    "client_cert": _TEXT,
    "client_key": _TEXT,
    "client_key_password": _TEXT,
    "proxy": _TEXT,
    "connect_timeout": _SECONDS,
    "read_timeout": _SECONDS,
}
# Those that a client's access has under the same name.
_OF_ACCESS = (
    "token_file", "token_header", "headers", "verify", "client_cert", "client_key", "client_key_password", "proxy",
    "connect_timeout", "read_timeout",
)  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """
    What a connection says about a cluster.

    :param address: of its Jobs API, e.g. ``https://ray.example.com/team-a``.
    :param dashboard_url: under which browsers reach its dashboard; the address itself unless the connection
        says more.
    :param access: how a client gets in there, but for ``auth``.
    :param auth: the class of the user's that does the rest, as ``module.Class``.
    :param auth_kwargs: what it is made with.
    """

    address: str
    dashboard_url: str
    access: Access = field(default_factory=Access)
    auth: str | None = None
    auth_kwargs: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    def job_url(self, submission_id: str) -> str:
        """Return the address of a job's page in the Ray dashboard."""
        return f"{self.dashboard_url}/#/jobs/{submission_id}"

    def full_access(self) -> Access:
        """
        Return how a client gets in, with the user's own authentication made anew.

        :raises ValueError: where that cannot be made, or claims what something else claims, too.
        """
        if self.auth is None:
            return self.access
        try:
            auth = find_auth(self.auth)(**self.auth_kwargs)
        except Exception as error:  # noqa: BLE001  (a class of the user's)
            # not what it says, in its traceback neither: it may quote what it was made with
            wrong = " with auth_kwargs" if isinstance(error, TypeError) else ""
            raise ValueError(f"auth {self.auth} cannot be made{wrong}: {type(error).__name__}") from None
        return replace(self.access, auth=auth)

    def secrets(self) -> Iterator[str]:
        """Yield all that must be seen nowhere."""
        yield from self.access.secrets()
        yield from self.auth_kwargs.values()


def find_auth(path: str) -> type[httpx.Auth]:
    """
    Return the class that a connection names as ``auth``.

    :param path: e.g. ``my_company.iap.IapAuth``.
    :raises ValueError: where there is no such class, or none of httpx's kind.
    """
    import httpx  # noqa: PLC0415

    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"auth {path!r} names no class that can be imported here: {error}") from None
    except Exception as error:
        raise ValueError(f"auth {path!r}: its module fails on import with {type(error).__name__}") from error
    if not (isinstance(found, type) and issubclass(found, httpx.Auth)):
        raise ValueError(f"auth {path!r} is no class of the kind httpx.Auth")
    return found


def parse_connection(connection: Connection, *, check_token_file: bool = True) -> Cluster:
    """
    Read a connection's fields as a cluster.

    The host may be a name, or a whole address such as ``https://ray.example.com/team-a``; what the other
    fields say fills in what it leaves out. Without any port an https address means 443, as browsers do, and
    http means 8265.

    :param check_token_file: whether a token's file has to be there. While it is replaced it may not be, which shall
        not end the watch over a job: each request says so, and is an outage that may pass.
    :raises ValueError: for fields that contradict each other or that nobody reads, and files that cannot be read,
        naming them.
    """
    try:
        cluster = _cluster_of(connection, _read_extra(connection))
        if check_token_file:
            cluster.access.current_token()  # raises for a file that is not usable
        return cluster
    except ValueError as error:
        raise ValueError(f"connection {connection.conn_id}: {error}") from None


def _cluster_of(connection: Connection, extra: Mapping[str, Any]) -> Cluster:
    address = _address_of(connection, extra.get("base_path", ""))
    if "auth" in extra:
        find_auth(extra["auth"])
    elif "auth_kwargs" in extra:
        raise ValueError("extra auth_kwargs was given without auth, the class that they are for")
    access = _access_of(connection, extra)
    if access.client_cert is not None and urlsplit(address).scheme == "http":
        raise ValueError("extra client_cert is shown to nobody, as the schema is http; it is for https")
    return Cluster(
        address,
        dashboard_url=check_address(extra.get("dashboard_url") or address),
        access=access,
        auth=extra.get("auth"),
        auth_kwargs=extra.get("auth_kwargs", {}),
    )


def _access_of(connection: Connection, extra: Mapping[str, Any]) -> Access:
    login, password, token = connection.login or None, connection.password or None, extra.get("token")
    # A password belongs to its login where there is one; alone it is Ray's token.
    if password is not None and login is None:
        if twins := extra.keys() & {"token", "token_file"}:
            raise ValueError(f"password and extra {min(twins)} both hold a token, as there is no login; leave one out")
        token, password = password, None
    access = Access(
        token=token, login=login, password=password, **{name: extra[name] for name in _OF_ACCESS if name in extra}
    )
    check_certificates(access)
    return access


def _address_of(connection: Connection, base_path: str) -> str:
    host = (connection.host or "").strip()
    try:
        given = urlsplit(host if "://" in host else f"//{host}")
        port_in_host = given.port
    except ValueError:
        # not what urlsplit says: it quotes what may be a password
        raise ValueError("host is no address: its name is none, or its port no number up to 65535") from None
    if not given.hostname:
        raise ValueError("host is empty; it is the name or the address of the Ray head")
    if given.username or given.password or given.query or given.fragment:
        raise ValueError("host holds more than an address; login, password and token have fields of their own")
    schema = _only_one("schema", given.scheme, (connection.schema or "").lower()) or "http"
    port = _only_one("port", port_in_host, connection.port) or (None if schema == "https" else DEFAULT_PORT)
    path = _only_one("base path", given.path.strip("/"), base_path.strip("/"))
    name = f"[{given.hostname}]" if ":" in given.hostname else given.hostname
    return check_address(f"{schema}://{name}{f':{port}' if port else ''}{f'/{path}' if path else ''}")


def _only_one(what: str, in_host: T, in_field: T) -> T:
    """Return what the host says, or its own field; both may say it, if they say the same."""
    if in_host and in_field and in_host != in_field:
        said = [redact_address(str(given)).strip("'") for given in (in_host, in_field)]
        raise ValueError(f"host says {what} {said[0]}, the field for it says {said[1]}; leave one out")
    return in_host or in_field


def _read_extra(connection: Connection) -> Mapping[str, Any]:
    try:
        given = json.loads(connection.extra or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError("extra is no JSON object")  # not what it holds: that may be a secret
    # The form in Airflow's UI stores an empty field as "" or null: not given.
    extra = {name: value for name, value in given.items() if value not in (None, "", {})}
    if unknown := extra.keys() - EXTRAS.keys():
        raise ValueError(f"nobody reads the extra {', '.join(sorted(unknown))}; known are {', '.join(sorted(EXTRAS))}")
    return {name: _read_value(name, value) for name, value in extra.items()}


def _read_value(name: str, value: Any) -> Any:
    """Return an extra as what it is read for, however a form or a URI wrote it; no message shows it."""
    kind = EXTRAS[name]
    if kind == _SECONDS and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"extra {name} must be {_SECONDS}, not {value!r}") from None
    if kind == _OBJECT and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"extra {name} must be {_OBJECT}, and is no JSON") from None
    if kind == _OBJECT and isinstance(value, dict):
        if wrong := [key for key, text in value.items() if not isinstance(text, str)]:
            raise ValueError(f"extra {name} must be {_OBJECT}; at {wrong[0]!r} there is no text")
        return value
    if kind == _TEXT and isinstance(value, str):
        return value
    if name == "verify":
        raise ValueError(
            f"extra verify must be text: system, off or the path of a file with the certificates to believe, not "
            f"{type(value).__name__}"
        )
    raise ValueError(f"extra {name} must be {kind}, not {type(value).__name__}")
