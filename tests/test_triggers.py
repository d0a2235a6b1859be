"""The engine on an event loop."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import (
    RayJobNotFoundError,
    RayJobsError,
    RayJobsUnreachableError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayJobsClient
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.triggers import (
    RayJobTrigger,
    details_of_event,
    event_of_end,
    event_of_error,
    shared_client,
)
from sandbox.ray_head import RayHead


def fire(trigger: RayJobTrigger) -> dict[str, Any]:
    """Run a trigger to its end and return its only event, as Airflow's database would give it back."""

    async def run() -> list[Any]:
        return [event async for event in trigger.run()]

    [event] = asyncio.run(run())
    return json.loads(json.dumps(event.payload))


def test_a_trigger_is_made_anew_from_what_it_stores():
    """The serialized arguments make an equal trigger, the submission id first, and are plain JSON."""
    trigger = RayJobTrigger(
        "job-1", "conn", poll_interval=2, unreachable_timeout=3, missing_timeout=4, address="http://a:1", session="s",
        nonce="n", limits=Limits(job_timeout=5).to_json(), stop_on_kill=True, stop_timeout=6,
    )  # fmt: skip
    path, arguments = trigger.serialize()

    assert path == "airflow_provider_rayjobs.triggers.RayJobTrigger"
    assert next(iter(arguments)) == "submission_id"
    assert RayJobTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)


@pytest.mark.ray
@pytest.mark.parametrize(("command", "status"), [("true", "SUCCEEDED"), ("exit 3", "FAILED")])
def test_the_event_carries_the_jobs_end(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, command: str, status: str):
    """One event tells which job, and how it ended; of its environment nothing."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job(command, runtime_env={"env_vars": {"PASSWORD": "marked-secret"}})
    event = fire(RayJobTrigger(job, poll_interval=1))

    assert event["submission_id"] == job
    assert event["job"]["status"] == status
    assert details_of_event(event).status == JobStatus(status)
    assert "marked-secret" not in json.dumps(event)


@pytest.mark.ray
def test_an_unknown_job_ends_the_trigger_with_its_error(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """The error's class arrives on the worker."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    event = fire(RayJobTrigger("no-such-job"))

    with pytest.raises(RayJobNotFoundError, match="Job no-such-job does not exist"):
        details_of_event(event)


@pytest.mark.parametrize(
    ("trigger", "error", "message"),
    [
        pytest.param(
            RayJobTrigger("job-1", "ray_undefined"), RayJobsError, AirflowNotFoundException.__name__, id="no connection"
        ),
        pytest.param(
            RayJobTrigger("job-1", "ray_nobody", unreachable_timeout=0),
            RayJobsUnreachableError,
            "no answer",
            id="no head",
        ),
    ],
)
def test_a_trigger_never_raises(
    monkeypatch: pytest.MonkeyPatch, trigger: RayJobTrigger, error: type[Exception], message: str
):
    """Whatever goes wrong is an event, and an error on the worker."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_NOBODY", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')

    with pytest.raises(error, match=message):
        details_of_event(fire(trigger))


def test_events_without_a_job_are_errors():
    """An event that tells of no end is never taken for success."""
    job = JobDetails(type=JobType.SUBMISSION, status=JobStatus.SUCCEEDED, submission_id="job-1")

    assert details_of_event(event_of_end("job-1", job)) == job
    with pytest.raises(RayJobsError, match="KeyError: 'x'"):
        details_of_event(event_of_error("job-1", KeyError("x")))
    with pytest.raises(RayJobsError, match="trigger of job job-1 ended without a word"):
        details_of_event({"submission_id": "job-1"})


@pytest.mark.ray
def test_a_limit_that_is_over_is_an_event_and_stops_nothing(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """The worker that resumes can remember what it gives up: it is the one to stop the job."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("sleep 60")
        event = fire(RayJobTrigger(job, poll_interval=1, limits={"job_timeout": 3}))

        assert client.get_job(job).status == "RUNNING"
        client.stop_job(job)
    with pytest.raises(RayJobTimeoutError, match=r"job_timeout is 3 s") as caught:
        details_of_event(event)
    assert caught.value.limit == "job_timeout"
    assert caught.value.details.status == "RUNNING"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        pytest.param({"stop_on_kill": True}, "STOPPED", id="the job dies with its task"),
        pytest.param({"stop_on_kill": True, "nonce": "another"}, "RUNNING", id="a job that is not ours"),
        pytest.param({}, "RUNNING", id="somebody else's job, as a sensor waits for"),
    ],
)
def test_a_kill_stops_the_job_however_often_it_is_repeated(
    ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], status: str
):
    """Airflow cancels a killed trigger anew every second; the stop goes on until Ray confirms it."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)

    async def kill(job: str) -> None:
        killed = asyncio.ensure_future(RayJobTrigger(job, **arguments).on_kill())
        while not killed.done():
            await asyncio.sleep(0.2)
            killed.cancel()

    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("sleep 60")
        while client.get_job(job).status != "RUNNING":
            time.sleep(0.2)
        asyncio.run(kill(job))

        assert client.get_job(job).status == status
        client.stop_job(job)


def test_a_stop_that_cannot_be_confirmed_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A kill never raises; its log says that the job may run on."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_NOBODY", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')
    asyncio.run(RayJobTrigger("job-1", "ray_nobody", stop_on_kill=True, stop_timeout=1).on_kill())
    asyncio.run(RayJobTrigger("job-1", "ray_undefined", stop_on_kill=True).on_kill())
    said = capsys.readouterr().out

    assert "The end of job job-1 could not be confirmed within 1 s" in said
    assert "Ray job job-1 could not be stopped and may run on" in said


def test_a_connection_that_leads_elsewhere_is_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    """While Airflow's API server is away the default connection seems undefined: no other cluster is asked."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    event = fire(RayJobTrigger("job-1", address="http://ray-head:8265", unreachable_timeout=1, poll_interval=0.2))

    with pytest.raises(RayJobsUnreachableError, match="submitted to http://ray-head:8265, but connection"):
        details_of_event(event)


def test_triggers_of_one_cluster_share_a_client_until_the_last_one_leaves():
    """One client for each connection and event loop, closed by the last to leave."""
    hook, here, there = RayJobsHook(), Cluster("http://a:1", "http://a:1"), Cluster("http://b:1", "http://b:1")

    async def use() -> None:
        async with shared_client(hook, here) as first, shared_client(hook, here) as second:
            async with shared_client(hook, there) as third:
                assert first is second
                assert first is not third
            assert third._http.is_closed
            assert not first._http.is_closed
        assert first._http.is_closed
        assert not triggers._shared[asyncio.get_running_loop()]

    asyncio.run(use())
