"""How a job's end becomes Airflow's."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
)

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayApiResponseError,
    RayApiUnreachableError,
    RayJobEntrypointError,
    RayJobExistsError,
    RayJobFailedError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobRuntimeEnvError,
    RayJobsError,
    RayJobStoppedError,
    RayJobSupervisorError,
    RayJobTimeoutError,
    RayJobUnschedulableError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobErrorType, JobStatus, JobType
from airflow_provider_rayjobs.jobs.logs.cursor import LogEnding
from airflow_provider_rayjobs.task.outcomes import (
    FINAL_ERRORS,
    describe_end,
    error_for_outcome,
    has_retry_policy,
    is_last_try,
    is_unschedulable,
    raising_task_errors,
    to_sensor_error,
    to_task_error,
)

ADDRESS = "http://head:8265"


def job(status: JobStatus, **fields: Any) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, status=status, submission_id="job-1", **fields)


def failed(error_type: str | None = None, exit_code: int | None = None) -> JobDetails:
    kind = None if error_type is None else JobErrorType(error_type)
    return job(JobStatus.FAILED, error_type=kind, driver_exit_code=exit_code)


def entrypoint_error(exit_code: int | None) -> RayJobEntrypointError:
    return RayJobEntrypointError("code", details=failed("JOB_ENTRYPOINT_COMMAND_ERROR", exit_code), last_lines=("a",))


def test_only_success_is_no_error():
    """SUCCEEDED alone makes a green task."""
    assert error_for_outcome(job(JobStatus.SUCCEEDED), ADDRESS) is None
    assert isinstance(error_for_outcome(job(JobStatus.FAILED), ADDRESS), RayJobFailedError)
    assert isinstance(error_for_outcome(job(JobStatus.STOPPED), ADDRESS), RayJobStoppedError)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
def test_every_other_end_is_an_error_that_airflow_can_carry(status: JobStatus):
    """The error has the job's details and log, and survives pickling."""
    details = job(status, driver_exit_code=3)

    error = error_for_outcome(details, ADDRESS, LogEnding(("last",)))

    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.details, again.last_lines, str(again)) == (details, ("last",), str(error))


CLASSES = {
    "RUNTIME_ENV_SETUP_FAILURE": RayJobRuntimeEnvError,
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": RayJobUnschedulableError,
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": RayJobUnschedulableError,
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": RayJobSupervisorError,
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE": RayJobSupervisorError,
    "JOB_SUPERVISOR_ACTOR_DIED": RayJobSupervisorError,
    "JOB_ENTRYPOINT_COMMAND_START_ERROR": RayJobEntrypointError,
    "JOB_ENTRYPOINT_COMMAND_ERROR": RayJobEntrypointError,
}


def test_every_error_type_of_ray_has_a_class():
    """There is none that this version knows and does not tell from the others."""
    assert CLASSES.keys() == JobErrorType.__members__.keys()


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        *(pytest.param(failed(error_type), kind, id=error_type) for error_type, kind in CLASSES.items()),
        pytest.param(failed("JOB_ENTRYPOINT_COMMAND_ERROR", 3), RayJobEntrypointError, id="with an exit code"),
        pytest.param(failed("JOB_SUPERVISOR_ACTOR_DIED", 1), RayJobSupervisorError, id="type before exit code"),
        pytest.param(failed(None, 3), RayJobEntrypointError, id="an old head, which has exit codes alone"),
        pytest.param(failed(None, -9), RayJobEntrypointError, id="an old head, and a signal"),
        pytest.param(failed(None, 0), RayJobFailedError, id="an old head that failed a job which ended well"),
        pytest.param(failed(None), RayJobFailedError, id="no reason at all"),
        pytest.param(failed("BRAND_NEW", 3), RayJobFailedError, id="a type of a newer Ray"),
        pytest.param(job(JobStatus.STOPPED, driver_exit_code=-15), RayJobStoppedError, id="stopped"),
    ],
)
def test_the_class_says_why(details: JobDetails, kind: type[RayJobsError]):
    """The class of the error is Ray's error type, or the exit code where a head has none."""
    error = error_for_outcome(details, ADDRESS)

    assert type(error) is kind
    assert is_unschedulable(details) is (kind is RayJobUnschedulableError)


def test_exit_codes():
    """The error of the user's code says with which exit code that ended, where Ray does."""
    assert [entrypoint_error(code).exit_code for code in (3, -9, None)] == [3, -9, None]
    assert RayJobEntrypointError("no details").exit_code is None


