"""From an Airflow connection to a client of its cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, Unpack
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient, OnLog, RayJobsClient, check_address
from airflow_provider_rayjobs.jobs.models import JobDetails, RayVersion
from airflow_provider_rayjobs.jobs.packages.submit import CodeOptions

if TYPE_CHECKING:
    from airflow.sdk import Connection

T = TypeVar("T")

DEFAULT_CONN_ID = "ray_jobs_default"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
DEFAULT_PORT = 8265
# Ray's own variable for the address of the Jobs API. It counts where the default connection is not defined,
# and never against an address that somebody gave.
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
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


class RayJobsHook(BaseHook):
    """
    Talk to a Ray cluster's Jobs API through an Airflow connection.

    The methods are those of :class:`~airflow_provider_rayjobs.jobs.client.RayJobsClient`; their twins for an
    event loop begin with an ``a``: ``await hook.aget_job(...)``.

    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. Where the default one is not defined, the
        environment variable ``RAY_API_SERVER_ADDRESS`` counts, then ``http://127.0.0.1:8265``. Another one
        that is not defined is an error.
    """

    conn_name_attr = "ray_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "ray_jobs"
    hook_name = "Ray Jobs"

    def __init__(self, ray_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ray_conn_id = ray_conn_id

    def get_cluster(self) -> Cluster:
        """
        Return what the connection says about the cluster.

        :raises AirflowNotFoundException: for a connection that is not defined and not the default one.
        :raises ValueError: for a connection that cannot be used, naming the field.
        """
        try:
            return read_connection(self.get_connection(self.ray_conn_id))
        except AirflowNotFoundException as missing:
            return self._without_connection(missing)

    async def aget_cluster(self) -> Cluster:
        """Do what :meth:`get_cluster` does without blocking the event loop."""
        try:
            return read_connection(await self.aget_connection(self.ray_conn_id))
        except AirflowNotFoundException as missing:
            return self._without_connection(missing)

    def _without_connection(self, missing: AirflowNotFoundException) -> Cluster:
        if self.ray_conn_id != DEFAULT_CONN_ID:
            raise missing
        try:
            address = check_address(os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        except ValueError as error:
            raise ValueError(f"environment variable {ADDRESS_VARIABLE}: {error}") from None
        return Cluster(address, dashboard_url=address)

    def get_conn(self) -> RayJobsClient:
        """Return a blocking client; it is a context manager that closes its connections."""
        return self.client_of(self.get_cluster())

    async def aget_conn(self) -> AsyncRayJobsClient:
        """Return a client for the running event loop; it is an asynchronous context manager."""
        return self.async_client_of(await self.aget_cluster())

    def client_of(self, cluster: Cluster) -> RayJobsClient:
        """Return a blocking client without another look at the connection."""
        return RayJobsClient(cluster.address, logger=self.log, **_access_of(cluster))

    def async_client_of(self, cluster: Cluster) -> AsyncRayJobsClient:
        """Return a client for the running event loop without another look at the connection."""
        return AsyncRayJobsClient(cluster.address, logger=self.log, **_access_of(cluster))

    def test_connection(self) -> tuple[bool, str]:
        """Say what the connection leads to, or why to nothing; behind the button "Test" in Airflow's UI."""
        try:
            cluster = self.get_cluster()
            # once, without patience: somebody waits in front of the form
            with RayJobsClient(cluster.address, token=cluster.token, patience=0) as client:
                version = client.get_version()
        except (AirflowNotFoundException, RayJobsError, ValueError) as error:
            return False, str(error)
        session = f", session {version.session_name}" if version.session_name else ""
        return True, f"Ray {version.ray_version} at {cluster.address}{session}"

    def get_version(self) -> RayVersion:
        """Return what answers: its Ray version and session."""
        with self.get_conn() as client:
            return client.get_version()

    def submit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        """Submit a job and return its submission id; see :meth:`.RayJobsClient.submit_job`."""
        with self.get_conn() as client:
            return client.submit_job(entrypoint, **options)

    def get_job(self, submission_id: str) -> JobDetails:
        """Return a job's current state."""
        with self.get_conn() as client:
            return client.get_job(submission_id)

    def list_jobs(self) -> list[JobDetails]:
        """Return all jobs that the cluster remembers, interactive ones included."""
        with self.get_conn() as client:
            return client.list_jobs()

    def stop_job(self, submission_id: str) -> bool:
        """Ask for a job to be stopped; ``False`` if it had ended."""
        with self.get_conn() as client:
            return client.stop_job(submission_id)

    def delete_job(self, submission_id: str) -> bool:
        """Delete what the cluster remembers of a job that has ended."""
        with self.get_conn() as client:
            return client.delete_job(submission_id)

    def get_job_logs(self, submission_id: str) -> str:
        """Return a driver's log so far as one text, held in memory."""
        with self.get_conn() as client:
            return client.get_job_logs(submission_id)

    def save_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """Write a driver's log so far to a file, for long ones; see :meth:`.RayJobsClient.save_job_logs`."""
        with self.get_conn() as client:
            return client.save_job_logs(submission_id, path)

    def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """Follow a job to its terminal status and return it; see :meth:`.RayJobsClient.follow_job`."""
        with self.get_conn() as client:
            return client.follow_job(submission_id, on_log=on_log, **options)

    async def aget_version(self) -> RayVersion:
        """See :meth:`get_version`."""
        async with await self.aget_conn() as client:
            return await client.get_version()

    async def asubmit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        """See :meth:`submit_job`."""
        async with await self.aget_conn() as client:
            return await client.submit_job(entrypoint, **options)

    async def aget_job(self, submission_id: str) -> JobDetails:
        """See :meth:`get_job`."""
        async with await self.aget_conn() as client:
            return await client.get_job(submission_id)

    async def alist_jobs(self) -> list[JobDetails]:
        """See :meth:`list_jobs`."""
        async with await self.aget_conn() as client:
            return await client.list_jobs()

    async def astop_job(self, submission_id: str) -> bool:
        """See :meth:`stop_job`."""
        async with await self.aget_conn() as client:
            return await client.stop_job(submission_id)

    async def adelete_job(self, submission_id: str) -> bool:
        """See :meth:`delete_job`."""
        async with await self.aget_conn() as client:
            return await client.delete_job(submission_id)

    async def aget_job_logs(self, submission_id: str) -> str:
        """See :meth:`get_job_logs`."""
        async with await self.aget_conn() as client:
            return await client.get_job_logs(submission_id)

    async def asave_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """See :meth:`save_job_logs`."""
        async with await self.aget_conn() as client:
            return await client.save_job_logs(submission_id, path)

    async def afollow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """See :meth:`follow_job`."""
        async with await self.aget_conn() as client:
            return await client.follow_job(submission_id, on_log=on_log, **options)


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


def _access_of(cluster: Cluster) -> dict[str, Any]:
    return {"token": cluster.token, "agent_credentials": cluster.agent_log_access == "with_credentials"}


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
