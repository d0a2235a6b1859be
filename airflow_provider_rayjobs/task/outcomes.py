"""
Translate the end of a job, or an error, into the end of its task, for operators, sensor and retry policy.

Airflow acts on the class of an exception: ``AirflowFailException`` ends the retries, and a sensor's ``soft_fail`` and
``never_fail`` know only Airflow's classes. Where such a class is needed, the raised error is an instance of our class
and of Airflow's, and has the name of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    redact,
)

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAuthError,
    RayApiRejectedError,
    RayJobEntrypointError,
    RayJobExistsError,
    RayJobFailedError,
    RayJobFunctionError,
    RayJobLostError,
    RayJobRuntimeEnvError,
    RayJobsError,
    RayJobStoppedError,
    RayJobSupervisorError,
    RayJobTimeoutError,
    RayJobUnschedulableError,
    RayJobUnsuccessfulError,
)
from airflow_provider_rayjobs.in_job import FAIL_EXIT_CODE, SKIP_EXIT_CODE
from airflow_provider_rayjobs.jobs.logs.cursor import NO_ENDING, LogEnding, find_exception, find_root_cause
from airflow_provider_rayjobs.jobs.logs.messages import NO_MESSAGES, FunctionFailure, JobMessages, without_messages
from airflow_provider_rayjobs.jobs.models import LOG_EXCERPT_MARKER, JobDetails, JobErrorType, JobStatus
from airflow_provider_rayjobs.jobs.setup_failure import find_setup_error, is_refused

if TYPE_CHECKING:
    from airflow.sdk import Context

_FAILURES: Mapping[str, type[RayJobFailedError]] = {
    JobErrorType.RUNTIME_ENV_SETUP_FAILURE: RayJobRuntimeEnvError,
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT: RayJobUnschedulableError,
    JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE: RayJobUnschedulableError,
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE: RayJobSupervisorError,
    JobErrorType.JOB_SUPERVISOR_ACTOR_DIED: RayJobSupervisorError,
    JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE: RayJobSupervisorError,
    JobErrorType.JOB_ENTRYPOINT_COMMAND_START_ERROR: RayJobEntrypointError,
    JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR: RayJobEntrypointError,
}
_SUPERVISOR = "The job supervisor (the Ray actor that runs the entrypoint)"
_RESOURCES = "Request fewer resources, or add nodes to the cluster."
_ADVICE: Mapping[str, str] = {
    JobErrorType.RUNTIME_ENV_SETUP_FAILURE: "The runtime environment setup failed. The entrypoint never ran.",
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT: f"Ray could not schedule the job in time. {_RESOURCES}",
    JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE: f"No node has the resources that the job requests. {_RESOURCES}",
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE: f"{_SUPERVISOR} could not be started.",
    JobErrorType.JOB_SUPERVISOR_ACTOR_DIED: f"{_SUPERVISOR} died. Its node may be lost.",
    JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE: f"{_SUPERVISOR} failed.",
    JobErrorType.JOB_ENTRYPOINT_COMMAND_START_ERROR: "The entrypoint command could not be started.",
}
_REFUSED_ADVICE = "Correct runtime_env. The entrypoint never ran."
# Exit codes of a command that SIGKILL ended, and of a shell whose command it ended.
_KILLED = (-9, 128 + 9)

# Refusals that a retry cannot change, if they have Ray's own words. Another program's may be temporary.
_FINAL_REFUSALS = (RayApiRejectedError, RayApiAuthError, RayJobExistsError)


def is_final(error: BaseException) -> bool:
    """Tell whether a retry cannot fix an error: Ray refused request or runtime environment in its own words."""
    if isinstance(error, RayJobRuntimeEnvError) and error.details is not None:
        return is_refused(error.details.message or "")
    return isinstance(error, _FINAL_REFUSALS) and error.delivery is Delivery.REFUSED


def is_mistake(error: BaseException) -> bool:
    """
    Tell whether an error is a mistake in the DAG, the connection or the local code, which no retry can fix.

    Only :class:`ValueError` itself: its subclasses are errors of other packages, and
    :class:`~airflow_provider_rayjobs.jobs.access.CredentialsError`.
    """
    return type(error) is ValueError


def ending_retries(error: BaseException) -> BaseException:
    """Return an error that is also an ``AirflowFailException``: no retry, whatever a retry policy says."""
    return _with_class(error, AirflowFailException)


@contextmanager
def failing_at_once_for_mistakes() -> Iterator[None]:
    """End the retries after a mistake."""
    try:
        yield
    except ValueError as error:
        if not is_mistake(error):
            raise
        raise ending_retries(error) from error.__cause__


def error_for_outcome(
    details: JobDetails,
    address: str,
    ending: LogEnding = NO_ENDING,
    shortage: str = "",
    messages: JobMessages = NO_MESSAGES,
) -> RayJobUnsuccessfulError | None:
    """
    Return the error for the end of a job, or ``None`` if it SUCCEEDED.

    :param details: the job in a terminal status.
    :param ending: the end of its log, if the log was read; otherwise the message has Ray's copy of the last lines.
    :param shortage: for an unschedulable job, its request and the resources of the cluster.
    :param messages: what its program told the task.
    """
    if details.status == JobStatus.SUCCEEDED:
        return None
    # Masked here: the message quotes the job's log, and reaches callbacks and consoles that Airflow does not mask.
    message = str(redact(describe_end(details, address, ending, shortage, messages)))
    last_lines = tuple(str(redact(line)) for line in ending.last_lines)
    kind = RayJobStoppedError if details.status == JobStatus.STOPPED else _failure_class(details)
    if (failure := _failure_of(details, messages)) is not None:
        return RayJobFunctionError(message, details=details, last_lines=last_lines, exception_types=failure.types)
    return kind(message, details=details, last_lines=last_lines)


def is_unschedulable(details: JobDetails) -> bool:
    """Tell whether a job failed because the cluster had no resources for it."""
    return _failure_class(details) is RayJobUnschedulableError


def describe_end(
    details: JobDetails,
    address: str,
    ending: LogEnding = NO_ENDING,
    shortage: str = "",
    messages: JobMessages = NO_MESSAGES,
) -> str:
    """Return the message of a failed task: job, status, exit code, duration, address and the known causes."""
    facts = [f"Ray job {details.name} {details.status}"]
    if details.driver_exit_code is not None:
        killed = ", killed (often out of memory)" if details.driver_exit_code in _KILLED else ""
        facts.append(f"with exit code {details.driver_exit_code}{killed}")
    if details.duration is not None:
        facts.append(f"after {details.duration:.1f} s")
    lines = [f"{' '.join(facts)}, at {address}."]
    if messages.progress is not None:
        lines.append(f"Its last progress: {messages.progress}")
    if (failure := _failure_of(details, messages)) is not None:
        raised = f"{failure.function} raised {failure.types[0]}: {failure.message}"
        # a skip is no error
        if details.driver_exit_code == SKIP_EXIT_CODE:
            return "\n".join([raised, *lines])
        traceback = failure.traceback.rstrip("\n")
        return "\n".join([raised, *_describe_root(find_root_cause(traceback.splitlines())), *lines, traceback])
    # half a surrogate pair, as in a file name that is not UTF-8, becomes a question mark
    message = without_messages((details.message or "").encode(errors="replace")).decode().strip()
    if cause := _describe_setup(details, message):
        lines.insert(0, cause)
    else:
        lines.extend(_describe_exception(ending, message.splitlines()))
    if details.error_type:
        lines.append(f"Error type {details.error_type}.")
    advice = _REFUSED_ADVICE if is_refused(message) else _ADVICE.get(details.error_type or "")
    lines.extend(text for text in (advice, shortage) if text)
    if ending.last_lines:
        message = message.partition(LOG_EXCERPT_MARKER)[0]
    if message:
        lines.append(f"Ray says: {message}")
    if ending.last_lines:
        lines.extend(["The log ends with:", *ending.last_lines])
    return "\n".join(lines)


def _describe_setup(details: JobDetails, message: str) -> str:
    """Describe why the runtime environment could not be set up. Empty if it was, or if Ray does not say why."""
    if is_refused(message):
        return f"Ray refused the runtime environment: {find_setup_error(message)}"
    is_of_setup = details.error_type == JobErrorType.RUNTIME_ENV_SETUP_FAILURE
    cause = find_setup_error(message) if is_of_setup else ""
    return f"Runtime environment setup failed: {cause}" if cause else ""


def _describe_exception(ending: LogEnding, excerpt: Sequence[str]) -> list[str]:
    """Describe the last exception in the log, or in Ray's excerpt of its end."""
    exception, root_cause = ending.exception, ending.root_cause
    if not exception:
        exception, root_cause = find_exception(excerpt), find_root_cause(excerpt)
    return [f"The last exception in its log: {exception}", *_describe_root(root_cause)] if exception else []


