"""The end of a task after the end of its job, or after an error."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from traceback import format_exception
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
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayApiResponseError,
    RayApiUnreachableError,
    RayJobEntrypointError,
    RayJobExistsError,
    RayJobFailedError,
    RayJobFunctionError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobNotTerminalError,
    RayJobRuntimeEnvError,
    RayJobsError,
    RayJobStoppedError,
    RayJobSupervisorError,
    RayJobTimeoutError,
    RayJobUnschedulableError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobErrorType, JobStatus, JobType
from airflow_provider_rayjobs.jobs.access import CredentialsError
from airflow_provider_rayjobs.jobs.logs.cursor import LogEnding
from airflow_provider_rayjobs.jobs.logs.messages import FunctionFailure, JobMessages, Progress
from airflow_provider_rayjobs.task.outcomes import (
    describe_end,
    ending_retries,
    error_for_outcome,
    has_retry_policy,
    is_final,
    is_last_try,
    is_mistake,
    is_unschedulable,
    raising_task_errors,
    to_sensor_error,
    to_task_error,
)

ADDRESS = "http://head:8265"
SAMPLES = Path(__file__).parents[1] / "samples" / "2.60.0"


def job(status: JobStatus, **fields: Any) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, status=status, submission_id="job-1", **fields)


def task(policy: Any = None) -> Any:
    return SimpleNamespace(retry_policy=policy)


def failed(error_type: str | None = None, exit_code: int | None = None) -> JobDetails:
    kind = None if error_type is None else JobErrorType(error_type)
    return job(JobStatus.FAILED, error_type=kind, driver_exit_code=exit_code)


def entrypoint_error(exit_code: int | None) -> RayJobEntrypointError:
    return RayJobEntrypointError("code", details=failed("JOB_ENTRYPOINT_COMMAND_ERROR", exit_code), last_lines=("a",))


def test_only_succeeded_is_a_success():
    """Only a job that SUCCEEDED makes a successful task."""
    assert error_for_outcome(job(JobStatus.SUCCEEDED), ADDRESS) is None
    assert isinstance(error_for_outcome(job(JobStatus.FAILED), ADDRESS), RayJobFailedError)
    assert isinstance(error_for_outcome(job(JobStatus.STOPPED), ADDRESS), RayJobStoppedError)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
def test_error_has_details_and_survives_pickling(status: JobStatus):
    """The error has the job's details and its last log lines, and can be pickled."""
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


FAILURE = FunctionFailure(
    "train",
    ("ValueError", "Exception"),
    "no data",
    'Traceback (most recent call last):\n  File "dag.py", line 3, in train\nValueError: no data\n',
)
MESSAGES = JobMessages(failure=FAILURE, progress=Progress(3, 10, "epoch 3"))


@pytest.mark.parametrize("details", [failed("JOB_ENTRYPOINT_COMMAND_ERROR", 1), failed(None, 1), failed(None)])
def test_exception_of_a_function(details: JobDetails):
    """The error of a function's job has the function's exception, its traceback and its last progress."""
    error = error_for_outcome(details, ADDRESS, LogEnding(("last",), "RuntimeError: other"), messages=MESSAGES)

    assert type(error) is RayJobFunctionError
    assert error.exception_types == ("ValueError", "Exception")
    assert (error.is_a("ValueError"), error.is_a("Value"), error.is_a("KeyError")) == (True, False, False)
    assert str(error).splitlines() == [
        "train raised ValueError: no data",
        str(error).splitlines()[1],
        "Its last progress: 3 of 10 (30%): epoch 3",
        "Traceback (most recent call last):",
        '  File "dag.py", line 3, in train',
        "ValueError: no data",
    ]
    assert str(error).splitlines()[1].startswith("Ray job job-1 FAILED")


@pytest.mark.parametrize("details", [job(JobStatus.STOPPED), failed("JOB_SUPERVISOR_ACTOR_DIED", 1)])
def test_job_that_ended_otherwise_than_by_the_exception(details: JobDetails):
    """A job that was stopped, or whose supervisor died, has that error, whatever its function raised."""
    error = error_for_outcome(details, ADDRESS, messages=MESSAGES)

    assert not isinstance(error, RayJobEntrypointError)
    assert "no data" not in str(error)
    assert "Its last progress: 3 of 10 (30%): epoch 3" in str(error)


