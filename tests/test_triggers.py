"""The engine on an event loop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certifi
import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk.execution_time.comms import SetXCom, XComResult

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
from airflow_provider_rayjobs.jobs.logs.trickle import BURST, LogBudget
from airflow_provider_rayjobs.log_checkpoint import LogCheckpoint
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
        logs=LogOptions(lines_limit=7, flush_interval=8).to_json(), log_state=LogReader().state,
        deferred_at=1.0,
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
    assert details_from_event(event).status == JobStatus(status)
    assert "marked-secret" not in json.dumps(event)


def job_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of the job's log that were shown; ours have a logger's name or a level of their own."""
    text = re.sub(r"^\S+Z \[\w+ *\] ", "", capsys.readouterr().out, flags=re.MULTILINE)
    return re.sub(r" +\[airflow\.\S+\] loc=\S+$", "", text, flags=re.MULTILINE).splitlines()


@pytest.mark.ray
def test_a_trigger_shows_a_little_of_the_log_and_says_how_far_it_came(
    ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The lines come as they are printed; of a burst only the first ones, and the event tells where they end."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("echo first; sleep 4; seq 100000; sleep 4")
        event = fire(RayJobTrigger(job, poll_interval=1, logs=LogOptions().to_json()))
        log = client.get_job_logs(job).encode()
    printed = {"first", *map(str, range(1, 100_001))}
    lines = [line for line in job_lines(capsys) if line in printed]

    shown = log[: event["log_state"]["position"]].decode().splitlines()
    assert lines == [line for line in shown if line in printed]
    assert lines[0] == "first"
    assert 1_000 < len(lines) < 50_000


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "shows"),
    [
        pytest.param(LogOptions(fetch_logs="on_completion"), False, id="on_completion"),
        pytest.param(LogOptions(fetch_logs="never"), False, id="never"),
        pytest.param(LogOptions(flush_interval=600), False, id="for a worker to show"),
        pytest.param(LogOptions(lines_limit=8), True, id="the first lines"),
        pytest.param(None, False, id="a trigger of an earlier version"),
    ],
)
def test_a_trigger_shows_what_it_was_asked_to_show(
    ray_head: RayHead,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: LogOptions | None,
    shows: bool,
):
    """Nothing of the log comes from a trigger that is to leave it to the worker, or of a log that nobody wants."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("seq 10; sleep 3")
    event = fire(RayJobTrigger(job, poll_interval=1, logs=options.to_json() if options else None))

    assert ("1" in job_lines(capsys)) == shows
    assert (event["log_state"] is None) == (options is None or options.fetch_logs != "live")


@pytest.mark.ray
def test_a_trigger_calls_a_worker_when_there_is_something_to_show(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """After the interval the event is that of a job that runs; a job that prints nothing calls nobody."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    logs = LogOptions(flush_interval=2).to_json()
    with RayJobsClient(ray_head.address) as client:
        job = client.submit_job("echo first; sleep 14")
        event = fire(RayJobTrigger(job, poll_interval=0.5, logs=logs))
        assert details_from_event(event).status == JobStatus.RUNNING
        assert event["log_state"]["position"] == 0

        reader = LogReader(event["log_state"])
        client.run(reader.read(client.get_job(job)))
        event = fire(RayJobTrigger(job, poll_interval=0.5, logs=logs, log_state=reader.state))
        assert details_from_event(event).status == JobStatus.SUCCEEDED
        assert event["log_state"]["position"] == reader.log.position > 0


class Supervisor:
    """What a triggerer's supervisor does with XComs, as far as it is asked."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}
        self.messages: list[str] = []

    async def asend(self, message: Any) -> Any:
        self.messages.append(type(message).__name__)
        if isinstance(message, SetXCom):
            self.xcoms[message.task_id] = json.loads(json.dumps(message.value))
            return None
        return XComResult(key=message.key, value=self.xcoms.get(message.task_id))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    supervisor = Supervisor()
    monkeypatch.setattr("airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


def instance(try_number: int = 1) -> SimpleNamespace:
    return SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=try_number)


async def emit_job_log(data: bytes, bookmark: LogCheckpoint, *, looks: int = 8) -> tuple[list[str], LogReader]:
    """Let a trigger's reader, with its bookmark, take turns at a log."""
    shown: list[str] = []
    with LogBudget().share() as share:
        reader = LogReader(turns=share)
        async with bookmark.following(reader, share):
            for poll_job in range(looks):
                if share.begin(poll_job * 10.0):
                    reader.log.begin()
                    shown += [*reader.log.feed(data), *reader.log.flush()]
                    share.end(poll_job * 10.0, is_throttled=reader.log.is_throttled)
                await asyncio.sleep(0.3)
    return shown, reader


