"""How a job's end becomes Airflow's."""

from __future__ import annotations

import pickle

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_rayjobs.exceptions import (
    RayJobFailedError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobStoppedError,
    RayJobsUnreachableError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobErrorType, JobStatus, JobType
from airflow_provider_rayjobs.outcomes import as_sensed, describe_end, error_of_end

ADDRESS = "http://head:8265"


def job(status: JobStatus, **fields) -> JobDetails:
    return JobDetails(type=JobType.SUBMISSION, status=status, submission_id="job-1", **fields)


def test_only_success_is_no_error():
    """SUCCEEDED alone makes a green task."""
    assert error_of_end(job(JobStatus.SUCCEEDED), ADDRESS) is None
    assert isinstance(error_of_end(job(JobStatus.FAILED), ADDRESS), RayJobFailedError)
    assert isinstance(error_of_end(job(JobStatus.STOPPED), ADDRESS), RayJobStoppedError)


@pytest.mark.parametrize("status", [status for status in JobStatus if status.is_terminal()])
def test_every_other_end_is_an_error_that_airflow_can_carry(status: JobStatus):
    """The error has the job's details and log, and survives pickling."""
    error = error_of_end(job(status, driver_exit_code=3), ADDRESS, ("last",))

    if status != JobStatus.SUCCEEDED:
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.details, copy.last_lines, str(copy)) == (error.details, ("last",), str(error))


@pytest.mark.parametrize(
    ("status", "kind"), [(JobStatus.FAILED, RayJobFailedError), (JobStatus.STOPPED, RayJobStoppedError)]
)
def test_a_sensors_error_is_the_operators_and_airflows(status: JobStatus, kind: type[Exception]):
    """In a sensor the same error is final, and one that ``soft_fail`` and ``never_fail`` understand."""
    error = error_of_end(job(status), ADDRESS, sensed=True)

    assert isinstance(error, kind)
    assert isinstance(error, AirflowFailException)


def test_a_followers_error_becomes_one_that_sensors_understand():
    """Each error that ends the waiting is an AirflowException with its own class and words."""
    missing = as_sensed(RayJobNotFoundError("gone", status_code=404))
    unreachable = as_sensed(RayJobsUnreachableError("away"))
    other = as_sensed(RayJobsError("strange"))

    assert isinstance(missing, RayJobNotFoundError)
    assert isinstance(unreachable, RayJobsUnreachableError)
    assert [str(error) for error in (missing, unreachable, other)] == ["gone", "away", "strange"]
    assert all(isinstance(error, AirflowException) for error in (missing, unreachable, other))


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

    assert describe_end(details, ADDRESS, ("boom",)).splitlines() == [
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
