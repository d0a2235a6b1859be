"""The sensor's looks, one by one; how it runs in Airflow is in test_end_to_end.py."""

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
    """Airflow's task state store, as far as the sensor uses it."""

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
    """The lines that a sensor logged, without what Airflow's formatter puts around a record."""

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
def test_a_rescheduled_sensor_goes_on_where_it_stopped(client: RayJobsClient, shown: Shown):
    """Each look is a new process; with a store to remember in, every line of the log is shown once."""
    job = client.submit_job("echo one; sleep 3; echo two")
    store = Store()
    looks = 0
    while not sensor(submission_id=job, mode="reschedule").poke(context(store)):
        looks += 1

    assert looks > 1
    assert [line for line in shown.lines if line in ("one", "two")] == ["one", "two"]
    assert store["ray_job_sensor"]["log"]["position"] == len(client.get_job_logs(job).encode())


@pytest.mark.ray
def test_another_try_shows_the_log_from_its_start(client: RayJobsClient, shown: Shown):
    """What one try remembers is nothing to the next: its log is a new one."""
    job = client.submit_job("echo one")
    client.follow_job(job)
    store = Store()

    assert sensor(submission_id=job, mode="reschedule").poke(context(store, try_number=1))
    assert sensor(submission_id=job, mode="reschedule").poke(context(store, try_number=2))
    assert shown.lines.count("one") == 2


@pytest.mark.ray
def test_without_a_store_a_rescheduled_sensor_shows_the_log_at_the_end(client: RayJobsClient, shown: Shown):
    """Airflow before 3.3 offers nothing to remember a position in."""
    job = client.submit_job("echo one; sleep 2; echo two")
    seen = []
    while not sensor(submission_id=job, mode="reschedule").poke(context()):
        seen += shown.lines

    assert "one" not in seen
    assert [line for line in shown.lines if line in ("one", "two")] == ["one", "two"]


@pytest.mark.ray
@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_silent_fail_does_not_swallow_a_failed_job(client: RayJobsClient, mode: str):
    """How the job ended is final: no setting of the sensor waits on."""
    job = client.submit_job("exit 1")
    client.follow_job(job)

    with pytest.raises(RayJobFailedError):
        sensor(submission_id=job, mode=mode, silent_fail=True).execute(context())


@pytest.mark.ray
def test_the_link_leads_to_the_job(client: RayJobsClient):
    """The button is there from the first look on."""
    job = client.submit_job("true")
    client.follow_job(job)
    given = context()
    sensor(submission_id=job).poke(given)

    assert given["ti"].pushed == {"ray_job_link": f"{client.address}/#/jobs/{job}"}


@pytest.mark.ray
def test_an_unknown_job_is_borne_for_a_while(client: RayJobsClient):
    """A job may be about to be submitted; then it is an error."""
    patient, impatient = (sensor(submission_id="no-such-job", missing_timeout=seconds) for seconds in (60, 0))

    assert patient.poke(context()) is False
    with pytest.raises(RayJobNotFoundError) as caught:
        impatient.poke(context())
    assert isinstance(caught.value, AirflowException)


def test_a_head_that_is_away_is_borne_for_a_while(monkeypatch: pytest.MonkeyPatch, shown: Shown):
    """The outage is said once, and is an error when it has lasted too long; over several processes, too."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_NOBODY", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')
    waiting = sensor(submission_id="job-1", ray_conn_id="ray_nobody")
    store = Store()

    assert [waiting.poke(context()), waiting.poke(context())] == [False, False]
    assert sum("No usable answer about Ray job job-1" in line for line in shown.lines) == 1
    assert not sensor(submission_id="job-1", ray_conn_id="ray_nobody", mode="reschedule").poke(context(store))
    store["ray_job_sensor"]["outage_since"] -= 601
    with pytest.raises(RayApiUnreachableError):
        sensor(submission_id="job-1", ray_conn_id="ray_nobody", mode="reschedule").poke(context(store))


@pytest.mark.parametrize("nothing", ["", "None", None])
def test_no_id_is_an_error_that_says_what_to_look_for(nothing: str | None):
    """An XCom that nobody pushed renders to nothing, or to the word None."""
    with pytest.raises(ValueError, match="Did the task that submits it push it to XCom"):
        sensor(submission_id=nothing).poke(context())


@pytest.mark.ray
def test_an_interactive_job_is_waited_for_without_its_log(client: RayJobsClient, driver: JobDetails, shown: Shown):
    """A DRIVER job is found by its Ray Core job id; that the API has no log of it is said once."""
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
    """The token's file of a connection to a port where nobody listens."""
    file = tmp_path / "token"
    file.write_text("marked-token")
    given = {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9, "extra": {"token_file": str(file)}}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(given))
    return file


def test_a_deferred_sensor_says_where_its_job_is(token_file: Path):
    """A connection that cannot be looked up, or used, for a while ends no watch in the triggerer."""
    with pytest.raises(TaskDeferred) as deferred:
        sensor(submission_id="job-1", deferrable=True).execute(context())

    assert deferred.value.trigger.address == "http://127.0.0.1:9"


def test_a_sensor_that_watches_already_bears_a_token_file_that_is_missing(token_file: Path):
    """At the first look a file that is not there is a mistake, later an outage like others."""
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
