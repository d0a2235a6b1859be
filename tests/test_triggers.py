"""Triggers, run against a real Ray head; restarts and edited connections against a stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certifi
import pytest
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from stand_in_head import START, StandInHead

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiUnreachableError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayJobsClient
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.task.attempts import HAS_STORE
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
        "job-1", "conn", poll_interval=2, unreachable_timeout=3, missing_timeout=4,
        job_ref=JobRef("http://a:1", "job-1", "s", "n", 1).to_json(), limits=Limits(job_timeout=5).to_json(),
        execution_deadline=2.0, stop_on_kill=True, stop_timeout=6,
        logs=LogOptions(lines_limit=7, flush_interval=8).to_json(), log_state=LogReader().state, deferred_at=1.0,
        demand=[["GPU", 1.0]],
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
        pytest.param({"stop_on_kill": True, "job_ref": {"nonce": "another"}}, "RUNNING", id="another submission"),
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

    assert log.index("Stopping Ray job job-1, unless another triggerer follows it now") < log.index(
        "Connection refused"
    )
    assert "The end of job job-1 could not be confirmed within 1 s" in log
    assert "Ray job job-1 could not be stopped and may still be running" in log


@pytest.mark.skipif(not HAS_STORE, reason="Airflow before 3.3 does not call on_kill")
def test_log_stays_open_until_the_stop_has_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The log of a killed trigger says how the stop ended, although Airflow cancels the trigger again every second."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_UNREACHABLE", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')

    async def run_and_kill() -> None:
        runner = TriggerRunner()
        trigger = RayJobTrigger("job-1", "ray_unreachable", stop_on_kill=True, stop_timeout=2)
        running = asyncio.create_task(runner.run_trigger(1, trigger))
        runner.triggers[1] = {"task": running, "is_watcher": False, "name": "nightly/train", "events": 0}
        await asyncio.sleep(0.5)
        while not running.done():
            runner.to_cancel.append(1)
            await runner.cancel_triggers()
            await asyncio.sleep(0.1)

    asyncio.run(run_and_kill())
    log = capsys.readouterr().out
    assert log.index("could not be confirmed within 2 s") < log.index("trigger completed")


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
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__ALLOWED_FILES", "/no/such/file")
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)

    event = fire(RayJobTrigger("job-1", unreachable_timeout=1, poll_interval=0.2))

    with pytest.raises(RayApiUnreachableError, match=r"token_file .* cannot be read"):
        details_from_event(event)


def test_replaced_certificate(tmp_path: Path):
    """A trigger that starts after a certificate file was replaced shares the client, which notices the new file."""
    file = tmp_path / "ca.pem"
    file.write_bytes(Path(certifi.where()).read_bytes())
    cluster = Cluster("https://a:1", "https://a:1", access=Access(verify=str(file)))
    hook = RayJobsHook()

    async def use() -> None:
        async with shared_client(hook, cluster) as first:
            os.utime(file, (1, 1))
            async with shared_client(hook, cluster) as second:
                assert first is second

    asyncio.run(use())


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)
    with StandInHead() as head:
        monkeypatch.setenv("AIRFLOW_CONN_RAY", head.connection)
        yield head


def fire_stored(**arguments: Any) -> dict[str, Any]:
    """Fire a trigger as the triggerer does, with arguments from Airflow's database."""
    stored = RayJobTrigger(**{"submission_id": "job-1", "ray_conn_id": "ray", "poll_interval": 0.2} | arguments)
    return fire(RayJobTrigger(**json.loads(json.dumps(stored.serialize()[1]))))


@pytest.mark.parametrize(
    ("status", "limits"),
    [pytest.param("FAILED", None, id="end"), pytest.param("RUNNING", Limits(job_timeout=1).to_json(), id="time limit")],
)
def test_event_hides_secrets_of_the_job(head: StandInHead, status: str, limits: dict[str, Any] | None):
    """
    Ray's message quotes a password, which the triggerer learns from the same answer.

    Of two triggers that share a client, the first to end does not wait for anything.
    """
    options = [f"--index-url=https://me:pa55-{status}@pypi.example.com/simple"]  # Airflow never forgets a secret
    runtime_env = {"pip": {"packages": ["a"], "pip_install_options": options}}
    for job in ("job-1", "job-2"):
        head.add(job, status, runtime_env=runtime_env, message=f"Command {options} failed.")

    async def fire_both() -> list[Any]:
        async def fire_one(job: str) -> list[Any]:
            return [event.payload async for event in RayJobTrigger(job, "ray", 0.2, limits=limits).run()]

        return await asyncio.gather(fire_one("job-1"), fire_one("job-2"))

    [first], [second] = asyncio.run(fire_both())
    for event in (first, second):
        assert "https://me:***@pypi.example.com/simple" in json.dumps(event)
        assert "pa55" not in json.dumps(event)


