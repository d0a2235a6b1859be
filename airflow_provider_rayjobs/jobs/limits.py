"""How long a job may wait and run: counted from Ray's own start time by the head's clock, and so for all who follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_rayjobs.exceptions import RayJobTimeoutError
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobDetails, JobStatus

# A client that leaves in the middle of a submission can leave a record that nothing ever starts (ray-project/ray
# 62766). The head itself gives up a job that has not started after 15 minutes; a record without a supervisor, never.
UNANSWERED_TIMEOUT = 1200.0
_GIB = 1024**3


@dataclass(frozen=True)
class Limits:
    """
    What a follower gives a job up for; all in seconds since the submission, ``None`` for no limit.

    :param pending_timeout: for a job that has not started.
    :param job_timeout: for a job that has not ended.
    :param execution_timeout: Airflow's name for the same; Airflow itself enforces it on a worker only, and anew for
        each try.
    :param is_confirmed: whether Ray's answer to the submission was seen; a job without, which has not started after 20
        minutes, is given up in any case.
    """

    pending_timeout: float | None = None
    job_timeout: float | None = None
    execution_timeout: float | None = None
    is_confirmed: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return what may be stored with a trigger."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Limits:
        """Read what :meth:`to_json` made."""
        return cls(**(stored or {}))

    def check(self, details: JobDetails) -> None:
        """
        Tell whether a job may go on.

        :raises RayJobTimeoutError: when it has not ended and a limit is over; ``limit`` says which.
        """
        age = details.age
        if age is None or details.status.is_terminal():
            return
        for name, seconds in self._that_count(details):
            if age >= seconds:
                raise RayJobTimeoutError(
                    f"Ray job {details.name} is still {details.status} {age:.0f} s after its submission; "
                    + _WHY.get(name, "{limit} is {seconds:.12g} s.").format(limit=name, seconds=seconds),
                    limit=name,
                    details=details,
                )

    def remaining(self, details: JobDetails) -> float:
        """Return the seconds until the next limit is over; infinity without one."""
        age = details.age or 0.0
        return min((seconds - age for _, seconds in self._that_count(details)), default=float("inf"))

    def _that_count(self, details: JobDetails) -> list[tuple[str, float]]:
        """Return the limits for a job's present status, name and seconds."""
        limits = {"job_timeout": self.job_timeout, "execution_timeout": self.execution_timeout}
        if details.status == JobStatus.PENDING:
            limits["pending_timeout"] = self.pending_timeout
            limits["lost_answer"] = None if self.is_confirmed else UNANSWERED_TIMEOUT
        return [(name, seconds) for name, seconds in limits.items() if seconds is not None]


NO_LIMITS = Limits()
_WHY = {
    "lost_answer": "the answer to its submission was lost, so it may be a record that nothing will ever start, and is "
    "given up after {seconds:.0f} s.",
}


def describe_shortage(demand: Mapping[str, float], cluster: ClusterResources | None) -> str:
    """
    Say what a job that does not start asks for, against what its cluster has.

    :param demand: what it needs on one node, by Ray's names.
    :param cluster: ``None`` where that could not be had.
    """
    asked = f"The job asks for {_list(demand)} on one node." if demand else "The job asks for no resources of its own."
    if cluster is None or not cluster.nodes:
        return f"{asked} What the cluster has could not be seen."
    everything = {name for node in cluster.nodes for name in node}
    shown = sorted(name for name in everything | demand.keys() if name in ("CPU", "GPU", "memory") or name in demand)
    total = {name: sum(node.get(name, 0.0) for node in cluster.nodes) for name in shown}
    offer = ", ".join(
        f"{_quantity(name, cluster.used.get(name, 0.0))} of {_quantity(name, total[name])} {name}" for name in shown
    )
    sentences = [asked, f"The cluster has {len(cluster.nodes)} node(s); in use: {offer}."]
    fits = [node for node in cluster.nodes if all(node.get(name, 0.0) >= number for name, number in demand.items())]
    if not demand:
        sentences.append("Its runtime environment may still be on its way, or a node is short of memory.")
    elif not fits:
        lacking = [name for name in demand if all(node.get(name, 0.0) < demand[name] for node in cluster.nodes)]
        sentences.append(
            f"No node has enough {', '.join(lacking)}." if lacking else "No node has enough of all of them together."
        )
    else:
        sentences.append("A node that is large enough is there: others use it.")
    return " ".join(sentences)


def _list(quantities: Mapping[str, float]) -> str:
    return ", ".join(f"{_quantity(name, number)} {name}" for name, number in quantities.items())


def _quantity(name: str, number: float) -> str:
    return f"{number / _GIB:.1f} GiB" if name == "memory" else f"{number:.12g}"