@pytest.mark.parametrize(
    ("exit_code", "policy", "kind"),
    [
        (99, None, AirflowSkipException),
        (98, None, AirflowFailException),
        (98, "policy", AirflowFailException),
        (1, None, RayJobFunctionError),
        (1, "policy", RayJobFunctionError),
    ],
)
def test_function_skips_or_fails_its_task(exit_code: int, policy: Any, kind: type[Exception]):
    """The exit code of the function's program says whether the task is skipped, or failed without a retry."""
    error = error_for_outcome(failed("JOB_ENTRYPOINT_COMMAND_ERROR", exit_code), ADDRESS, messages=MESSAGES)
    raised = to_task_error(error, task(policy), fail_on={98}, skip_on={99})

    assert isinstance(raised, kind)
    assert isinstance(raised, AirflowFailException) is (exit_code == 98)
    assert str(raised).startswith("train raised ValueError: no data\n")
    assert ("Traceback" in str(raised)) is (exit_code != 99)


def test_messages_in_rays_excerpt_of_the_log():
    """Ray's message quotes the end of the log. The messages in it are not shown."""
    message = 'failed, last available logs (truncated):\n##ray_job 0123456789abcdef progress {"done": 1}\nboom'

    assert "##ray_job" not in describe_end(job(JobStatus.FAILED, message=message), ADDRESS)
    assert "boom" in describe_end(job(JobStatus.FAILED, message=message), ADDRESS)


def test_every_error_type_of_ray_has_a_class():
    """Every error type that this version knows has an error class."""
    assert CLASSES.keys() == JobErrorType.__members__.keys()


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        *(pytest.param(failed(error_type), kind, id=error_type) for error_type, kind in CLASSES.items()),
        pytest.param(failed("JOB_ENTRYPOINT_COMMAND_ERROR", 3), RayJobEntrypointError, id="with an exit code"),
        pytest.param(failed("JOB_SUPERVISOR_ACTOR_DIED", 1), RayJobSupervisorError, id="type before exit code"),
        pytest.param(failed(None, 3), RayJobEntrypointError, id="old head, exit code"),
        pytest.param(failed(None, -9), RayJobEntrypointError, id="old head, signal"),
        pytest.param(failed(None, 0), RayJobFailedError, id="old head, exit code 0"),
        pytest.param(failed(None), RayJobFailedError, id="no reason"),
        pytest.param(failed("BRAND_NEW", 3), RayJobFailedError, id="error type of a newer Ray"),
        pytest.param(job(JobStatus.STOPPED, driver_exit_code=-15), RayJobStoppedError, id="stopped"),
    ],
)
def test_error_class(details: JobDetails, kind: type[RayJobsError]):
    """The error type decides the class; on heads without error types the exit code does."""
    error = error_for_outcome(details, ADDRESS)

    assert type(error) is kind
    assert is_unschedulable(details) is (kind is RayJobUnschedulableError)


def test_exit_code_attribute():
    """The error of an entrypoint has its exit code, if Ray knows it."""
    assert [entrypoint_error(code).exit_code for code in (3, -9, None)] == [3, -9, None]
    assert RayJobEntrypointError("no details").exit_code is None


def test_message():
    """The message has job, status, exit code, duration, address, error type, Ray's message and the end of the log."""
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
        "The log ends with:",
        "boom",
    ]
    assert "boom" in describe_end(details, ADDRESS), "without the end of the log, Ray's copy of it stays"


def test_message_about_a_runtime_environment():
    """The message about a failed runtime environment says that the entrypoint never ran."""
    details = job(JobStatus.FAILED, error_type=JobErrorType.RUNTIME_ENV_SETUP_FAILURE)

    assert "The entrypoint never ran." in describe_end(details, ADDRESS)


