"""Which errors are worth a retry."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_rayjobs.task.attempts import HAS_STORE

if not HAS_STORE:
    pytest.skip("retry policies came with Airflow 3.3, as the store did", allow_module_level=True)

from airflow.sdk import BaseOperator, ExceptionRetryPolicy, RetryAction, RetryRule

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiRejectedError,
    RayApiUnreachableError,
    RayJobEntrypointError,
    RayJobExistsError,
    RayJobFailedError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobRuntimeEnvError,
    RayJobsError,
    RayJobStoppedError,
    RayJobSupervisorDiedError,
    RayJobTimeoutError,
    RayJobUnschedulableError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.retries import RayJobRetryPolicy
from airflow_provider_rayjobs.task.outcomes import is_last_try, to_task_error


def code_failed(exit_code: int | None) -> RayJobEntrypointError:
    details = JobDetails(JobType.SUBMISSION, JobStatus.FAILED, driver_exit_code=exit_code)
    return RayJobEntrypointError("code", details=details)


def decided(policy: RayJobRetryPolicy, error: BaseException, **task: Any) -> RetryAction:
    context: Any = {"task": SimpleNamespace(**task)}
    return policy.evaluate(error, 1, 3, context).action


FAILS = [
    RayApiRejectedError("no", status_code=400),
    RayApiAuthError("token", status_code=401),
    RayApiAddressError("a page"),
    RayJobExistsError("taken"),
]
RETRIES = [RayJobLostError("lost"), RayJobSupervisorDiedError("died"), RayApiUnreachableError("away")]
OTHERS = [
    RayJobsError("odd"),
    RayJobNotFoundError("gone"),
    RayJobFailedError("failed"),
    RayJobRuntimeEnvError("env"),
    RayJobUnschedulableError("no place"),
    RayJobStoppedError("stopped"),
    RayJobTimeoutError("late", limit="job_timeout"),
    code_failed(3),
    ValueError("a wrong argument"),
]


@pytest.mark.parametrize("default", list(RetryAction))
@pytest.mark.parametrize(
    ("error", "action"),
    [
        *((error, RetryAction.FAIL) for error in FAILS),
        *((error, RetryAction.RETRY) for error in RETRIES),
        *((error, None) for error in OTHERS),
    ],
    ids=repr,
)
def test_defaults(error: BaseException, action: RetryAction | None, default: RetryAction) -> None:
    """What no retry can mend fails, what is the cluster's fault is tried again, and the rest is as it is said."""
    policy = RayJobRetryPolicy(default=default)

    assert decided(policy, error) is (action or default)
    assert policy.evaluate(error, 1, 3).action is (action or default)
    assert bool(policy.evaluate(error, 1, 3).reason) is (action is not None)


def test_the_rest_is_as_the_task_says() -> None:
    """Without a default the rest is Airflow's concern."""
    assert decided(RayJobRetryPolicy(), OTHERS[0]) is RetryAction.DEFAULT


def test_rules_come_first() -> None:
    """Rules that are given are asked in their order before the defaults, which they can overrule."""
    delay = timedelta(minutes=5)
    policy = RayJobRetryPolicy(
        rules=[
            RetryRule(RayApiAuthError, RetryAction.RETRY, retry_delay=delay),
            RetryRule("airflow_provider_rayjobs.exceptions.RayJobLostError", RetryAction.FAIL, reason="not here"),
            RetryRule(RayJobsError, RetryAction.DEFAULT),
        ]
    )

    decision = policy.evaluate(RayApiAuthError("token"), 1, 3)
    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, delay)
    assert policy.evaluate(RayJobLostError("lost"), 1, 3).reason == "not here"
    assert decided(policy, RayApiRejectedError("no")) is RetryAction.DEFAULT


@pytest.mark.parametrize(
    ("exit_code", "fail_on", "action"),
    [
        pytest.param(3, 3, RetryAction.FAIL, id="one"),
        pytest.param(3, [1, "3"], RetryAction.FAIL, id="a list"),
        pytest.param(3, 4, RetryAction.RETRY, id="another"),
        pytest.param(3, None, RetryAction.RETRY, id="none"),
        pytest.param(None, 3, RetryAction.RETRY, id="no exit code"),
        pytest.param(0, 0, RetryAction.FAIL, id="an exit code of 0"),
    ],
)
def test_fail_on_exit_code(exit_code: int | None, fail_on: Any, action: RetryAction) -> None:
    """The task's fail_on_exit_code counts with the policy, too, and for the user's code only."""
    policy = RayJobRetryPolicy(default=RetryAction.RETRY)

    assert decided(policy, code_failed(exit_code), fail_on_exit_code=fail_on) is action
    assert decided(policy, RayJobFailedError("no code"), fail_on_exit_code=fail_on) is RetryAction.RETRY
    assert decided(policy, code_failed(exit_code)) is RetryAction.RETRY


def test_a_rule_before_fail_on_exit_code() -> None:
    """A rule that is given for the user's code is asked before the task's fail_on_exit_code."""
    policy = RayJobRetryPolicy(rules=[RetryRule(RayJobEntrypointError, RetryAction.RETRY)])

    assert decided(policy, code_failed(3), fail_on_exit_code=3) is RetryAction.RETRY


def test_the_policy_of_a_task() -> None:
    """A task with the policy raises the classes that the policy knows, and knows by it which try is its last."""
    task = RayJobSubmitOperator(task_id="t", entrypoint="true", retries=3, retry_policy=RayJobRetryPolicy())
    context: Any = {"ti": SimpleNamespace(try_number=1, max_tries=3), "task": task}

    assert isinstance(task, BaseOperator)
    for error in (*FAILS, *RETRIES, *OTHERS):
        raised = to_task_error(error, task)
        assert raised is error
        assert is_last_try(raised, task, context) is (error in FAILS)


def test_a_timeout_of_both_classes() -> None:
    """The end by execution_timeout is told by our class, too."""
    policy = RayJobRetryPolicy(rules=[RetryRule(RayJobTimeoutError, RetryAction.FAIL)])
    task = SimpleNamespace(retry_policy=policy)
    raised = to_task_error(RayJobTimeoutError("late", limit="execution_timeout"), task)

    assert decided(policy, raised) is RetryAction.FAIL


def test_the_policy_is_stored_with_its_dag() -> None:
    """What Airflow stores of the policy decides as the policy does."""
    policy = RayJobRetryPolicy([RetryRule(RayJobStoppedError, RetryAction.FAIL)], RetryAction.RETRY)

    stored = ExceptionRetryPolicy.deserialize(json.loads(json.dumps(policy.serialize())))
    for error in (*FAILS, *RETRIES, *OTHERS):
        assert stored.evaluate(error, 1, 3) == policy.evaluate(error, 1, 3)
