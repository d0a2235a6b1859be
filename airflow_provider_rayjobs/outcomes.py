"""How a job's end becomes Airflow's: one function for every path, so that no failed job leaves a green task."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_rayjobs.exceptions import (
    RayJobEndedError,
    RayJobFailedError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobStoppedError,
    RayJobsUnreachableError,
)
from airflow_provider_rayjobs.jobs.models import JobDetails, JobErrorType, JobStatus

# Where Ray's message on a failed job turns into a copy of the log's end.
_RAYS_COPY_OF_THE_LOG = ", last available logs"

_ADVICE: dict[str, str] = {
    JobErrorType.RUNTIME_ENV_SETUP_FAILURE: "The runtime environment could not be set up; the entrypoint never ran.",
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT: (
        "The job waited too long for a place on the cluster; ask for less, or give the cluster more."
    ),
    JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE: (
        "The cluster has no place for what the job asks for; ask for less, or give the cluster more."
    ),
    JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE: "Ray could not start the process that watches the job.",
    JobErrorType.JOB_SUPERVISOR_ACTOR_DIED: "The process that watches the job died, as it does when its node is lost.",
    JobErrorType.JOB_ENTRYPOINT_COMMAND_START_ERROR: "The entrypoint command could not be started.",
}


# A sensor's errors are Airflow's own besides ours: ``silent_fail``, ``soft_fail`` and ``never_fail`` know no
# others in every mode. How the job ended is final, so those two also end the retries: waiting again cannot
# change it.
class SensedJobFailedError(RayJobFailedError, AirflowFailException):
    """The job that a sensor waited for ended FAILED."""


class SensedJobStoppedError(RayJobStoppedError, AirflowFailException):
    """The job that a sensor waited for ended STOPPED."""


class SensedJobNotFoundError(RayJobNotFoundError, AirflowException):  # type: ignore[misc]  # both have a status_code
    """The cluster does not know the job that a sensor waits for."""


class SensedJobUnreachableError(RayJobsUnreachableError, AirflowException):
    """The cluster of the job that a sensor waits for could not be reached for too long."""


def as_sensed(error: RayJobsError) -> Exception:
    """Return a follower's error as a sensor raises it."""
    if isinstance(error, RayJobNotFoundError):
        return SensedJobNotFoundError(str(error), status_code=error.status_code)
    if isinstance(error, RayJobsUnreachableError):
        return SensedJobUnreachableError(str(error))
    return AirflowException(str(error))


def error_of_end(
    details: JobDetails, address: str, last_lines: tuple[str, ...] = (), *, sensed: bool = False
) -> RayJobEndedError | None:
    """
    Return the error that a job's end means, ``None`` for success alone.

    :param details: the job, in a terminal status.
    :param address: of its cluster, for the message.
    :param last_lines: the end of its log, if it was read to its end; without it Ray's own copy of some is shown.
    :param sensed: somebody else's job: the error also is an ``AirflowFailException``, which is what a
        sensor's ``silent_fail``, ``soft_fail`` and ``never_fail`` understand.
    """
    if details.status == JobStatus.SUCCEEDED:
        return None
    message = describe_end(details, address, last_lines)
    if details.status == JobStatus.STOPPED:
        stopped = SensedJobStoppedError if sensed else RayJobStoppedError
        return stopped(message, details=details, last_lines=last_lines)
    failed = SensedJobFailedError if sensed else RayJobFailedError
    return failed(message, details=details, last_lines=last_lines)


def describe_end(details: JobDetails, address: str, last_lines: tuple[str, ...] = ()) -> str:
    """Return what happened, to which job, where, and what is known of why: the last thing in a red task's log."""
    facts = [f"Ray job {details.name} {details.status}"]
    if details.driver_exit_code is not None:
        facts.append(f"with exit code {details.driver_exit_code}")
    if details.duration is not None:
        facts.append(f"after {details.duration:.1f} s")
    sentences = [f"{' '.join(facts)}, at {address}."]
    if details.error_type:
        sentences.append(f"Error type {details.error_type}.")
    if advice := _ADVICE.get(details.error_type or ""):
        sentences.append(advice)
    said = (details.message or "").strip()
    if last_lines:
        said = said.partition(_RAYS_COPY_OF_THE_LOG)[0]
    if said:
        sentences.append(f"Ray says: {said}")
    if last_lines:
        sentences.append("\n".join(["The log ends in:", *last_lines]))
    return "\n".join(sentences)