def test_cause_of_a_failed_runtime_environment_comes_first():
    """The first line of the message has the error of pip; all that Ray quotes comes after it."""
    message = (SAMPLES / "runtime_env_pip.txt").read_text()
    details = job(JobStatus.FAILED, error_type=JobErrorType.RUNTIME_ENV_SETUP_FAILURE, message=message)

    lines = describe_end(details, ADDRESS).splitlines()

    assert lines[:5] == [
        "Runtime environment setup failed: ERROR: No matching distribution found for no-such-package-xyz==9.9",
        "Ray job job-1 FAILED, at http://head:8265.",
        "Error type RUNTIME_ENV_SETUP_FAILURE.",
        "The runtime environment setup failed. The entrypoint never ran.",
        "Ray says: runtime_env setup failed: Failed to set up runtime environment.",
    ]


def test_message_that_utf_8_cannot_encode():
    """Ray's message may hold a file name with bytes that are not UTF-8. The error is still that of the job."""
    details = JobDetails(JobType.SUBMISSION, JobStatus.FAILED, "a", message="Cannot open 'caf\udce9.txt'")

    error = error_for_outcome(details, "http://ray:8265")

    assert isinstance(error, RayJobFailedError)
    assert str(error).endswith("Ray says: Cannot open 'caf?.txt'")


@pytest.mark.parametrize("error_type", [JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE, None], ids=str)
def test_refused_runtime_environment_is_a_mistake(error_type: JobErrorType | None):
    """A runtime environment that Ray refuses is no fault of the supervisor: the error has its class, and is final."""
    message = (SAMPLES / "runtime_env_refused.txt").read_text()
    details = job(JobStatus.FAILED, error_type=error_type, message=message)

    error = error_for_outcome(details, ADDRESS)

    assert type(error) is RayJobRuntimeEnvError
    assert is_final(error)
    assert str(error).startswith(
        "Ray refused the runtime environment: ValueError: The 'pip' field, 'uv' field, and 'conda' field of "
        "runtime_env cannot be specified at the same time.\nRay job job-1 FAILED"
    )
    assert "\nCorrect runtime_env. The entrypoint never ran.\n" in str(error)
    assert "supervisor (the Ray actor" not in str(error)


def test_supervisor_that_did_not_start_is_no_mistake():
    """Any other failure of the start is a failure of the cluster, even if the runtime environment is named."""
    message = "Failed to start supervisor actor job-1: 'runtime_env'. Full traceback:\nTraceback ...\nOSError: x"
    details = job(JobStatus.FAILED, error_type=JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE, message=message)

    error = error_for_outcome(details, ADDRESS)

    assert type(error) is RayJobSupervisorError
    assert not is_final(error)


def test_message_names_the_root_cause():
    """Below the last exception the message has the root cause, from the log or from Ray's copy of its end."""
    log = (SAMPLES / "chained_exceptions.txt").read_text()
    details = failed("JOB_ENTRYPOINT_COMMAND_ERROR", 1)
    causes = [
        "The last exception in its log: RuntimeError: training failed",
        "Its root cause: ValueError: bad row 7",
    ]

    of_log = describe_end(
        details, ADDRESS, LogEnding(("end",), "RuntimeError: training failed", "ValueError: bad row 7")
    )
    of_copy = describe_end(replace(details, message=log), ADDRESS)

    assert of_log.splitlines()[1:3] == of_copy.splitlines()[1:3] == causes
    assert "root cause" not in describe_end(details, ADDRESS, LogEnding(("end",), "ValueError: no"))


def test_message_names_the_root_cause_of_a_function():
    """The message about a function has the root cause of its exception below that exception."""
    traceback = (SAMPLES / "chained_exceptions.txt").read_text()
    failure = FunctionFailure("train", ("RuntimeError", "Exception"), "training failed", traceback)

    message = describe_end(failed(None, 1), ADDRESS, messages=JobMessages(failure=failure))

    assert message.splitlines()[:2] == [
        "train raised RuntimeError: training failed",
        "Its root cause: ValueError: bad row 7",
    ]


