"""Triggers, run against a real Ray head."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import certifi
import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import (
    RayApiUnreachableError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayJobsClient
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.triggers import (
    RayJobTrigger,
    details_from_event,
    error_event,
    job_event,
    shared_client,
)
from sandbox.ray_head import RayHead


def fire(trigger: RayJobTrigger) -> dict[str, Any]:
    """Run a trigger to its end and return its only event, as Airflow's database returns it."""

    async def run() -> list[Any]:
        return [event async for event in trigger.run()]

    [event] = asyncio.run(run())
    return json.loads(json.dumps(event.payload))


def test_serialize():
    """The serialized arguments are plain JSON, the submission id first, and make an equal trigger."""
    trigger = RayJobTrigger(
        "job-1", "conn", poll_interval=2, unreachable_timeout=3, missing_timeout=4, address="http://a:1", session="s",
        nonce="n", limits=Limits(job_timeout=5).to_json(), stop_on_kill=True, stop_timeout=6,
        logs=LogOptions(lines_limit=7, flush_interval=8).to_json(), log_state=LogReader().state,
        deferred_at=1.0,
    )  # fmt: skip
    path, arguments = trigger.serialize()

    assert path == "airflow_provider_rayjobs.triggers.RayJobTrigger"
    assert next(iter(arguments)) == "submission_id"
    assert RayJobTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)


@pytest.mark.ray
@pytest.mark.parametrize(("command", "status"), [("true", "SUCCEEDED"), ("exit 3", "FAILED")])
def test_event_of_a_job_that_has_ended(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, command: str, status: str):
    """The event has the job's id and outcome, and nothing of its environment."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job(command, runtime_env={"env_vars": {"PASSWORD": "marked-secret"}})
    event = fire(RayJobTrigger(job, poll_interval=1))

    assert event["submission_id"] == job
    assert event["job"]["status"] == status
    assert details_from_event(event).status == JobStatus(status)
    assert "marked-secret" not in json.dumps(event)


def job_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the output without the fields that Airflow's formatter adds to a record."""
    text = re.sub(r"^\S+Z \[\w+ *\] ", "", capsys.readouterr().out, flags=re.MULTILINE)
    return re.sub(r" +\[airflow\.\S+\] loc=\S+$", "", text, flags=re.MULTILINE).splitlines()


@pytest.mark.ray
def test_log_within_the_budget(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Lines are shown as they are printed, of a burst only the first ones; the event has the log offset."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("echo first; sleep 4; seq 100000; sleep 4")
        event = fire(RayJobTrigger(job, poll_interval=1, logs=LogOptions().to_json()))
        log = client.get_job_logs(job).encode()
    printed = {"first", *map(str, range(1, 100_001))}
    lines = [line for line in job_lines(capsys) if line in printed]

    shown = log[: event["log_state"]["offset"]].decode().splitlines()
    assert lines == [line for line in shown if line in printed]
    assert lines[0] == "first"
    assert 1_000 < len(lines) < 50_000


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "shows"),
    [
        pytest.param(LogOptions(fetch_logs="on_completion"), False, id="on_completion"),
        pytest.param(LogOptions(fetch_logs="never"), False, id="never"),
        pytest.param(LogOptions(flush_interval=600), False, id="flush_interval"),
        pytest.param(LogOptions(lines_limit=8), True, id="lines_limit"),
        pytest.param(None, False, id="no options"),
    ],
)
def test_log_options(
    ray_head: RayHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: LogOptions | None,
    shows: bool,
):
    """A trigger shows the log only with fetch_logs="live" and without a flush interval."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("seq 10; sleep 3")
    event = fire(RayJobTrigger(job, poll_interval=1, logs=options.to_json() if options else None))

    assert ("1" in job_lines(capsys)) == shows
    assert (event["log_state"] is None) == (options is None or options.fetch_logs != "live")


@pytest.mark.ray
def test_flush_interval(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """After the interval new lines fire an event of a running job; without new lines the trigger goes on."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    logs = LogOptions(flush_interval=2).to_json()
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("echo first; sleep 14")
        event = fire(RayJobTrigger(job, poll_interval=0.5, logs=logs))
        assert details_from_event(event).status == JobStatus.RUNNING
        assert event["log_state"]["offset"] == 0

        reader = LogReader(event["log_state"])
        client.run(reader.read(client.get_job(job)))
        event = fire(RayJobTrigger(job, poll_interval=0.5, logs=logs, log_state=reader.state))
        assert details_from_event(event).status == JobStatus.SUCCEEDED
        assert event["log_state"]["offset"] == reader.log.offset > 0