def test_trigger_of_an_operator_of_the_user(head: StandInHead):
    """Id, connection and interval are enough. The event names the job that was followed."""
    head.add("job-1", "RUNNING", metadata={"submission_nonce": "n"})
    head.on_poll = lambda number: number == 3 and head.jobs["job-1"].update(status="SUCCEEDED")

    event = fire(RayJobTrigger(submission_id="job-1", ray_conn_id="ray", poll_interval=0.2))

    assert details_from_event(event).status == JobStatus.SUCCEEDED
    assert JobRef.from_json(event["job_ref"]) == JobRef("", "job-1", nonce="n", start_time=START)
    assert set(head.authorizations) == {"Bearer marked-token"}


def test_wait_of_a_deferred_job_is_explained(head: StandInHead, capsys: pytest.CaptureFixture[str]):
    """The trigger logs why the job does not start, and the triggers of a cluster ask for its resources together."""
    head.add("job-1", "PENDING")
    head.add("job-2", "PENDING")

    def start(number: int) -> None:
        if number > 12:
            head.add("job-1", "SUCCEEDED")
            head.add("job-2", "SUCCEEDED")

    head.on_poll = start

    async def run_one(job: str) -> list[Any]:
        return [event async for event in RayJobTrigger(job, "ray", 0.2, demand=[["GPU", 1.0]]).run()]

    async def run_both() -> None:
        await asyncio.gather(run_one("job-1"), run_one("job-2"))

    asyncio.run(run_both())
    log = capsys.readouterr().out
    for job in ("job-1", "job-2"):
        assert f"Ray job {job} is PENDING, 60 s after its submission. The job requests 1 GPU on one" in log
    assert head.requests.count("GET /api/cluster_status") == 1


def test_arguments_of_another_version(head: StandInHead, capsys: pytest.CaptureFixture[str]):
    """Unknown arguments are ignored, with a warning in the task's log."""
    head.add("job-1", "SUCCEEDED")
    event = fire(RayJobTrigger("job-1", "ray", 0.2, colour="red", version=9))

    assert details_from_event(event).status == JobStatus.SUCCEEDED
    assert "Arguments of another version are ignored: colour." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("job_ref", "after"),
    [
        pytest.param({"nonce": "n", "session": "session_1"}, {"metadata": {"submission_nonce": "o"}}, id="user's id"),
        pytest.param({"start_time": START}, {"start_time": START + 1}, id="start time"),
        pytest.param(
            {"start_time": START, "session": "session_1"},
            {"type": "DRIVER", "submission_id": None, "job_id": "job-1", "start_time": START + 1},
            id="Ray Core job id",
        ),
    ],
)
def test_success_of_another_job_with_the_id_is_no_success(
    head: StandInHead, job_ref: dict[str, Any], after: dict[str, Any]
):
    """If another job has the id after a restart of the head, the job of the trigger is lost."""
    head.restart()
    head.add("job-1", "SUCCEEDED", **after)

    event = fire_stored(job_ref=JobRef(head.address, "job-1").to_json() | job_ref)

    with pytest.raises(RayJobLostError, match=f"another job at {head.address} has its id now"):
        details_from_event(event)