def test_the_description_has_all_that_is_known():
    """Job, status, address, exit code, error type, duration, Ray's words and the end of the log."""
    details = job(
        JobStatus.FAILED,
        driver_exit_code=3,
        error_type=JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR,
        start_time=1_000,
        end_time=3_500,
        message="Job entrypoint command failed with exit code 3, last available logs (truncated):\nboom\n",
    )

    assert describe_end(details, ADDRESS, LogEnding(("boom",))).splitlines() == [
        "Ray job job-1 FAILED with exit code 3 after 2.5 s, at http://head:8265.",
        "Error type JOB_ENTRYPOINT_COMMAND_ERROR.",
        "Ray says: Job entrypoint command failed with exit code 3",
        "The log ends in:",
        "boom",
    ]
    assert "boom" in describe_end(details, ADDRESS), "without our own end of the log, Ray's copy of it stays"


def test_the_description_advises_where_the_users_code_never_ran():
    """A failed runtime environment is told from failed code."""
    details = job(JobStatus.FAILED, error_type=JobErrorType.RUNTIME_ENV_SETUP_FAILURE)

    assert "The entrypoint never ran" in describe_end(details, ADDRESS).replace("; the", ". The")


def test_the_description_of_a_job_that_found_no_place():
    """What the job asks for against what the cluster has follows the advice, and is in the error."""
    details = failed("JOB_SUPERVISOR_ACTOR_START_TIMEOUT")

    error = error_for_outcome(details, ADDRESS, shortage="The job asks for 99 CPU on one node.")

    assert str(error).splitlines() == [
        "Ray job job-1 FAILED, at http://head:8265.",
        "Error type JOB_SUPERVISOR_ACTOR_START_TIMEOUT.",
        "The job waited too long for a place on the cluster; ask for less, or give the cluster more.",
        "The job asks for 99 CPU on one node.",
    ]


# -- what a task raises -------------------------------------------------------------------------------------------

FINAL = [
    RayApiRejectedError("no", status_code=400),
    RayApiAuthError("token", status_code=403),
    RayApiAddressError("a page", status_code=404),
    RayJobExistsError("taken", status_code=500),
]
OTHERS = [
    RayJobsError("odd"),
    RayApiConnectionError("cut off", sent=False),
    RayApiUnreachableError("away"),
    RayApiResponseError("teapot", status_code=418),
    RayJobNotFoundError("gone", status_code=404),
    RayJobLostError("lost"),
    RayJobFailedError("failed", details=failed()),
    entrypoint_error(3),
    RayJobRuntimeEnvError("env"),
    RayJobUnschedulableError("no place"),
    RayJobSupervisorError("died"),
    RayJobStoppedError("stopped", details=job(JobStatus.STOPPED)),
    RayJobTimeoutError("late", limit="pending_timeout"),
    RayJobTimeoutError("late", limit="job_timeout"),
    RayJobTimeoutError("late", limit="lost_answer"),
    ValueError("a wrong argument"),
]


def contents(error: BaseException) -> Any:
    return error.args, vars(error)


def catches(kind: type[BaseException], error: BaseException) -> bool:
    """Tell whether ``except`` by a class takes an error."""
    try:
        raise error
    except kind as caught:
        return caught is error
    except BaseException:  # noqa: BLE001
        return False


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_no_retry_can_mend(error: RayJobsError):
    """Without a retry policy it also ends Airflow's retries; with one the policy sees the class alone, and decides."""
    raised = to_task_error(error, has_retry_policy=False)

    assert catches(type(error), raised)
    assert catches(AirflowFailException, raised)
    assert catches(RayJobsError, raised)
    assert contents(raised) == contents(error)
    assert to_task_error(error, has_retry_policy=True) is error
    assert isinstance(error, FINAL_ERRORS)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
@pytest.mark.parametrize("policy", [True, False], ids=["policy", "no policy"])
def test_what_a_retry_may_mend(error: Exception, policy: bool):
    """Everything else is raised as it is, and is retried as often as the task says."""
    assert to_task_error(error, has_retry_policy=policy) is error


@pytest.mark.parametrize("policy", [True, False], ids=["policy", "no policy"])
def test_execution_timeout(policy: bool):
    """The end by execution_timeout is a limit of ours, and the time-out that Airflow itself would have raised."""
    error = RayJobTimeoutError("late", limit="execution_timeout", details=failed())

    raised = to_task_error(error, has_retry_policy=policy)

    assert catches(RayJobTimeoutError, raised)
    assert catches(AirflowTaskTimeout, raised)
    assert not isinstance(raised, AirflowFailException)
    assert contents(raised) == contents(error)


