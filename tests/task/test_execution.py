"""Tries of a task against a real Ray head; tests/faults runs them in a real Airflow."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_provider_rayjobs.exceptions import (
    RayApiAuthError,
    RayApiUnreachableError,
    RayJobEntrypointError,
    RayJobExistsError,
    RayJobNotFoundError,
    RayJobNotTerminalError,
    RayJobStoppedError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.jobs import JobDetails, RayJobsClient
from airflow_provider_rayjobs.operators import RayJobDeleteOperator, RayJobStopOperator, RayJobSubmitOperator
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from airflow_provider_rayjobs.triggers import error_event
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray
needs_store = pytest.mark.skipif(not HAS_STORE, reason="Airflow 3.3 introduced the task state store")


class Store:
    """The methods of Airflow's task state store that the package calls. Values are stored as JSON."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get(self, key: str) -> Any:
        return json.loads(self.values[key]) if key in self.values else None

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        self.values[key] = json.dumps(value)

    @property
    def record(self) -> dict[str, Any]:
        return self.get("ray_job")

    @property
    def job(self) -> dict[str, Any]:
        return self.record["job"]

    def change(self, job: dict[str, Any] | None = None, **changes: Any) -> None:
        """Change fields of the stored record, and of the job in it."""
        self.set("ray_job", self.record | changes | {"job": self.job | (job or {})})


def context(
    store: Store | None = None, *, try_number: int = 1, max_tries: int = 2, map_index: int = -1
) -> dict[str, Any]:
    """Return the context of a try of one task instance. A Clear raises ``max_tries``."""
    date = datetime(2026, 1, 2, tzinfo=UTC)
    ti = SimpleNamespace(
        id=f"try-{try_number}", dag_id="nightly", task_id="train", run_id="run-1", map_index=map_index,
        try_number=try_number, max_tries=max_tries, start_date=datetime.now(UTC), xcom_push=lambda key, value: None,
        xcom_pull=lambda **_: None, get_task_states=lambda **_: {"run-1": {"train": "running"}},
    )  # fmt: skip
    run = SimpleNamespace(run_id="run-1", logical_date=date, start_date=date, clear_number=max_tries - 2)
    given = {
        "ti": ti,
        "task_instance": ti,
        "dag_run": run,
        "logical_date": date,
    }
    return given if store is None else given | {"task_state_store": store}


def task(entrypoint: str = "true", **arguments: Any) -> RayJobSubmitOperator:
    return RayJobSubmitOperator(**{"task_id": "train", "entrypoint": entrypoint, "poll_interval": 0.5} | arguments)


@pytest.fixture
def client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        yield client


@pytest.fixture
def running(client: RayJobsClient) -> tuple[Store, str]:
    """Return the store and the running job of a first try that was lost."""
    store = Store()
    with pytest.raises(TaskDeferred):
        task("sleep 6", deferrable=True).execute(context(store))
    job = store.job["submission_id"]
    wait_for(client, job, "RUNNING")
    return store, job


def wait_for(client: RayJobsClient, job: str, status: str) -> JobDetails:
    """Wait for the status of a job. Its submission may still be on its way."""
    deadline = time.monotonic() + 60
    while True:
        seen: JobDetails | None = None
        with suppress(RayJobNotFoundError):
            seen = client.get_job(job)
        if seen is not None and seen.status == status:
            return seen
        assert time.monotonic() < deadline, f"{job} is {seen and seen.status}"
        time.sleep(0.2)


@needs_store
def test_job_record(client: RayJobsClient):
    """The record has the job's id, generation, address and session, and whether it was accepted and delivered."""
    store = Store()
    job = task().execute(context(store))
    record = store.record

    assert store.job["submission_id"] == job
    assert record["generation"] == {"max_tries": 2, "run_start": "2026-01-02T00:00:00+00:00", "clear_number": 0}
    assert store.job["address"] == client.address
    assert store.job["session"] == client.get_version().session_name
    assert record["holder"] == "try-1"
    assert (record["accepted"], record["abandoned"], record["delivered"]) == (True, False, True)
    metadata = client.get_job(job).metadata
    assert (metadata["airflow_max_tries"], metadata["airflow_run_start_date"]) == ("2", "2026-01-02T00:00:00+00:00")
    assert metadata["airflow_clear_number"] == "0"
    assert metadata["submission_nonce"] == store.job["nonce"]


