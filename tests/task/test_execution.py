"""What a try does about the job of the last one, against a real Ray head; in a real Airflow: tests/faults."""

from __future__ import annotations

import json
import threading
import time
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
needs_store = pytest.mark.skipif(not HAS_STORE, reason="Airflow 3.3 brought the task state store")


class Store:
    """Airflow's task state store, as far as it is used: JSON in, JSON out."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def get(self, key: str) -> Any:
        return json.loads(self.kept[key]) if key in self.kept else None

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        self.kept[key] = json.dumps(value)

    @property
    def note(self) -> dict[str, Any]:
        return self.get("ray_job")


def context(store: Store | None = None, *, try_number: int = 1, max_tries: int = 2) -> dict[str, Any]:
    """A try of one task instance, as Airflow gives it."""
    date = datetime(2026, 1, 2, tzinfo=UTC)
    ti = SimpleNamespace(
        dag_id="nightly", task_id="train", run_id="run-1", map_index=-1, try_number=try_number, max_tries=max_tries,
        xcom_push=lambda key, value: None,
    )  # fmt: skip
    given = {
        "ti": ti,
        "task_instance": ti,
        "dag_run": SimpleNamespace(run_id="run-1", logical_date=date, start_date=date),
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
    """A task instance whose first try submitted a job and was lost."""
    store = Store()
    with pytest.raises(TaskDeferred):
        task("sleep 6", deferrable=True).execute(context(store))
    job = store.note["submission_id"]
    wait_for(client, job, "RUNNING")
    return store, job


def wait_for(client: RayJobsClient, job: str, status: str) -> JobDetails:
    deadline = time.monotonic() + 60
    while (details := client.get_job(job)).status != status:
        assert time.monotonic() < deadline, f"{job} is {details.status}"
        time.sleep(0.2)
    return details


@needs_store
def test_what_is_remembered_is_the_whole_story_of_the_job(client: RayJobsClient):
    """Id, round, address, session, and that it was accepted and delivered; the job's metadata says whose it is."""
    store = Store()
    job = task().execute(context(store))
    note = store.note

    assert note["submission_id"] == job
    assert note["round"] == {"max_tries": 2, "run_start": "2026-01-02T00:00:00+00:00"}
    assert note["address"] == client.address
    assert note["session"] == client.get_version().session_name
    assert (note["accepted"], note["abandoned"], note["delivered"]) == (True, False, True)
    metadata = client.get_job(job).metadata
    assert (metadata["airflow_max_tries"], metadata["airflow_run_start_date"]) == ("2", "2026-01-02T00:00:00+00:00")
    assert metadata["submission_nonce"] == note["nonce"]


@needs_store
def test_a_retry_follows_the_job_that_runs(client: RayJobsClient, running: tuple[Store, str]):
    """A second try of the same round submits nothing and ends with the first one's job."""
    store, job = running

    assert task("exit 1").execute(context(store, try_number=2)) == job
    assert store.note["delivered"]


@needs_store
def test_a_success_that_nobody_took_is_taken(client: RayJobsClient, running: tuple[Store, str]):
    """The job ended after its submitter was lost: the retry is green without another job, and a Clear then submits."""
    store, job = running
    wait_for(client, job, "SUCCEEDED")

    assert task("exit 1").execute(context(store, try_number=2)) == job
    assert task().execute(context(store, try_number=3)) != job


@needs_store
def test_a_clear_stops_what_still_runs_and_submits_anew(client: RayJobsClient, running: tuple[Store, str]):
    """Another round never follows the job of the one before."""
    store, job = running
    other = task().execute(context(store, try_number=2, max_tries=4))

    assert other != job
    assert client.get_job(job).status == "STOPPED"


@needs_store
def test_a_job_that_is_not_ours_is_left_alone(client: RayJobsClient, running: tuple[Store, str]):
    """The metadata of the job under the remembered id names another submission: it runs on."""
    store, job = running
    store.set("ray_job", store.note | {"nonce": "somebody else's"})
    other = task().execute(context(store, try_number=2, max_tries=4))

    assert other != job
    assert client.get_job(job).status in ("RUNNING", "SUCCEEDED")


@needs_store
def test_a_job_that_was_given_up_is_never_followed_again(client: RayJobsClient, running: tuple[Store, str]):
    """A retry waits for the end of what an earlier try gave up, and submits anew."""
    store, job = running
    store.set("ray_job", store.note | {"abandoned": True})

    assert task().execute(context(store, try_number=2)) != job
    assert client.get_job(job).status == "STOPPED"


@needs_store
def test_a_submission_that_never_arrived_is_sent_under_its_own_id(client: RayJobsClient):
    """Remembered and not known to Ray: the same id and nonce make one job of a request that is still on its way."""
    store = Store()
    task().execute(context(store))
    lost = store.note | {"submission_id": f"lost-{time.time_ns()}", "accepted": False, "delivered": False}
    store.set("ray_job", lost)

    assert task().execute(context(store, try_number=2)) == lost["submission_id"]
    assert client.get_job(lost["submission_id"]).metadata["submission_nonce"] == lost["nonce"]


