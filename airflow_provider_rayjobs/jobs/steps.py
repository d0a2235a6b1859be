"""
The contract between engines and their drivers, and the parts that engines share.

An engine is a generator without I/O and without a clock. It yields steps and is sent their results. An error of the
cluster (:class:`~airflow_provider_rayjobs.exceptions.RayJobsError`) is thrown into it at the step that failed. The
clients are the drivers: one blocks, the other runs on an event loop.

================  ==============================================================================================
yields            is sent
================  ==============================================================================================
``Send``          the result; the driver sends the request once, the engine decides about retries
``ReadLog``       nothing; the driver feeds the log's bytes to the sink and emits the records that it returns
``Upload``        nothing; the driver sends the content once and logs the messages that come with it
``RunBlocking``   the result of a call that may block; the async driver runs it in a thread
``EmitRecord``    nothing; the driver passes one record of the job's log to ``on_log``
``LogMessage``    nothing; the driver logs a message of this package
``Sleep``         the time afterwards, in seconds of a monotonic clock; ``Sleep(0)`` asks for the time
================  ==============================================================================================

An engine that waits for the end of a job, and polls again after a lost answer::

    def wait(submission_id: str) -> Engine[JobStatus]:
        while True:
            try:
                details = yield Send(endpoints.get_job(submission_id))
            except RayApiConnectionError as error:
                yield LogMessage(f"{error} Polling again.")
            else:
                if details.status.is_terminal():
                    return details.status
            yield Sleep(5)

    status = client.run(wait("nightly-1"))
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayApiResponseError,
    RayApiTLSError,
    RayApiUnreachableError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs.requests import AnyRequest, LogRequest, Request, UploadRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    request: Request[Any]


class LogSink(Protocol):
    """Receives the bytes of a log: :class:`~.logs.cursor.LogCursor`, a file, a buffer."""

    @property
    def needs_more(self) -> bool:
        """Tell whether the sink can use the rest of this read."""

    def begin(self) -> None:
        """Begin a read at the first byte of the log."""

    def feed(self, data: bytes) -> Iterator[str]:
        """Take the next bytes, and yield the log records that they complete."""

    def flush(self, *, is_cut: bool = False) -> Iterator[str]:
        """End a read, also one that was cut off, and yield the remaining log records."""


@dataclass(frozen=True)
class ReadLog:
    request: LogRequest
    log: LogSink


class UploadBody(Protocol):
    def chunks(self, clock: Callable[[], float], log: Callable[[LogMessage], object], /) -> Iterator[bytes]:
        """Yield the bytes from the start."""


@dataclass(frozen=True)
class Upload:
    """The upload of a package. ``check`` runs before each chunk; an exception from it ends the upload."""

    request: UploadRequest
    body: UploadBody
    check: Callable[[], object] = lambda: None

    def chunks(self, clock: Callable[[], float], log: Callable[[LogMessage], object]) -> Iterator[bytes]:
        for chunk in self.body.chunks(clock, log):
            self.check()
            yield chunk


@dataclass(frozen=True)
class RunBlocking:
    call: Callable[[], Any]


@dataclass(frozen=True)
class EmitRecord:
    record: str


@dataclass(frozen=True)
class LogMessage:
    message: str
    level: int = logging.INFO


@dataclass(frozen=True)
class Sleep:
    seconds: float


Step = Send | ReadLog | Upload | RunBlocking | EmitRecord | LogMessage | Sleep
Engine = Generator[Step, Any, T]
OnLog = Callable[[str], object]


@dataclass(frozen=True)
class Finished(Generic[T]):
    value: T


def advance(engine: Engine[T], outcome: Any = None) -> Step | Finished[T]:
    """Run an engine to its next step. Throw the last outcome if it is a :class:`RayJobsError`, otherwise send it."""
    try:
        return engine.throw(outcome) if isinstance(outcome, RayJobsError) else engine.send(outcome)
    except StopIteration as end:
        return Finished(end.value)


# Seconds within which an interruptible engine notices an interruption while it sleeps.
_SLICE = 0.25
# Seconds of the backoff between retries.
_FIRST_DELAY = 0.5
_MAX_DELAY = 10.0
# Seconds between two messages about a request that still fails.
_REMIND_AFTER = 60.0


def send(request: Request[T], retry_timeout: float) -> Engine[T]:
    """Send a request. If a retry is safe, retry until ``retry_timeout`` seconds after the first failure; 0: never."""
    answer: T = yield from with_retries(Send(request), retry_timeout)
    return answer


def with_retries(step: Send | ReadLog | Upload, retry_timeout: float) -> Engine[Any]:
    """Perform a step with the retries of :func:`send`."""
    delay = _FIRST_DELAY
    failed_at: float | None = None
    told_at = 0.0
    may_have_effect = False
    while True:
        try:
            answer = yield step
        except RayJobsError as error:
            may_have_effect = may_have_effect or (step.request.method != "GET" and error.delivery.may_have_effect)
            if may_have_effect and not error.delivery.may_have_effect:
                error.delivery = Delivery.MAY_HAVE_ARRIVED
            if not may_retry(step.request, error):
                raise
            pause = retry_pause(delay, error)
            now = yield Sleep(0)
            left = (now if failed_at is None else failed_at) + retry_limit(retry_timeout, error) - now
            if pause > left:
                raise
            if failed_at is None or now >= told_at + _REMIND_AFTER:
                another = "" if failed_at is None else "another "
                yield LogMessage(f"{error} Retrying for {another}{left:.0f} s.", logging.WARNING)
                told_at = now
            failed_at = now if failed_at is None else failed_at
        else:
            if failed_at is not None:
                now = yield Sleep(0)
                yield LogMessage(f"Retry succeeded after {now - failed_at:.0f} s: {step.request.action}.")
            return answer
        yield Sleep(pause)
        delay = min(delay * 2, _MAX_DELAY)


def retry_limit(retry_timeout: float, error: RayJobsError) -> float:
    """Return the seconds for which a request is retried after an error."""
    return min(retry_timeout, error.retry_for) if isinstance(error, RayApiConnectionError) else retry_timeout


@contextmanager
def raising_unreachable(retry_timeout: float, consequence: str, *, delivery: Delivery | None = None) -> Iterator[None]:
    """
    Turn a temporary error after the last retry into :class:`RayApiUnreachableError`.

    :param delivery: of the raised error; by default that of the temporary error.
    """
    try:
        yield
    except RayApiTLSError:
        raise
    except (RayApiConnectionError, RayApiBusyError) as error:
        limit = retry_limit(retry_timeout, error)
        reason = " (first_contact_timeout)" if limit < retry_timeout else ""
        message = f"{error} Retried for {limit:.0f} s{reason}. {consequence}"
        raise RayApiUnreachableError(message, delivery=delivery or error.delivery) from error


class Interrupted(BaseException):
    """The caller ended a running engine. A ``BaseException``, so that handlers of ``Exception`` do not catch it."""


def map_steps(
    engine: Engine[T], perform: Callable[[Step], Engine[Any]], check: Callable[[], object] = lambda: None
) -> Engine[T]:
    """Run an engine with each step replaced by those of ``perform(step)``. ``check`` runs before each and may raise."""
    outcome: Any = None
    with closing(engine):
        while True:
            check()
            step = advance(engine, outcome)
            if isinstance(step, Finished):
                return step.value
            try:
                outcome = yield from perform(step)
            except RayJobsError as error:
                outcome = error


def interruptible(engine: Engine[T], is_interrupted: Callable[[], bool]) -> Engine[T]:
    """
    Run an engine. Close it and raise :class:`Interrupted` once ``is_interrupted`` returns true.

    It is called before each step and each chunk of an upload, and four times a second during a sleep.
    """

    def check() -> None:
        if is_interrupted():
            raise Interrupted

    def perform(step: Step) -> Engine[Any]:
        if not isinstance(step, Sleep):
            return (yield replace(step, check=check) if isinstance(step, Upload) else step)
        now: float = yield Sleep(0)
        end = now + step.seconds
        while now < end and not is_interrupted():
            now = yield Sleep(min(_SLICE, end - now))
        return now

    return map_steps(engine, perform, check)


def may_retry(request: AnyRequest, error: RayJobsError) -> bool:
    """
    Tell whether a request may be sent again after an error: it can succeed, and cannot take effect twice.

    A GET with another program's answer fails at once, because the address may be wrong. A POST follows an answer of
    Ray, so another program's answer to it is a temporary fault. A request that is too large is never sent again.
    """
    if isinstance(error, RayApiTLSError):
        return False  # a certificate must be changed first
    if isinstance(error, RayApiConnectionError):
        return request.idempotent or error.delivery is Delivery.NOT_SENT
    if isinstance(error, RayApiRejectedError):
        return False
    is_temporary = isinstance(error, RayApiBusyError) or (
        request.method == "POST" and error.delivery is Delivery.FOREIGN
    )
    return request.idempotent and is_temporary


def with_jitter(delay: float, part: float = 0.5) -> float:
    """Randomise a part of a delay, half of it by default, so that many callers do not come at the same moment."""
    return delay * random.uniform(1 - part, 1)  # noqa: S311  (no secret)


def retry_pause(delay: float, error: RayJobsError) -> float:
    """Randomise the delay before a retry. A busy server may ask for a longer one (``Retry-After``)."""
    asked = error.retry_after if isinstance(error, RayApiResponseError) else 0.0
    return max(with_jitter(delay), 2 * asked - with_jitter(asked))