@needs_store
def test_retry_reattaches_to_running_job(client: RayJobsClient, running: tuple[Store, str]):
    """A retry submits nothing, and ends with the job of the first try."""
    store, job = running

    assert task("exit 1").execute(context(store, try_number=2)) == job
    assert store.record["delivered"]


@needs_store
def test_retry_takes_an_undelivered_success(client: RayJobsClient, running: tuple[Store, str]):
    """A job that ended after its try was lost is the retry's success; a Clear submits a new one."""
    store, job = running
    wait_for(client, job, "SUCCEEDED")

    assert task("exit 1").execute(context(store, try_number=2)) == job
    assert task().execute(context(store, try_number=3, max_tries=4)) != job


@needs_store
def test_clear_replaces_running_job(client: RayJobsClient, running: tuple[Store, str]):
    """A cleared task stops the running job and submits a new one."""
    store, job = running
    other = task().execute(context(store, try_number=2, max_tries=4))

    assert other != job
    assert client.get_job(job).status == "STOPPED"


@needs_store
def test_job_of_another_submission_is_left_alone(client: RayJobsClient, running: tuple[Store, str]):
    """A job with the recorded id but another nonce keeps running."""
    store, job = running
    store.change({"nonce": "another"})
    other = task().execute(context(store, try_number=2, max_tries=4))

    assert other != job
    assert client.get_job(job).status in ("RUNNING", "SUCCEEDED")


@needs_store
def test_abandoned_job_is_replaced(client: RayJobsClient, running: tuple[Store, str]):
    """A retry stops an abandoned job and submits a new one."""
    store, job = running
    store.change(abandoned=True)

    assert task().execute(context(store, try_number=2)) != job
    assert client.get_job(job).status == "STOPPED"


@needs_store
def test_lost_submission_is_sent_again_under_its_id(client: RayJobsClient):
    """An unknown, unconfirmed job is submitted again with the same id and nonce."""
    store = Store()
    task().execute(context(store))
    lost = f"lost-{time.time_ns()}"
    store.change({"submission_id": lost}, accepted=False, delivered=False)

    assert task().execute(context(store, try_number=2)) == lost
    assert client.get_job(lost).metadata["submission_nonce"] == store.job["nonce"]


@needs_store
def test_resubmission_resets_delivered(client: RayJobsClient):
    """A job that is submitted again under its id is not delivered yet."""
    store = Store()
    task().execute(context(store))
    lost = f"lost-{time.time_ns()}"
    store.change({"submission_id": lost}, accepted=False, delivered=True)
    with pytest.raises(TaskDeferred):
        task(deferrable=True).execute(context(store, try_number=2, max_tries=4))

    assert store.job["submission_id"] == lost
    assert (store.record["accepted"], store.record["delivered"]) == (True, False)


@needs_store
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"accepted": True}, id="deleted"),
        pytest.param({"accepted": True, "job": {"session": "another"}}, id="head restarted"),
        pytest.param({"accepted": False, "job": {"session": "another"}}, id="unconfirmed, head restarted"),
    ],
)
def test_missing_job_is_submitted_under_a_new_id(client: RayJobsClient, change: dict[str, Any]):
    """If the recorded job is gone for good, the retry submits one under a new id."""
    store = Store()
    task().execute(context(store))
    store.change({"submission_id": "gone", **change.pop("job", {})}, delivered=False, **change)
    job = task().execute(context(store, try_number=2))

    assert job.startswith("nightly.train-try2-")
    assert client.get_job(job).status == "SUCCEEDED"