@needs_store
def test_an_id_that_is_sent_again_is_not_delivered_yet(client: RayJobsClient):
    """A Clear after a success whose submission was never answered, and whose record is gone, begins anew."""
    store = Store()
    task().execute(context(store))
    lost = store.note | {"submission_id": f"lost-{time.time_ns()}", "accepted": False, "delivered": True}
    store.set("ray_job", lost)
    with pytest.raises(TaskDeferred):
        task(deferrable=True).execute(context(store, try_number=2, max_tries=4))

    assert store.note["submission_id"] == lost["submission_id"]
    assert (store.note["accepted"], store.note["delivered"]) == (True, False)


@needs_store
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"accepted": True}, id="deleted by somebody"),
        pytest.param({"accepted": True, "session": "another"}, id="lost with its cluster"),
        pytest.param({"accepted": False, "session": "another"}, id="never arrived at a cluster that is gone"),
        pytest.param({"address": "http://elsewhere:8265"}, id="another address"),
    ],
)
def test_a_job_that_is_gone_is_submitted_anew(client: RayJobsClient, change: dict[str, Any]):
    """Whatever made the job go, the retry has a new one under a new id."""
    store = Store()
    task().execute(context(store))
    store.set("ray_job", store.note | {"submission_id": "gone", "delivered": False} | change)
    job = task().execute(context(store, try_number=2))

    assert job.startswith("nightly.train-try2-")
    assert client.get_job(job).status == "SUCCEEDED"


@needs_store
def test_nothing_is_submitted_while_ray_cannot_be_asked(client: RayJobsClient, running: tuple[Store, str]):
    """A head that cannot be reached may still run the job: an error, after the time that was allowed."""
    store, _ = running
    store.set("ray_job", store.note | {"address": "http://127.0.0.1:9"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        with pytest.raises(RayApiUnreachableError, match="No usable answer about Ray job"):
            task(unreachable_timeout=2).execute(context(store, try_number=2))


@needs_store
def test_an_id_of_the_users_is_numbered_from_the_second_submission_on(client: RayJobsClient):
    """The first submission has the id as it was given; later ones append -2, -3."""
    store, given = Store(), f"given-{time.time_ns()}"
    ids = [
        task(submission_id=given).execute(context(store, try_number=number, max_tries=number * 2))
        for number in (1, 2, 3)
    ]

    assert ids == [given, f"{given}-2", f"{given}-3"]


def test_without_a_memory_an_id_of_the_users_is_numbered_by_the_try(client: RayJobsClient):
    """Where nothing is remembered, each try submits a new job under an id of its own."""
    given = f"given-{time.time_ns()}"
    ids = [task(submission_id=given, durable=False).execute(context(Store(), try_number=number)) for number in (1, 2)]

    assert ids == [given, f"{given}-2"]


def test_an_id_that_belongs_to_somebody_else_fails_for_good(client: RayJobsClient):
    """The other job is neither followed nor stopped, and no retry is made."""
    job = client.submit_job("sleep 3", submission_id=f"theirs-{time.time_ns()}")

    with pytest.raises(RayJobExistsError) as caught:
        task(submission_id=job).execute(context(Store(), try_number=1, max_tries=0))
    assert isinstance(caught.value, AirflowFailException)
    assert client.follow_job(job).status == "SUCCEEDED"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        pytest.param({}, RayJobEntrypointError, id="an error that is retried"),
        pytest.param({"fail_on_exit_code": [3, 4]}, AirflowFailException, id="an exit code that ends the retries"),
        pytest.param({"skip_on_exit_code": "3"}, AirflowSkipException, id="an exit code that skips"),
    ],
)
def test_exit_codes_choose_how_the_task_ends(client: RayJobsClient, arguments: dict[str, Any], kind: type[Exception]):
    """The entrypoint's exit code is an error, the end of all retries, or a skip, as the task says."""
    with pytest.raises(kind) as caught:
        task("exit 3", **arguments).execute(context(Store()))

    assert "FAILED with exit code 3" in str(caught.value)
    assert isinstance(caught.value, AirflowFailException) == (kind is AirflowFailException)


def test_a_limit_stops_the_job_and_says_which_and_why(client: RayJobsClient):
    """A job that finds no place is given up, with what it asks for against what the cluster has."""
    store = Store()

    with pytest.raises(RayJobTimeoutError) as caught:
        task(entrypoint_resources={"nowhere": 1}, pending_timeout=2).execute(context(store))
    assert caught.value.limit == "pending_timeout"
    assert "pending_timeout is 2 s" in str(caught.value)
    assert "requests 1 nowhere" in str(caught.value)
    assert "No node has enough nowhere." in str(caught.value)
    assert not HAS_STORE or store.note["abandoned"]


