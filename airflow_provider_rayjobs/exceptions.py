"""
Every error that this package raises, by what the caller can do about it.

::

    RayJobsError
    ├── RayApiConnectionError         no answer: refused, unknown host, timed out, cut off
    │   ├── RayApiTLSError            ... for a certificate, or a port that speaks no TLS: change the connection
    │   └── RayApiUnreachableError    ... and it stayed that way for the whole time we were told to bear it
    ├── RayApiResponseError           an answer, but not the one that was asked for (``status_code``)
    │   ├── RayApiBusyError    a proxy or a busy head says "later" (429, 502, 503, 504): ask again
    │   ├── RayApiRejectedError        Ray refuses the request itself (400): change it
    │   ├── RayApiAuthError  no, or wrong, credentials (401, 403): change the connection
    │   ├── RayApiAddressError        nothing here looks like the Ray Jobs API: change the address
    │   ├── RayJobNotFoundError        this cluster does not know the job: a wrong id, or somebody deleted it
    │   ├── RayJobExistsError          the submission id is taken, by a job that is not ours
    │   ├── RayJobNotTerminalError        what was asked needs a job that has ended
    │   └── RayApiPackageNotFoundError    this cluster does not hold the package
    ├── RayPackageError                local code could not be read, packed or stored; nothing was submitted
    ├── RayJobUnsuccessfulError               the job ended, and not well (``details``, ``last_lines``)
    │   ├── RayJobFailedError          FAILED, for a reason that Ray does not name; or one of these:
    │   │   ├── RayJobEntrypointError      the user's code ran and ended non-zero (``exit_code``)
    │   │   ├── RayJobRuntimeEnvError      its runtime environment could not be set up
    │   │   ├── RayJobUnschedulableError   the cluster had no place for it
    │   │   └── RayJobSupervisorError  the process that watches it died, or could not be started
    │   └── RayJobStoppedError         STOPPED: somebody, or something, stopped it
    ├── RayJobLostError                the job died with its cluster, which was started anew
    └── RayJobTimeoutError             a limit of the task's was over, and the job was given up (``limit``)

Where Airflow has to understand an error as well, what is raised also is one of Airflow's own, under the same
name: see :mod:`.outcomes`.
Arguments that can never work raise :class:`ValueError` before anything is sent. All classes are public API
and can be pickled. Nothing here imports anything but the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_rayjobs.jobs.models import JobDetails


class RayJobsError(Exception):
    """Base of all errors of this package; its text says what happened, to which job, where, and what to do."""

    # Whether the same request was sent before and its answer lost: it may have been carried out all the same.
    was_retried = False


class RayApiConnectionError(RayJobsError):
    """
    No answer came from the cluster.

    :param message: what happened, at which address.
    :param sent: whether the request may have reached the cluster all the same.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class RayApiTLSError(RayApiConnectionError):
    """
    No connection came about for its TLS.

    The other side's certificate is not believed, ours is not accepted, or no TLS is spoken there.
    """


class RayApiUnreachableError(RayApiConnectionError):
    """The cluster could not be reached for the whole time that the caller allowed."""


class RayApiResponseError(RayJobsError):
    """
    The answer is not the one that was asked for.

    :param message: what was asked, of whom, and what came back.
    :param status_code: the HTTP status of the answer; 0 where there is none to name.
    """

    def __init__(self, message: str, *, status_code: int = 0) -> None:
        super().__init__(message)
        self.status_code = status_code


class RayApiBusyError(RayApiResponseError):
    """A proxy, or a head with too much to do, asks for the request to be made again later."""


class RayApiRejectedError(RayApiResponseError):
    """Ray understood the request and refuses it; it will refuse it again."""


class RayApiAuthError(RayApiResponseError):
    """The credentials of the connection are missing or wrong."""


class RayApiAddressError(RayApiResponseError):
    """What answers at this address is not the Ray Jobs API."""


class RayJobNotFoundError(RayApiResponseError):
    """The cluster answered, and does not know the job."""


class RayJobExistsError(RayApiResponseError):
    """The submission id belongs to a job that somebody else submitted."""


class RayJobNotTerminalError(RayApiResponseError):
    """Ray deletes no job that has not ended: stop it first, or wait for its end."""


class RayApiPackageNotFoundError(RayApiResponseError):
    """The cluster answered, and does not hold the package."""


class RayPackageError(RayJobsError):
    """
    Local code could not be read, packed or stored: a file changed meanwhile, a disk is full, the storage does not
    answer.

    Nothing was submitted.
    """


class RayJobUnsuccessfulError(RayJobsError):
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


class RayJobFailedError(RayJobUnsuccessfulError):
    """The job ended FAILED; ``details.error_type`` and ``details.driver_exit_code`` say how."""


class RayJobEntrypointError(RayJobFailedError):
    """The entrypoint command ran and ended non-zero: the user's code failed."""

    @property
    def exit_code(self) -> int | None:
        """The command's exit code; negative for a signal."""
        return self.details.driver_exit_code if self.details else None


class RayJobRuntimeEnvError(RayJobFailedError):
    """The runtime environment could not be set up; the entrypoint never ran."""


class RayJobUnschedulableError(RayJobFailedError):
    """The cluster had no place for what the job asks for, or none for too long; the entrypoint never ran."""


class RayJobSupervisorError(RayJobFailedError):
    """The process that watches the job died, as it does when its node is lost, or could not be started."""


class RayJobStoppedError(RayJobUnsuccessfulError):
    """The job ended STOPPED: somebody stopped it, in the dashboard, the CLI or another task, or we did."""


class RayJobLostError(RayJobsError):
    """The job died with its cluster: another session answers at its address and does not know it."""


class RayJobTimeoutError(RayJobsError):
    """
    A limit of the task's was over before the job's end.

    :param message: which limit, how long, and what was done about the job.
    :param limit: ``pending_timeout``, ``job_timeout``, ``execution_timeout`` or ``lost_answer``.
    :param details: the job when the limit was over.
    """

    def __init__(self, message: str, *, limit: str = "", details: JobDetails | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.details = details