@needs_store
def test_nothing_is_submitted_during_an_outage(client: RayJobsClient, running: tuple[Store, str]):
    """An unreachable head may still run the job: the retry fails after unreachable_timeout."""
    store, _ = running
    store.change({"address": "http://127.0.0.1:9"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        with pytest.raises(RayApiUnreachableError, match="No usable answer about Ray job"):
            task(unreachable_timeout=2).execute(context(store, try_number=2))


@needs_store
def test_submission_ids_of_the_user_are_numbered(client: RayJobsClient):
    """The first submission has the id of the user; later ones append -2, -3."""
    store, given = Store(), f"given-{time.time_ns()}"
    ids = [
        task(submission_id=given).execute(context(store, try_number=number, max_tries=number * 2))
        for number in (1, 2, 3)
    ]

    assert ids == [given, f"{given}-2", f"{given}-3"]


def test_submission_ids_of_the_user_are_numbered_by_try_without_a_store(client: RayJobsClient):
    """Without a store the try number is appended, so that each try has an id of its own."""
    given = f"given-{time.time_ns()}"
    ids = [task(submission_id=given, durable=False).execute(context(Store(), try_number=number)) for number in (1, 2)]

    assert ids == [given, f"{given}-2"]


def test_taken_submission_id_is_a_final_error(client: RayJobsClient):
    """A job of another submission is neither followed nor stopped, and the task is not retried."""
    job = client.submit_job("sleep 3", submission_id=f"taken-{time.time_ns()}")

    with pytest.raises(RayJobExistsError) as caught:
        task(submission_id=job).execute(context(Store(), try_number=1, max_tries=0))
    assert isinstance(caught.value, AirflowFailException)
    assert client.follow_job(job).status == "SUCCEEDED"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        pytest.param({}, RayJobEntrypointError, id="retried"),
        pytest.param({"fail_on_exit_code": [3, 4]}, AirflowFailException, id="fail_on_exit_code"),
        pytest.param({"skip_on_exit_code": "3"}, AirflowSkipException, id="skip_on_exit_code"),
    ],
)
def test_exit_codes_decide_how_the_task_ends(client: RayJobsClient, arguments: dict[str, Any], kind: type[Exception]):
    """An exit code fails the try, ends the retries, or skips the task, as its arguments say."""
    with pytest.raises(kind) as caught:
        task("exit 3", **arguments).execute(context(Store()))

    assert "FAILED with exit code 3" in str(caught.value)
    assert isinstance(caught.value, AirflowFailException) == (kind is AirflowFailException)


def test_time_limit_stops_the_job(client: RayJobsClient):
    """A job that stays PENDING is abandoned. The error compares its request with the cluster's resources."""
    store = Store()

    with pytest.raises(RayJobTimeoutError) as caught:
        task(entrypoint_resources={"nowhere": 1}, pending_timeout=2).execute(context(store))
    assert caught.value.limit == "pending_timeout"
    assert "pending_timeout is 2 s" in str(caught.value)
    assert "requests 1 nowhere" in str(caught.value)
    assert "No node has enough nowhere." in str(caught.value)
    assert not HAS_STORE or store.record["abandoned"]


@pytest.mark.parametrize("defer_after", [20, "{{ 20 }}", timedelta(seconds=20)])
def test_short_job_is_not_deferred(client: RayJobsClient, defer_after: Any):
    """A deferrable task follows a short job on the worker."""
    operator = task("echo short", deferrable=True, defer_after=defer_after)
    operator.render_template_fields(context(Store()))

    assert client.get_job(operator.execute(context(Store()))).status == "SUCCEEDED"


def test_long_job_is_deferred_later(client: RayJobsClient):
    """After ``defer_after`` the trigger continues where the worker's log ends."""
    store = Store()
    with pytest.raises(TaskDeferred) as deferred:
        task("echo one; sleep 90", deferrable=True, defer_after=25).execute(context(store))

    trigger = deferred.value.trigger
    assert client.get_job(trigger.submission_id).status == "RUNNING"
    assert trigger.options.log_state["offset"] == len(client.get_job_logs(trigger.submission_id).encode())
    assert not HAS_STORE or store.job["start_time"] is not None
    client.stop_job(trigger.submission_id)


def test_time_limit_of_a_deferred_task_stops_the_job_on_the_worker(client: RayJobsClient):
    """The trigger reports an expired limit; the resuming worker stops the job and raises the error."""
    store = Store()
    with pytest.raises(TaskDeferred) as deferred:
        task("sleep 60", deferrable=True, execution_timeout=timedelta(seconds=60)).execute(context(store))
    job = deferred.value.trigger.submission_id
    error = RayJobTimeoutError("expired", limit="execution_timeout", details=wait_for(client, job, "RUNNING"))

    with pytest.raises(AirflowTaskTimeout) as caught:
        task("sleep 60").execute_complete(
            context(store), json.loads(json.dumps({"submission_id": job} | error_event(error)))
        )
    assert isinstance(caught.value, RayJobTimeoutError)
    assert client.get_job(job).status == "STOPPED"


