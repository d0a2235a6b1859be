"""
Every error that this package raises, by what the caller can do about it.

::

    RayJobsError
    ├── RayJobsConnectionError         no answer: refused, unknown host, timed out, cut off
    │   └── RayJobsUnreachableError    ... and it stayed that way for the whole time we were told to bear it
    ├── RayJobsResponseError           an answer, but not the one that was asked for (``status_code``)
    │   ├── RayJobsUnavailableError    a proxy or a busy head says "later" (429, 502, 503, 504): ask again
    │   ├── RayJobsRefusedError        Ray refuses the request itself (400): change it
    │   ├── RayJobsNotAuthorizedError  no, or wrong, credentials (401, 403): change the connection
    │   ├── RayJobsAddressError        nothing here looks like the Ray Jobs API: change the address
    │   ├── RayJobNotFoundError        this cluster does not know the job
    │   └── RayJobExistsError          the submission id is taken, by a job that is not ours
    └── RayJobEndedError               the job ended, and not well (``details``, ``last_lines``)
        ├── RayJobFailedError          FAILED: the code, its environment or its supervisor failed
        └── RayJobStoppedError         STOPPED: somebody, or something, stopped it

A sensor raises twins of four of these, which are Airflow's exceptions as well: see :mod:`.outcomes`.
Arguments that can never work raise :class:`ValueError` before anything is sent. All classes are public API
and can be pickled. Nothing here imports anything but the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_rayjobs.jobs.models import JobDetails


class RayJobsError(Exception):
    """Base of all errors of this package; its text says what happened, to which job, where, and what to do."""


class RayJobsConnectionError(RayJobsError):
    """
    No answer came from the cluster.

    :param message: what happened, at which address.
    :param sent: whether the request may have reached the cluster all the same.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class RayJobsUnreachableError(RayJobsConnectionError):
    """The cluster could not be reached for the whole time that the caller allowed."""


class RayJobsResponseError(RayJobsError):
    """
    The answer is not the one that was asked for.

    :param message: what was asked, of whom, and what came back.
    :param status_code: the HTTP status of the answer; 0 where there is none to name.
    """

    def __init__(self, message: str, *, status_code: int = 0) -> None:
        super().__init__(message)
        self.status_code = status_code


class RayJobsUnavailableError(RayJobsResponseError):
    """A proxy, or a head with too much to do, asks for the request to be made again later."""


class RayJobsRefusedError(RayJobsResponseError):
    """Ray understood the request and refuses it; it will refuse it again."""


class RayJobsNotAuthorizedError(RayJobsResponseError):
    """The credentials of the connection are missing or wrong."""


class RayJobsAddressError(RayJobsResponseError):
    """What answers at this address is not the Ray Jobs API."""


class RayJobNotFoundError(RayJobsResponseError):
    """The cluster answered, and does not know the job."""


class RayJobExistsError(RayJobsResponseError):
    """The submission id belongs to a job that somebody else submitted."""


class RayJobEndedError(RayJobsError):
    """
    A job ended in a way that is not success.

    :param message: the whole story, for the task's log.
    :param details: the job as Ray described it after its end.
    :param last_lines: the last lines of the driver's log, oldest first; empty where the log was not read.
    """

    def __init__(self, message: str, *, details: JobDetails | None = None, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.details = details
        self.last_lines = last_lines


class RayJobFailedError(RayJobEndedError):
    """The job ended FAILED; ``details.error_type`` and ``details.driver_exit_code`` say how."""


class RayJobStoppedError(RayJobEndedError):
    """The job ended STOPPED: somebody stopped it, in the dashboard, the CLI or another task."""