@pytest.mark.parametrize(
    ("exit_code", "fail_on", "skip_on", "kinds", "kinds_with_policy"),
    [
        pytest.param(3, [3], [], [RayJobEntrypointError, AirflowFailException], [RayJobEntrypointError], id="fails"),
        pytest.param(3, [4, 5], [], [RayJobEntrypointError], [RayJobEntrypointError], id="another code"),
        pytest.param(99, [], [99], [AirflowSkipException], [AirflowSkipException], id="skips"),
        pytest.param(3, [3], [3], [AirflowSkipException], [AirflowSkipException], id="skips before it fails"),
        pytest.param(0, [0], [0], [AirflowSkipException], [AirflowSkipException], id="an exit code of 0"),
        pytest.param(None, [0], [0], [RayJobEntrypointError], [RayJobEntrypointError], id="no exit code"),
        pytest.param(-9, [-9], [], [RayJobEntrypointError, AirflowFailException], [RayJobEntrypointError], id="signal"),
    ],
)
def test_exit_codes_that_mean_something(
    exit_code: int | None, fail_on: list[int], skip_on: list[int], kinds: list[type], kinds_with_policy: list[type]
):
    """An exit code of the user's code can skip the task, or end the retries where no policy decides that."""
    airflows = {AirflowFailException, AirflowSkipException}
    for policy, expected in ((False, kinds), (True, kinds_with_policy)):
        raised = to_task_error(
            entrypoint_error(exit_code), has_retry_policy=policy, fail_on=frozenset(fail_on), skip_on=frozenset(skip_on)
        )
        assert all(catches(kind, raised) for kind in expected)
        assert not any(isinstance(raised, kind) for kind in airflows - set(expected))
        assert str(raised) == "code"


@pytest.mark.parametrize(
    "error",
    [failed("RUNTIME_ENV_SETUP_FAILURE", 3), failed("JOB_SUPERVISOR_ACTOR_DIED", 3), job(JobStatus.STOPPED)],
    ids=lambda details: str(details.error_type),
)
def test_exit_codes_of_something_else(error: JobDetails):
    """An exit code counts where the user's code ended with it, and nowhere else."""
    ended = error_for_outcome(error, ADDRESS)
    assert ended is not None

    assert to_task_error(ended, has_retry_policy=False, fail_on=[3], skip_on=[3]) is ended


def both_kinds() -> list[BaseException]:
    """Return an error of both classes for each class there is, as tasks and sensors raise them."""
    timeout = RayJobTimeoutError("late", limit="execution_timeout", details=failed())
    with_retries = RayApiRejectedError("no", status_code=400)
    with_retries.was_retried = True
    return [
        *(to_task_error(error, has_retry_policy=False) for error in (*FINAL, timeout, with_retries)),
        to_task_error(entrypoint_error(3), has_retry_policy=False, fail_on=[3]),
        *(to_sensor_error(error) for error in (*FINAL, *OTHERS) if isinstance(error, RayJobsError)),
    ]


@pytest.mark.parametrize("error", both_kinds(), ids=repr)
@pytest.mark.parametrize(
    "remake",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deep copy"],
)
def test_errors_of_both_classes_travel(error: BaseException, remake: Any):
    """An error that is ours and Airflow's comes out of a pickle and a copy as both, with its name and its contents."""
    again = remake(remake(error))

    assert type(again).__name__ == type(error).__name__
    assert contents(again) == contents(error)
    assert type(again).__mro__[1:] == type(error).__mro__[1:]
    assert isinstance(again, RayJobsError)
    assert str(again) == str(error)


@pytest.mark.parametrize("error", both_kinds(), ids=repr)
def test_errors_of_both_classes_look_like_ours(error: BaseException):
    """In a log, and for a policy that is given a path, such an error has the name of the documented class."""
    ours = type(error).__mro__[1]

    assert ours.__module__ == "airflow_provider_rayjobs.exceptions"
    assert (type(error).__module__, type(error).__qualname__) == (ours.__module__, ours.__qualname__)
    assert type(error).__doc__ == ours.__doc__


def test_an_error_of_both_classes_stays_one():
    """One that is translated a second time on its way is not changed by it, and still travels."""
    once = to_task_error(FINAL[0], has_retry_policy=False)
    assert isinstance(once, RayJobsError)

    twice = to_task_error(once, has_retry_policy=False)
    sensed = to_sensor_error(once)
    assert all(contents(pickle.loads(pickle.dumps(error))) == contents(FINAL[0]) for error in (twice, sensed))


