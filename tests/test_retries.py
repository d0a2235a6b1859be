"""The retry policy: which errors are retried."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_rayjobs.task.attempts import HAS_STORE

if not HAS_STORE:
    pytest.skip("retry policies came with Airflow 3.3, as the store did", allow_module_level=True)

from airflow.sdk import BaseOperator, ExceptionRetryPolicy, RetryAction, RetryRule

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiRejectedError,
    RayApiUnreachableError,
    RayJobEntrypointError,
    RayJobExistsError,
    RayJobFailedError,
    RayJobFunctionError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobRuntimeEnvError,
    RayJobsError,
    RayJobStoppedError,
    RayJobSupervisorError,
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


# Airflow 3.4 introduced RESCHEDULE, which is not valid as a default.
RESCHEDULE = getattr(RetryAction, "RESCHEDULE", None)
DEFAULTS = [action for action in RetryAction if action is not RESCHEDULE]
REFUSALS = [(RayApiRejectedError, 400), (RayApiAuthError, 401), (RayJobExistsError, 500)]
FAILS = [kind("no", status_code=code, delivery=Delivery.REFUSED) for kind, code in REFUSALS]
UNSCHEDULABLE = RayJobUnschedulableError("no place")
RETRIES = [RayJobLostError("lost"), RayJobSupervisorError("died"), RayApiUnreachableError("away")]
OTHERS = [
    *(
        kind(f"{each}", status_code=code, delivery=each)
        for kind, code in REFUSALS
        for each in Delivery
        if each != "refused by Ray"
    ),
    RayApiAddressError("a page", status_code=404, delivery=Delivery.FOREIGN),
    RayJobsError("odd"),
    RayJobNotFoundError("gone", status_code=404, delivery=Delivery.REFUSED),
    RayJobFailedError("failed"),
    RayJobRuntimeEnvError("env"),
    RayJobStoppedError("stopped"),
    RayJobTimeoutError("late", limit="job_timeout"),
    code_failed(3),
    ValueError("a wrong argument"),
]


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize(
    ("error", "action"),
    [
        *((error, RetryAction.FAIL) for error in FAILS),
        *((error, RetryAction.RETRY) for error in RETRIES),
        (UNSCHEDULABLE, RESCHEDULE),
        *((error, None) for error in OTHERS),
    ],
    ids=repr,
)
def test_default_rules(error: BaseException, action: RetryAction | None, default: RetryAction) -> None:
    """
    Refusals by Ray fail, failures of the cluster are retried, and ``default`` decides about the rest.

    Airflow 3.4 runs the same try again after a job that the cluster could not schedule.
    """
    policy = RayJobRetryPolicy(default=default)

    assert decided(policy, error) is (action or default)
    assert policy.evaluate(error, 1, 3).action is (action or default)
    assert bool(policy.evaluate(error, 1, 3).reason) is (action is not None)


def test_other_errors_are_left_to_the_task() -> None:
    """Without ``default`` the task decides about errors without a rule."""
    for error in OTHERS:
        assert decided(RayJobRetryPolicy(), error) is RetryAction.DEFAULT


@pytest.mark.parametrize(
    ("types", "action"),
    [
        (("KeyError", "LookupError", "Exception"), RetryAction.FAIL),
        (("sklearn.exceptions.NotFittedError", "ValueError", "Exception"), RetryAction.RETRY),
        (("RayTaskError(OSError)", "ray.exceptions.RayTaskError", "OSError"), RetryAction.RETRY),
        (("TypeError", "Exception"), RetryAction.DEFAULT),
    ],
)
def test_exceptions_of_a_function_by_name(types: tuple[str, ...], action: RetryAction) -> None:
    """A policy can decide by the name of the exception's class or of a base class, with or without the module."""
    policy = RayJobRetryPolicy(
        function_errors={
            "LookupError": RetryAction.FAIL,
            "sklearn.exceptions.NotFittedError": RetryAction.RETRY,
            "OSError": RetryAction.RETRY,
        }
    )

    assert decided(policy, RayJobFunctionError("f raised", exception_types=types)) is action


