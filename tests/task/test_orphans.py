"""Decide which jobs a cleanup stops or deletes: every row of the table."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.task.orphans import (
    DELETED,
    Action,
    OwnJob,
    Rules,
    TaskInstanceKey,
    decide,
    newest_jobs,
)

MINUTE = 60.0
NOW = 1_800_000_000_000
RULES = Rules(grace_period=10 * MINUTE, delete_older_than=60 * MINUTE)
KEY = TaskInstanceKey("nightly", "train", "run-1", 3)
METADATA = {
    "submission_nonce": "5f0c9a1b7d3e2468",
    "airflow_dag_id": "nightly",
    "airflow_task_id": "train",
    "airflow_run_id": "run-1",
    "airflow_map_index": "3",
    "airflow_try_number": "2",
    "airflow_deployment": "production",
    "airflow_may_outlive_task": "false",
}
FINISHED = ["success", "failed", "upstream_failed", "skipped", "removed", DELETED]
UNFINISHED = [
    "none", "scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule", "deferred",
    "a state of a newer Airflow",
]  # fmt: skip


def details(metadata: dict[str, str], *, status: str = "RUNNING", age: float = 3600, since_end: float | None = None):
    return JobDetails(
        JobType.SUBMISSION,
        JobStatus(status),
        "job-1",
        start_time=NOW - int(age * 1000),
        end_time=None if since_end is None else NOW - int(since_end * 1000),
        seen_at=NOW,
        metadata=metadata,
    )


def own(try_number: int = 2, *, may_outlive_task: str = "false", **facts: Any) -> OwnJob:
    changed = {"airflow_try_number": str(try_number), "airflow_may_outlive_task": may_outlive_task}
    job = OwnJob.of(details(METADATA | changed, **facts), "production")
    assert job is not None
    return job


def action(job: OwnJob, state: str | None = None, newest: OwnJob | None = None, rules: Rules = RULES) -> Action:
    return decide(job, newest or job, rules, state).action


@pytest.mark.parametrize(("status", "state"), [*product(["PENDING", "RUNNING"], FINISHED)])
def test_living_job_of_finished_task_instance_is_stopped(status: str, state: str):
    """A job that waits or runs is stopped if its task instance is finished or deleted. The reason names the state."""
    job = own(status=status)

    assert action(job) is Action.ASK
    assert action(job, state) is Action.STOP
    assert decide(job, job, RULES, state).reason == f"its task instance is {state}"


@pytest.mark.parametrize("state", UNFINISHED)
def test_job_of_unfinished_task_instance_is_left_alone(state: str):
    """A task instance that waits, runs or will run again needs its job, and the record of an ended one."""
    assert action(own(), state) is Action.LEAVE
    assert action(own(status="FAILED", since_end=2 * 3600), state) is Action.LEAVE


@pytest.mark.parametrize("state", [None, "failed"])
@pytest.mark.parametrize(
    "job",
    [
        pytest.param(own(age=599), id="within the grace period"),
        pytest.param(own(may_outlive_task="true"), id="may outlive its task"),
        pytest.param(own(status="PAUSED"), id="a status of a newer Ray"),
    ],
)
def test_job_that_is_never_stopped(job: OwnJob, state: str | None):
    """A young job, one that may outlive its task, and one in an unknown status are left alone in any state."""
    assert action(job, state) is Action.LEAVE


def test_job_without_its_times_is_left_alone():
    """Without the times of the head's answer, of the start or of the end, the cleanup changes nothing."""
    running, ended = own(), own(status="STOPPED", since_end=2 * 3600)
    for job, name in ((running, "seen_at"), (running, "start_time"), (ended, "seen_at"), (ended, "end_time")):
        assert action(replace(job, details=replace(job.details, **{name: None})), "failed") is Action.LEAVE


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
def test_job_that_a_newer_one_replaced_is_stopped(status: str):
    """Of two jobs of a task instance the older one is stopped, whether or not the newer one still runs."""
    newest = replace(own(3, status=status, age=1800), submission_id="job-2")
    decision = decide(own(2, age=3600), newest, RULES)

    assert decision.action is Action.STOP
    assert decision.reason == "job job-2 (try 3) replaced it"


