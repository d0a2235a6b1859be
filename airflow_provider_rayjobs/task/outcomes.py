"""
How a job's end becomes Airflow's: one room for every path, so that no failed job leaves a green task.

Airflow goes by classes of its own: ``AirflowFailException`` ends the retries, and a sensor's ``silent_fail``,
``soft_fail`` and ``never_fail`` know no others in every mode. Where one of those is meant, what is raised is ours and
Airflow's at once, under our class's name, and whoever catches either finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    redact,
)

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiRejectedError,
    RayApiTLSError,
    RayJobEntrypointError,
    RayJobExistsError,
    RayJobFailedError,
    RayJobRuntimeEnvError,
    RayJobsError,
    RayJobStoppedError,
    RayJobSupervisorError,
    RayJobTimeoutError,
    RayJobUnschedulableError,
    RayJobUnsuccessfulError,
)
from airflow_provider_rayjobs.jobs.logs.cursor import NO_ENDING, LogEnding, find_exception
from airflow_provider_rayjobs.jobs.models import LOG_EXCERPT_MARKER, JobDetails, JobErrorType, JobStatus

if TYPE_CHECKING:
    from airflow.sdk import Context

_FAILURES: Mapping[str, tuple[type[RayJobFailedError], str]] = {
    JobErrorType.RUNTIME_ENV_SETUP_FAILURE: (
        RayJobRuntimeEnvError,
        "The runtime environment could not be set up; the entrypoint never ran.",
    ),
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT: (
        RayJobUnschedulableError,
        "The job waited too long for a place on the cluster; ask for less, or give the cluster more.",
    ),
    JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE: (
        RayJobUnschedulableError,
        "The cluster has no place for what the job asks for; ask for less, or give the cluster more.",
    ),
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE: (
        RayJobSupervisorError,
        "Ray could not start the process that watches the job.",
    ),
    JobErrorType.JOB_SUPERVISOR_ACTOR_DIED: (
        RayJobSupervisorError,
        "The process that watches the job died, as it does when its node is lost.",
    ),
    JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE: (
        RayJobSupervisorError,
        "The process that watches the job failed.",
    ),
    JobErrorType.JOB_ENTRYPOINT_COMMAND_START_ERROR: (
        RayJobEntrypointError,
        "The entrypoint command could not be started.",
    ),
    JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR: (RayJobEntrypointError, ""),
}

# What no retry can mend: somebody has to change the DAG or the connection first.
FINAL_ERRORS: tuple[type[Exception], ...] = (
    RayApiRejectedError,
    RayApiAuthError,
    RayApiAddressError,
    RayApiTLSError,
    RayJobExistsError,
)


def error_for_outcome(
    details: JobDetails, address: str, ending: LogEnding = NO_ENDING, shortage: str = ""
) -> RayJobUnsuccessfulError | None:
    """
    Return the error that a job's end means, ``None`` for success alone.

    :param details: the job, in a terminal status.
    :param address: of its cluster, for the message.
    :param ending: of its log, if it was read to its end; without it Ray's own copy of some lines is shown.
    :param shortage: for a job that found no place, what it asks for against what the cluster has.
    """
    if details.status == JobStatus.SUCCEEDED:
        return None
    # it quotes the job's log, and goes where no masker of Airflow's looks: to callbacks, and to a console
    message = str(redact(describe_end(details, address, ending, shortage)))
    last_lines = tuple(str(redact(line)) for line in ending.last_lines)
    kind = RayJobStoppedError if details.status == JobStatus.STOPPED else _failure_of(details)[0]
    return kind(message, details=details, last_lines=last_lines)


def is_unschedulable(details: JobDetails) -> bool:
    """Tell whether a job ended because the cluster had no place for it."""
    return _failure_of(details)[0] is RayJobUnschedulableError


def describe_end(details: JobDetails, address: str, ending: LogEnding = NO_ENDING, shortage: str = "") -> str:
    """Return what happened, to which job, where, and what is known of why: the last thing in a red task's log."""
    facts = [f"Ray job {details.name} {details.status}"]
    if details.driver_exit_code is not None:
        facts.append(f"with exit code {details.driver_exit_code}")
    if details.duration is not None:
        facts.append(f"after {details.duration:.1f} s")
    sentences = [f"{' '.join(facts)}, at {address}."]
    if details.error_type:
        sentences.append(f"Error type {details.error_type}.")
    sentences.extend(text for text in (_failure_of(details)[1], shortage) if text)
    said = (details.message or "").strip()
    if exception := ending.exception or find_exception(said.splitlines()):
        sentences.insert(1, f"The last exception in its log: {exception}")
    if ending.last_lines:
        said = said.partition(LOG_EXCERPT_MARKER)[0]
    if said:
        sentences.append(f"Ray says: {said}")
    if ending.last_lines:
        sentences.append("\n".join(["The log ends in:", *ending.last_lines]))
    return "\n".join(sentences)


