"""
What an engine may ask of its driver.

An engine is a generator that does no I/O and has no clock. It yields steps and is sent their results; errors
of the cluster (:class:`~airflow_provider_rayjobs.exceptions.RayJobsError`) are thrown into it at the step
that met them.

================  ==============================================================================================
yields            is sent
================  ==============================================================================================
``Send``          the parsed answer; the driver sends the request once, the engine decides about retries
``ReadLog``       nothing; the driver feeds the log's bytes to the sink and emits the records that it returns
``Upload``        nothing; the driver sends the body's bytes once and logs the messages that come with them
``RunBlocking``   the result of the call; it may block briefly, so the async driver runs it in a thread
``EmitRecord``    nothing; one record of the job's log for the caller's ``on_log``
``LogMessage``    nothing; a message of this package for the log
``Sleep``         the time afterwards, in seconds of a monotonic clock; ``Sleep(0)`` asks for the time
================  ==============================================================================================

:mod:`.client` holds the two drivers, one that blocks and one for an event loop. Everything else that runs an
engine is a test.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from airflow_provider_rayjobs.exceptions import (
    RayApiBusyError,
    RayApiConnectionError,
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
    """Whatever takes the bytes of a read of a log: a :class:`~.logs.text.LogCursor`, a file, a text."""

    @property
    def wants_more(self) -> bool:
        """Tell whether the rest of the read is of any use."""

    def begin(self, offset: int = 0) -> None:
        """Say where in the log the next bytes stand: a new read begins."""

    def feed(self, data: bytes) -> Iterator[str]:
        """Take the next bytes and yield records to be shown."""

    def flush(self) -> Iterator[str]:
        """Take note that the read came to the log's present end, and yield records to be shown."""


@dataclass(frozen=True)
class ReadLog:
    request: LogRequest
    log: LogSink


class UploadBody(Protocol):
    """The body of an upload, read anew for each try."""

    def chunks(self, clock: Callable[[], float], note: Callable[[LogMessage], object]) -> Iterator[bytes]:
        """Yield the bytes; the clock is the driver's, and it logs the notes."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Upload:
    """``before`` is called before each piece is sent; what it raises ends the upload."""

    request: UploadRequest
    body: UploadBody
    before: Callable[[], object] = _never

    def chunks(self, clock: Callable[[], float], note: Callable[[LogMessage], object]) -> Iterator[bytes]:
        """Yield the body's bytes."""
        for chunk in self.body.chunks(clock, note):
            self.before()
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

# Pieces, in seconds, that the pauses of an interruptible engine are cut into.
_PIECE = 0.25

# Seconds between repeated requests: the first soon enough for a hiccup, the last rare enough for an outage.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 10.0


def send(request: Request[T], retry_timeout: float) -> Engine[T]:
    """
    Send a request, and again after failures that may pass, where repeating is safe.

    :param retry_timeout: seconds after the first failure in which further tries are begun; 0 for none. How long the
        first try took, as a time-out may, does not count.
    """
    answer: T = yield from with_retries(Send(request), retry_timeout)
    return answer


def with_retries(step: Send | ReadLog | Upload, retry_timeout: float) -> Engine[Any]:
    """Take a step as :func:`send` sends a request."""
    pause = _FIRST_PAUSE
    failed_at: float | None = None
    while True:
        try:
            answer = yield step
        except RayJobsError as error:
            if not may_retry(step.request, error):
                error.was_retried = failed_at is not None
                raise
            wait = with_jitter(pause)
            now = yield Sleep(0)
            if now + wait > (now if failed_at is None else failed_at) + retry_timeout:
                raise
            if failed_at is None:
                failed_at = now
                yield LogMessage(f"{error} Trying again for {retry_timeout:.0f} s.", logging.WARNING)
        else:
            if failed_at is not None:
                now = yield Sleep(0)
                yield LogMessage(
                    f"Could {step.request.purpose} after all, {now - failed_at:.0f} s after the first failure."
                )
            return answer
        yield Sleep(wait)
        pause = min(pause * 2, _LONGEST_PAUSE)


@contextmanager
def raising_unreachable(retry_timeout: float, consequence: str, *, sent: bool = True) -> Iterator[None]:
    """
    Turn a failure that outlasted its retries into :class:`RayApiUnreachableError`; a TLS error stays what it is.

    :param retry_timeout: seconds, for the message.
    :param consequence: a sentence on what this means for the job.
    :param sent: whether the job may have been submitted.
    """
    try:
        yield
    except RayApiTLSError:
        raise
    except (RayApiConnectionError, RayApiBusyError) as error:
        raise RayApiUnreachableError(f"{error} Retried for {retry_timeout:.0f} s. {consequence}", sent=sent) from error


class Interrupted(BaseException):
    """Whoever runs an engine was asked to end; no error, and nothing for those who handle errors."""


def map_steps(
    engine: Engine[T], take: Callable[[Step], Engine[Any]], before: Callable[[], object] = _never
) -> Engine[T]:
    """
    Run an engine, and take its steps in a way of one's own.

    :param take: an engine for one step, answered as the step is.
    :param before: called each time before the engine goes on; what it raises ends the engine.
    """
    answer: Any = None
    failure: RayJobsError | None = None
    with closing(engine):
        while True:
            before()
            try:
                step = engine.throw(failure) if failure else engine.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            failure = None
            try:
                answer = yield from take(step)
            except RayJobsError as error:
                failure = error


def interruptible(engine: Engine[T], is_interrupted: Callable[[], bool]) -> Engine[T]:
    """
    Run an engine until its end is asked for: the mark is read before each step, each piece of an upload, and in pauses.

    A signal handler can do no more than leave a mark: the pause that it interrupts goes on afterwards.

    :raises Interrupted: as soon as the mark is seen; the engine is closed.
    """

    def obey() -> None:
        if is_interrupted():
            raise Interrupted

    def take(step: Step) -> Engine[Any]:
        if isinstance(step, Sleep):
            return (yield from _in_pieces(step.seconds, is_interrupted))
        return (yield replace(step, before=obey) if isinstance(step, Upload) else step)

    return map_steps(engine, take, obey)


def _in_pieces(seconds: float, is_interrupted: Callable[[], bool]) -> Engine[float]:
    now: float = yield Sleep(0)
    end = now + seconds
    while now < end and not is_interrupted():
        now = yield Sleep(min(_PIECE, end - now))
    return now


def may_retry(request: AnyRequest, error: RayJobsError) -> bool:
    """Tell whether sending a request again is safe, and of use."""
    if isinstance(error, RayApiTLSError):
        return False  # certificates do not mend themselves
    if isinstance(error, RayApiConnectionError):
        return request.idempotent or not error.sent
    return request.idempotent and isinstance(error, RayApiBusyError)


def with_jitter(pause: float) -> float:
    """Draw half of a pause by lot, so that many tasks do not come back to a tired head all at once."""
    return pause * random.uniform(0.5, 1)  # noqa: S311  (no secret)
