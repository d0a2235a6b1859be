"""
How long a job may wait and run, and why it does not start.

Times count from Ray's ``start_time`` by the head's clock, so every client that follows the job gets the same result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from airflow_provider_rayjobs.exceptions import RayJobTimeoutError
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobDetails, JobStatus

# A client that disconnects during a submission can leave a PENDING record that Ray never starts (ray-project/ray
# issue 62766). The head itself fails a job that has not started after 15 minutes, unless it has no supervisor.
UNCONFIRMED_TIMEOUT = 1200.0
_GIB = 1024**3


@dataclass(frozen=True)
class Limits:
    """
    Time limits after which a job is abandoned: seconds since the submission, ``None`` for no limit.

    :param pending_timeout: for a job that has not started.
    :param job_timeout: for a job that has not ended.
    :param is_confirmed: whether Ray confirmed the submission. Other jobs are abandoned if PENDING after 20 minutes.
    """

    pending_timeout: float | None = None
    job_timeout: float | None = None
    is_confirmed: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the limits as JSON types."""
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Limits:
        """Read the result of :meth:`to_json`; ``None`` means no limits. Ignore the keys of other versions."""
        known = stored or {}
        return cls(**{each.name: known[each.name] for each in fields(cls) if each.name in known})

    def check(self, details: JobDetails) -> None:
        """Raise :class:`RayJobTimeoutError` if a limit that applies to the job's status has expired."""
        age = details.age
        if age is None or details.status.is_terminal():
            return
        for limit, seconds in self._active(details):
            if age >= seconds:
                reason = f"{limit} is {seconds:.12g} s."
                if limit == "unconfirmed":
                    reason = f"Ray did not confirm it and may never start it. The limit is {seconds:.0f} s."
                raise RayJobTimeoutError(
                    f"Ray job {details.name} is still {details.status} {age:.0f} s after its submission. {reason}",
                    limit=limit,
                    details=details,
                )

    def remaining(self, details: JobDetails) -> float:
        """Return the seconds until the next limit expires; infinity without a limit."""
        age = details.age or 0.0
        return min((seconds - age for _, seconds in self._active(details)), default=float("inf"))

    def _active(self, details: JobDetails) -> list[tuple[str, float]]:
        """Return name and seconds of each limit that applies to the job's status."""
        limits = {"job_timeout": self.job_timeout}
        if details.status == JobStatus.PENDING:
            limits["pending_timeout"] = self.pending_timeout
            limits["unconfirmed"] = None if self.is_confirmed else UNCONFIRMED_TIMEOUT
        return [(name, seconds) for name, seconds in limits.items() if seconds is not None]


NO_LIMITS = Limits()


def describe_shortage(demand: Mapping[str, float], cluster: ClusterResources | None) -> str:
    """
    Explain why a job does not start: compare its demand with the resources of the cluster.

    :param demand: the resources that the job needs on one node, under Ray's names.
    :param cluster: ``None`` if its resources are unknown.
    """
    requested = f"The job requests {format_demand(demand)} on one node." if demand else "The job requests no resources."
    if cluster is None or not cluster.nodes:
        return f"{requested} The resources of the cluster are unknown."
    return f"{requested} {describe_usage(cluster, demand)} {_explain_shortage(demand, cluster)}"


def describe_usage(cluster: ClusterResources, names: Collection[str] = ()) -> str:
    """Say how much of a cluster's CPUs, GPUs, memory and the named resources is in use."""
    shown = sorted({name for node, _ in cluster.nodes for name in node} & {"CPU", "GPU", "memory"} | set(names))
    total = {name: sum(count * node.get(name, 0.0) for node, count in cluster.nodes) for name in shown}
    usage = ", ".join(
        f"{_format(name, cluster.used.get(name, 0.0))} of {_format(name, total[name])} {name}" for name in shown
    )
    return f"The cluster has {sum(count for _, count in cluster.nodes)} node(s); in use: {usage}."


def format_demand(demand: Mapping[str, float]) -> str:
    """Return resources as text, such as ``2 CPU, 1 GPU``."""
    return ", ".join(f"{_format(name, number)} {name}" for name, number in demand.items())


def fits_on_a_node(demand: Mapping[str, float], cluster: ClusterResources) -> bool:
    """Tell whether a node has the resources, be they in use or not."""
    return any(all(node.get(name, 0.0) >= number for name, number in demand.items()) for node, _ in cluster.nodes)


def _explain_shortage(demand: Mapping[str, float], cluster: ClusterResources) -> str:
    if not demand:
        return "Its runtime environment may still be installing, or a node is short of memory."
    if fits_on_a_node(demand, cluster):
        return "A large enough node exists, but other jobs may use it."
    lacking = [name for name in demand if all(node.get(name, 0.0) < demand[name] for node, _ in cluster.nodes)]
    return f"No node has enough {', '.join(lacking)}." if lacking else "No single node has enough of all of them."


def _format(name: str, number: float) -> str:
    return f"{number / _GIB:.1f} GiB" if name == "memory" else f"{number:.12g}"