def _failure_of(details: JobDetails) -> tuple[type[RayJobFailedError], str]:
    """Return the class of a failed job's error, and advice; a head without error types still has exit codes."""
    if details.error_type is None and details.driver_exit_code:
        return RayJobEntrypointError, ""
    return _FAILURES.get(details.error_type or "", (RayJobFailedError, ""))


def to_task_error(
    error: Exception, *, has_retry_policy: bool, fail_on: Collection[int] = (), skip_on: Collection[int] = ()
) -> BaseException:
    """
    Return what a task that submits jobs raises for an error, on whichever path it met it.

    With a retry policy on the task the error itself, as the policy decides by its class, and is never asked about an
    ``AirflowFailException``. Without one, what no retry can mend also is an ``AirflowFailException``. Either way the
    end by ``execution_timeout`` also is Airflow's own ``AirflowTaskTimeout``.

    :param fail_on: exit codes of the user's code that no retry can mend.
    :param skip_on: exit codes that skip the task instead of failing it.
    """
    exit_code = error.exit_code if isinstance(error, RayJobEntrypointError) else None
    if exit_code is not None and exit_code in skip_on:
        return AirflowSkipException(str(error))
    if isinstance(error, RayJobTimeoutError) and error.limit == "execution_timeout":
        return _also(error, AirflowTaskTimeout)
    is_final = isinstance(error, FINAL_ERRORS) or (exit_code is not None and exit_code in fail_on)
    return _also(error, AirflowFailException) if is_final and not has_retry_policy else error


@contextmanager
def raising_task_errors(task: Any) -> Iterator[None]:
    """Raise what is raised within as a task raises it that manages jobs."""
    try:
        yield
    except RayJobsError as error:
        raised = to_task_error(error, has_retry_policy=has_retry_policy(task))
        if raised is error:
            raise
        raise raised from error.__cause__


def has_retry_policy(task: Any) -> bool:
    """Tell whether a task has a retry policy (Airflow 3.3 and later)."""
    return getattr(task, "retry_policy", None) is not None


def to_sensor_error(error: RayJobsError) -> Exception:
    """
    Return what a sensor raises for an error.

    How a job ended is final: waiting again cannot change it, so such an error ends the retries.
    """
    is_final = isinstance(error, (RayJobUnsuccessfulError, *FINAL_ERRORS))
    return _also(error, AirflowFailException if is_final else AirflowException)


def is_last_try(error: BaseException, task: Any, context: Context) -> bool:
    """
    Tell whether Airflow ends the task for an error, as far as can be known before it does.

    :param error: as it will be raised.
    """
    task_instance = context["ti"]
    if isinstance(error, AirflowFailException) or task_instance.try_number > task_instance.max_tries:
        return True
    policy = getattr(task, "retry_policy", None)
    if policy is None:
        return False
    try:
        decision = policy.evaluate(
            exception=error, try_number=task_instance.try_number, max_tries=task_instance.max_tries, context=context
        )
    except Exception:  # noqa: BLE001  (Airflow goes on without a policy that fails, and says so)
        return False
    return bool(decision.action.value == "fail")


def _also(error: Exception, airflows: type[BaseException]) -> Exception:
    """Return an error that is of its own class and of one of Airflow's, with the same name and the same contents."""
    if isinstance(error, airflows):
        return error
    return _both(getattr(error, "_ours", type(error)), airflows, error.args, vars(error))


def _both(
    ours: type[Exception], airflows: type[BaseException], args: tuple[Any, ...], contents: dict[str, Any]
) -> Exception:
    # made anew where it is unpickled: a class that no module holds has no path to be found by
    namespace = {
        "__module__": ours.__module__,
        "__qualname__": ours.__qualname__,
        "__doc__": ours.__doc__,
        "_ours": ours,
        "__reduce__": lambda error: (_both, (ours, airflows, error.args, vars(error))),
    }
    error: Exception = type(ours.__name__, (ours, airflows), namespace)(*args)
    vars(error).update(contents)
    return error
