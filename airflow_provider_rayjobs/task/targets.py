"""
Find the cluster of a recorded job, whatever has become of the connection since.

A cluster is its Ray session, not the text of its address: the same session at another address is the same cluster. The
job itself is always at the address of its record. The connection supplies the credentials.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.client import RayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef


@dataclass(frozen=True)
class Target:
    """A cluster, and the connection whose credentials it gets."""

    hook: RayJobsHook
    cluster: Cluster

    @classmethod
    def of_connection(cls, conn_id: str, *, check_token_file: bool = False) -> Target:
        """Look a connection up."""
        hook = RayJobsHook(conn_id)
        return cls(hook, hook.get_cluster(check_token_file=check_token_file))

    def at(self, address: str) -> Target:
        """Return a target with these credentials at another address."""
        return replace(self, cluster=self.cluster.at(address))

    def client(self, *, is_quiet: bool = False) -> RayJobsClient:
        return self.hook.client_of(self.cluster, is_quiet=is_quiet)


def find_target(job: JobRef, conn_id: str, own: Target | None) -> Target:
    """
    Return where a recorded job is.

    :param conn_id: the connection that the job was submitted with; "" if unknown.
    :param own: of the connection of this try; ``None`` if it cannot be read.
    :raises ValueError: neither a connection nor the record says where the job is.
    """
    candidates = list(_candidates(conn_id, own))
    for target in candidates:
        if target.cluster.address == job.address or not job.address:
            return target
    for target in candidates:
        if job.session is not None and _session_at(target) == job.session:
            return target
    if not job.address:
        raise ValueError(f"The address of Ray job {job.submission_id} is unknown: its connection cannot be read.")
    for target in candidates:
        return target.at(job.address)
    # No connection can be read. A cluster that requires no credentials still answers.
    return Target(RayJobsHook(conn_id), Cluster(job.address, dashboard_url=job.address))


def _candidates(conn_id: str, own: Target | None) -> Iterator[Target]:
    if own is not None:
        yield own
    if conn_id and (own is None or own.hook.ray_conn_id != conn_id):
        with suppress(Exception):  # deleted, or unreadable at the moment
            yield Target.of_connection(conn_id)


def _session_at(target: Target) -> str | None:
    with suppress(RayJobsError), target.client() as client:
        return client.send(endpoints.get_version()).session_name
    return None
