"""Which stats of Airflow get the metrics, and what never happens because of metrics."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat import sdk
from test_operators import Store, defer, deferrable, fire, try_from

from airflow_provider_rayjobs import metrics
from airflow_provider_rayjobs.exceptions import RayApiResponseError, RayJobNotFoundError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.metrics import Meter, task_meter, watch_meter
from airflow_provider_rayjobs.testing import FakeRay, Reply

TI = SimpleNamespace(dag_id="nightly", task_id="train")


class Stats:
    """Records calls; the stats of an Airflow whose backend is replaced."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def incr(self, name: str, count: int, *, tags: dict[str, str]) -> None:
        self.sent.append((name, count, tags))

    timing = gauge = incr


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Stats:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    stats = Stats()
    monkeypatch.setitem(vars(sdk), "Stats", stats)
    return stats


def context(**changes: Any) -> dict[str, Any]:
    return {"ti": SimpleNamespace(**vars(TI) | changes), "task": object()}


def test_team_is_a_tag(stats: Stats):
    """The tags of a task instance have the team, where Airflow knows one."""
    team = {"dag_id": "nightly", "task_id": "train", "team_name": "research"}
    task_meter(context(stats_tags=team)).send(metrics.SUBMISSIONS)
    task_meter(context(stats_tags=team)).send(metrics.FRESH_SUBMIT)
    task_meter(context()).send(metrics.SUBMISSIONS)  # before Airflow 3.3

    assert stats.sent == [
        ("ray_jobs.submissions", 1, team),
        ("resumable_job.fresh_submit", 1, {"operator": "object", "team_name": "research"}),
        ("ray_jobs.submissions", 1, {"dag_id": "nightly", "task_id": "train"}),
    ]


def test_tags_have_only_characters_that_airflow_accepts(stats: Stats, monkeypatch: pytest.MonkeyPatch):
    """A connection id may have characters for which Airflow would drop the metric."""
    monkeypatch.setitem(sys.modules, "airflow.observability.stats", None)
    watch_meter("team:ray#1", "research").send(metrics.REQUESTS, endpoint="get_job")

    assert stats.sent == [
        ("ray_jobs.requests", 1, {"conn_id": "team_ray_1", "team_name": "research", "endpoint": "get_job"})
    ]


def test_triggerer_uses_the_stats_of_the_core(stats: Stats, monkeypatch: pytest.MonkeyPatch):
    """The triggerer initialises other stats than a task."""
    core = Stats()
    monkeypatch.setitem(sys.modules, "airflow.observability.stats", SimpleNamespace(Stats=core))
    watch_meter("ray", None).send(metrics.WATCHED_JOBS, 3)

    assert [sent[:2] for sent in core.sent] == [("ray_jobs.watched_jobs", 3)]
    assert stats.sent == []


def test_team_of_a_deferred_task(stats: Stats, monkeypatch: pytest.MonkeyPatch):
    """The metrics of the triggerer have the team of the task that it follows."""
    core = Stats()
    monkeypatch.setitem(sys.modules, "airflow.observability.stats", SimpleNamespace(Stats=core))
    tags = {"dag_id": "nightly", "task_id": "train", "team_name": "research"}
    with FakeRay():
        trigger = defer(deferrable(), try_from(0, Store(), stats_tags=tags))
        assert fire(trigger)["job"]["status"] == "SUCCEEDED"

    assert {name for name, *_ in core.sent} == {"ray_jobs.requests", "ray_jobs.watched_jobs", "ray_jobs.watch_interval"}
    assert {tags["team_name"] for *_, tags in core.sent} == {"research"}


def test_unknown_job_is_no_failure(stats: Stats):
    """A sensor may ask for a job that is not submitted yet: this is no failed request."""
    with FakeRay() as ray, RayJobsHook().get_conn() as client:
        with pytest.raises(RayJobNotFoundError):
            client.get_job("unknown-1")
        ray.on_request = lambda *_: Reply(500, b"broken")
        with pytest.raises(RayApiResponseError):
            client.get_job("unknown-1")

    assert [name for name, *_ in stats.sent] == ["ray_jobs.requests", "ray_jobs.request_failures", "ray_jobs.requests"]


def test_zero_is_no_count(stats: Stats):
    """A counter is not sent without a count."""
    task_meter(context()).send(metrics.LOG_BYTES, 0)

    assert stats.sent == []


def test_failing_backend_breaks_nothing(stats: Stats, monkeypatch: pytest.MonkeyPatch):
    """A backend that raises, or tags that cannot be read, do not break a task."""
    monkeypatch.delattr(Stats, "incr")
    task_meter(context()).send(metrics.SUBMISSIONS)
    task_meter({}).send(metrics.SUBMISSIONS)


def test_without_a_backend_nothing_is_read_or_imported(monkeypatch: pytest.MonkeyPatch):
    """Without a backend a meter reads no tags and imports no stats."""
    monkeypatch.delitem(vars(sdk), "Stats", raising=False)
    meter = Meter(lambda: pytest.fail("tags were read"))
    meter.send(metrics.SUBMISSIONS)

    assert not meter.is_on
    assert "Stats" not in vars(sdk)
