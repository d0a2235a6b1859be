"""Metrics and spans of a real Airflow at real servers, compared with what a stand-in head was asked."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version
from receivers import OtlpServer, StatsdServer
from stand_in_head import START, StandInHead

from airflow_provider_rayjobs import metrics
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from sandbox.local_airflow import LocalAirflow

pytestmark = pytest.mark.airflow
HERE = Path(__file__).parent
# What there is only since Airflow 3.3, as a retry follows the job of the last try since then.
TASKS_WITH_STORE = ("reattaches", "succeeds_twice", "is_replaced")
METRICS_WITH_STORE = (
    metrics.REATTACHMENTS, metrics.REPLACEMENTS, metrics.FRESH_SUBMIT, metrics.RECONNECT_ATTEMPT,
    metrics.RECONNECT_SUCCESS, metrics.ALREADY_SUCCEEDED, metrics.TERMINAL_RESUBMIT,
)  # fmt: skip
METRICS = [metric for metric in metrics.METRICS if HAS_STORE or metric not in METRICS_WITH_STORE]
# A poll finds each job 60 s old, and it ends 100 s after its submission.
PENDING_SECONDS, DURATION = 60, 100
LOG = b"one\ntwo\n"
# The statuses that the polls of the jobs of a task find; the last one stays.
SUCCEEDS = ("PENDING", "RUNNING", "SUCCEEDED")
PLANS = {
    "on_worker": SUCCEEDS,
    "deferred": SUCCEEDS,
    "fails": ("PENDING", "FAILED"),
    "reattaches": ("PENDING", "RUNNING", "killed", "RUNNING", "RUNNING", "SUCCEEDED"),
    "succeeds_twice": SUCCEEDS,
    "is_replaced": ("RUNNING", "killed", "RUNNING"),
}
ENDPOINTS = (
    (r"GET /api/version", "get_version"),
    (r"GET /api/jobs/", "list_jobs"),
    (r"GET /api/jobs/.+", "get_job"),
    (r"POST /api/jobs/", "submit_job"),
    (r"POST /api/jobs/.+/stop", "stop_job"),
    (r"GET /api/v0/logs/file.*", "get_log"),
    (r"GET /api/packages/.*", "get_package"),
    (r"PUT /api/packages/.*", "put_package"),
    (r"GET /api/cluster_status", "get_cluster_status"),
)


class ObservedHead(StandInHead):
    """A head whose jobs follow :data:`PLANS`. It kills the process of a task at a poll, before the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.log = LOG
        self.kills = 0
        self.on_poll = self._advance
        self.is_busy = self._refuse_once
        self._plans: dict[str, list[str]] = {}
        self._refused = False

    def _refuse_once(self, path: str) -> bool:
        was_refused, self._refused = self._refused, self._refused or path == "/api/version"
        return path == "/api/version" and not was_refused

    def _advance(self, number: int) -> None:
        if not self.requests[-1].startswith("GET /api/jobs/") or self.requests[-1] == "GET /api/jobs/":
            return
        job = self.jobs.get(self.requests[-1].rpartition("/")[2])
        if job is None or job["submission_id"] == "orphan":
            return
        plan = self._plans.setdefault(job["submission_id"], [*PLANS[job["metadata"]["airflow_task_id"]]])
        status = plan[0] if len(plan) == 1 or job["status"] == "STOPPED" else plan.pop(0)
        if status == "killed":
            self.kills += 1
            os.kill(int(job["metadata"]["pid"]), signal.SIGKILL)
        elif job["status"] != "STOPPED":
            job |= {"status": status, "driver_node_id": None if status == "PENDING" else "node-1"}
        if job["status"] in ("SUCCEEDED", "FAILED"):
            job |= {"end_time": START + 1000 * DURATION, "driver_exit_code": 3 if status == "FAILED" else 0}

    def replace_plan(self, task_id: str, plan: tuple[str, ...]) -> None:
        PLANS[task_id] = plan

    def endpoints(self) -> Counter[str]:
        """The number of requests by endpoint."""
        return Counter(
            next(name for pattern, name in ENDPOINTS if re.fullmatch(pattern, request)) for request in self.requests
        )