@pytest.mark.parametrize("exit_code", [-9, 137])
def test_message_about_a_killed_entrypoint(exit_code: int):
    """An entrypoint that was killed, or whose shell says so, has often run out of memory, and the message says that."""
    message = describe_end(failed("JOB_ENTRYPOINT_COMMAND_ERROR", exit_code), ADDRESS)

    assert message.startswith(
        f"Ray job job-1 FAILED with exit code {exit_code}, killed (often out of memory), at http://head:8265."
    )


def test_message_about_an_unschedulable_job():
    """The message about an unschedulable job has advice, then the request and the resources of the cluster."""
    details = failed("JOB_SUPERVISOR_ACTOR_START_TIMEOUT")

    error = error_for_outcome(details, ADDRESS, shortage="The job asks for 99 CPU on one node.")

    assert str(error).splitlines() == [
        "Ray job job-1 FAILED, at http://head:8265.",
        "Error type JOB_SUPERVISOR_ACTOR_START_TIMEOUT.",
        "Ray could not schedule the job in time. Request fewer resources, or add nodes to the cluster.",
        "The job asks for 99 CPU on one node.",
    ]


# -- what a task raises -------------------------------------------------------------------------------------------

REFUSALS = [(RayApiRejectedError, 400), (RayApiAuthError, 403), (RayJobExistsError, 500)]
FINAL = [kind("no", status_code=code, delivery=Delivery.REFUSED) for kind, code in REFUSALS]
OTHERS = [
    *(
        kind("no", status_code=code, delivery=each)
        for kind, code in REFUSALS
        for each in Delivery
        if each != "refused by Ray"
    ),
    RayApiAddressError("a page", status_code=404, delivery=Delivery.FOREIGN),
    RayJobNotTerminalError("still running", status_code=500, delivery=Delivery.REFUSED),
    RayJobsError("odd"),
    RayApiConnectionError("cut off", delivery=Delivery.NOT_SENT),
    RayApiUnreachableError("away"),
    RayApiResponseError("teapot", status_code=418),
    RayJobNotFoundError("gone", status_code=404, delivery=Delivery.REFUSED),
    RayJobLostError("lost"),
    RayJobFailedError("failed", details=failed()),
    entrypoint_error(3),
    RayJobRuntimeEnvError("env"),
    RayJobUnschedulableError("no place"),
    RayJobSupervisorError("died"),
    RayJobStoppedError("stopped", details=job(JobStatus.STOPPED)),
    RayJobTimeoutError("late", limit="pending_timeout"),
    RayJobTimeoutError("late", limit="job_timeout"),
    RayJobTimeoutError("late", limit="unconfirmed"),
    ValueError("wrong argument"),
]


def name(error: BaseException) -> str:
    return f"{error!r} {getattr(error, 'delivery', '')}"


# After these errors of a sensor, waiting again cannot change the result.
_JOB_ENDS = (RayJobFailedError, RayJobStoppedError, RayJobLostError)


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
def test_final_error(error: RayJobsError):
    """A refusal by Ray ends the retries, unless the task has a retry policy, which decides by the class."""
    raised = to_task_error(error, task())

    assert catches(type(error), raised)
    assert catches(AirflowFailException, raised)
    assert catches(RayJobsError, raised)
    assert contents(raised) == contents(error)
    assert to_task_error(error, task(object())) is error
    assert is_final(error)
    assert is_final(raised)


@pytest.mark.parametrize("error", OTHERS, ids=name)
@pytest.mark.parametrize("policy", [object(), None], ids=["policy", "no policy"])
def test_error_that_is_retried(error: Exception, policy: Any):
    """
    Every other error is raised unchanged. The task's retries or its policy apply.

    A refusal that is not in Ray's own words may be temporary: an ingress without a backend answers 404, 401 or 403.
    """
    assert not is_final(error)
    assert to_task_error(error, task(policy)) is error


def test_mistake():
    """A ValueError of this package is final, whatever a policy says. Credentials may be readable at the next try."""
    raised = ending_retries(ValueError("wrong argument"))

    for error in (raised, pickle.loads(pickle.dumps(raised))):
        assert catches(ValueError, error)
        assert catches(AirflowFailException, error)
        assert (type(error).__name__, str(error)) == ("ValueError", "wrong argument")
    others = RayJobsError("b"), CredentialsError("c"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "of another package")
    assert is_mistake(ValueError("a"))
    assert not any(map(is_mistake, others))


