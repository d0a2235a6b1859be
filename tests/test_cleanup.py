"""The cleanup of orphaned jobs and old records, on a real Ray head and in a real Airflow."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator, _ask_airflow
from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import JobDetails, RayJobsClient
from airflow_provider_rayjobs.task.orphans import TaskInstanceKey
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

States = dict[str, dict[str, str | None]]


class AirflowStates:
    """
    Answers as Airflow's API server does: the states of the tasks of one DAG, by run id and task id.

    :param looks: the states at each look of the cleanup; the last ones also count for later looks.
    """

    def __init__(self, *looks: States) -> None:
        self.looks = looks
        self.requests: list[tuple[str, list[str], list[str]]] = []

    def get_task_states(self, *, dag_id: str, task_ids: list[str], run_ids: list[str]) -> States:
        look = [asked[:2] for asked in self.requests].count((dag_id, task_ids))
        self.requests.append((dag_id, task_ids, run_ids))
        states = self.looks[min(look, len(self.looks) - 1)]
        return {run_id: states[run_id] for run_id in run_ids if run_id in states}


@pytest.fixture
def client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayJobsClient]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__DEPLOYMENT_NAME", "unit-test")
    with RayJobsClient(ray_head.address) as client:
        yield client


@pytest.fixture
def submit(client: RayJobsClient) -> Iterator[Callable[..., str]]:
    """Submit a job as a task instance of the DAG ``nightly`` does. Its records are deleted after the test."""
    jobs: list[str] = []

    def submit_job(run_id: str = "run-1", entrypoint: str = "sleep 900", *, try_number: int = 1, **changes: Any) -> str:
        metadata = {
            "airflow_dag_id": "nightly",
            "airflow_run_id": run_id,
            "airflow_task_id": "train",
            "airflow_map_index": "-1",
            "airflow_try_number": str(try_number),
            "airflow_deployment": "unit-test",
            "airflow_may_outlive_task": "false",
        }
        env_vars = changes.pop("env_vars", {})
        jobs.append(client.submit_job(entrypoint, metadata=metadata | changes, runtime_env={"env_vars": env_vars}))
        return jobs[-1]

    yield submit_job
    for job in jobs:
        with contextlib.suppress(RayJobsError):
            client.stop_job(job)
    for job in jobs:
        with contextlib.suppress(RayJobsError):
            wait_until(lambda job=job: client.get_job(job).status.is_terminal())
            client.delete_job(job)


def clean_up(*looks: States, **arguments: Any) -> Any:
    return clean_up_with(AirflowStates(*looks), **arguments)


def clean_up_with(airflow: AirflowStates, **arguments: Any) -> Any:
    given = {"task_id": "clean_up", "grace_period": 0, "recheck_delay": 0} | arguments
    return RayJobCleanupOperator(**given).execute({"ti": airflow})


def wait_until(is_true: Callable[[], Any], timeout: float = 90, explain: Callable[[], Any] = lambda: "") -> None:
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, f"not true within {timeout:g} s. {explain()}"
        time.sleep(0.3)


def has_started(client: RayJobsClient, *jobs: str) -> bool:
    return {str(client.get_job(job).status) for job in jobs} == {"RUNNING"}


@pytest.mark.ray
def test_orphaned_jobs_are_stopped_and_others_run_on(client: RayJobsClient, submit: Callable[..., str]):
    """The jobs of finished and deleted task instances are stopped, and a job that a newer one replaced."""
    replaced = submit("run-running")
    orphans = [submit("run-failed"), submit("run-deleted"), replaced]
    others = [
        submit("run-running", try_number=2),
        submit("run-failed", airflow_may_outlive_task="true"),
        submit("run-failed", airflow_deployment="another"),
        client.submit_job("sleep 900"),
    ]
    wait_until(lambda: has_started(client, *orphans, *others))

    summary = clean_up({"run-running": {"train": "running"}, "run-failed": {"train": "failed"}})

    assert summary == {"dry_run": False, "stopped": orphans[-1:] + orphans[:-1], "deleted": 0}
    assert {client.get_job(job).status for job in orphans} == {"STOPPED"}
    assert {client.get_job(job).status for job in others} == {"RUNNING"}
    client.stop_job(others[-1])


@pytest.mark.ray
def test_dry_run_names_the_jobs_and_changes_nothing(
    client: RayJobsClient, submit: Callable[..., str], capsys: pytest.CaptureFixture[str]
):
    """A dry run returns and logs what a real run would do, and changes nothing."""
    orphan, ended = submit(), submit("run-2", "true")
    wait_until(lambda: has_started(client, orphan) and client.get_job(ended).status == "SUCCEEDED")

    summary = clean_up({"run-2": {"train": "success"}}, delete_older_than=0, dry_run="True")

    assert summary == {"dry_run": True, "stopped": [orphan], "deleted": 1}
    assert client.get_job(orphan).status == "RUNNING"
    assert client.get_job(ended).status == "SUCCEEDED"
    log = capsys.readouterr().out
    assert f"Would stop Ray job {orphan} of nightly.train (run run-1, try 1): it is RUNNING for " in log
    assert "and its task instance is deleted." in log
    assert f"Would delete the records of ended jobs (1): {ended}." in log
    assert "Dry run: would stop 1 of 1 orphaned jobs, would delete 1 of 1 old records, 0 failures." in log


@pytest.mark.ray
@pytest.mark.parametrize("state", ["running", None])
def test_job_that_is_needed_at_the_second_look_runs_on(
    client: RayJobsClient, submit: Callable[..., str], state: str | None
):
    """A task instance that looked finished, and was cleared before the second look, keeps its job."""
    job = submit()
    wait_until(lambda: has_started(client, job))

    summary = clean_up({"run-1": {"train": "failed"}}, {"run-1": {"train": state}})

    assert summary["stopped"] == []
    assert client.get_job(job).status == "RUNNING"


@pytest.mark.ray
@pytest.mark.parametrize("failing_look", [1, 2])
def test_nothing_is_stopped_if_airflow_does_not_answer(
    client: RayJobsClient, submit: Callable[..., str], failing_look: int
):
    """An error of Airflow fails the task at either look. The task can be retried, as nothing was changed."""

    class FailingStates(AirflowStates):
        def get_task_states(self, **request: Any) -> States:
            answer = super().get_task_states(**request)
            if len(self.requests) == failing_look:
                raise RuntimeError("the API server does not answer")
            return answer

    job = submit()
    wait_until(lambda: has_started(client, job))

    with pytest.raises(RuntimeError, match="does not answer"):
        clean_up_with(FailingStates({"run-1": {"train": "failed"}}))
    assert client.get_job(job).status == "RUNNING"


@pytest.mark.ray
def test_one_failed_stop_does_not_prevent_the_others(client: RayJobsClient, submit: Callable[..., str]):
    """A job that does not stop in time fails the task after the other jobs were stopped."""
    stubborn = submit(entrypoint="trap '' TERM; sleep 900", env_vars={"RAY_JOB_STOP_WAIT_TIME_S": "20"})
    orphan = submit("run-2")
    wait_until(lambda: has_started(client, stubborn, orphan))

    with pytest.raises(RayJobsError, match=r"^Stopped 1 of 2 orphaned jobs, .* 1 failures\."):
        clean_up({}, stop_timeout=12)
    assert client.get_job(stubborn).status == "RUNNING"
    assert client.get_job(orphan).status == "STOPPED"


@pytest.mark.ray
def test_too_many_failures_end_the_run(client: RayJobsClient, submit: Callable[..., str]):
    """After five failures the cluster is at fault: the run ends, and leaves the other jobs to the next run."""
    jobs = [submit(f"run-{number}") for number in range(6)]
    wait_until(lambda: has_started(client, *jobs))

    with pytest.raises(RayJobsError, match=r"^Stopped 0 of 6 orphaned jobs, .* 5 failures\."):
        clean_up({}, stop_timeout=0)
    assert client.get_job(jobs[-1]).status == "RUNNING"


@pytest.mark.ray
def test_old_records_of_finished_task_instances_are_deleted(client: RayJobsClient, submit: Callable[..., str]):
    """The records of ended jobs are deleted by age, except those that a task instance may still read."""
    jobs = {run_id: submit(run_id, "exit 1") for run_id in ("run-failed", "run-deleted", "run-deferred")}
    foreign = submit("run-failed", "true", airflow_deployment="another")
    wait_until(lambda: all(client.get_job(job).status.is_terminal() for job in (*jobs.values(), foreign)))
    states: States = {"run-failed": {"train": "failed"}, "run-deferred": {"train": "deferred"}}

    assert clean_up(states, delete_older_than=None)["deleted"] == 0
    assert clean_up(states, delete_older_than="3600")["deleted"] == 0
    assert clean_up(states, delete_older_than=0)["deleted"] == 2
    assert {job.submission_id for job in client.list_jobs()} & {*jobs.values(), foreign} == {
        jobs["run-deferred"], foreign,
    }  # fmt: skip


def test_airflow_is_asked_about_one_task_and_twenty_runs_at_a_time():
    """Each request names one task, because answers about several are ambiguous, and as many runs as a URL can hold."""
    keys = [TaskInstanceKey("nightly", "train", f"run-{number:02}", -1) for number in range(21)]
    keys += [TaskInstanceKey("nightly", "train", "run-00", 3), TaskInstanceKey("nightly", "train_3", "run-00", -1)]
    airflow = AirflowStates({"run-00": {"train": "failed", "train_3": "running"}})

    states = _ask_airflow({"ti": airflow}, keys)

    assert sorted((task_ids, len(run_ids)) for _, task_ids, run_ids in airflow.requests) == [
        (["train"], 1), (["train"], 20), (["train_3"], 1),
    ]  # fmt: skip
    assert states.keys() == set(keys)
    assert (states[keys[0]], states[keys[-1]]) == ("failed", "running")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grace_period": "soon"}, "grace_period must be a number"),
        ({"recheck_delay": -1}, "recheck_delay must be a number of seconds"),
        ({"delete_older_than": "x"}, "delete_older_than must be a number"),
        ({"stop_timeout": None}, "stop_timeout must be a number of seconds"),
        ({"dry_run": "perhaps"}, "dry_run must be True or False"),
        ({}, r"\[ray_jobs\] deployment_name is not set: could not tell the jobs of this Airflow"),
    ],
)
def test_wrong_argument(arguments: dict[str, Any], message: str):
    """A wrong argument, and an Airflow without a name, fail the task before any request."""
    with pytest.raises(ValueError, match=message):
        clean_up({}, **arguments)


# -- in a real Airflow ------------------------------------------------------------------------------------------------


@pytest.mark.airflow
@pytest.mark.ray
def test_cleanup_stops_the_orphans_that_no_hook_sees(airflow: LocalAirflow, ray_head: RayHead):
    """
    A cleanup stops the jobs of a task that was marked while it waited for its retry, and of a rejected deferral.

    It stops the job of a DAG run that does not exist, too. It leaves the jobs of a running and of a released task
    alone, and those of another Airflow. A dry run changes nothing.
    """
    dag_id, run_id = "leaves_orphans", airflow.trigger("leaves_orphans")
    with RayJobsClient(ray_head.address) as client:

        def jobs() -> dict[str, JobDetails]:
            found = [job for job in client.list_jobs() if job.metadata.get("airflow_dag_id") == dag_id]
            return {job.metadata["airflow_task_id"]: job for job in found}

        def running() -> set[str]:
            return {task_id for task_id, job in jobs().items() if job.status == "RUNNING"}

        def explain() -> str:
            instances = airflow.task_instances(dag_id, run_id)
            logs = [airflow.log_text(dag_id, run_id, one["task_id"], map_index=one["map_index"]) for one in instances]
            return "\n".join([*logs, str({one["task_id"]: one["state"] for one in instances}), str(jobs())])

        tasks = {"waits_for_retry", "is_rejected", "does_not_wait", "is_mapped"}
        wait_until(lambda: running() == tasks, 300, explain)
        airflow.wait_for_task(dag_id, run_id, "does_not_wait", states=("success",))
        airflow.wait_for_task(dag_id, run_id, "is_rejected", states=("failed",))
        metadata = {**jobs()["is_mapped"].metadata, "airflow_run_id": "deleted", "airflow_task_id": "deleted"}
        del metadata["submission_nonce"]
        client.submit_job("sleep 900", metadata=metadata)
        client.submit_job("sleep 900", metadata=metadata | {"airflow_task_id": "foreign", "airflow_deployment": "x"})
        # The task's process dies. Its supervisor reports that, and Airflow waits for the retry.
        os.kill(airflow.task_instance(dag_id, run_id, "waits_for_retry")["pid"], signal.SIGKILL)
        airflow.wait_for_task(dag_id, run_id, "waits_for_retry", states=("up_for_retry",))
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/waits_for_retry"
        airflow.api("PATCH", path, json={"new_state": "failed"})
        everything, orphans = tasks | {"deleted", "foreign"}, {"waits_for_retry", "is_rejected", "deleted"}
        wait_until(lambda: running() == everything, 300, explain)

        for is_dry_run in (True, False):
            cleanup = airflow.trigger("cleans_up", conf={"dry_run": is_dry_run})
            state = airflow.wait_for_run("cleans_up", cleanup)
            log = airflow.log_text("cleans_up", cleanup, "clean_up")
            assert state == "success", log
            summary = airflow.xcoms("cleans_up", cleanup, "clean_up")["return_value"]
            ids = {str(job.submission_id): task_id for task_id, job in jobs().items()}
            assert {ids[job] for job in summary["stopped"] if job in ids} == orphans
            assert running() == (everything if is_dry_run else everything - orphans)
            for task_id in orphans - {"deleted"}:
                assert f"of {dag_id}.{task_id} (run {run_id}, try 1): it is RUNNING for " in log

        for job in jobs().values():
            client.stop_job(str(job.submission_id))
    airflow.wait_for_run(dag_id, run_id)