@pytest.mark.parametrize(
    "newest",
    [
        pytest.param(own(3, age=599), id="the newer one is within the grace period"),
        pytest.param(own(1, age=1800), id="a frozen worker of an earlier try submitted late"),
        pytest.param(own(3, age=7200), id="the head's clock stepped back"),
        pytest.param(own(3, age=3600), id="the same moment"),
    ],
)
def test_job_that_may_be_the_needed_one_is_left_alone(newest: OwnJob):
    """Airflow's state decides if it is uncertain which of two jobs is newer, or a replacement has just begun."""
    assert action(own(2, age=3600), "running", newest) is Action.LEAVE
    assert action(own(2, age=3600), None, newest) is Action.ASK


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_old_record_of_finished_task_instance_is_deleted(status: str):
    """The record of a job that ended long ago is deleted if its task instance is finished."""
    old = own(status=status, age=7200, since_end=3600)

    assert action(old) is Action.ASK
    assert {action(old, state) for state in FINISHED} == {Action.DELETE}
    assert action(own(status=status, age=7200, since_end=3599), "success") is Action.LEAVE
    assert action(old, "success", rules=replace(RULES, delete_older_than=None)) is Action.LEAVE
    assert action(own(status=status, may_outlive_task="true", since_end=3600), "success") is Action.DELETE


def test_newest_job_of_each_task_instance():
    """The newest job is the last submission, ended ones included, in any order of the list."""
    first, second = own(1, age=3600), own(2, status="FAILED", age=1800)
    other = replace(first, task_instance=KEY._replace(map_index=4))

    assert newest_jobs([second, other, first]) == {KEY: second, other.task_instance: other}


@pytest.mark.parametrize(
    ("changes", "deployment"),
    [
        pytest.param({"airflow_deployment": "staging"}, "production", id="another Airflow"),
        pytest.param({"airflow_deployment": None}, "production", id="an older provider"),
        pytest.param({"submission_nonce": None}, "production", id="another program"),
        pytest.param({"airflow_run_id": None}, "production", id="no run"),
        pytest.param({"airflow_map_index": "x"}, "production", id="no map index"),
        pytest.param({"airflow_try_number": ""}, "production", id="no try"),
    ],
)
def test_job_of_another_submitter_is_not_ours(changes: dict[str, str | None], deployment: str):
    """Only a job with the name of this Airflow and a complete task instance in its metadata is ours."""
    metadata = {name: text for name, text in (METADATA | changes).items() if text is not None}

    assert OwnJob.of(details(metadata), deployment) is None
    assert OwnJob.of(replace(details(METADATA), submission_id=None), deployment) is None


def test_own_job_is_read_from_its_metadata():
    """The metadata names task instance and try. A job that does not say whether it may outlive its task may."""
    job = OwnJob.of(details(METADATA), "production")
    silent = OwnJob.of(
        details({name: METADATA[name] for name in METADATA if name != "airflow_may_outlive_task"}), "production"
    )

    assert job is not None
    assert (job.task_instance, job.try_number, job.may_outlive_task) == (KEY, 2, False)
    assert str(job) == "Ray job job-1 of nightly.train (run run-1, map index 3, try 2)"
    assert silent is not None
    assert silent.may_outlive_task


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (KEY, "running"),
        (KEY._replace(map_index=4), "none"),
        (KEY._replace(map_index=-1), "failed"),
        (KEY._replace(map_index=5), DELETED),
        (KEY._replace(run_id="run-2"), DELETED),
    ],
)
def test_state_in_the_answer_of_airflow(key: TaskInstanceKey, expected: str):
    """Airflow's answer has the states by run, task id and map index. What it does not name was deleted."""
    assert key.state_in({"run-1": {"train": "failed", "train_3": "running", "train_4": None}}) == expected
