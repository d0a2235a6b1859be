"""Single pokes of the sensor; test_end_to_end.py runs it in Airflow."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    TaskDeferred,
)
from stand_in_head import START, StandInHead

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.exceptions import (
    RayApiUnreachableError,
    RayJobFailedError,
    RayJobFunctionError,
    RayJobLostError,
    RayJobNotFoundError,
)
from airflow_provider_rayjobs.jobs import JobDetails, RayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.testing import FakeRay
from airflow_provider_rayjobs.triggers import RayJobTrigger
from sandbox.ray_head import RayHead


class Store(dict):
    """The methods of Airflow's task state store that the sensor calls. Values are stored as JSON."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


def context(store: Store | None = None, try_number: int = 1, max_tries: int = 2) -> dict[str, Any]:
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        id=f"try-{try_number}",
        try_number=try_number,
        max_tries=max_tries,
        pushed=pushed,
        xcom_push=lambda key, value: pushed.update({key: value}),
        get_first_reschedule_date=lambda context: None,
    )
    run = SimpleNamespace(start_date=datetime(2026, 1, 2, tzinfo=UTC), clear_number=max_tries - 2)
    return {"ti": ti, "dag_run": run} | ({} if store is None else {"task_state_store": store})


def sensor(**arguments: Any) -> RayJobSensor:
    return RayJobSensor(**{"task_id": "wait", "poke_interval": 1, "timeout": 60} | arguments)


@pytest.fixture
def client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        yield client


class Shown:
    """The lines that a sensor logged, without the decoration of Airflow's formatter."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    @property
    def lines(self) -> list[str]:
        self._text += self._capsys.readouterr().out
        text = re.sub(r"^\S+Z \[\w+ *\] ", "", self._text, flags=re.MULTILINE)
        return re.sub(r" +\[airflow\.\S+\] loc=\S+$", "", text, flags=re.MULTILINE).splitlines()


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    return Shown(capsys)


@pytest.mark.ray
def test_rescheduled_sensor_resumes_the_log_at_its_offset(client: RayJobsClient, shown: Shown):
    """In mode reschedule each poke is a new process; with a store each log line is shown once."""
    job = client.submit_job("echo one; sleep 3; echo two")
    store = Store()
    pokes = 0
    while not sensor(submission_id=job, mode="reschedule").poke(context(store)):
        pokes += 1

    assert pokes > 1
    assert [line for line in shown.lines if line in ("one", "two")] == ["one", "two"]
    assert store["ray_job_sensor"]["log"]["offset"] == len(client.get_job_logs(job).encode())


@pytest.mark.ray
def test_another_try_shows_the_log_from_its_start(client: RayJobsClient, shown: Shown):
    """A new try ignores the log offset of the last one, because each try has its own task log."""
    job = client.submit_job("echo one")
    client.follow_job(job)
    store = Store()

    assert sensor(submission_id=job, mode="reschedule").poke(context(store, try_number=1))
    assert sensor(submission_id=job, mode="reschedule").poke(context(store, try_number=2))
    assert shown.lines.count("one") == 2


@pytest.mark.ray
def test_rescheduled_sensor_without_a_store_shows_the_log_at_the_end(client: RayJobsClient, shown: Shown):
    """Airflow before 3.3 cannot store a log offset."""
    job = client.submit_job("echo one; sleep 2; echo two")
    seen = []
    while not sensor(submission_id=job, mode="reschedule").poke(context()):
        seen += shown.lines

    assert "one" not in seen
    assert [line for line in shown.lines if line in ("one", "two")] == ["one", "two"]


@pytest.mark.ray
@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_silent_fail_does_not_hide_a_failed_job(client: RayJobsClient, mode: str):
    """A failed job fails the sensor even with silent_fail, in both modes."""
    job = client.submit_job("exit 1")
    client.follow_job(job)

    with pytest.raises(RayJobFailedError):
        sensor(submission_id=job, mode=mode, silent_fail=True).execute(context())


@pytest.mark.ray
def test_first_poke_pushes_the_link(client: RayJobsClient):
    """The link to the job works from the first poke on."""
    job = client.submit_job("true")
    client.follow_job(job)
    given = context()
    sensor(submission_id=job).poke(given)

    assert given["ti"].pushed == {"ray_job_link": f"{client.address}/#/jobs/{job}"}


@pytest.mark.ray
def test_unknown_job_is_tolerated_for_missing_timeout(client: RayJobsClient):
    """An unknown job may still be submitted; after missing_timeout it is an error."""
    patient, impatient = (sensor(submission_id="no-such-job", missing_timeout=seconds) for seconds in (60, 0))

    assert patient.poke(context()) is False
    with pytest.raises(RayJobNotFoundError) as caught:
        impatient.poke(context())
    assert isinstance(caught.value, AirflowException)


def test_outage_is_tolerated_for_unreachable_timeout(monkeypatch: pytest.MonkeyPatch, shown: Shown):
    """An outage is logged once, and is an error after unreachable_timeout, also across processes."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DOWN", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')
    waiting = sensor(submission_id="job-1", ray_conn_id="ray_down")
    store = Store()

    assert [waiting.poke(context()), waiting.poke(context())] == [False, False]
    assert sum("No usable answer about Ray job job-1" in line for line in shown.lines) == 1
    assert not sensor(submission_id="job-1", ray_conn_id="ray_down", mode="reschedule").poke(context(store))
    store["ray_job_sensor"]["outage_since"] -= 601
    with pytest.raises(RayApiUnreachableError):
        sensor(submission_id="job-1", ray_conn_id="ray_down", mode="reschedule").poke(context(store))