def _describe_root(root_cause: str) -> list[str]:
    return [f"Its root cause: {root_cause}"] if root_cause else []


def _failure_of(details: JobDetails, messages: JobMessages) -> FunctionFailure | None:
    """Return the exception of a function if it ended the job. Ray knows no other cause then than the exit code."""
    is_exit = details.status == JobStatus.FAILED and issubclass(RayJobEntrypointError, _failure_class(details))
    return messages.failure if is_exit else None


def _failure_class(details: JobDetails) -> type[RayJobFailedError]:
    """Return the class of a failed job's error. Old heads have no error types, only exit codes."""
    if is_refused(details.message or ""):
        return RayJobRuntimeEnvError
    if details.error_type is None and details.driver_exit_code:
        return RayJobEntrypointError
    return _FAILURES.get(details.error_type or "", RayJobFailedError)


def to_task_error(
    error: BaseException, task: Any, *, fail_on: Collection[int] = (), skip_on: Collection[int] = ()
) -> BaseException:
    """
    Translate an error into the one that a task raises.

    A final error also becomes an ``AirflowFailException``, for which Airflow ignores a retry policy. So this does not
    apply to a task with a policy. An expired ``execution_timeout`` also becomes an ``AirflowTaskTimeout``.

    :param fail_on: exit codes of the entrypoint that a retry cannot fix.
    :param skip_on: exit codes of the entrypoint that skip the task.
    """
    _hide_quoted_cause(error)
    exit_code = error.exit_code if isinstance(error, RayJobEntrypointError) else None
    if exit_code is not None and exit_code in skip_on:
        return AirflowSkipException(str(error))
    if isinstance(error, RayJobTimeoutError) and error.limit == "execution_timeout":
        return _with_class(error, AirflowTaskTimeout)
    if isinstance(error, RayJobFunctionError) and exit_code == FAIL_EXIT_CODE:
        return _with_class(error, AirflowFailException)  # as the function says, whatever a policy says
    ends_retries = is_final(error) or (exit_code is not None and exit_code in fail_on)
    return ending_retries(error) if ends_retries and not has_retry_policy(task) else error