@pytest.mark.ray
def test_unknown_job(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """The event carries the class of the error."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    event = fire(RayJobTrigger("no-such-job"))

    with pytest.raises(RayJobNotFoundError, match="Job no-such-job does not exist"):
        details_from_event(event)


@pytest.mark.parametrize(
    ("trigger", "error", "message"),
    [
        pytest.param(
            RayJobTrigger("job-1", "ray_undefined"), RayJobsError, AirflowNotFoundException.__name__, id="no connection"
        ),
        pytest.param(
            RayJobTrigger("job-1", "ray_unreachable", unreachable_timeout=0),
            RayApiUnreachableError,
            "Connection refused: could not get job job-1 at http://127.0.0.1:9 ",
            id="no head",
        ),
    ],
)
def test_errors_are_events(
    monkeypatch: pytest.MonkeyPatch, trigger: RayJobTrigger, error: type[Exception], message: str
):
    """A trigger does not raise: each error is an event, and the worker raises it."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_UNREACHABLE", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')

    with pytest.raises(error, match=message):
        details_from_event(fire(trigger))


def test_events_without_a_job():
    """An event without a job is an error, never a success."""
    job = JobDetails(type=JobType.SUBMISSION, status=JobStatus.SUCCEEDED, submission_id="job-1")

    assert details_from_event(job_event(job)) == job
    with pytest.raises(RayJobsError, match="KeyError: 'x'"):
        details_from_event(error_event(KeyError("x")))
    with pytest.raises(RayJobsError, match="trigger of job job-1 ended without a message"):
        details_from_event({"submission_id": "job-1"})


@pytest.mark.ray
def test_expired_time_limit(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """An expired time limit is an event, and the job runs on: the worker stops it."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("sleep 60")
        event = fire(RayJobTrigger(job, poll_interval=1, limits={"job_timeout": 3}))

        assert client.get_job(job).status == "RUNNING"
        client.stop_job(job)
    with pytest.raises(RayJobTimeoutError, match=r"job_timeout is 3 s") as caught:
        details_from_event(event)
    assert caught.value.limit == "job_timeout"
    assert caught.value.details.status == "RUNNING"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        pytest.param({"stop_on_kill": True}, "STOPPED", id="stop_on_kill"),
        pytest.param({"stop_on_kill": True, "nonce": "another"}, "RUNNING", id="job of another submission"),
        pytest.param({}, "RUNNING", id="without stop_on_kill"),
    ],
)
def test_repeated_kill(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], status: str):
    """Airflow cancels a killed trigger every second; the stop goes on until Ray confirms it."""
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


def test_unconfirmed_stop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A kill does not raise; its log says that the job may still be running."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_UNREACHABLE", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')
    asyncio.run(RayJobTrigger("job-1", "ray_unreachable", stop_on_kill=True, stop_timeout=1).on_kill())
    asyncio.run(RayJobTrigger("job-1", "ray_undefined", stop_on_kill=True).on_kill())
    log = capsys.readouterr().out

    assert "The end of job job-1 could not be confirmed within 1 s" in log
    assert "Ray job job-1 could not be stopped and may still be running" in log


def test_connection_to_another_address(monkeypatch: pytest.MonkeyPatch):
    """While Airflow's API server is down, the default connection means this machine: no request is sent there."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    event = fire(RayJobTrigger("job-1", address="http://ray-head:8265", unreachable_timeout=1, poll_interval=0.2))

    with pytest.raises(RayApiUnreachableError, match="is at http://ray-head:8265, but connection"):
        details_from_event(event)


def test_shared_client():
    """Triggers of one cluster share a client on their event loop; the last one closes it."""
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


def test_missing_token_file(monkeypatch: pytest.MonkeyPatch):
    """A missing token file is retried like an outage; the error names the setting (Airflow masks the path)."""
    given = {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9, "extra": {"token_file": "/no/such/file"}}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(given))
    monkeypatch.setenv("AIRFLOW__PROVIDERS_RAY_JOBS__ALLOWED_FILES", "/no/such/file")
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)

    event = fire(RayJobTrigger("job-1", unreachable_timeout=1, poll_interval=0.2))

    with pytest.raises(RayApiUnreachableError, match=r"token_file .* cannot be read"):
        details_from_event(event)


def test_replaced_certificate(tmp_path: Path):
    """A trigger that starts after a certificate file was replaced gets a new client."""
    file = tmp_path / "ca.pem"
    file.write_bytes(Path(certifi.where()).read_bytes())
    cluster = Cluster("https://a:1", "https://a:1", access=Access(verify=str(file)))
    hook = RayJobsHook()

    async def use() -> None:
        async with shared_client(hook, cluster) as first:
            os.utime(file, (1, 1))
            async with shared_client(hook, cluster) as second:
                assert first is not second
            assert second._http.is_closed
            assert not first._http.is_closed

    asyncio.run(use())