@pytest.mark.parametrize("policy", [object(), None], ids=["policy", "no policy"])
def test_execution_timeout(policy: Any):
    """An expired execution_timeout is a RayJobTimeoutError and Airflow's own timeout error."""
    error = RayJobTimeoutError("late", limit="execution_timeout", details=failed())

    raised = to_task_error(error, task(policy))

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
def test_exit_codes_that_fail_or_skip(
    exit_code: int | None, fail_on: list[int], skip_on: list[int], kinds: list[type], kinds_with_policy: list[type]
):
    """An exit code can skip the task, or end the retries of a task without a policy."""
    airflow_classes = {AirflowFailException, AirflowSkipException}
    for policy, expected in ((None, kinds), (object(), kinds_with_policy)):
        raised = to_task_error(
            entrypoint_error(exit_code), task(policy), fail_on=frozenset(fail_on), skip_on=frozenset(skip_on)
        )
        assert all(catches(kind, raised) for kind in expected)
        assert not any(isinstance(raised, kind) for kind in airflow_classes - set(expected))
        assert str(raised) == "code"


@pytest.mark.parametrize(
    "error",
    [failed("RUNTIME_ENV_SETUP_FAILURE", 3), failed("JOB_SUPERVISOR_ACTOR_DIED", 3), job(JobStatus.STOPPED)],
    ids=lambda details: str(details.error_type),
)
def test_exit_codes_of_other_failures(error: JobDetails):
    """Only the exit code of the entrypoint counts."""
    ended = error_for_outcome(error, ADDRESS)
    assert ended is not None

    assert to_task_error(ended, task(), fail_on=[3], skip_on=[3]) is ended


def both_classes() -> list[BaseException]:
    """Return every error that is also of an Airflow class."""
    timeout = RayJobTimeoutError("late", limit="execution_timeout", details=failed())
    return [
        *(to_task_error(error, task()) for error in (*FINAL, timeout)),
        to_task_error(entrypoint_error(3), task(), fail_on=[3]),
        *(to_sensor_error(error) for error in (*FINAL, *OTHERS) if isinstance(error, RayJobsError)),
    ]


@pytest.mark.parametrize("error", both_classes(), ids=name)
@pytest.mark.parametrize(
    "remake",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deep copy"],
)
def test_error_of_two_classes_survives_pickling_and_copying(error: BaseException, remake: Any):
    """A pickled or copied error keeps both classes, its name and its attributes."""
    again = remake(remake(error))

    assert type(again).__name__ == type(error).__name__
    assert contents(again) == contents(error)
    assert type(again).__mro__[1:] == type(error).__mro__[1:]
    assert isinstance(again, RayJobsError)
    assert str(again) == str(error)


@pytest.mark.parametrize("error", both_classes(), ids=name)
def test_error_of_two_classes_has_our_name(error: BaseException):
    """Logs and retry policies see the name of the documented class."""
    ours = type(error).__mro__[1]

    assert ours.__module__ == "airflow_provider_rayjobs.exceptions"
    assert (type(error).__module__, type(error).__qualname__) == (ours.__module__, ours.__qualname__)
    assert type(error).__doc__ == ours.__doc__


def test_error_of_two_classes_is_not_changed_again():
    """Translating an error twice changes nothing, and the result can be pickled."""
    once = to_task_error(FINAL[0], task())
    assert isinstance(once, RayJobsError)

    twice = to_task_error(once, task())
    sensed = to_sensor_error(once)
    assert all(contents(pickle.loads(pickle.dumps(error))) == contents(FINAL[0]) for error in (twice, sensed))


def test_has_retry_policy():
    """Before Airflow 3.3 tasks have no attribute for a retry policy."""
    assert has_retry_policy(task(object()))
    assert not has_retry_policy(task())
    assert not has_retry_policy(SimpleNamespace())


