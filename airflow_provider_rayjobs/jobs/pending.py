"""
Say why a job is still PENDING.

Ray itself only says what a PENDING job may be waiting for. The report of the cluster's autoscaler tells more: it lists
the requests that no node serves yet. A job whose request is not among them has its resources, and waits for its runtime
environment.

A head answers the question for that report in a few milliseconds. It is asked rarely, and an error of it is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.limits import (
    NO_LIMITS,
    Limits,
    describe_shortage,
    describe_usage,
    fits_on_a_node,
    format_demand,
)
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, Send, Sleep

# Seconds in PENDING until the first message: most jobs start sooner. The same reason is repeated after ten minutes.
REPORT_AFTER = 30.0
_REMIND_AFTER = 600.0
# Seconds between two questions for the resources, of all followers together; and while new jobs begin to wait.
_ASK_EVERY = 60.0
_ASK_AGAIN = 10.0
# Seconds after the submission from which the autoscaler's report, which is a few seconds old, contains the job.
_REPORTED_AFTER = 20.0
# Seconds for the answer. A stop or a time limit must not wait longer for it.
_TIMEOUT = 3.0
_MIN_TIME_LEFT = 10.0
# Seconds after which Ray fails a job that has not started (``DEFAULT_JOB_START_TIMEOUT_SECONDS``, Ray 2.60).
RAY_START_LIMIT = 900.0
_VARIABLE = "RAY_JOB_START_TIMEOUT_SECONDS"
_NO_DEMAND = "It requests no resources"
_NO_LABELS = "no node has the labels that the job asks for"
# The parts of a runtime environment that need no installation.
_INSTANT = ("env_vars", "config")


class ClusterView:
    """The resources of a cluster as last reported, for all followers of its jobs in this process."""

    def __init__(self) -> None:
        self.resources: ClusterResources | None = None
        # when they were asked for, by the followers' clock
        self.as_of = -math.inf
        self._asked_at = -math.inf

    def look(self, newer_than: float, time_left: float) -> Engine[bool]:
        """Ask for the resources if that is due, and tell whether they are known as of ``newer_than``."""
        now = yield Sleep(0)
        pause = _ASK_AGAIN if self.as_of < newer_than else _ASK_EVERY
        if now >= self._asked_at + pause and time_left >= _MIN_TIME_LEFT:
            self._asked_at = now
            resources: ClusterResources | None = None
            with suppress(RayJobsError):  # an old head, or a proxy that does not pass this request on
                resources = yield Send(replace(endpoints.get_cluster_status(), timeout=_TIMEOUT))
            self.resources, self.as_of = resources, now
        return self.as_of >= newer_than


@dataclass(frozen=True)
class Reason:
    """Why a job waits: a word for comparison, "" if it is not known, and full sentences."""

    kind: str
    text: str


class PendingReport:
    """
    Logs why a job is PENDING: after 30 s, when the reason changes, and every ten minutes. Then logs that it started.

    :param demand: the resources that the job needs on one node; ``None`` if unknown, as for another's job.
    :param limits: of the job. The first message names ``pending_timeout``, or Ray's own limit if that is shorter.
    :param view: the view of the job's cluster.
    :param tells_first: whether to log the status in which the job is found first.
    """

    def __init__(
        self,
        demand: Mapping[str, float] | None = None,
        limits: Limits = NO_LIMITS,
        view: ClusterView | None = None,
        *,
        tells_first: bool = False,
    ) -> None:
        self._demand = demand
        self._limits = limits
        self._view = view or ClusterView()
        self._is_found = not tells_first
        self._first_seen: float | None = None
        # the kind of the reason that was logged last; "" if it was not known
        self._told: str | None = None
        # ages of the job: at that message, at the last look, and before the next look of a restored report
        self._told_at = self._looked_at = self._rests_until = 0.0

    @property
    def state(self) -> dict[str, Any]:
        """What was logged, as JSON types, for another process."""
        rests_until = self._looked_at + _ASK_EVERY if self._looked_at else self._rests_until
        return {
            "is_found": self._is_found, "told": self._told, "told_at": self._told_at, "rests_until": rests_until,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where another process stopped."""
        self._is_found, self._told = state.get("is_found", self._is_found), state.get("told")
        self._told_at, self._rests_until = state.get("told_at", 0.0), state.get("rests_until", 0.0)

    def report(self, details: JobDetails, time_left: float = math.inf) -> Engine[None]:
        """
        Log what a poll tells about the wait of a job.

        :param time_left: seconds until the next time limit, before which nothing is asked.
        """
        if not self._is_found and not details.status.is_terminal():
            self._is_found = True
            yield LogMessage(f"Ray job {details.name} is {details.status}{_after(details.age)}.")
        if details.status != JobStatus.PENDING:
            if self._told is not None and not details.status.is_terminal():
                yield LogMessage(f"Ray job {details.name} is {details.status}{_after(details.age)}.")
            self._told = None
            return
        now = yield Sleep(0)
        self._first_seen = now if self._first_seen is None else self._first_seen
        age = now - self._first_seen if details.age is None else details.age
        if age < max(REPORT_AFTER, self._rests_until):
            return
        try:
            if not (yield from self._view.look(now - age + _REPORTED_AFTER, time_left)):
                return
            reason = explain(details, self._demand, self._view.resources)
        except Exception as error:  # noqa: BLE001  (no bug here may end a job; an interruption is no Exception)
            reason = Reason("", f"Its reason could not be determined: {type(error).__name__}: {error}.")
        self._looked_at = age
        is_new = self._told is None or (reason.kind not in ("", self._told))
        if not is_new and age < self._told_at + _REMIND_AFTER:
            return
        limit = "" if self._told is not None else f" {_describe_limit(self._limits)}"
        self._told, self._told_at = reason.kind or self._told or "", age
        yield LogMessage(f"Ray job {details.name} is PENDING{_after(details.age)}. {reason.text}{limit}")


