"""Create a client from an Airflow connection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_rayjobs import metrics, tracing
from airflow_provider_rayjobs.connection import (
    ADDRESS_VARIABLE,
    Cluster,
    naming_source,
    parse_connection,
    parse_environment,
)
from airflow_provider_rayjobs.exceptions import RayApiPackageNotFoundError, RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints, follow
from airflow_provider_rayjobs.jobs.access import OFF
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient, Observer, RayJobsClient
from airflow_provider_rayjobs.jobs.models import JobDetails, RayVersion
from airflow_provider_rayjobs.jobs.requests import AnyRequest, LogRequest
from airflow_provider_rayjobs.jobs.steps import OnLog
from airflow_provider_rayjobs.jobs.submit import CodeOptions
from airflow_provider_rayjobs.masking import amask_secret, mask_secret, mask_soon, token_masker

if TYPE_CHECKING:
    from airflow.sdk import Connection

C = TypeVar("C", RayJobsClient, AsyncRayJobsClient)

DEFAULT_CONN_ID = "ray_jobs_default"
_UNDEFINED = (
    f"Connection {DEFAULT_CONN_ID} is not defined, and the environment variable {ADDRESS_VARIABLE} is not set. A "
    "secrets backend that cannot be read at the moment looks the same. Define the connection, for example with "
    f"AIRFLOW_CONN_{DEFAULT_CONN_ID.upper()}="
    """'{"conn_type": "ray_jobs", "host": "ray-head", "port": 8265}', """
    f"or set {ADDRESS_VARIABLE}, for example to http://127.0.0.1:8265 for a Ray head on this machine."
)
# The addresses from the environment that this process has logged.
_logged_addresses: set[str] = set()


@contextmanager
def _observe(meter: metrics.Meter, request: AnyRequest) -> Iterator[None]:
    """Count a request. A log read is also a span: reads take 5 % of the time, so that they are few."""
    with tracing.span("read_log") if isinstance(request, LogRequest) else nullcontext():
        try:
            yield
        except (RayApiPackageNotFoundError, RayJobNotFoundError):  # an answer of Ray
            raise
        except RayJobsError as error:
            meter.send(metrics.REQUEST_FAILURES, endpoint=request.endpoint, error=type(error).__name__)
            raise
        finally:
            meter.send(metrics.REQUESTS, endpoint=request.endpoint)


class RayJobsHook(BaseHook):
    """
    Talk to a Ray cluster's Jobs API through an Airflow connection.

    The methods are those of :class:`~airflow_provider_rayjobs.jobs.client.RayJobsClient`. On an event loop use
    ``async with await hook.aget_conn() as client``.

    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. If the default connection is not defined, the
        address is ``RAY_API_SERVER_ADDRESS`` of the environment.
    """

    conn_name_attr = "ray_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "ray_jobs"
    hook_name = "Ray Jobs"

    def __init__(self, ray_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ray_conn_id = ray_conn_id

    def get_cluster(self, *, check_token_file: bool = True) -> Cluster:
        """
        Return the cluster that the connection describes.

        :param check_token_file: see :func:`~airflow_provider_rayjobs.connection.parse_connection`.
        :raises AirflowNotFoundException: the connection is not defined, or cannot be read at the moment. For the
            default connection, ``RAY_API_SERVER_ADDRESS`` is not set either.
        :raises ValueError: the connection cannot be used. The error names the field.
        """
        connection: Connection | None = None
        with self._allowing_undefined_default():
            connection = self.get_connection(self.ray_conn_id)
        cluster = self._parse(connection, check_token_file)
        mask_secret([*cluster.secrets()])
        return cluster

    async def aget_cluster(self, *, check_token_file: bool = True) -> Cluster:
        """Do what :meth:`get_cluster` does without blocking the event loop."""
        connection: Connection | None = None
        with self._allowing_undefined_default():
            connection = await self.aget_connection(self.ray_conn_id)
        cluster = self._parse(connection, check_token_file)
        await amask_secret([*cluster.secrets()])
        return cluster

    @contextmanager
    def _allowing_undefined_default(self) -> Iterator[None]:
        """Ignore that the default connection is not defined, if the environment has an address instead."""
        try:
            yield
        except AirflowNotFoundException:
            if self.ray_conn_id != DEFAULT_CONN_ID:
                raise
            if not os.environ.get(ADDRESS_VARIABLE):
                raise AirflowNotFoundException(_UNDEFINED) from None

    def _parse(self, connection: Connection | None, check_token_file: bool) -> Cluster:
        if connection is None:
            cluster = parse_environment(check_token_file=check_token_file)
            if cluster.address not in _logged_addresses:
                _logged_addresses.add(cluster.address)
                self.log.info(
                    "Connection %s is not defined. Using the address %s from the environment variable %s. A secrets "
                    "backend that cannot be read at the moment looks the same.",
                    self.ray_conn_id,
                    cluster.address,
                    ADDRESS_VARIABLE,
                )
            return cluster
        cluster = parse_connection(connection, check_token_file=check_token_file)
        if cluster.access.verify == OFF:
            self.log.warning(
                "Connection %s does not check certificates (verify is off). Anyone on the network path to %s can read "
                "the credentials and change the jobs. Set verify to the file of the authority's certificate.",
                self.ray_conn_id,
                cluster.address,
            )
        return cluster

    def get_conn(self) -> RayJobsClient:
        """Return a blocking client; it is a context manager that closes its connections."""
        return self.client_of(self.get_cluster())

    async def aget_conn(self) -> AsyncRayJobsClient:
        """Return a client for the running event loop; it is an asynchronous context manager."""
        return self.async_client_of(await self.aget_cluster())

    def client_of(self, cluster: Cluster, *, is_quiet: bool = False) -> RayJobsClient:
        """
        Return a blocking client without looking the connection up again.

        :param is_quiet: whether the client must not call Airflow, as in a signal handler: it does not mask a new token,
            and counts no requests.
        """
        if is_quiet:
            return self._new_client(RayJobsClient, cluster, None, None)
        return self._new_client(RayJobsClient, cluster, token_masker(mask_secret), self._observer())

    def async_client_of(self, cluster: Cluster, meter: metrics.Meter | None = None) -> AsyncRayJobsClient:
        """
        Return a client for the running event loop without looking the connection up again.

        :param meter: counts the requests; the default is that of a task.
        """
        return self._new_client(AsyncRayJobsClient, cluster, token_masker(mask_soon), self._observer(meter))

    def _observer(self, meter: metrics.Meter | None = None) -> Observer | None:
        """Return what counts requests and makes spans of log reads; ``None`` if both are off."""
        meter = meter or metrics.cluster_meter(self.ray_conn_id)
        return partial(_observe, meter) if meter.is_on or tracing.is_on() else None

    def _new_client(
        self,
        client_class: type[C],
        cluster: Cluster,
        on_token: Callable[[str], object] | None,
        observer: Observer | None,
    ) -> C:
        label = f"connection {self.ray_conn_id}"
        with naming_source(label):
            access = cluster.full_access()
            return client_class(
                cluster.address, logger=self.log, on_token=on_token, observer=observer, access=access, label=label
            )

    def test_connection(self) -> tuple[bool, str]:
        """Return whether Ray answers, and its version or the error; the button "Test" in Airflow's UI calls it."""
        try:
            cluster = self.get_cluster()
            # send() does not retry: a user waits for the result.
            with self.client_of(cluster) as client:
                version = client.send(endpoints.get_version())
        except (AirflowNotFoundException, RayJobsError, ValueError) as error:
            # Airflow tests the fields of its form under an id that it makes up.
            return False, re.sub(
                rf"\bconnection {re.escape(self.ray_conn_id)}(?![\w.-])", "this connection", str(error)
            )
        session = f", session {version.session_name}" if version.session_name else ""
        unchecked = "; certificates are not checked (verify is off)" if cluster.access.verify == OFF else ""
        return True, f"Ray {version.ray_version} at {cluster.address}{session}{unchecked}"

    def get_version(self) -> RayVersion:
        with self.get_conn() as client:
            return client.get_version()

    def submit_job(self, entrypoint: str | Sequence[str], **options: Unpack[CodeOptions]) -> str:
        """Submit a job and return its submission id."""
        with self.get_conn() as client:
            return client.submit_job(entrypoint, **options)

    def get_job(self, submission_id: str) -> JobDetails:
        with self.get_conn() as client:
            return client.get_job(submission_id)

    def list_jobs(self) -> list[JobDetails]:
        with self.get_conn() as client:
            return client.list_jobs()

    def stop_job(self, submission_id: str) -> bool:
        """Request a job's stop; ``False`` if it had already ended."""
        with self.get_conn() as client:
            return client.stop_job(submission_id)

    def delete_job(self, submission_id: str) -> bool:
        """Delete the cluster's record of a job that has ended, at the earliest 5 s after its end."""
        with self.get_conn() as client:
            return client.delete_job(submission_id)

    def get_job_logs(self, submission_id: str) -> str:
        """Return a job's log so far as text."""
        with self.get_conn() as client:
            return client.get_job_logs(submission_id)

    def save_job_logs(self, submission_id: str, path: str | PathLike[str]) -> int:
        """Write a job's log so far to a file and return its size in bytes."""
        with self.get_conn() as client:
            return client.save_job_logs(submission_id, path)

    def follow_job(
        self, submission_id: str, *, on_log: OnLog | None = None, **options: Unpack[follow.FollowOptions]
    ) -> JobDetails:
        """Follow a job to its terminal status and return it."""
        with self.get_conn() as client:
            return client.follow_job(submission_id, on_log=on_log, **options)