@pytest.mark.parametrize("policy", [None, object()], ids=["no policy", "policy"])
def test_raising_task_errors(policy: Any):
    """The context manager translates errors by the same rules, and keeps their cause."""
    cause = OSError("cause")

    with pytest.raises(RayApiRejectedError) as final, raising_task_errors(task(policy)):
        raise FINAL[0] from cause
    with pytest.raises(RayApiRejectedError) as other, raising_task_errors(task(policy)):
        raise OTHERS[0]
    with pytest.raises(ValueError, match="wrong argument"), raising_task_errors(task(policy)):
        raise OTHERS[-1]
    with raising_task_errors(task(policy)):
        pass
    assert isinstance(final.value, AirflowFailException) is (policy is None)
    assert final.value.__cause__ is cause
    assert other.value is OTHERS[0]


def refused() -> RayApiUnreachableError:
    """Return the error after the last retry, chained as by the client: each error quotes the one below."""
    lowest = ConnectionRefusedError(111, "Connection refused")
    below = OSError("[Errno 111] Connection refused")
    middle = RayApiConnectionError("Connection refused. Cause: OSError: [Errno 111] Connection refused.")
    error = RayApiUnreachableError(f"{middle} Retried for 3 s.")
    below.__cause__, middle.__cause__, error.__cause__ = lowest, below, middle
    return error


def raise_in_task(error: RayJobsError) -> None:
    with raising_task_errors(task()):
        raise error


def raise_in_sensor(error: RayJobsError) -> None:
    try:
        raise error
    except RayJobsError as caught:
        raise to_sensor_error(caught) from caught.__cause__


@pytest.mark.parametrize("end", [raise_in_task, raise_in_sensor], ids=["task", "sensor"])
def test_text_of_an_error_is_shown_once(end: Callable[[RayJobsError], None]):
    """The log does not repeat an error's text along its chain. A cause that the text does not quote is shown."""
    other = RayApiUnreachableError("gave up")
    other.__cause__ = OSError("cause")

    with pytest.raises(RayApiUnreachableError) as quoted:
        end(refused())
    with pytest.raises(RayApiUnreachableError) as kept:
        end(other)

    assert "".join(format_exception(quoted.value)).count("[Errno 111] Connection refused") == 1
    assert "OSError: cause" in "".join(format_exception(kept.value))


# -- what a sensor raises -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [error for error in (*FINAL, *OTHERS) if isinstance(error, RayJobsError)], ids=name)
def test_sensor_error_has_two_classes(error: RayJobsError):
    """Every error of a sensor is also an AirflowException, which ``soft_fail`` needs."""
    sensed = to_sensor_error(error)

    assert catches(type(error), sensed)
    assert catches(AirflowException, sensed)
    assert contents(sensed) == contents(error)


@pytest.mark.parametrize(
    ("error", "ends_retries"),
    [
        *(pytest.param(error, True, id=name(error)) for error in FINAL),
        *(
            pytest.param(error, isinstance(error, _JOB_ENDS), id=f"{number} {name(error)}")
            for number, error in enumerate(OTHERS[:-1])
        ),
    ],
)
def test_final_sensor_error(error: RayJobsError, ends_retries: bool):
    """The end of a job and refusals by Ray end the retries of a sensor; other errors are retried."""
    assert isinstance(to_sensor_error(error), AirflowFailException) is ends_retries


# -- the last try -------------------------------------------------------------------------------------------------


class Policy:
    """The part of a retry policy that is called; test_retries.py has Airflow's own."""

    def __init__(self, action: str | Exception, **bounds: Any) -> None:
        self.action = action
        self.bounds = {"max_reschedules": None, "reschedule_timeout": None} | bounds
        self.asked: list[Any] = []

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any) -> Any:
        self.asked.append((exception, try_number, max_tries, context))
        if isinstance(self.action, Exception):
            raise self.action
        bounds = self.bounds if self.action == "reschedule" else {}  # Airflow 3.3 has no bounds
        return SimpleNamespace(action=SimpleNamespace(value=self.action), **bounds)


