"""
Metrics of tasks and triggers, through Airflow's own stats: statsd, Datadog or OpenTelemetry.

:data:`METRICS` is the table of all metrics. Nothing is imported or sent unless ``[metrics]`` of Airflow's configuration
has a backend.
"""

from __future__ import annotations

import importlib
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from airflow.providers.common.compat.sdk import conf

_BACKENDS = ("statsd_on", "statsd_datadog_enabled", "otel_on")
# Airflow's tags of a task instance (``ti.stats_tags``). Only multi-team deployments have ``team_name``.
_TASK = ("dag_id", "task_id", "team_name")
# The tags of ``airflow.sdk.ResumableJobMixin``.
_OPERATOR = ("operator", "team_name")
_CLUSTER = ("conn_id", "team_name")


@dataclass(frozen=True)
class Metric:
    """
    One metric.

    :param unit: of the value; a timer has milliseconds, as statsd defines it.
    """

    name: str
    kind: Literal["counter", "timer", "gauge"]
    tags: tuple[str, ...]
    unit: str
    meaning: str


SUBMISSIONS = Metric("ray_jobs.submissions", "counter", _TASK, "jobs", "Jobs that Ray has received.")
REATTACHMENTS = Metric(
    "ray_jobs.reattachments", "counter", _TASK, "jobs", "Running jobs of an earlier try that a retry follows."
)
REPLACEMENTS = Metric(
    "ray_jobs.replacements",
    "counter",
    _TASK,
    "jobs",
    "Jobs of an earlier try that were stopped, so that a new one could be submitted.",
)
OUTCOMES = Metric(
    "ray_jobs.outcomes",
    "counter",
    (*_TASK, "outcome"),
    "tries",
    "Ended tries of submit operators and functions. `outcome` is `success` or the class of the error. A task that does "
    "not wait for its job has none.",
)
PENDING = Metric(
    "ray_jobs.pending_duration",
    "timer",
    _TASK,
    "ms",
    "Time from the submission of a job to the last poll that found it PENDING. Not known after a re-attachment.",
)
RUNNING = Metric(
    "ray_jobs.running_duration", "timer", _TASK, "ms", "Time from then to the end of the job, by the head's clock."
)
LOG_BYTES = Metric("ray_jobs.log_bytes", "counter", _TASK, "bytes", "Bytes of the jobs' logs that tries have read.")
PACKAGE_BYTES_SENT = Metric(
    "ray_jobs.package_bytes_sent", "counter", _TASK, "bytes", "Bytes of packages sent to clusters or storages."
)
PACKAGE_BYTES_SAVED = Metric(
    "ray_jobs.package_bytes_saved",
    "counter",
    _TASK,
    "bytes",
    "Bytes of the files in packages that were not sent, as the cluster or the storage had them.",
)
ORPHANS_FOUND = Metric(
    "ray_jobs.orphans_found", "counter", (*_TASK, "conn_id"), "jobs", "Orphaned jobs that RayJobCleanupOperator found."
)
REQUESTS = Metric(
    "ray_jobs.requests", "counter", (*_CLUSTER, "endpoint"), "requests", "Requests to clusters, retries included."
)
REQUEST_FAILURES = Metric(
    "ray_jobs.request_failures",
    "counter",
    (*_CLUSTER, "endpoint", "error"),
    "requests",
    "Those that failed, by the class of the error. The answer that a job or a package is not known is no failure.",
)
WATCHED_JOBS = Metric(
    "ray_jobs.watched_jobs", "gauge", (*_CLUSTER, "hostname"), "jobs", "Jobs that a triggerer follows on a cluster."
)
WATCH_INTERVAL = Metric(
    "ray_jobs.watch_interval",
    "gauge",
    (*_CLUSTER, "hostname"),
    "s",
    "Least time between two polls of all these jobs, so that polls take 5 % of the head's time. Jobs are polled less "
    "often than `poll_interval` if it is longer.",
)
FRESH_SUBMIT = Metric(
    "resumable_job.fresh_submit", "counter", _OPERATOR, "tries", "Tries that submitted the task's first job."
)
RECONNECT_ATTEMPT = Metric(
    "resumable_job.reconnect_attempt", "counter", _OPERATOR, "tries", "Tries that asked for the job of an earlier one."
)
RECONNECT_SUCCESS = Metric(
    "resumable_job.reconnect_success", "counter", _OPERATOR, "tries", "Those that follow it, as it has not ended."
)
ALREADY_SUCCEEDED = Metric(
    "resumable_job.already_succeeded", "counter", _OPERATOR, "tries", "Those that took its success."
)
TERMINAL_RESUBMIT = Metric(
    "resumable_job.terminal_resubmit", "counter", _OPERATOR, "tries", "Those that submitted a new job."
)
METRICS = (
    SUBMISSIONS, REATTACHMENTS, REPLACEMENTS, OUTCOMES, PENDING, RUNNING, LOG_BYTES, PACKAGE_BYTES_SENT,
    PACKAGE_BYTES_SAVED, ORPHANS_FOUND, REQUESTS, REQUEST_FAILURES, WATCHED_JOBS, WATCH_INTERVAL, FRESH_SUBMIT,
    RECONNECT_ATTEMPT, RECONNECT_SUCCESS, ALREADY_SUCCEEDED, TERMINAL_RESUBMIT,
)  # fmt: skip