@pytest.mark.parametrize("empty", ["", "None", None])
def test_empty_submission_id(empty: str | None):
    """A missing XCom renders to an empty text or None. The error points to the submitting task."""
    waiting = sensor(submission_id="job-1")
    waiting.submission_id = empty

    with pytest.raises(ValueError, match="Did the task that submits the job push its id to XCom"):
        waiting.poke(context())


@pytest.mark.parametrize("is_deferrable", [False, True], ids=["worker", "deferrable"])
@pytest.mark.parametrize(
    ("rendered", "extra", "message"),
    [
        ({"log_lines_limit": "many"}, {}, "log_lines_limit must be a number"),
        ({"submission_id": ""}, {}, "submission_id is empty"),
        ({}, {"tokn": "x"}, "unknown extra tokn"),
    ],
)
def test_mistake_fails_at_once(
    rendered: dict[str, Any], extra: dict[str, str], message: str, is_deferrable: bool, monkeypatch: pytest.MonkeyPatch
):
    """
    What no retry can fix ends the retries. It is a failure with ``soft_fail``, too: waiting has not even begun.

    Once the sensor waits for a job, a retry may find its end.
    """
    given = {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(given))
    waiting = sensor(submission_id="job-1", soft_fail=True, deferrable=is_deferrable)
    for field, value in rendered.items():
        setattr(waiting, field, value)

    with pytest.raises(ValueError, match=message) as first:
        waiting.execute(context())
    with pytest.raises(ValueError, match=message) as resumed:
        waiting.execute_complete(context(), {"submission_id": "job-1"})
    assert isinstance(first.value, AirflowFailException)
    assert not isinstance(resumed.value, AirflowFailException)


@pytest.mark.parametrize("mode", ["deferrable", "reschedule"])
def test_wrong_setting_during_the_wait(mode: str, monkeypatch: pytest.MonkeyPatch):
    """A setting that is wrong after the first poke does not end the wait for a job. Its default is used."""
    given = context()
    given["ti"].get_first_reschedule_date = lambda _: datetime.now(UTC)
    for option in ("POLL_INTERVAL", "UNREACHABLE_TIMEOUT"):
        monkeypatch.setenv(f"AIRFLOW__RAY_JOBS__{option}", "5s")
    with FakeRay() as ray:
        ray.submit("job-1")
        if mode == "deferrable":
            event = {"submission_id": "job-1", "job": {"type": "SUBMISSION", "status": "SUCCEEDED"}}
            sensor(submission_id="job-1", deferrable=True, poke_interval=None).execute_complete(given, event)
        else:
            sensor(submission_id="job-1", mode="reschedule", poke_interval=None).execute(given)


