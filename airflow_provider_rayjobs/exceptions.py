"""
Every error of this package, with its remedy.

::

    RayJobsError                          base class of all errors
    ├── RayApiConnectionError             no answer: DNS lookup, connect, timeout, reset. Check address and network.
    │   ├── RayApiTLSError                TLS handshake failed. Correct the certificates, or http/https in the address.
    │   └── RayApiUnreachableError        no usable answer within a timeout. Check that the head runs, then retry.
    ├── RayApiResponseError               unexpected HTTP answer (status_code). Check the logs of the head.
    │   ├── RayApiBusyError               HTTP 429, 502, 503, 504: the head or a proxy is busy. Retry later.
    │   ├── RayApiRejectedError           HTTP 400, 413: Ray or a proxy refuses the request. Change the request.
    │   ├── RayApiAuthError               HTTP 401, 403: missing or wrong credentials. Correct the credentials.
    │   ├── RayApiAddressError            the answer is not from the Ray Jobs API. Correct the address.
    │   ├── RayApiPackageNotFoundError    the cluster does not have the package. Upload it.
    │   ├── RayJobNotFoundError           the cluster does not know the job. Check the id; the job may be deleted.
    │   ├── RayJobExistsError             the submission id belongs to another job. Use another id.
    │   └── RayJobNotTerminalError        the job has not ended. Stop it, or wait for its end.
    ├── RayPackageError                   local code cannot be read, packed or stored. Fix the files or the storage.
    ├── RayJobUnsuccessfulError           the job ended without success (details, last_lines)
    │   ├── RayJobFailedError             FAILED, cause unknown: check the job's log. Known causes:
    │   │   ├── RayJobEntrypointError     the entrypoint failed (exit_code). Fix the code of the job.
    │   │   │   └── RayJobFunctionError   the function of @task.ray_job raised (exception_types). Fix the function.
    │   │   ├── RayJobRuntimeEnvError     the runtime environment could not be set up. Fix runtime_env.
    │   │   ├── RayJobUnschedulableError  no node had the requested resources. Request less, or add nodes.
    │   │   └── RayJobSupervisorError     Ray's job supervisor died or did not start. Check the nodes, then retry.
    │   └── RayJobStoppedError            STOPPED by a user, a program or this package. Submit it again if needed.
    ├── RayJobResultError                 SUCCEEDED, but its result is missing or unreadable. See the job's log.
    ├── RayJobLostError                   the job died with its head, or another job has its id now. Submit it again.
    └── RayJobTimeoutError                a time limit expired (limit). Raise the limit, or make the job faster.

A task may raise one of these as an Airflow exception as well, under the same name (``task/outcomes.py``).
Invalid arguments raise :class:`ValueError`, which fails the task at once. All classes are public API and can be
pickled.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_rayjobs.jobs.models import JobDetails


class Delivery(StrEnum):
    """
    What is known about a request that failed. Earlier attempts of the same request count.

    Only ``REFUSED`` is final. Only ``NOT_SENT`` and ``REFUSED`` prove that the request had no effect.
    """

    NOT_SENT = "not sent"
    MAY_HAVE_ARRIVED = "may have arrived"
    REFUSED = "refused by Ray"
    # A reverse proxy, a login page, another service. It may have passed the request on to Ray before.
    FOREIGN = "answered by another program"

    @property
    def may_have_effect(self) -> bool:
        """Tell whether Ray may have processed the request."""
        return self in (Delivery.MAY_HAVE_ARRIVED, Delivery.FOREIGN)


class RayJobsError(Exception):
    """Base of all errors of this package. The text names the fact, the job, the address and the remedy."""

    delivery = Delivery.MAY_HAVE_ARRIVED


class RayApiConnectionError(RayJobsError):
    """
    The cluster did not answer.

    :param delivery: ``NOT_SENT`` if the request certainly did not reach the cluster.
    """

    # Most seconds for which a retry makes sense, whatever the caller's timeout is.
    retry_for = math.inf

    def __init__(self, message: str, *, delivery: Delivery = Delivery.MAY_HAVE_ARRIVED) -> None:
        super().__init__(message)
        self.delivery = delivery


class RayApiTLSError(RayApiConnectionError):
    """A certificate was refused by either side, or one side does not use TLS."""


class RayApiUnreachableError(RayApiConnectionError):
    """An outage exceeded the timeout."""


class RayApiResponseError(RayJobsError):
    """
    The HTTP answer is not as expected.

    :param status_code: the HTTP status; 0 if there is none.
    :param delivery: ``REFUSED`` if the answer has Ray's own words, ``FOREIGN`` if another program sent it.
    """

    # Seconds that a busy server asked to wait before the next request.
    retry_after = 0.0

    def __init__(self, message: str, *, status_code: int = 0, delivery: Delivery = Delivery.MAY_HAVE_ARRIVED) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.delivery = delivery


class RayApiBusyError(RayApiResponseError):
    """A temporary refusal by the head or a proxy."""


class RayApiRejectedError(RayApiResponseError):
    """A refusal. If it has Ray's own words (``delivery``), the same request will be refused again."""


