"""What an Airflow connection says about a cluster; nothing is asked of the cluster here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from airflow_provider_rayjobs.jobs.client import check_address

if TYPE_CHECKING:
    from airflow.sdk import Connection

T = TypeVar("T")

DEFAULT_PORT = 8265
_KNOWN_EXTRAS = {"agent_log_access", "base_path", "dashboard_url"}
# Whether the agent of a driver's node may be asked for the log: not at all, without the connection's credentials, or
# with them. Its address comes from the cluster's answers, and it is often out of reach.
_AGENT_LOG_ACCESS = ("no", "yes", "with_credentials")


@dataclass(frozen=True)
class Cluster:
    """
    What a connection says about a cluster.

    :param address: of its Jobs API, e.g. ``https://ray.example.com/team-a``.
    :param dashboard_url: under which browsers reach its dashboard; the address itself unless the connection
        says more.
    :param token: Ray's authentication token; in no repr.
    :param agent_log_access: ``no``; ``yes`` to ask the agent of a driver's node for the end of a large log, without
        credentials; ``with_credentials`` to send it the token.
    """

    address: str
    dashboard_url: str
    token: str | None = field(default=None, repr=False)
    agent_log_access: str = "no"

    @property
    def may_ask_agents(self) -> bool:
        """Tell whether the agent of a driver's node may be asked for the log."""
        return self.agent_log_access != "no"

    def job_url(self, submission_id: str) -> str:
        """Return the address of a job's page in the Ray dashboard."""
        return f"{self.dashboard_url}/#/jobs/{submission_id}"


def read_connection(connection: Connection) -> Cluster:
    """
    Read a connection's fields as a cluster.

    The host may be a name, or a whole address such as ``https://ray.example.com/team-a``; what the other
    fields say fills in what it leaves out. Without any port an https address means 443, as browsers do, and
    http means 8265.

    :raises ValueError: for fields that contradict each other or that nobody reads, naming them.
    """
    try:
        return _cluster_of(connection, _read_extra(connection))
    except ValueError as error:
        raise ValueError(f"connection {connection.conn_id}: {error}") from None


def _cluster_of(connection: Connection, extra: Mapping[str, str]) -> Cluster:
    host = (connection.host or "").strip()
    given = urlsplit(host if "://" in host else f"//{host}")
    if not given.hostname:
        raise ValueError("host is empty; it is the name or the address of the Ray head")
    if given.username or given.password or given.query or given.fragment:
        raise ValueError("host holds more than an address; the token has a field of its own")
    schema = _only_one("schema", given.scheme, (connection.schema or "").lower()) or "http"
    port = _only_one("port", given.port, connection.port) or (None if schema == "https" else DEFAULT_PORT)
    path = _only_one("base path", given.path.strip("/"), extra.get("base_path", "").strip("/"))
    name = f"[{given.hostname}]" if ":" in given.hostname else given.hostname
    address = check_address(f"{schema}://{name}{f':{port}' if port else ''}{f'/{path}' if path else ''}")
    dashboard_url = check_address(extra.get("dashboard_url") or address)
    agent_log_access = extra.get("agent_log_access", "no")
    if agent_log_access not in _AGENT_LOG_ACCESS:
        raise ValueError(f"extra agent_log_access is one of {', '.join(_AGENT_LOG_ACCESS)}, not {agent_log_access!r}")
    return Cluster(address, dashboard_url, token=connection.password or None, agent_log_access=agent_log_access)


def _only_one(what: str, in_host: T, in_field: T) -> T:
    """Return what the host says, or its own field; both may say it, if they say the same."""
    if in_host and in_field and in_host != in_field:
        raise ValueError(f"host says {what} {in_host}, the field for it says {in_field}; leave one out")
    return in_host or in_field


def _read_extra(connection: Connection) -> Mapping[str, str]:
    # The form in Airflow's UI stores an empty field as "" or null: not given.
    extra = {name: value for name, value in connection.extra_dejson.items() if value not in (None, "")}
    if unknown := extra.keys() - _KNOWN_EXTRAS:
        raise ValueError(
            f"nobody reads the extra {', '.join(sorted(unknown))}; known are {', '.join(sorted(_KNOWN_EXTRAS))}"
        )
    for name, value in extra.items():
        if not isinstance(value, str):
            raise ValueError(f"extra {name} must be text, not {type(value).__name__}")
    return extra