def test_job_is_replaced_while_it_is_followed(head: StandInHead):
    """The first poll tells which job is meant, even for a trigger that knew only the id."""
    head.add("job-1", "RUNNING")

    def restart(number: int) -> None:
        if number == 2:
            head.restart()
            head.add("job-1", "SUCCEEDED", start_time=START + 1)

    head.on_poll = restart

    with pytest.raises(RayJobLostError):
        details_from_event(fire_stored())


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_edited_connection(head: StandInHead, monkeypatch: pytest.MonkeyPatch, status: str):
    """The job is followed where it was submitted. The edited connection supplies the credentials."""
    head.add("job-1", status)
    with StandInHead() as other:
        monkeypatch.setenv("AIRFLOW_CONN_RAY", other.connection.replace("marked-token", "new-token"))
        event = fire_stored(job_ref=JobRef(head.address, "job-1").to_json(), unreachable_timeout=0)

        assert details_from_event(event).status == status
        assert (other.requests, set(head.authorizations)) == ([], {"Bearer new-token"})


@pytest.mark.parametrize(
    ("job_ref", "status"),
    [
        pytest.param({}, "STOPPED", id="id only"),
        pytest.param({"nonce": "n", "start_time": START}, "STOPPED", id="the job"),
        pytest.param({"nonce": "another"}, "RUNNING", id="another submission"),
        pytest.param({"start_time": START - 1}, "RUNNING", id="another start time"),
    ],
)
def test_kill_stops_the_job_where_it_is(
    head: StandInHead, monkeypatch: pytest.MonkeyPatch, job_ref: dict[str, Any], status: str
):
    """A kill stops the job of the ``JobRef`` at its address, even if the connection was edited, and no other job."""
    head.add("job-1", "RUNNING", metadata={"submission_nonce": "n"})
    with StandInHead() as other:
        other.add("job-1", "RUNNING")
        monkeypatch.setenv("AIRFLOW_CONN_RAY", other.connection)
        job = JobRef(head.address, "job-1").to_json() | job_ref
        asyncio.run(RayJobTrigger("job-1", "ray", stop_on_kill=True, job_ref=job, stop_timeout=5).on_kill())

        assert head.jobs["job-1"]["status"] == status
        assert other.requests == []


def test_kill_while_the_connection_cannot_be_looked_up(head: StandInHead, monkeypatch: pytest.MonkeyPatch):
    """A lookup that hangs does not hold up the stop, which is then sent without credentials."""

    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.sleep(3600)

    head.add("job-1", "RUNNING")
    monkeypatch.setattr(RayJobsHook, "aget_cluster", hang)
    monkeypatch.setattr(triggers, "_KILL_LOOKUP_TIMEOUT", 0.5)
    job = JobRef(head.address, "job-1").to_json()
    asyncio.run(RayJobTrigger("job-1", "ray", stop_on_kill=True, job_ref=job, stop_timeout=5).on_kill())

    assert head.jobs["job-1"]["status"] == "STOPPED"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        pytest.param("deferred", "RUNNING", id="another triggerer has the trigger"),
        pytest.param("failed", "STOPPED", id="marked"),
        pytest.param("running", "STOPPED", id="cleared"),
        pytest.param(None, "STOPPED", id="Airflow does not answer"),
    ],
)
def test_kill_asks_airflow_for_the_state_of_the_task(
    head: StandInHead, monkeypatch: pytest.MonkeyPatch, state: str | None, status: str
):
    """
    A triggerer that lost its triggers cancels them like killed ones (Airflow 3.3.2). Their jobs are left alone.

    Airflow cancels ``on_kill`` again every second. The question and the stop go on.
    """

    def get_task_states(**given: Any) -> dict[str, Any]:
        assert given == {"dag_id": "nightly", "map_index": 3, "task_ids": ["train"], "run_ids": ["run-1"]}
        time.sleep(0.5)
        if state is None:
            raise ConnectionError("the API server is away")
        return {"run-1": {"train_3": state}}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(get_task_states))
    head.add("job-1", "RUNNING")
    trigger = RayJobTrigger("job-1", "ray", stop_on_kill=True, stop_timeout=5)
    trigger.task_instance = SimpleNamespace(dag_id="nightly", run_id="run-1", task_id="train", map_index=3)

    async def kill() -> None:
        killed = asyncio.ensure_future(trigger.on_kill())
        for _ in range(5):
            await asyncio.sleep(0.1)
            killed.cancel()
        await killed

    asyncio.run(kill())
    assert head.jobs["job-1"]["status"] == status