def task(policy: Any = None) -> Any:
    return SimpleNamespace(retry_policy=policy)


def test_has_retry_policy():
    """A task has a retry policy if it has one; before Airflow 3.3 no task has."""
    assert has_retry_policy(task(object()))
    assert not has_retry_policy(task())
    assert not has_retry_policy(SimpleNamespace())


@pytest.mark.parametrize("policy", [None, object()], ids=["no policy", "policy"])
def test_as_task_errors(policy: Any):
    """Tasks that manage jobs raise by the same rule; the error that is behind one is behind the other too."""
    behind = OSError("behind")

    with pytest.raises(RayApiRejectedError) as final, raising_task_errors(task(policy)):
        raise RayApiRejectedError("no", status_code=400) from behind
    with pytest.raises(RayJobNotFoundError) as other, raising_task_errors(task(policy)):
        raise OTHERS[4]
    with pytest.raises(ValueError, match="a wrong argument"), raising_task_errors(task(policy)):
        raise OTHERS[-1]
    with raising_task_errors(task(policy)):
        pass
    assert isinstance(final.value, AirflowFailException) is (policy is None)
    assert final.value.__cause__ is behind
    assert other.value is OTHERS[4]


# -- what a sensor raises -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [error for error in (*FINAL, *OTHERS) if isinstance(error, RayJobsError)], ids=repr)
def test_a_sensors_error_is_ours_and_airflows(error: RayJobsError):
    """Whatever ends the waiting is an AirflowException of its own class: what ``soft_fail`` understands."""
    sensed = to_sensor_error(error)

    assert catches(type(error), sensed)
    assert catches(AirflowException, sensed)
    assert contents(sensed) == contents(error)


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        *(pytest.param(error, True, id=repr(error)) for error in FINAL),
        *(
            pytest.param(error, isinstance(error, RayJobFailedError | RayJobStoppedError), id=f"{number} {error!r}")
            for number, error in enumerate(OTHERS[:-1])
        ),
    ],
)
def test_a_sensor_does_not_wait_for_what_is_final(error: RayJobsError, is_final: bool):
    """How a job ended, and what no retry can mend, ends a sensor's retries; everything else is tried again."""
    assert isinstance(to_sensor_error(error), AirflowFailException) is is_final


# -- the last try -------------------------------------------------------------------------------------------------


class Policy:
    """A retry policy as far as it is asked; Airflow's own are in test_retries.py."""

    def __init__(self, action: str | Exception) -> None:
        self.action = action
        self.asked: list[Any] = []

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any) -> Any:
        self.asked.append((exception, try_number, max_tries, context))
        if isinstance(self.action, Exception):
            raise self.action
        return SimpleNamespace(action=SimpleNamespace(value=self.action))


def tries(number: int, of: int) -> Any:
    return {"ti": SimpleNamespace(try_number=number, max_tries=of)}


@pytest.mark.parametrize(
    ("number", "of", "is_last"),
    [(1, 0, True), (1, 1, False), (2, 1, True), (2, 5, False), (7, 5, True)],
    ids=["no retries", "first of two", "second of two", "second of six", "more than there are"],
)
def test_last_try_by_number(number: int, of: int, is_last: bool):
    """Without a policy the last try is the one after the task's retries, or the one that ends the retries itself."""
    assert is_last_try(OTHERS[0], task(), tries(number, of)) is is_last
    assert is_last_try(OTHERS[0], SimpleNamespace(), tries(number, of)) is is_last
    assert is_last_try(to_task_error(FINAL[0], has_retry_policy=False), task(), tries(number, of))


@pytest.mark.parametrize(
    ("action", "is_last"),
    [("fail", True), ("retry", False), ("default", False), (RuntimeError("broken"), False)],
    ids=["fail", "retry", "default", "a policy that fails"],
)
def test_last_try_by_policy(action: str | Exception, is_last: bool):
    """A policy can end a task before its last try, and is asked as Airflow asks it."""
    policy, context = Policy(action), tries(1, 3)

    assert is_last_try(OTHERS[0], task(policy), context) is is_last
    assert policy.asked == [(OTHERS[0], 1, 3, context)]


@pytest.mark.parametrize("action", ["fail", "retry", "default"])
def test_a_policy_cannot_go_beyond_the_retries(action: str):
    """After the last try there is none, whatever the policy says."""
    assert is_last_try(OTHERS[0], task(Policy(action)), tries(4, 3))