@dataclass
class Observed:
    stats: StatsdServer
    spans: OtlpServer
    head: ObservedHead


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A finished run of the DAG, with one cleared task."""
    dags = tmp_path_factory.mktemp("dags")
    shutil.copy(HERE / "observed_dag.py", dags)
    (dags / "package").mkdir()
    (dags / "package" / "train.py").write_text("print('training')\n" * 100)
    with StatsdServer() as stats, OtlpServer() as spans, ObservedHead() as head:
        orphan = {
            "airflow_dag_id": "deleted", "airflow_task_id": "t", "airflow_run_id": "r", "airflow_map_index": "-1",
            "airflow_try_number": "1", "airflow_deployment": "sandbox", "airflow_may_outlive_task": "false",
        }  # fmt: skip
        head.add("orphan", "RUNNING", metadata=orphan | {NONCE: "0123456789abcdef"})
        settings = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(stats.port),
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
            "AIRFLOW__TRACES__OTEL_ON": "True",
            "OTEL_TRACES_EXPORTER": "otlp_proto_http",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": spans.endpoint,
        }
        connections = {"ray_jobs_default": {"conn_type": "ray_jobs", "host": head.address}}
        with LocalAirflow(dags, connections, settings) as airflow:
            run = airflow.trigger("observed")
            airflow.wait_for_run("observed", run)
            states = {task["task_id"]: task["state"] for task in airflow.task_instances("observed", run)}
            failed = {"fails", "is_replaced"}
            logs = "\n".join(airflow.log_text("observed", run, task) for task in states)
            assert states == {task: "failed" if task in failed else "success" for task in states}, logs
            if HAS_STORE:
                head.replace_plan("is_replaced", ("RUNNING", "SUCCEEDED"))
                clear = {"dag_run_id": run, "task_ids": ["is_replaced"], "dry_run": False, "only_failed": False}
                airflow.api("POST", "/dags/observed/clearTaskInstances", json=clear)
                airflow.wait_for_task("observed", run, "is_replaced", ("success",))
                airflow.wait_for_run("observed", run)
        yield Observed(stats, spans, head)


traced = pytest.mark.skipif(Version(airflow_version).release < (3, 2), reason="tasks have spans since Airflow 3.2")


def by_task(metric: metrics.Metric) -> Callable[[StatsdServer], dict[str, float]]:
    return lambda listener: listener.totals(metric, "task_id")


EXPECTED: dict[metrics.Metric, tuple[Callable[[StatsdServer], Any], Any]] = {
    metrics.SUBMISSIONS: (
        by_task(metrics.SUBMISSIONS),
        {"on_worker": 1, "deferred": 1, "fails": 1, "reattaches": 1, "succeeds_twice": 1, "is_replaced": 2},
    ),
    metrics.REATTACHMENTS: (by_task(metrics.REATTACHMENTS), {"reattaches": 1}),
    metrics.REPLACEMENTS: (by_task(metrics.REPLACEMENTS), {"is_replaced": 1}),
    metrics.OUTCOMES: (
        lambda listener: listener.totals(metrics.OUTCOMES, "task_id", "outcome"),
        {
            ("on_worker", "success"): 1,
            ("deferred", "success"): 1,
            ("fails", "RayJobEntrypointError"): 1,
            ("reattaches", "success"): 1,
            ("succeeds_twice", "success"): 2,  # the first try failed after its job
            ("is_replaced", "success"): 1,
        },
    ),
    metrics.PENDING: (
        by_task(metrics.PENDING),
        dict.fromkeys(("on_worker", "deferred", "fails", "succeeds_twice"), 1000.0 * PENDING_SECONDS)
        | {"is_replaced": 0.0},
    ),
    metrics.RUNNING: (
        by_task(metrics.RUNNING),
        dict.fromkeys(("on_worker", "deferred", "fails", "succeeds_twice"), 1000.0 * (DURATION - PENDING_SECONDS))
        | {"is_replaced": 1000.0 * DURATION},
    ),
    metrics.LOG_BYTES: (
        by_task(metrics.LOG_BYTES),
        {name: len(LOG) for name in ("on_worker", "deferred", "fails", "reattaches", "is_replaced")}
        | {"succeeds_twice": 2 * len(LOG)},
    ),
    metrics.ORPHANS_FOUND: (
        lambda listener: listener.totals(metrics.ORPHANS_FOUND, "task_id", "conn_id"),
        {("cleans_up", "ray_jobs_default"): 1},
    ),
    metrics.REQUEST_FAILURES: (
        lambda listener: listener.totals(metrics.REQUEST_FAILURES, "conn_id", "endpoint", "error"),
        {("ray_jobs_default", "get_version", "RayApiBusyError"): 1},
    ),
    **{
        metric: (lambda listener, metric=metric: listener.totals(metric, "operator"), {"RayJobSubmitOperator": count})
        for metric, count in (
            (metrics.FRESH_SUBMIT, 6),
            (metrics.RECONNECT_ATTEMPT, 3),
            (metrics.RECONNECT_SUCCESS, 1),
            (metrics.ALREADY_SUCCEEDED, 1),
            (metrics.TERMINAL_RESUBMIT, 1),
        )
    },
}


@pytest.mark.parametrize("metric", [each for each in EXPECTED if each in METRICS], ids=lambda metric: metric.name)
def test_metric(observed: Observed, metric: metrics.Metric):
    """The metric has arrived with the values of the run."""
    total, expected = EXPECTED[metric]
    if not HAS_STORE:
        expected = {key: value for key, value in expected.items() if not {key, *key} & {*TASKS_WITH_STORE}}

    assert total(observed.stats) == expected


def test_package_bytes(observed: Observed):
    """The first task sends the package, and the second one saves the bytes of its files."""
    listener, head = observed.stats, observed.head
    [package] = head.packages.values()

    assert listener.totals(metrics.PACKAGE_BYTES_SENT, "task_id") == {"on_worker": len(package)}
    assert listener.totals(metrics.PACKAGE_BYTES_SAVED, "task_id") == {"deferred": len("print('training')\n" * 100)}


def test_requests(observed: Observed):
    """Every request of workers and triggerer is counted, but those during which a worker was killed."""
    listener, head = observed.stats, observed.head
    expected = head.endpoints() - Counter({"get_job": head.kills})

    assert head.kills == (2 if HAS_STORE else 0)
    assert listener.totals(metrics.REQUESTS, "endpoint") == expected
    assert set(listener.totals(metrics.REQUESTS, "conn_id")) == {"ray_jobs_default"}


def test_watch(observed: Observed):
    """The triggerer watched one job, with an interval, and none at the end."""
    listener = observed.stats
    hosts = {socket.gethostname()}

    watched, intervals = listener.values(metrics.WATCHED_JOBS), listener.values(metrics.WATCH_INTERVAL)
    assert {value for _, value in watched} == {0, 1}
    assert watched[-1][1] == intervals[-1][1] == 0
    assert max(value for _, value in intervals) > 0
    assert {tags["hostname"] for tags, _ in watched + intervals} == hosts


def test_table_has_no_other_metric(observed: Observed):
    """What has arrived is the table, with the tags of the table. A team is only in a deployment with teams."""
    listener = observed.stats
    for metric in METRICS:
        tags = {name for given, _ in listener.values(metric) for name in given}
        assert tags == {*metric.tags} - {"team_name"}, metric.name
    sent = {re.split("[,:]", line)[0].removeprefix("airflow.") for line in listener.lines}
    names = {name for name in sent if name.startswith(("ray_jobs.", "resumable_job."))}
    assert names == {metric.name for metric in METRICS}


@traced
def test_spans(observed: Observed):
    """Spans of workers are under the span of the task, those of the triggerer under the span of the trigger."""
    spans = observed.spans

    # two workers were killed before they sent the spans of their submissions
    submitters = {"on_worker", "deferred", "fails", "succeeds_twice", "is_replaced"}
    waiters = {"on_worker", "fails", "reattaches", "succeeds_twice", "is_replaced"}
    # a retry that takes the success of the first try reads the log without a wait
    readers = {"deferred", "succeeds_twice"}
    if not HAS_STORE:
        submitters, waiters, readers = (tasks - {*TASKS_WITH_STORE} for tasks in (submitters, waiters, readers))
    assert spans.parents_of("ray_jobs.submit") == {f"worker.{task}" for task in submitters}
    assert spans.parents_of("ray_jobs.wait") == {"trigger.deferred", *(f"worker.{task}" for task in waiters)}
    assert spans.parents_of("ray_jobs.read_log") == {"ray_jobs.wait", *(f"worker.{task}" for task in readers)}


@traced
def test_driver_continues_the_trace(observed: Observed):
    """The environment of a driver names the span of its submission."""
    submitted = {span.span_id.hex() for span in observed.spans.named("ray_jobs.submit")}
    environments = [job["runtime_env"]["env_vars"] for job in observed.head.jobs.values() if "runtime_env" in job]
    given = [environment["TRACEPARENT"].split("-")[2] for environment in environments]

    assert len(given) == (7 if HAS_STORE else 3)
    assert len(submitted) == (5 if HAS_STORE else 3)
    assert submitted <= {*given}


@pytest.mark.skipif(not HAS_STORE, reason="a retry follows the job of the last try since Airflow 3.3")
def test_retry_links_to_the_first_try(observed: Observed):
    """The span of the retry that follows a job links to that of the try that submitted it, which was killed."""
    retry = observed.spans.named("worker.reattaches")
    links = [link for span in retry for link in span.links]

    [link] = links
    assert link.trace_id == retry[0].trace_id
    assert link.span_id not in {span.span_id for span in retry}