@pytest.mark.ray
def test_interactive_job_has_no_log(client: RayJobsClient, driver: JobDetails, shown: Shown):
    """A DRIVER job is found by its Ray Core job id. Each sensor logs once that the Jobs API has no log of it."""
    store = Store()
    for _ in range(3):
        sensor(submission_id=driver.job_id, mode="reschedule").poke(context(store))
    rescheduled = shown.lines
    threading.Timer(3, os.kill, (int(driver.driver_info["pid"]), signal.SIGKILL)).start()
    sensor(submission_id=driver.job_id).execute(context())

    assert [_no_log(rescheduled), _no_log(shown.lines)] == [1, 2], "once for each of the two sensors"


def _no_log(lines: list[str]) -> int:
    return sum("started interactively (type DRIVER)" in line for line in lines)


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The token file of a connection to a closed port."""
    file = tmp_path / "token"
    file.write_text("marked-token")
    given = {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9, "extra": {"token_file": str(file)}}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(given))
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__ALLOWED_FILES", str(file))
    return file


def test_trigger_gets_the_address(token_file: Path):
    """The trigger knows the address, even if the head does not answer before the deferral."""
    with pytest.raises(TaskDeferred) as deferred:
        sensor(submission_id="job-1", deferrable=True).execute(context())

    assert deferred.value.trigger.options.job_ref["address"] == "http://127.0.0.1:9"


def test_missing_token_file(token_file: Path):
    """A missing token file is an error at the first poke, and an outage later."""
    later = context()
    later["ti"].get_first_reschedule_date = lambda context: datetime.now(UTC)
    token_file.unlink()

    assert sensor(submission_id="job-1", mode="reschedule").poke(later) is False
    with pytest.raises(ValueError, match="token_file .* cannot be read"):
        sensor(submission_id="job-1", mode="reschedule").poke(context())
    with pytest.raises(ValueError, match="token_file .* cannot be read") as caught:
        sensor(submission_id="job-1", deferrable=True).execute(context())
    assert not isinstance(caught.value, AirflowFailException), "the file may be there at the next try"
    with pytest.raises(AirflowException, match="RayApiUnreachableError|gave up"):
        sensor(submission_id="job-1", deferrable=True).execute_complete(
            context(), {"submission_id": "job-1", "error": "RayApiUnreachableError", "message": "gave up"}
        )


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)
    with StandInHead() as head:
        monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", head.connection)
        yield head


def fire(trigger: RayJobTrigger) -> dict[str, Any]:
    """Store a trigger as Airflow does, run it, and return its only event."""

    async def run() -> list[Any]:
        stored = json.loads(json.dumps(trigger.serialize()[1]))
        return [event async for event in RayJobTrigger(**stored).run()]

    [event] = asyncio.run(run())
    return json.loads(json.dumps(event.payload))


def wait(mode: str, between: Any, job: str = "job-1", **arguments: Any) -> bool:
    """Poke twice, in two processes if the mode has two. Return whether the sensor succeeded."""
    store = Store()
    if mode == "deferrable":
        with pytest.raises(TaskDeferred) as deferred:
            sensor(submission_id=job, deferrable=True, **arguments).execute(context())
        between()
        given = json.loads(json.dumps(deferred.value.kwargs))
        resumed = sensor(submission_id=job, deferrable=True, **arguments)
        resumed.execute_complete(context(), event=fire(deferred.value.trigger), **given)
        return True
    waiting = sensor(submission_id=job, mode=mode, **arguments)
    assert not waiting.poke(context(store))
    between()
    again = waiting if mode == "poke" else sensor(submission_id=job, mode=mode, **arguments)
    return again.poke(context(store))


MODES = pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])


@MODES
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            {"metadata": {"submission_nonce": "one"}}, {"metadata": {"submission_nonce": "two"}}, id="id of the user"
        ),
        pytest.param({}, {"start_time": START + 1}, id="job of another client"),
        pytest.param(
            {"type": "DRIVER", "submission_id": None, "job_id": "job-1"},
            {"type": "DRIVER", "submission_id": None, "job_id": "job-1", "start_time": START + 1},
            id="Ray Core job id",
        ),
    ],
)
def test_success_of_another_job_with_the_id_is_no_success(
    head: StandInHead, mode: str, before: dict[str, Any], after: dict[str, Any]
):
    """If another job has the id after a restart of the head, the job is lost with its cluster. A retry cannot help."""
    head.add("job-1", "RUNNING", **before)

    def restart() -> None:
        head.restart()
        head.add("job-1", "SUCCEEDED", **after)

    with pytest.raises(RayJobLostError, match="another job at http://127.0.0.1:.* has its id now") as caught:
        wait(mode, restart)
    assert isinstance(caught.value, AirflowFailException)


@MODES
def test_job_is_lost_with_its_cluster(head: StandInHead, mode: str):
    """A job that is unknown after a restart of the head is lost. The sensor does not wait for ``missing_timeout``."""
    head.add("job-1", "RUNNING")

    with pytest.raises(RayJobLostError, match="The job was in session session_1, and session session_2 answers now"):
        wait(mode, head.restart, missing_timeout=600)


STATUSES = ("unknown", "unknown", "PENDING", "PENDING", "RUNNING", "RUNNING", "SUCCEEDED")


def poke_in_turn(mode: str, store: Store | None, *statuses: str) -> Iterator[str]:
    """Poke once for each status, which the caller gives the job; in mode reschedule with a process for each poke."""
    waiting = sensor(submission_id="job-1", mode=mode)
    for number, status in enumerate(statuses):
        yield status
        given = context(store)
        if number and mode == "reschedule":
            waiting = sensor(submission_id="job-1", mode=mode)
            given["ti"].get_first_reschedule_date = lambda _: datetime.now(UTC)
        assert waiting.poke(given) is (status == "SUCCEEDED")


@pytest.mark.parametrize(
    ("mode", "store"),
    [
        pytest.param("poke", None, id="poke"),
        pytest.param("reschedule", Store(), id="reschedule"),
        pytest.param("reschedule", None, id="reschedule without a store"),
    ],
)
def test_log_says_what_the_sensor_waits_for(head: StandInHead, shown: Shown, mode: str, store: Store | None):
    """Each fact about the job is logged once; without a store only those of the first and the last poke."""
    message = "Job has not started yet. It may be waiting for resources (CPUs, GPUs ...) to become available."
    for status in poke_in_turn(mode, store, *STATUSES):
        head.jobs.clear()
        if status != "unknown":
            head.add("job-1", status, message=message, end_time=START + 12_300 if status == "SUCCEEDED" else None)

    url = f"{head.address}/#/jobs/job-1"
    unknown = (
        "Ray job job-1 is not known to the cluster yet. Another task or user may still submit it: the sensor looks for "
        "it for 60 s (missing_timeout)."
    )
    limit = "Ray fails a job that has not started after 15 minutes, unless RAY_JOB_START_TIMEOUT_SECONDS is set on its"
    facts = [
        f"Waiting for Ray job job-1 at {head.address}: {url}",
        unknown,
        "Ray job job-1 is PENDING, 60 s after its submission.",
        f"Ray job job-1 is PENDING, 60 s after its submission. Ray says: {message} {limit} head.",
        "Ray job job-1 is RUNNING, 60 s after its submission.",
        "Ray job job-1 SUCCEEDED after 12.3 s.",
    ]
    expected = [*facts[:2], facts[-1]] if mode == "reschedule" and store is None else facts
    assert [line for line in shown.lines if "job-1" in line] == expected


def test_log_of_a_deferred_sensor_says_what_it_waits_for(head: StandInHead, shown: Shown):
    """The start and the end of the wait are logged once, although the task is resumed in between."""
    wait("deferrable", lambda: head.add("job-1", "SUCCEEDED", end_time=START + 12_300))

    starts = ("Waiting for Ray job", "Ray job job-1 is not known", "Ray job job-1 SUCCEEDED after 12.3 s.")
    assert [sum(line.startswith(start) for line in shown.lines) for start in starts] == [1, 1, 1]


def test_log_of_another_job_is_not_shown(head: StandInHead, shown: Shown):
    """The job SUCCEEDED, but another job has its id when the sensor resumes. The log of that job is not read."""
    head.add("job-1", "RUNNING", driver_node_id="node", metadata={"submission_nonce": "one"})
    with pytest.raises(TaskDeferred) as deferred:
        sensor(submission_id="job-1", deferrable=True).execute(context())
    head.jobs["job-1"]["status"] = "SUCCEEDED"
    event = fire(deferred.value.trigger)
    head.restart()
    head.add("job-1", "RUNNING", driver_node_id="node", start_time=START + 1)
    head.requests.clear()

    sensor(submission_id="job-1", deferrable=True).execute_complete(context(), event=event)
    assert not any("logs" in request for request in head.requests)
    assert any("The rest of the log cannot be read. Ray job job-1 was lost" in line for line in shown.lines)


@MODES
def test_success_of_the_same_job(head: StandInHead, mode: str):
    """A job keeps its identity until its end, and its credentials come from the connection."""
    head.add("job-1", "RUNNING", metadata={"submission_nonce": "one"})

    assert wait(mode, lambda: head.jobs["job-1"].update(status="SUCCEEDED"))
    assert set(head.authorizations) == {"Bearer marked-token"}


@MODES
def test_job_that_is_submitted_after_the_first_poke(head: StandInHead, mode: str):
    """An unknown job has no identity yet: the job that is submitted later is the one that is meant."""
    assert wait(mode, lambda: head.add("job-1", "SUCCEEDED"))


@pytest.mark.parametrize("mode", ["reschedule", "deferrable"])
def test_edited_connection(head: StandInHead, mode: str, monkeypatch: pytest.MonkeyPatch):
    """The job is polled where it was seen first, even if the connection has another address now."""
    head.add("job-1", "RUNNING")
    with StandInHead() as other:

        def edit() -> None:
            monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", other.connection)
            head.add("job-1", "SUCCEEDED")
            other.add("job-1", "FAILED")

        assert wait(mode, edit)
        assert other.requests == []


@pytest.mark.parametrize(("status", "error"), [("SUCCEEDED", None), ("FAILED", RayJobFailedError)])
def test_ended_job_is_not_deferred(head: StandInHead, status: str, error: type[Exception] | None):
    """A deferrable sensor polls once before it defers. An ended job ends the sensor without a trigger."""
    head.add("job-1", status)
    waiting = sensor(submission_id="job-1", deferrable=True)

    if error is None:
        assert waiting.execute(context()) is None
    else:
        with pytest.raises(error):
            waiting.execute(context())


@pytest.mark.parametrize("is_deferred", [False, True])
def test_exception_of_a_function(head: StandInHead, is_deferred: bool):
    """A sensor that waits for the job of a function fails with the exception that the function raised."""
    nonce = "0123456789abcdef"
    failure = {"function": "train", "types": ["ValueError"], "message": "no data", "traceback": "ValueError: no data"}
    head.log = f"##ray_job {nonce} error {json.dumps(failure)}\n".encode()
    fields = {"metadata": {"submission_nonce": nonce}, "driver_node_id": "node", "driver_exit_code": 1}
    head.add("job-1", "FAILED", **fields)
    waiting = sensor(submission_id="job-1")

    trigger = RayJobTrigger("job-1", job_ref=JobRef(head.address, "job-1").to_json(), poll_interval=0.1)
    event = fire(trigger)

    with pytest.raises(RayJobFunctionError, match="^train raised ValueError: no data\nRay job job-1 FAILED"):
        waiting.execute_complete(context(), event=event) if is_deferred else waiting.execute(context())


def test_rate_of_pokes_is_limited(head: StandInHead):
    """With ``poke_interval=0`` the sensor polls at most ten times a second."""
    head.add("job-1", "RUNNING")

    with pytest.raises(AirflowSensorTimeout):
        sensor(submission_id="job-1", poke_interval=0, timeout=1.5).execute(context())
    assert 1 < head.polls <= 17


def test_token_of_this_machine_stays_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Neither trigger nor sensor sends the token of a head on this machine to a job's recorded address."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("local-secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with StandInHead() as head:
        monkeypatch.setenv("HTTP_PROXY", head.address)  # so that it answers for the recorded address
        monkeypatch.setenv("http_proxy", head.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        head.add("a", "SUCCEEDED")
        event = fire(RayJobTrigger("a", job_ref=JobRef("http://recorded:8265", "a").to_json(), poll_interval=0.1))
        by_trigger = len(head.requests)
        sensor(submission_id="a").execute_complete(context(), event=event)

    assert 0 < by_trigger < len(head.requests)
    assert {request.split("/")[2] for request in head.requests} == {"recorded:8265"}
    assert set(head.authorizations) == {None}