def _after(age: float | None) -> str:
    return "" if age is None else f", {age:.0f} s after its submission"


def _describe_limit(limits: Limits) -> str:
    by_ray = f"Ray fails a job that has not started after {RAY_START_LIMIT / 60:.0f} minutes"
    default = f"unless {_VARIABLE} is set on its head"
    if limits.pending_timeout is None:
        return f"{by_ray}, {default}."
    given = f"pending_timeout is {limits.pending_timeout:.12g} s"
    return f"{given}, but {by_ray}, {default}." if limits.pending_timeout > RAY_START_LIMIT else f"{given}."


def explain(details: JobDetails, demand: Mapping[str, float] | None, cluster: ClusterResources | None) -> Reason:
    """
    Explain why a job is PENDING.

    :param demand: the resources that the job needs on one node; ``None`` if unknown.
    :param cluster: ``None`` if its resources are unknown.
    """
    if cluster is not None and (cluster.reported_at or math.inf) < (details.start_time or 0):
        cluster = None  # the report does not contain the job
    if demand is None:
        return _explain_by_message(details, cluster)
    if demand and (cluster is None or not cluster.nodes):
        return Reason("", describe_shortage(demand, None))
    if demand and cluster is not None:
        alike = sum(count for shape, count in cluster.waiting if _is_same(shape, demand))
        fits = fits_on_a_node(demand, cluster)
        if alike or not fits:
            # The job may not be among them: its runtime environment is set up after it got its resources.
            waiting = f" {alike} requests for the same resources wait." if alike > 1 else ""
            return Reason("busy" if fits else "lacking", f"{describe_shortage(demand, cluster)}{waiting}")
    return Reason("setup", _describe_setup(details, "Its resources are reserved" if demand else _NO_DEMAND))


def _explain_by_message(details: JobDetails, cluster: ClusterResources | None) -> Reason:
    """Explain the wait of a job of unknown demand, of which Ray's message tells whether there is one."""
    message = details.message or ""
    if "waiting for resources" not in message:
        return Reason("setup", _describe_setup(details, _NO_DEMAND))
    text = f"Ray says: {message}"
    if cluster is None or not cluster.nodes:
        return Reason("", text)
    waiting = ", ".join(f"{count} for {format_demand(shape)}" for shape, count in cluster.waiting)
    if not waiting:
        return Reason("setup", f"{text} {describe_usage(cluster)} No request for resources waits.")
    return Reason("busy", f"{text} {describe_usage(cluster)} Requests that wait: {waiting}.")


def _describe_setup(details: JobDetails, fact: str) -> str:
    if parts := ", ".join(_installed(details.runtime_env)):
        return f"{fact}. Its runtime environment ({parts}) may still be installing, or {_NO_LABELS}."
    return (
        f"{fact}, and its runtime environment needs no installation. The head may be busy or short of memory, or "
        f"{_NO_LABELS}."
    )


def _installed(runtime_env: Mapping[str, Any]) -> Iterator[str]:
    return (key for key, value in runtime_env.items() if value and key not in _INSTANT and not key.startswith("_"))


def _is_same(shape: Mapping[str, float], demand: Mapping[str, float]) -> bool:
    return shape.keys() == demand.keys() and all(
        math.isclose(shape[name], number, rel_tol=1e-4) for name, number in demand.items()
    )