class Meter:
    """
    Sends metrics, if Airflow has a backend for them.

    :param read_tags: returns the tags of each metric that knows them; those that are ``None`` are left out.
    :param in_triggerer: the triggerer initialises the stats of Airflow's core, and a task those of its SDK.
    """

    def __init__(self, read_tags: Callable[[], Mapping[str, str | None]], *, in_triggerer: bool = False) -> None:
        self._tags: Mapping[str, str | None] = {}
        self._stats: Any = None
        with suppress(Exception):  # metrics must not break a task
            if any(conf.getboolean("metrics", backend, fallback=False) for backend in _BACKENDS):
                self._tags, self._stats = read_tags(), _find_stats(in_triggerer=in_triggerer)

    @property
    def is_on(self) -> bool:
        return self._stats is not None

    def send(self, metric: Metric, value: float = 1, **tags: str) -> None:
        """Send a value. The tags are those of the metric."""
        if self._stats is None:
            return
        given = {**self._tags, **{name: _clean(tag) for name, tag in tags.items()}}
        kept = {name: given[name] for name in metric.tags if given.get(name) is not None}
        with suppress(Exception):  # metrics must not break a task
            if metric.kind == "timer":
                self._stats.timing(metric.name, value, tags=kept)
            elif metric.kind == "gauge":
                self._stats.gauge(metric.name, value, tags=kept)
            elif value:
                self._stats.incr(metric.name, int(value), tags=kept)


def task_meter(context: Any) -> Meter:
    """Return the meter of a task instance."""
    return Meter(lambda: {**stats_tags(context["ti"]), "operator": type(context["task"]).__name__})


def cluster_meter(conn_id: str) -> Meter:
    """Return the meter of a cluster for the task that runs in this process."""
    return Meter(lambda: {"conn_id": _clean(conn_id), "team_name": _current_team()})


def watch_meter(conn_id: str, team: str | None) -> Meter:
    """Return the meter of a cluster that a triggerer watches for tasks of a team."""
    return Meter(
        lambda: {"conn_id": _clean(conn_id), "team_name": team, "hostname": _clean(socket.gethostname())},
        in_triggerer=True,
    )


def stats_tags(ti: Any) -> dict[str, str]:
    """Return Airflow's tags of a task instance. Before Airflow 3.3 a task instance has no property for them."""
    tags: dict[str, str] = getattr(ti, "stats_tags", None) or {"dag_id": ti.dag_id, "task_id": ti.task_id}
    return tags


def _current_team() -> str | None:
    # Imported here, because only metrics need it.
    from airflow.sdk import get_current_context  # noqa: PLC0415

    with suppress(Exception):  # no task runs here
        return stats_tags(get_current_context()["ti"]).get("team_name")
    return None


def _clean(tag: str) -> str:
    """Replace what Airflow does not accept in a tag. It would drop the metric."""
    return re.sub(r"[^A-Za-z0-9_.\-/]", "_", tag)


def _find_stats(*, in_triggerer: bool) -> Any:
    if in_triggerer:
        with suppress(ImportError):
            return importlib.import_module("airflow.observability.stats").Stats
    return importlib.import_module("airflow.providers.common.compat.sdk").Stats