def test_a_deferred_jobs_limit_is_acted_on_by_the_worker(client: RayJobsClient):
    """The trigger tells; the worker that resumes remembers, stops the job, and raises for Airflow's limit Airflow's."""
    store = Store()
    with pytest.raises(TaskDeferred) as deferred:
        task("sleep 60", deferrable=True, execution_timeout=timedelta(seconds=60)).execute(context(store))
    job = deferred.value.trigger.submission_id
    error = RayJobTimeoutError("over", limit="execution_timeout", details=wait_for(client, job, "RUNNING"))

    with pytest.raises(AirflowTaskTimeout) as caught:
        task("sleep 60").execute_complete(
            context(store), json.loads(json.dumps({"submission_id": job} | error_event(error)))
        )
    assert isinstance(caught.value, RayJobTimeoutError)
    assert client.get_job(job).status == "STOPPED"


def test_a_job_that_is_alive_on_the_last_try_is_stopped(client: RayJobsClient):
    """An error that is not the job's end leaves it to the next try; where there is none, no orphan is left."""
    for store, tries, status in ((Store(), 2, "RUNNING"), (Store(), 0, "STOPPED")):
        with pytest.raises(TaskDeferred) as deferred:
            task("sleep 20", deferrable=True).execute(context(store, max_tries=tries))
        job = deferred.value.trigger.submission_id
        wait_for(client, job, "RUNNING")
        event = {"submission_id": job} | error_event(RayApiUnreachableError("away"))

        with pytest.raises(RayApiUnreachableError):
            task("sleep 20").execute_complete(context(store, max_tries=tries), event)
        assert client.get_job(job).status == (status if HAS_STORE else "STOPPED")


@pytest.mark.parametrize("poll_interval", [0.5, 30])
def test_a_kill_stops_the_job_and_the_interrupted_try_says_so(client: RayJobsClient, poll_interval: float):
    """``on_kill`` sends the stop; ``execute`` notices within its pause, however long that is, and ends."""
    job = f"killed-{time.time_ns()}"
    operator = task("sleep 60", submission_id=job, poll_interval=poll_interval)

    def kill() -> None:
        wait_for(client, job, "RUNNING")
        time.sleep(2)
        operator.on_kill()

    killer = threading.Timer(3, kill)
    killer.start()
    with pytest.raises(RayJobStoppedError, match="Airflow ended this task, and so its Ray job"):
        operator.execute(context())
    killer.join()
    assert client.get_job(job).status == "STOPPED"


def test_a_kill_before_the_submission_leaves_no_job(client: RayJobsClient):
    """The mark that a kill leaves is seen before anything is sent."""
    store = Store()
    operator = task("sleep 60")
    operator.on_kill()

    with pytest.raises(RayJobStoppedError, match="had no Ray job"):
        operator.execute(context(store))
    assert "ray_job" not in store.kept


def test_a_kill_is_nothing_to_a_task_that_lets_its_job_live(client: RayJobsClient):
    """With ``stop_on_kill=False`` the job runs to its end."""
    operator = task("sleep 1", stop_on_kill=False)
    operator.on_kill()
    job = operator.execute(context(Store()))

    assert client.get_job(job).status == "SUCCEEDED"


def test_a_wrong_token_fails_at_once_and_for_good(monkeypatch: pytest.MonkeyPatch):
    """At the submission no waiting and no retry mends credentials."""
    token = "marked-secret-0123456789abcdef"
    with RayHead(num_cpus=1, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        began = time.monotonic()
        with pytest.raises(RayApiAuthError) as caught:
            task().execute(context(Store(), max_tries=0))
        took = time.monotonic() - began

    assert isinstance(caught.value, AirflowFailException)
    assert took < 10


def test_stopping_a_job_twice_is_stopping_it_once(client: RayJobsClient):
    """The operator waits for the job's end; one that has ended is no error, and an unknown one only on demand."""
    job = client.submit_job("sleep 60")
    wait_for(client, job, "RUNNING")
    stop = RayJobStopOperator(task_id="stop", submission_id=job)
    stop.execute(context())
    stop.execute(context())
    RayJobStopOperator(task_id="stop", submission_id="no-such-job").execute(context())

    assert client.get_job(job).status == "STOPPED"
    with pytest.raises(RayJobNotFoundError, match="does not know job no-such-job"):
        RayJobStopOperator(task_id="stop", submission_id="no-such-job", missing_ok=False).execute(context())


def test_deleting_a_job_twice_is_deleting_it_once(client: RayJobsClient):
    """A job that has not ended is a clear error, one that is gone is none unless it is asked to be."""
    job = client.submit_job("sleep 3")
    delete = RayJobDeleteOperator(task_id="delete", submission_id=job)

    with pytest.raises(RayJobNotTerminalError, match="has not ended"):
        delete.execute(context())
    client.follow_job(job)
    delete.execute(context())
    delete.execute(context())
    time.sleep(3)  # a record that is deleted too soon comes back
    with pytest.raises(RayJobNotFoundError):
        client.get_job(job)
    with pytest.raises(RayJobNotFoundError):
        RayJobDeleteOperator(task_id="delete", submission_id=job, missing_ok=False).execute(context())
    with pytest.raises(ValueError, match="no job is named"):
        RayJobDeleteOperator(task_id="delete", submission_id="").execute(context())