needs_xcoms = pytest.mark.skipif(not HAS_STORE, reason="before Airflow 3.3 an event loop has no XComs")


@needs_xcoms
def test_a_trigger_goes_on_where_a_lost_one_has_stopped(supervisor: Supervisor):
    """What was shown is kept after each turn, and looked up by a trigger that is run again: at most a turn repeats."""
    warnings: list[Any] = []
    data = b"".join(b"line %d\n" % number for number in range(20_000))
    now = time.time()

    _, reader = asyncio.run(emit_job_log(data, LogCheckpoint(instance(), "job-1", now, warnings.append), looks=4))
    kept = supervisor.xcoms["t"]["log"]["position"]
    assert 0 < kept <= reader.log.position <= kept + BURST
    assert "GetXCom" not in supervisor.messages, "a trigger that was deferred just now has nothing to look up"
    assert warnings == []

    again, _ = asyncio.run(
        emit_job_log(data, LogCheckpoint(instance(), "job-1", now - 60, lambda *words: warnings.append(words)), looks=4)
    )
    assert data[kept:].decode().startswith("\n".join(again))
    assert len(again) > 0
    assert [words[1:] for words in warnings] == [("job-1", kept)]


@needs_xcoms
@pytest.mark.parametrize(("try_number", "job"), [(2, "job-1"), (1, "job-2")])
def test_the_bookmark_of_another_try_or_job_is_none(supervisor: Supervisor, try_number: int, job: str):
    """A cleared task's old trigger may write late: what it kept is nothing to the new one."""
    asyncio.run(emit_job_log(b"one\n", LogCheckpoint(instance(), "job-1", time.time(), print)))
    shown, _ = asyncio.run(emit_job_log(b"one\n", LogCheckpoint(instance(try_number), job, None, print)))

    assert shown == ["one"]


@needs_xcoms
def test_a_job_that_prints_nothing_leaves_no_bookmark(supervisor: Supervisor):
    """XComs go through the triggerer's supervisor: there are none where nothing was shown."""
    asyncio.run(emit_job_log(b"", LogCheckpoint(instance(), "job-1", time.time(), print)))

    assert supervisor.messages == []


def test_a_bookmark_that_cannot_be_kept_is_no_error():
    """Where Airflow keeps no XCom of a trigger, nothing is remembered, nothing breaks, and lines are shown."""
    for bookmark in (
        LogCheckpoint(instance(), "job-1", None, print),
        LogCheckpoint(instance(), "job-1", time.time(), print),
        LogCheckpoint(None, "job-1", None, print),
    ):
        shown, _ = asyncio.run(emit_job_log(b"one\n", bookmark))

        assert shown == ["one"]


@pytest.mark.ray
def test_an_unknown_job_ends_the_trigger_with_its_error(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """The error's class arrives on the worker."""
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
            RayJobTrigger("job-1", "ray_nobody", unreachable_timeout=0),
            RayApiUnreachableError,
            "Connection refused: could not get job job-1 at http://127.0.0.1:9 ",
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
        details_from_event(fire(trigger))


def test_events_without_a_job_are_errors():
    """An event that tells of no end is never taken for success."""
    job = JobDetails(type=JobType.SUBMISSION, status=JobStatus.SUCCEEDED, submission_id="job-1")

    assert details_from_event(job_event(job)) == job
    with pytest.raises(RayJobsError, match="KeyError: 'x'"):
        details_from_event(error_event(KeyError("x")))
    with pytest.raises(RayJobsError, match="trigger of job job-1 ended without a word"):
        details_from_event({"submission_id": "job-1"})


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
        details_from_event(event)
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

    with pytest.raises(RayApiUnreachableError, match="is at http://ray-head:8265, but connection"):
        details_from_event(event)


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


def test_a_missing_token_file_is_an_outage_to_a_trigger(monkeypatch: pytest.MonkeyPatch):
    """It is borne as long as every other, with or without an address, and then named (Airflow masks the path)."""
    given = {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9, "extra": {"token_file": "/no/such/file"}}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(given))
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)

    event = fire(RayJobTrigger("job-1", unreachable_timeout=1, poll_interval=0.2))

    with pytest.raises(RayApiUnreachableError, match=r"token_file .* cannot be read"):
        details_from_event(event)


def test_a_certificate_that_was_replaced_makes_another_client(tmp_path: Path):
    """Triggers that come later believe, and show, what the files hold now."""
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