def _hide_quoted_cause(error: BaseException) -> None:
    """Detach the cause of an error whose text quotes it. Airflow's log would show the same text up to four times."""
    if isinstance(error, RayJobsError) and error.__cause__ is not None:
        cause = str(error.__cause__).rstrip(":. ")  # as transport.py quotes it
        if cause in str(error):
            error.__cause__ = None


@contextmanager
def raising_task_errors(task: Any) -> Iterator[None]:
    """Translate raised errors with :func:`to_task_error`."""
    try:
        yield
    except RayJobsError as error:
        raised = to_task_error(error, task)
        if raised is error:
            raise
        raise raised from error.__cause__


def has_retry_policy(task: Any) -> bool:
    """Tell whether a task has a retry policy (Airflow 3.3 and later)."""
    return getattr(task, "retry_policy", None) is not None


def to_sensor_error(error: RayJobsError) -> BaseException:
    """
    Translate an error into the one that a sensor raises.

    The end of a job is final: a retry cannot change it. If the job is lost, a retry could only find another job.
    """
    _hide_quoted_cause(error)
    ends_retries = isinstance(error, RayJobUnsuccessfulError | RayJobLostError) or is_final(error)
    return _with_class(error, AirflowFailException if ends_retries else AirflowException)


def is_last_try(error: BaseException, task: Any, context: Context) -> bool:
    """Predict whether Airflow makes no further try after an error. A retry policy is asked first."""
    if isinstance(error, AirflowFailException):
        return True
    task_instance = context["ti"]
    if has_retry_policy(task):
        with suppress(Exception):  # Airflow logs the failure of a policy, and uses the task's retries
            decision = task.retry_policy.evaluate(
                exception=error, try_number=task_instance.try_number, max_tries=task_instance.max_tries, context=context
            )
            if decision.action.value == "fail":
                return True
            if decision.action.value == "reschedule" and _is_within_bounds(decision, context):
                return False
    return bool(task_instance.try_number > task_instance.max_tries)


def _is_within_bounds(decision: Any, context: Context) -> bool:
    """
    Tell whether Airflow 3.4 runs the same try again, as a decision to reschedule says.

    Source: task SDK 1.4 ``task_runner._reschedule_limit_reached``.
    """
    task_instance: Any = context["ti"]
    count = getattr(task_instance._ti_context_from_server, "task_reschedule_count", None) or 0  # noqa: SLF001
    if decision.max_reschedules is not None and count >= decision.max_reschedules:
        return False
    first = task_instance.get_first_reschedule_date(context) if decision.reschedule_timeout is not None else None
    return first is None or datetime.now(UTC) - first < decision.reschedule_timeout


def _with_class(error: BaseException, airflow_class: type[BaseException]) -> BaseException:
    """Return an error that is also of an Airflow class, with the same name, text and attributes."""
    if isinstance(error, airflow_class):
        return error
    return _build_error(getattr(error, "_ours", type(error)), airflow_class, error.args, vars(error))


def _build_error(
    ours: type[BaseException], airflow_class: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    # Pickle cannot import a class that is created at run time, so ``__reduce__`` makes it call this function.
    namespace = {
        "__module__": ours.__module__,
        "__qualname__": ours.__qualname__,
        "__doc__": ours.__doc__,
        "_ours": ours,
        "__reduce__": lambda error: (_build_error, (ours, airflow_class, error.args, vars(error))),
    }
    error: Exception = type(ours.__name__, (ours, airflow_class), namespace)(*args)
    vars(error).update(attributes)
    return error
