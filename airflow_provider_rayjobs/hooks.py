"""From an Airflow connection to a client of its cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, Unpack

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_rayjobs.connection import Cluster, parse_connection
from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import endpoints, follow
from airflow_provider_rayjobs.jobs.access import OFF, Access
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient, RayJobsClient
from airflow_provider_rayjobs.jobs.models import JobDetails, RayVersion
from airflow_provider_rayjobs.jobs.packages.submit import CodeOptions
from airflow_provider_rayjobs.jobs.steps import OnLog
from airflow_provider_rayjobs.jobs.transport import check_address
from airflow_provider_rayjobs.masking import TokenMasker, amask_cluster, mask_cluster

DEFAULT_CONN_ID = "ray_jobs_default"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Ray's own variable for the address of the Jobs API. It counts where the default connection is not defined,
# and never against an address that somebody gave.
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
# Ray's own variables for its token, which count where that one does.
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


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
        self._tokens = TokenMasker()

    def get_cluster(self, *, check_token_file: bool = True) -> Cluster:
        """
        Return what the connection says about the cluster.

        :param check_token_file: whether a token's file has to be there now; where a job is followed already, its
            absence is an outage that may pass.
        :raises AirflowNotFoundException: for a connection that is not defined and not the default one.
        :raises ValueError: for a connection that cannot be used, naming the field.
        """
        try:
            cluster = parse_connection(self.get_connection(self.ray_conn_id), check_token_file=check_token_file)
        except AirflowNotFoundException as missing:
            cluster = self._without_connection(missing, check_token_file=check_token_file)
        mask_cluster(cluster)
        self._warn(cluster)
        return cluster

    async def aget_cluster(self, *, check_token_file: bool = True) -> Cluster:
        """Do what :meth:`get_cluster` does without blocking the event loop."""
        try:
            connection = await self.aget_connection(self.ray_conn_id)
            cluster = parse_connection(connection, check_token_file=check_token_file)
        except AirflowNotFoundException as missing:
            cluster = self._without_connection(missing, check_token_file=check_token_file)
        await amask_cluster(cluster)
        self._warn(cluster)
        return cluster

    def _warn(self, cluster: Cluster) -> None:
        if cluster.access.verify == OFF:
            self.log.warning(
                "Connection %s does not check certificates (verify is off): whoever stands between this machine and %s "
                "can read the credentials and change the jobs. Give the authority's certificate file as verify.",
                self.ray_conn_id,
                cluster.address,
            )

    def _without_connection(self, missing: AirflowNotFoundException, *, check_token_file: bool) -> Cluster:
        if self.ray_conn_id != DEFAULT_CONN_ID:
            raise missing
        try:
            address = check_address(os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        except ValueError as error:
            raise ValueError(f"environment variable {ADDRESS_VARIABLE}: {error}") from None
        try:
            return Cluster(address, dashboard_url=address, access=_access_of_environment(check_token_file))
        except ValueError as error:
            raise ValueError(f"environment variable {' or '.join(TOKEN_VARIABLES)}: {error}") from None

    def get_conn(self) -> RayJobsClient:
        """Return a blocking client; it is a context manager that closes its connections."""
        return self.client_of(self.get_cluster())

    async def aget_conn(self) -> AsyncRayJobsClient:
        """Return a client for the running event loop; it is an asynchronous context manager."""
        return self.async_client_of(await self.aget_cluster())

    def client_of(self, cluster: Cluster, *, is_quiet: bool = False) -> RayJobsClient:
        """
        Return a blocking client without another look at the connection.

        :param is_quiet: for a signal handler: Airflow is not told of a token that its file holds since a moment ago.
        """
        with self._named():
            return RayJobsClient(
                cluster.address,
                logger=self.log,
                on_token=None if is_quiet else self._tokens.mask,
                access=cluster.full_access(),
                label=f"connection {self.ray_conn_id}",
            )

    def async_client_of(self, cluster: Cluster) -> AsyncRayJobsClient:
        """Return a client for the running event loop without another look at the connection."""
        with self._named():
            return AsyncRayJobsClient(
                cluster.address,
                logger=self.log,
                on_token=self._tokens.mask_soon,
                access=cluster.full_access(),
                label=f"connection {self.ray_conn_id}",
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say of which connection a mistake is."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"connection {self.ray_conn_id}: {error}") from error.__cause__

    def test_connection(self) -> tuple[bool, str]:
        """Say what the connection leads to, or why to nothing; behind the button "Test" in Airflow's UI."""
        try:
            cluster = self.get_cluster()
            # once, without patience: somebody waits in front of the form
            with self.client_of(cluster) as client:
                version = client.send(endpoints.get_version())
        except (AirflowNotFoundException, RayJobsError, ValueError) as error:
            return False, str(error)
        session = f", session {version.session_name}" if version.session_name else ""
        unchecked = "; certificates are not checked (verify is off)" if cluster.access.verify == OFF else ""
        return True, f"Ray {version.ray_version} at {cluster.address}{session}{unchecked}"

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


def _access_of_environment(check_token_file: bool) -> Access:
    token, token_file = (os.environ.get(name) or None for name in TOKEN_VARIABLES)
    access = Access(token=token and token.strip(), token_file=None if token else token_file)
    if check_token_file:
        access.current_token()  # raises for a file that is not usable
    return access