def test_running_job_is_stopped_on_the_last_try_only(client: RayJobsClient):
    """After an outage the job is left to the next try; on the last try it is stopped."""
    for store, tries, status in ((Store(), 2, "RUNNING"), (Store(), 0, "STOPPED")):
        with pytest.raises(TaskDeferred) as deferred:
            task("sleep 20", deferrable=True).execute(context(store, max_tries=tries))
        job = deferred.value.trigger.submission_id
        wait_for(client, job, "RUNNING")
        event = {"submission_id": job} | error_event(RayApiUnreachableError("unreachable"))

        with pytest.raises(RayApiUnreachableError):
            task("sleep 20").execute_complete(context(store, max_tries=tries), event)
        assert client.get_job(job).status == (status if HAS_STORE else "STOPPED")


@pytest.mark.parametrize("poll_interval", [0.5, 30])
def test_kill_stops_the_job_and_ends_the_try(client: RayJobsClient, poll_interval: float):
    """``on_kill`` sends the stop, and ``execute`` ends soon for any poll_interval."""
    job = f"killed-{time.time_ns()}"
    operator = task("sleep 60", submission_id=job, poll_interval=poll_interval)

    def kill() -> None:
        wait_for(client, job, "RUNNING")
        time.sleep(2)
        operator.on_kill()

    killer = threading.Timer(3, kill)
    killer.start()
    with pytest.raises(RayJobStoppedError, match="Airflow ended this task, so a stop was requested for its Ray job"):
        operator.execute(context())
    killer.join()
    assert client.get_job(job).status == "STOPPED"


def test_kill_before_the_submission(client: RayJobsClient):
    """A kill before the submission submits nothing."""
    store = Store()
    operator = task("sleep 60")
    operator.on_kill()

    with pytest.raises(RayJobStoppedError, match="had no Ray job"):
        operator.execute(context(store))
    assert "ray_job" not in store.values


def test_kill_without_stop_on_kill(client: RayJobsClient):
    """With ``stop_on_kill=False`` the job runs to its end."""
    job = f"killed-{time.time_ns()}"
    operator = task("sleep 5", submission_id=job, stop_on_kill=False)

    def kill() -> None:
        wait_for(client, job, "RUNNING")
        operator.on_kill()

    killer = threading.Timer(3, kill)
    killer.start()
    assert operator.execute(context(Store())) == job
    killer.join()
    assert client.get_job(job).status == "SUCCEEDED"


def test_kill_without_stop_on_kill_before_the_submission(client: RayJobsClient):
    """A killed task submits nothing, also with ``stop_on_kill=False``."""
    operator = task("sleep 1", stop_on_kill=False)
    operator.on_kill()

    with pytest.raises(RayJobStoppedError, match="had no Ray job"):
        operator.execute(context(Store()))


def test_wrong_token_fails_at_once(monkeypatch: pytest.MonkeyPatch):
    """A wrong token at the submission is a final error, without a wait."""
    token = "marked-secret-0123456789abcdef"
    with RayHead(num_cpus=1, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        began = time.monotonic()
        with pytest.raises(RayApiAuthError) as caught:
            task().execute(context(Store(), max_tries=0))
        took = time.monotonic() - began

    assert isinstance(caught.value, AirflowFailException)
    assert took < 10


def test_stop_operator(client: RayJobsClient):
    """The operator waits for the job's end; an ended job is a success, an unknown one if missing_ok."""
    job = client.submit_job("sleep 60")
    wait_for(client, job, "RUNNING")
    stop = RayJobStopOperator(task_id="stop", submission_id=job)
    stop.execute(context())
    stop.execute(context())
    RayJobStopOperator(task_id="stop", submission_id="no-such-job").execute(context())

    assert client.get_job(job).status == "STOPPED"
    with pytest.raises(RayJobNotFoundError, match="does not know job no-such-job"):
        RayJobStopOperator(task_id="stop", submission_id="no-such-job", missing_ok=False).execute(context())


def test_delete_operator(client: RayJobsClient):
    """A running job is an error; an unknown one is a success if missing_ok."""
    job = client.submit_job("sleep 3")
    delete = RayJobDeleteOperator(task_id="delete", submission_id=job)

    with pytest.raises(RayJobNotTerminalError, match="has not ended"):
        delete.execute(context())
    client.follow_job(job)
    delete.execute(context())
    delete.execute(context())
    time.sleep(3)  # Ray would restore a record that is deleted earlier
    with pytest.raises(RayJobNotFoundError):
        client.get_job(job)
    with pytest.raises(RayJobNotFoundError):
        RayJobDeleteOperator(task_id="delete", submission_id=job, missing_ok=False).execute(context())
    delete.submission_id = ""
    with pytest.raises(ValueError, match="submission_id is empty"):
        delete.execute(context())
