"""The tables of the documentation about retries and errors: each row asks the code, or runs a try."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException, AirflowSkipException
from test_operators import Store, try_from

from airflow_provider_rayjobs import exceptions
from airflow_provider_rayjobs.exceptions import Delivery, RayJobsError
from airflow_provider_rayjobs.in_job import FAIL_EXIT_CODE
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.access import CredentialsError
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task.attempts import (
    Action,
    ClusterAnswer,
    JobRecord,
    RetryGeneration,
    ThisTry,
    decide,
)
from airflow_provider_rayjobs.task.outcomes import error_for_outcome, is_mistake, to_task_error
from airflow_provider_rayjobs.testing import FakeRay, Plan

Rows = Iterator[tuple[str, ...]]

# -- which job belongs to a try ------------------------------------------------------------------------------------

_GENERATION = RetryGeneration(3, "2026-01-02T00:00:00+00:00", 1)
_CLEARED = replace(_GENERATION, max_tries=7, clear_number=2)
_RECORD = JobRecord(JobRef("http://ray-head:8265", "a-job", "session_1", "ours"), "", _GENERATION, accepted=True)
_RETRY = ThisTry(_GENERATION, final_exit_codes=frozenset({2}))
_CLEAR = replace(_RETRY, generation=_CLEARED)
_DOES = {
    Action.SUBMIT: "submits a new job",
    Action.RESUBMIT: "submits the same job again, under its id",
    Action.REATTACH: "**follows the job**",
    Action.REPLACE: "stops the job, waits for its end, and submits a new one",
}


def _job(status: str, exit_code: int | None = None, nonce: str = "ours") -> ClusterAnswer:
    details = JobDetails(JobType.SUBMISSION, JobStatus(status), metadata={NONCE: nonce}, driver_exit_code=exit_code)
    return ClusterAnswer(details, "session_1")


def _row(finds: str, record: JobRecord | None, answer: ClusterAnswer | None, this: ThisTry) -> tuple[str, str, str]:
    decision = decide(record, answer, this)
    does = _DOES.get(decision.action)
    if does is None:
        assert decision.action is Action.FINISH
        has_succeeded = answer is not None and answer.job is not None and answer.job.status == JobStatus.SUCCEEDED
        does = "**takes its success**, submits nothing" if has_succeeded else "**ends as the argument says**, no job"
    fact = decision.reason.removeprefix("Ray job a-job of an earlier try ")
    return finds, does, f"`… {fact}`" if fact else ""


def retries() -> Rows:
    yield "the retry finds", "it", "its log: `Ray job … of an earlier try …`"
    yield _row("no job: the last try failed before it submitted one", None, None, _RETRY)
    yield _row("RUNNING", _RECORD, _job("RUNNING"), _RETRY)
    yield _row("PENDING", _RECORD, _job("PENDING"), _RETRY)
    yield _row("SUCCEEDED", _RECORD, _job("SUCCEEDED"), _RETRY)
    yield _row(
        "SUCCEEDED, but its result can never be read", replace(_RECORD, unusable=True), _job("SUCCEEDED"), _RETRY
    )
    yield _row("FAILED", _RECORD, _job("FAILED", 1), _RETRY)
    yield _row(
        "FAILED with an exit code of `fail_on_exit_code` or `skip_on_exit_code`, after its worker was lost",
        _RECORD, _job("FAILED", 2), _RETRY,
    )  # fmt: skip
    yield _row("STOPPED", _RECORD, _job("STOPPED"), _RETRY)
    abandoned = replace(_RECORD, abandoned=True)
    yield _row("a time limit expired, and the job has not ended", abandoned, _job("RUNNING"), _RETRY)
    gone = ClusterAnswer(None, "session_1")
    yield _row("Ray does not know the job any more", _RECORD, gone, _RETRY)
    yield _row("Ray does not know the job after its time limit", abandoned, gone, _RETRY)
    yield _row(
        "Ray does not know the job, and never confirmed it (a lost answer)",
        replace(_RECORD, accepted=False), gone, _RETRY,
    )  # fmt: skip
    yield _row("the head was restarted, and lost the job", _RECORD, ClusterAnswer(None, "session_2"), _RETRY)
    yield _row("another job has the id", _RECORD, _job("RUNNING", nonce="another"), _RETRY)


def clears() -> Rows:
    yield "the try after a Clear finds", "it", "its log: `Ray job … of an earlier try …`"
    yield _row("PENDING or RUNNING", _RECORD, _job("RUNNING"), _CLEAR)
    yield _row(
        "PENDING or RUNNING, with `stop_on_kill=False`", _RECORD, _job("RUNNING"), replace(_CLEAR, stop_on_kill=False)
    )
    yield _row("SUCCEEDED", _RECORD, _job("SUCCEEDED"), _CLEAR)
    yield _row("FAILED, whatever its exit code", _RECORD, _job("FAILED", 2), _CLEAR)
    yield _row("STOPPED", _RECORD, _job("STOPPED"), _CLEAR)


# -- a try that Ray or Airflow does not answer ------------------------------------------------------------------------


class _WorkerLost(BaseException):
    """The process of the first try ends."""


@dataclass
class _Trial:
    """Two tries of a task. The worker of the first one is lost while its job runs."""

    fake: FakeRay
    other: FakeRay | None = None
    store: Any = field(default_factory=Store)
    arguments: dict[str, Any] = field(default_factory=dict)
    max_tries: int = 3

    def first_try(self) -> None:
        def lose_worker(method: str, path: str) -> None:
            if self.fake.jobs and method == "GET" and path.startswith("/api/jobs/"):
                raise _WorkerLost

        self.fake.on_request = lose_worker
        try:
            self._execute(max_tries=3)
        except _WorkerLost:
            self.fake.on_request = lambda *_: None

    def second_try(self) -> str:
        """Return what the second try does, in words."""
        before = self.fake.jobs
        error = ""
        try:
            self._execute(max_tries=self.max_tries)
        except Exception as raised:  # noqa: BLE001  (shown)
            name = type(raised).__name__
            error = "fails with the error of the store" if name == "OSError" else f"fails with `{name}`"
        new = self.fake.jobs[len(before) :] + (self.other.jobs if self.other else [])
        if error:
            assert new == []
            return f"{error}, submits nothing"
        [first] = before
        runs_on = "; the first one runs on" if first.stop_accepted is None else ""
        return f"submits a new job{runs_on}" if new else "**follows the job**, where it was submitted"

    def _execute(self, max_tries: int) -> None:
        given = {"task_id": "train", "entrypoint": "true", "poll_interval": 0.01, "unreachable_timeout": 0}
        operator = RayJobSubmitOperator(**given | self.arguments)
        operator.execute(try_from(0, self.store, task_id="train", max_tries=max_tries))


def _lose_connection(method: str, path: str) -> None:
    raise ConnectionError("connection refused")


def _edit_connection(host: str) -> None:
    os.environ["AIRFLOW_CONN_RAY_JOBS_DEFAULT"] = json.dumps({"conn_type": "ray_jobs", "host": host})


def _ray_is_silent(trial: _Trial, _: ExitStack) -> None:
    trial.fake.on_request = _lose_connection


def _does_not_stop(trial: _Trial, _: ExitStack) -> None:
    trial.max_tries, trial.arguments = 7, {"stop_timeout": 0.1}


def _moved(trial: _Trial, _: ExitStack) -> None:
    _edit_connection("http://new-name:8265")


def _other_cluster(trial: _Trial, stack: ExitStack) -> None:
    trial.other = stack.enter_context(FakeRay("http://other-cluster:8265"))
    trial.other.restart()  # a Ray session of its own
    _edit_connection(trial.other.address)


def _other_cluster_and_first_gone(trial: _Trial, stack: ExitStack) -> None:
    _other_cluster(trial, stack)
    _ray_is_silent(trial, stack)


def _undefined(trial: _Trial, _: ExitStack) -> None:
    trial.arguments = {"ray_conn_id": "deleted"}


def _store_is_silent(trial: _Trial, stack: ExitStack) -> None:
    stack.enter_context(mock.patch.object(trial.store, "get", side_effect=OSError, create=True))


def _no_id(trial: _Trial, _: ExitStack) -> None:
    trial.store["ray_job"] = {"written": "by a broken backend"}


def _no_store(trial: _Trial, _: ExitStack) -> None:
    trial.store = None


_DIFFICULT: dict[str, Callable[[_Trial, ExitStack], None]] = {
    "Ray does not answer for `unreachable_timeout`": _ray_is_silent,
    "the job that it must replace does not end within `stop_timeout`": _does_not_stop,
    "the connection has another address: that of the same cluster (the same Ray session)": _moved,
    "the connection leads to another cluster, and the first one answers": _other_cluster,
    "the connection leads to another cluster, and the first one does not answer": _other_cluster_and_first_gone,
    "the connection is not defined, or its secrets backend cannot be read": _undefined,
    "Airflow's task state store cannot be read": _store_is_silent,
    "the job record in the store holds no submission id": _no_id,
    "no task state store: Airflow 3.1 and 3.2, or `durable=False`": _no_store,
}


def difficulties() -> Rows:
    yield "the worker of the first try was lost, its job runs, and", "the next try"
    for finds, prepare in _DIFFICULT.items():
        with ExitStack() as stack:
            fake = stack.enter_context(FakeRay())
            fake.plan("train", Plan(runs=3600, stop_takes=math.inf))
            trial = _Trial(fake)
            trial.first_try()
            prepare(trial, stack)
            yield finds, trial.second_try()


# -- errors ------------------------------------------------------------------------------------------------------------


_SAMPLES = Path(__file__).parent / "samples" / "2.60.0"


def _failed(
    error_type: str | None = None, status: str = "FAILED", exit_code: int | None = None, message: str | None = None
) -> RayJobsError:
    details = JobDetails(
        JobType.SUBMISSION, JobStatus(status), error_type=error_type, driver_exit_code=exit_code, message=message
    )
    error = error_for_outcome(details, "http://ray-head:8265")
    assert error is not None
    return error


def _refused(name: str, status_code: int, delivery: Delivery) -> RayJobsError:
    error: RayJobsError = getattr(exceptions, name)("no", status_code=status_code, delivery=delivery)
    return error


def _function(exit_code: int) -> RayJobsError:
    details = JobDetails(JobType.SUBMISSION, JobStatus.FAILED, driver_exit_code=exit_code)
    return exceptions.RayJobFunctionError("train raised", details=details, exception_types=("ValueError",))


_ERRORS: dict[str, Exception] = {
    "the entrypoint ended with a non-zero exit code": _failed("JOB_ENTRYPOINT_COMMAND_ERROR", exit_code=1),
    "… with one of `fail_on_exit_code`": _failed("JOB_ENTRYPOINT_COMMAND_ERROR", exit_code=2),
    "… with one of `skip_on_exit_code`": _failed("JOB_ENTRYPOINT_COMMAND_ERROR", exit_code=99),
    "the function of `@task.ray_job` raised an exception": _function(1),
    "… of the class `AirflowFailException`": _function(FAIL_EXIT_CODE),
    "the runtime environment could not be set up": _failed("RUNTIME_ENV_SETUP_FAILURE"),
    "Ray refused the runtime environment": _failed(
        "JOB_SUPERVISOR_ACTOR_START_FAILURE", message=(_SAMPLES / "runtime_env_refused.txt").read_text()
    ),
    "no node had the requested resources in time": _failed("JOB_SUPERVISOR_ACTOR_START_TIMEOUT"),
    "the process that runs the entrypoint on the cluster died": _failed("JOB_SUPERVISOR_ACTOR_DIED"),
    "the job FAILED, and Ray names no cause": _failed(),
    "a user or a program stopped the job": _failed(status="STOPPED"),
    "it SUCCEEDED, but its result is missing or unreadable": exceptions.RayJobResultError("none", is_final=True),
    "the job died with its head, or another job has its id": exceptions.RayJobLostError("lost"),
    "the cluster does not know the job": _refused("RayJobNotFoundError", 404, Delivery.REFUSED),
    "a time limit expired": exceptions.RayJobTimeoutError("late", limit="job_timeout"),
    "the job that must be replaced did not end": _refused("RayJobNotTerminalError", 0, Delivery.REFUSED),
    "the cluster could not be reached": exceptions.RayApiUnreachableError("away"),
    "TLS handshake failed, at the submission": exceptions.RayApiTLSError("no"),
    "no Ray dashboard at the address, at the submission": _refused("RayApiAddressError", 404, Delivery.FOREIGN),
    "Ray refused the credentials, at the submission": _refused("RayApiAuthError", 403, Delivery.REFUSED),
    "a reverse proxy refused the credentials": _refused("RayApiAuthError", 403, Delivery.FOREIGN),
    "Ray refused the submission": _refused("RayApiRejectedError", 400, Delivery.REFUSED),
    "a reverse proxy refused the submission": _refused("RayApiRejectedError", 413, Delivery.FOREIGN),
    "the `submission_id` belongs to another job": _refused("RayJobExistsError", 500, Delivery.REFUSED),
    "local code could not be read, packed or stored": exceptions.RayPackageError("no"),
    "a mistake in the DAG, the connection or the configuration": ValueError("no"),
    "a token file, a certificate or the `auth` class cannot be used at the moment": CredentialsError("no"),
    "the connection is not defined, or its secrets backend cannot be read": AirflowNotFoundException("no"),
}


def errors() -> Rows:
    yield "what happened", "class", "result"
    for fact, error in _ERRORS.items():
        raised = to_task_error(error, SimpleNamespace(), fail_on=(2,), skip_on=(99,))
        if isinstance(raised, AirflowSkipException):
            end = "the task is skipped"
        elif is_mistake(error) or isinstance(raised, AirflowFailException):
            end = "the task fails at once"
        else:
            end = "the try fails"
        yield fact, f"`{'ValueError' if isinstance(error, ValueError) else type(error).__name__}`", end