@pytest.mark.skipif(RESCHEDULE is None, reason="Airflow 3.4 introduced RetryAction.RESCHEDULE")
def test_unschedulable_job_is_submitted_again_for_a_day() -> None:
    """Airflow runs the same try again for a day, also if it is the last one."""
    task = SimpleNamespace(retry_policy=RayJobRetryPolicy())
    decision = task.retry_policy.evaluate(UNSCHEDULABLE, 1, 0)

    assert (decision.max_reschedules, decision.reschedule_timeout) == (None, timedelta(days=1))
    for since, is_last in ((None, False), (timedelta(hours=23), False), (timedelta(days=1), True)):
        first = None if since is None else datetime.now(UTC) - since
        ti = SimpleNamespace(
            try_number=1,
            max_tries=0,
            _ti_context_from_server=None,
            get_first_reschedule_date=lambda context, first=first: first,
        )
        assert is_last_try(UNSCHEDULABLE, task, {"ti": ti, "task": task}) is is_last


def test_given_rules_have_precedence() -> None:
    """Given rules apply in their order, before the default rules."""
    delay = timedelta(minutes=5)
    policy = RayJobRetryPolicy(
        rules=[
            RetryRule(RayApiAuthError, RetryAction.RETRY, retry_delay=delay),
            RetryRule("airflow_provider_rayjobs.exceptions.RayJobLostError", RetryAction.FAIL, reason="not here"),
            RetryRule(RayJobsError, RetryAction.DEFAULT),
        ]
    )

    decision = policy.evaluate(FAILS[1], 1, 3)
    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, delay)
    assert policy.evaluate(RayJobLostError("lost"), 1, 3).reason == "not here"
    assert decided(policy, FAILS[0]) is RetryAction.DEFAULT


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
def test_fail_on_exit_code_applies_with_the_policy(exit_code: int | None, fail_on: Any, action: RetryAction) -> None:
    """The task's ``fail_on_exit_code`` applies with the policy too, to failures of the user's code only."""
    policy = RayJobRetryPolicy(default=RetryAction.RETRY)

    assert decided(policy, code_failed(exit_code), fail_on_exit_code=fail_on) is action
    assert decided(policy, RayJobFailedError("no code"), fail_on_exit_code=fail_on) is RetryAction.RETRY
    assert decided(policy, code_failed(exit_code)) is RetryAction.RETRY


def test_rule_has_precedence_over_fail_on_exit_code() -> None:
    """A given rule for the user's code has precedence over ``fail_on_exit_code``."""
    policy = RayJobRetryPolicy(rules=[RetryRule(RayJobEntrypointError, RetryAction.RETRY)])

    assert decided(policy, code_failed(3), fail_on_exit_code=3) is RetryAction.RETRY


def test_task_with_the_policy_raises_its_classes() -> None:
    """A task with the policy raises the package's own classes, and the policy tells which try is the last."""
    task = RayJobSubmitOperator(task_id="t", entrypoint="true", retries=3, retry_policy=RayJobRetryPolicy())
    ti = SimpleNamespace(
        try_number=1, max_tries=3, _ti_context_from_server=None, get_first_reschedule_date=lambda context: None
    )
    context: Any = {"ti": ti, "task": task}

    assert isinstance(task, BaseOperator)
    for error in (*FAILS, *RETRIES, UNSCHEDULABLE, *OTHERS):
        raised = to_task_error(error, task)
        assert raised is error
        assert is_last_try(raised, task, context) is (error in FAILS)


def test_execution_timeout_matches_the_package_class() -> None:
    """The error of an expired ``execution_timeout`` matches a rule for RayJobTimeoutError."""
    policy = RayJobRetryPolicy(rules=[RetryRule(RayJobTimeoutError, RetryAction.FAIL)])
    task = SimpleNamespace(retry_policy=policy)
    raised = to_task_error(RayJobTimeoutError("late", limit="execution_timeout"), task)

    assert decided(policy, raised) is RetryAction.FAIL


def test_stored_rules_decide_the_same() -> None:
    """The rules of the policy can be stored as Airflow's. Refusals by Ray are no rule, as their class is not enough."""
    policy = RayJobRetryPolicy([RetryRule(RayJobStoppedError, RetryAction.FAIL)], RetryAction.RETRY)

    stored = ExceptionRetryPolicy.deserialize(json.loads(json.dumps(policy.serialize())))
    for error in (*RETRIES, UNSCHEDULABLE, *OTHERS):
        assert stored.evaluate(error, 1, 3) == policy.evaluate(error, 1, 3)