def tries(number: int, of: int, *, reschedules: int | None = None, since: timedelta | None = None) -> Any:
    """Return the context of a try, and how often and since when the same try was rescheduled."""
    ti = SimpleNamespace(
        try_number=number,
        max_tries=of,
        _ti_context_from_server=SimpleNamespace(task_reschedule_count=reschedules),
        get_first_reschedule_date=lambda context: None if since is None else datetime.now(UTC) - since,
    )
    return {"ti": ti}


@pytest.mark.parametrize(
    ("number", "of", "is_last"),
    [(1, 0, True), (1, 1, False), (2, 1, True), (2, 5, False), (7, 5, True)],
    ids=["no retries", "first of two", "second of two", "second of six", "beyond the last"],
)
def test_last_try_by_number(number: int, of: int, is_last: bool):
    """Without a policy the try number decides; an AirflowFailException ends the retries at once."""
    assert is_last_try(OTHERS[0], task(), tries(number, of)) is is_last
    assert is_last_try(OTHERS[0], SimpleNamespace(), tries(number, of)) is is_last
    assert is_last_try(to_task_error(FINAL[0], task()), task(), tries(number, of))


@pytest.mark.parametrize(
    ("action", "is_last"),
    [("fail", True), ("retry", False), ("default", False), (RuntimeError("broken"), False)],
    ids=["fail", "retry", "default", "a policy that fails"],
)
def test_last_try_by_policy(action: str | Exception, is_last: bool):
    """A policy can end the retries early; it is called as Airflow calls it."""
    policy, context = Policy(action), tries(1, 3)

    assert is_last_try(OTHERS[0], task(policy), context) is is_last
    assert policy.asked == [(OTHERS[0], 1, 3, context)]


@pytest.mark.parametrize("action", ["fail", "retry", "default"])
def test_policy_cannot_exceed_the_retries(action: str):
    """A policy cannot add tries beyond the retries of the task."""
    assert is_last_try(OTHERS[0], task(Policy(action)), tries(4, 3))


MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
RESCHEDULES = [
    # the bounds of the decision, the reschedules of this try so far, whether Airflow runs the same try again
    pytest.param({"max_reschedules": 3}, {}, True, id="never rescheduled"),
    pytest.param({"max_reschedules": 3}, {"reschedules": 2}, True, id="below the maximum"),
    pytest.param({"max_reschedules": 3}, {"reschedules": 3}, False, id="maximum reached"),
    pytest.param({"reschedule_timeout": HOUR}, {}, True, id="no first reschedule"),
    pytest.param({"reschedule_timeout": HOUR}, {"reschedules": 9, "since": HOUR - MINUTE}, True, id="in time"),
    pytest.param({"reschedule_timeout": HOUR}, {"reschedules": 1, "since": HOUR}, False, id="timeout expired"),
    pytest.param(
        {"max_reschedules": 3, "reschedule_timeout": HOUR}, {"reschedules": 2, "since": MINUTE}, True, id="both"
    ),
    pytest.param(
        {"max_reschedules": 3, "reschedule_timeout": HOUR},
        {"reschedules": 3, "since": MINUTE},
        False,
        id="both, maximum",
    ),
    pytest.param(
        {"max_reschedules": 3, "reschedule_timeout": HOUR}, {"reschedules": 2, "since": HOUR}, False, id="both, timeout"
    ),
]


@pytest.mark.parametrize(("bounds", "so_far", "runs_again"), RESCHEDULES)
@pytest.mark.parametrize(("number", "is_last"), [(1, False), (4, True)], ids=["first try", "last try"])
def test_rescheduled_try_is_not_the_last(
    bounds: dict[str, Any], so_far: dict[str, Any], runs_again: bool, number: int, is_last: bool
):
    """A policy of Airflow 3.4 can run the same try again, also the last one. Beyond its bounds the retries count."""
    context = tries(number, 3, **so_far)

    assert is_last_try(OTHERS[0], task(Policy("reschedule", **bounds)), context) is (is_last and not runs_again)


def test_policy_is_not_asked_about_a_final_error():
    """Airflow asks no policy about an AirflowFailException."""
    policy = Policy("reschedule", max_reschedules=3)

    assert is_last_try(AirflowFailException("no"), task(policy), tries(1, 3))
    assert policy.asked == []