@pytest.mark.parametrize(
    ("trigger_id", "stop_on_kill", "status"),
    [
        pytest.param(None, True, "STOPPED", id="dag.test"),
        pytest.param(None, False, "RUNNING", id="without stop_on_kill"),
        pytest.param(7, True, "RUNNING", id="triggerer"),
    ],
)
@pytest.mark.parametrize("rests", [False, True], ids=["following", "resting"])
def test_interrupt(
    head: StandInHead,
    rests: bool,
    monkeypatch: pytest.MonkeyPatch,
    trigger_id: int | None,
    stop_on_kill: bool,
    status: str,
):
    """Ctrl-C on ``dag.test()`` stops the job of a deferred task. A triggerer that is interrupted leaves it running."""
    head.add("job-1", "RUNNING")
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 60.0)
    limits = {"job_timeout": 1} if rests else None
    if rests:
        threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        head.on_poll = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 1 else None
    trigger = RayJobTrigger("job-1", "ray", poll_interval=0.1, stop_on_kill=stop_on_kill, stop_timeout=5, limits=limits)
    trigger.trigger_id = trigger_id

    async def run() -> None:  # as ``InProcessTestSupervisor.run_trigger_in_process`` does
        await anext(trigger.run(), None)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run())
    assert head.jobs["job-1"]["status"] == status


def test_connection_that_cannot_be_read_for_a_while(head: StandInHead, monkeypatch: pytest.MonkeyPatch):
    """While Airflow's API server is down, connections appear undefined. The lookup is retried like an outage."""
    head.add("job-1", "SUCCEEDED")
    monkeypatch.setattr(triggers, "_LOOKUP_PAUSE", 0.05)
    monkeypatch.delenv("AIRFLOW_CONN_RAY")
    threading.Timer(0.5, monkeypatch.setenv, ("AIRFLOW_CONN_RAY", head.connection)).start()
    job = JobRef(head.address, "job-1").to_json()

    assert details_from_event(fire_stored(job_ref=job, unreachable_timeout=60)).status == JobStatus.SUCCEEDED
    assert set(head.authorizations) == {"Bearer marked-token"}


@pytest.mark.parametrize("job_ref", [None, {"start_time": START}])
def test_execution_timeout(head: StandInHead, job_ref: dict[str, Any] | None):
    """At the deadline of the try the trigger fires, and the job runs on: the worker decides about it."""
    head.add("job-1", "RUNNING")
    event = fire_stored(execution_deadline=time.time() + 0.5, poll_interval=60, job_ref=job_ref)

    with pytest.raises(RayJobTimeoutError, match="did not end within the execution_timeout of this try") as caught:
        details_from_event(event)
    assert (caught.value.limit, caught.value.details.status) == ("execution_timeout", "RUNNING")
    assert head.jobs["job-1"]["status"] == "RUNNING"


def test_execution_timeout_during_an_outage(head: StandInHead):
    """The deadline of the try does not wait for the end of an outage."""
    event = fire_stored(
        execution_deadline=time.time() + 0.5, job_ref=JobRef("http://127.0.0.1:9", "job-1").to_json(), poll_interval=60
    )

    with pytest.raises(RayJobTimeoutError) as caught:
        details_from_event(event)
    assert (caught.value.limit, caught.value.details) == ("execution_timeout", None)


def test_ended_job_is_no_timeout(head: StandInHead):
    """A job that has ended decides the task, even if the deadline has passed meanwhile."""
    head.add("job-1", "SUCCEEDED")

    assert details_from_event(fire_stored(execution_deadline=time.time() - 60)).status == JobStatus.SUCCEEDED


def test_rate_of_polls_is_limited(head: StandInHead):
    """With ``poll_interval=0`` the trigger still pauses between two polls, 0.05 to 0.1 s."""
    head.add("job-1", "RUNNING")
    fire_stored(poll_interval=0, execution_deadline=time.time() + 1.5)

    assert 1 < head.polls <= 32


def test_event_keeps_the_delivery_of_an_error():
    """The worker knows from the event whether Ray itself refused a request."""
    error = RayJobNotFoundError("gone", status_code=404, delivery=Delivery.REFUSED)

    with pytest.raises(RayJobNotFoundError) as caught:
        details_from_event(json.loads(json.dumps(error_event(error))))
    assert caught.value.delivery is Delivery.REFUSED