class RayApiAuthError(RayApiResponseError):
    """Ray or a proxy did not accept the credentials."""


class RayApiAddressError(RayApiResponseError):
    """Something other than the Ray Jobs API answers at this address."""


class RayApiPackageNotFoundError(RayApiResponseError):
    """The cluster does not have the package."""


class RayJobNotFoundError(RayApiResponseError):
    """The cluster does not know the job."""


class RayJobExistsError(RayApiResponseError):
    """The submission id belongs to the job of another submission."""


class RayJobNotTerminalError(RayApiResponseError):
    """The job has not ended."""


class RayPackageError(RayJobsError):
    """A file changed or is unreadable, a disk is full, or the storage does not answer. No job was submitted."""


class RayJobUnsuccessfulError(RayJobsError):
    """
    The job ended without success.

    :param details: the job after its end.
    :param last_lines: the end of the driver's log, oldest line first; empty if the log was not read.
    """

    def __init__(self, message: str, *, details: JobDetails | None = None, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.details = details
        self.last_lines = last_lines


class RayJobFailedError(RayJobUnsuccessfulError):
    """The job FAILED; see ``details.error_type`` and ``details.driver_exit_code``."""


class RayJobEntrypointError(RayJobFailedError):
    """The entrypoint could not be started or ended with a non-zero exit code."""

    @property
    def exit_code(self) -> int | None:
        """The command's exit code; negative for a signal."""
        return self.details.driver_exit_code if self.details else None


class RayJobFunctionError(RayJobEntrypointError):
    """
    The function of a ``@task.ray_job`` task raised an exception.

    :param exception_types: the names of the exception's class and of its base classes: ``ValueError``,
        ``sklearn.exceptions.NotFittedError``.
    """

    def __init__(
        self,
        message: str,
        *,
        details: JobDetails | None = None,
        last_lines: tuple[str, ...] = (),
        exception_types: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, details=details, last_lines=last_lines)
        self.exception_types = exception_types

    def is_a(self, name: str) -> bool:
        """Tell whether the exception's class, or a base class of it, has a name, with or without its module."""
        return any(each == name or each.rpartition(".")[2] == name for each in self.exception_types)


class RayJobRuntimeEnvError(RayJobFailedError):
    """The entrypoint never ran: Ray refused its runtime environment, or could not set it up."""


class RayJobUnschedulableError(RayJobFailedError):
    """The entrypoint never ran: no node had the requested resources in time."""


class RayJobSupervisorError(RayJobFailedError):
    """The actor that supervises the job died, for example with its node, or did not start."""


class RayJobStoppedError(RayJobUnsuccessfulError):
    """The job was stopped."""


class RayJobLostError(RayJobsError):
    """The Ray session has changed since the submission and the job is unknown, or another job has its id."""


class RayJobResultError(RayJobsError):
    """
    The job SUCCEEDED, but did not push a result, or its result cannot be read.

    :param is_final: whether the result can never be read: a retry submits a new job.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class RayJobTimeoutError(RayJobsError):
    """
    A time limit of the job expired before its end.

    :param limit: ``pending_timeout``, ``job_timeout``, ``execution_timeout``, or ``unconfirmed`` for a job whose
        submission Ray did not confirm.
    :param details: the job when the limit expired.
    """

    def __init__(self, message: str, *, limit: str = "", details: JobDetails | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.details = details
