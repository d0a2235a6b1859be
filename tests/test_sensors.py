"""Single pokes of the sensor; test_end_to_end.py runs it in Airflow."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred

from airflow_provider_rayjobs.exceptions import RayApiUnreachableError, RayJobFailedError, RayJobNotFoundError
from airflow_provider_rayjobs.jobs import JobDetails, RayJobsClient
from airflow_provider_rayjobs.sensors import RayJobSensor
from sandbox.ray_head import RayHead


class Store(dict):
    """The methods of Airflow's task state store that the sensor calls."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


def context(store: Store | None = None, try_number: int = 1) -> dict[str, Any]:
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        try_number=try_number,
        pushed=pushed,
        xcom_push=lambda key, value: pushed.update({key: value}),
        get_first_reschedule_date=lambda context: None,
    )
    return {"ti": ti} | ({} if store is None else {"task_state_store": store})


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
    with pytest.raises(ValueError, match="Did the task that submits the job push its id to XCom"):
        sensor(submission_id=empty).poke(context())


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
    monkeypatch.setenv("AIRFLOW__PROVIDERS_RAY_JOBS__ALLOWED_FILES", str(file))
    return file


def test_trigger_gets_the_address(token_file: Path):
    """The trigger knows the address, so that a failed connection lookup counts as an outage."""
    with pytest.raises(TaskDeferred) as deferred:
        sensor(submission_id="job-1", deferrable=True).execute(context())

    assert deferred.value.trigger.address == "http://127.0.0.1:9"


def test_missing_token_file(token_file: Path):
    """A missing token file is an error at the first poke, and an outage later."""
    later = context()
    later["ti"].get_first_reschedule_date = lambda context: datetime.now(UTC)
    token_file.unlink()

    assert sensor(submission_id="job-1", mode="reschedule").poke(later) is False
    with pytest.raises(ValueError, match="token_file .* cannot be read"):
        sensor(submission_id="job-1", mode="reschedule").poke(context())
    with pytest.raises(ValueError, match="token_file .* cannot be read"):
        sensor(submission_id="job-1", deferrable=True).execute(context())
    with pytest.raises(AirflowException, match="RayApiUnreachableError|gave up"):
        sensor(submission_id="job-1", deferrable=True).execute_complete(
            context(), {"submission_id": "job-1", "error": "RayApiUnreachableError", "message": "gave up"}
        )
