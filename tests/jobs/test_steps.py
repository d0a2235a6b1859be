"""The parts that engines share: retries, interruption, and the contract itself."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayApiResponseError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, endpoints, steps
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.steps import (
    EmitRecord,
    Engine,
    Finished,
    Interrupted,
    LogMessage,
    ReadLog,
    Send,
    Sleep,
    Step,
    advance,
    interruptible,
    may_retry,
    retry_pause,
    send,
    with_jitter,
    with_retries,
)
from airflow_provider_rayjobs.jobs.submission import build_submission

BUSY = RayApiBusyError("busy", status_code=503)
LOST = RayApiConnectionError("cut off")
UNSENT = RayApiConnectionError("refused", delivery=Delivery.NOT_SENT)


@pytest.mark.parametrize(
    ("error", "read", "delete"),
    [
        pytest.param(BUSY, True, False, id="busy"),
        pytest.param(LOST, True, False, id="lost answer"),
        pytest.param(UNSENT, True, True, id="never sent"),
        pytest.param(RayJobNotFoundError("no", status_code=404), False, False, id="unknown job"),
        pytest.param(RayApiAuthError("no", status_code=403), False, False, id="wrong token"),
        pytest.param(RayJobsError("no"), False, False, id="anything else"),
    ],
)
def test_may_retry(error: RayJobsError, read: bool, delete: bool) -> None:
    """A temporary failure may be retried, that of a deletion only if the request was never sent."""
    assert may_retry(endpoints.get_job("a"), error) is read
    assert may_retry(endpoints.get_log_file("a", "node"), error) is read
    assert may_retry(endpoints.delete_job("a"), error) is delete


@pytest.mark.parametrize(
    ("error", "read", "write"),
    [
        pytest.param(RayApiAddressError("ingress", status_code=404), False, True, id="404"),
        pytest.param(RayApiAddressError("login page", status_code=200), False, True, id="login page"),
        pytest.param(RayApiAuthError("ingress", status_code=403), False, True, id="403"),
        pytest.param(RayApiResponseError("another job", status_code=200), False, True, id="another job"),
        pytest.param(RayApiBusyError("nginx", status_code=502), True, True, id="busy"),
        pytest.param(RayApiRejectedError("nginx", status_code=413), False, False, id="too large"),
    ],
)
def test_post_is_retried_after_another_programs_answer(error: RayApiResponseError, read: bool, write: bool) -> None:
    """A POST is retried after another program's answer, unless it is too large. Ray's own refusal is final."""
    error.delivery = Delivery.FOREIGN
    submission, package = endpoints.submit_job(build_submission("true")), endpoints.put_package("a.zip", 1)
    assert may_retry(submission, error) is may_retry(endpoints.stop_job("a"), error) is write
    assert may_retry(endpoints.get_job("a"), error) is may_retry(package, error) is read
    assert not may_retry(endpoints.delete_job("a"), error)

    error.delivery = Delivery.REFUSED
    assert may_retry(submission, error) is isinstance(error, RayApiBusyError)


@pytest.mark.parametrize("step", [Send(endpoints.get_job("a")), ReadLog(endpoints.get_log_file("a", "n"), LogCursor())])
def test_retry_step_by_step(step: Send | ReadLog) -> None:
    """A failed step is logged once, repeated after a backoff, and its success is logged."""
    engine = with_retries(step, retry_timeout=10)

    assert next(engine) == step
    assert engine.throw(BUSY) == Sleep(0)
    assert engine.send(101.0) == LogMessage("busy Retrying for 10 s.", logging.WARNING)
    delay = next(engine)
    assert isinstance(delay, Sleep)
    assert 0.25 <= delay.seconds <= 0.5
    assert engine.send(101.5) == step
    assert engine.throw(BUSY) == Sleep(0)
    assert isinstance(engine.send(102.0), Sleep)
    assert engine.send(103.0) == step
    assert engine.send("answer") == Sleep(0)
    assert engine.send(104.0).message.startswith("Retry succeeded after 3 s: ")
    with pytest.raises(StopIteration) as end:
        next(engine)
    assert end.value.value == "answer"


@pytest.mark.parametrize("retry_timeout", [0, 1, 30, 600])
def test_backoff_grows_until_the_timeout(retry_timeout: float) -> None:
    """Delays grow from half a second to ten; the error is raised when another retry would exceed the timeout."""
    clock, delays = 0.0, []

    def drive(step: Any) -> None:
        nonlocal clock
        while True:
            if isinstance(step, Sleep):
                clock += step.seconds
                delays.extend([step.seconds] if step.seconds else [])
                step = engine.send(clock)
            else:
                step = next(engine) if isinstance(step, LogMessage) else engine.throw(BUSY)

    engine = send(endpoints.get_job("a"), retry_timeout)
    with pytest.raises(RayApiBusyError) as caught:
        drive(next(engine))

    assert caught.value is BUSY
    assert retry_timeout - 10 <= clock <= retry_timeout
    assert all(min(10, 0.5 * 2**n) / 2 <= delay <= min(10, 0.5 * 2**n) for n, delay in enumerate(delays))


def test_failing_request_is_reported_each_minute() -> None:
    """While a request is retried, a message each minute says what fails and for how long it is retried."""
    engine = send(endpoints.get_job("a"), retry_timeout=600)
    step, clock, messages = next(engine), 0.0, []
    while clock < 200:
        if isinstance(step, Sleep):
            clock += step.seconds
            step = engine.send(clock)
        elif isinstance(step, LogMessage):
            messages.append((clock, step.message))
            step = next(engine)
        else:
            step = engine.throw(BUSY)

    assert [round(at, -1) for at, _ in messages[:1]] == [0]
    assert [message for _, message in messages] == [
        f"busy Retrying for {'another ' if at else ''}{600 - at:.0f} s." for at, _ in messages
    ]
    assert len(messages) in (3, 4)
    assert all(60 <= later - earlier <= 70 for (earlier, _), (later, _) in pairwise(messages))


def test_timeout_counts_from_the_first_failure() -> None:
    """A first try that took longer than the whole ``retry_timeout`` is retried."""
    engine = send(endpoints.submit_job(build_submission("true")), retry_timeout=30)
    submission = next(engine)
    engine.throw(LOST)
    engine.send(120.0)
    delay = next(engine)

    assert isinstance(delay, Sleep)
    assert engine.send(120.0 + delay.seconds) == submission


def test_permanent_error_is_raised_at_once() -> None:
    """An error that no retry can help is raised at once."""
    engine = send(endpoints.get_job("a"), retry_timeout=10)
    next(engine)

    with pytest.raises(RayJobNotFoundError):
        engine.throw(RayJobNotFoundError("no", status_code=404))


def test_jitter_halves_a_delay_at_most() -> None:
    """A delay is shortened by a random part of up to a half."""
    delays = {with_jitter(8) for _ in range(100)}

    assert len(delays) > 1
    assert 4 <= min(delays) <= max(delays) <= 8


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [pytest.param(0, 4, 8, id="nothing"), pytest.param(2, 4, 8, id="less"), pytest.param(20, 20, 30, id="more")],
)
def test_server_may_ask_for_a_longer_pause(asked: float, least: float, most: float) -> None:
    """A retry waits as long as a busy server asks (``Retry-After``), and a random part of that time longer."""
    busy = RayApiBusyError("busy", status_code=503)
    busy.retry_after = asked
    pauses = [retry_pause(8, busy) for _ in range(100)]

    assert len(set(pauses)) == 100
    assert least <= min(pauses) <= max(pauses) <= most
    assert 4 <= retry_pause(8, LOST) <= 8


def test_error_is_raised_if_the_server_asks_for_more_time_than_is_left() -> None:
    """A request is not retried before the time that the server asks for, not even at the end of the timeout."""
    busy = RayApiBusyError("busy", status_code=503)
    busy.retry_after = 60.0
    engine = send(endpoints.get_job("a"), retry_timeout=30)
    next(engine)
    engine.throw(busy)

    with pytest.raises(RayApiBusyError):
        engine.send(100.0)


@pytest.mark.parametrize(
    ("failures", "delivery"),
    [
        pytest.param([], Delivery.REFUSED, id="first try"),
        pytest.param([LOST], Delivery.MAY_HAVE_ARRIVED, id="second try"),
    ],
)
def test_permanent_error_says_whether_an_earlier_request_may_have_arrived(
    failures: list[RayJobsError], delivery: Delivery
) -> None:
    """A permanent error says whether the same request was sent before and its answer lost."""
    engine = send(endpoints.submit_job(build_submission("true")), retry_timeout=10)
    next(engine)
    for failure in failures:
        engine.throw(failure)
        engine.send(100.0)
        next(engine)
        engine.send(101.0)

    with pytest.raises(RayJobNotFoundError) as caught:
        engine.throw(RayJobNotFoundError("no", status_code=404, delivery=Delivery.REFUSED))
    assert caught.value.delivery is delivery


JOB = Send(endpoints.get_job("a"))


class Flag:
    """The flag of a signal handler."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self) -> bool:
        return self.is_set


def perform_all(steps: list[Step], closed: list[bool] | None = None) -> Engine[list[Any]]:
    """Yield these steps and return their outcomes, errors included; record the closing."""
    answers: list[Any] = []
    try:
        for step in steps:
            try:
                answers.append((yield step))
            except RayJobsError as error:
                answers.append(error)
    finally:
        if closed is not None:
            closed.append(True)
    return answers


def drive(engine: Engine[Any], do: Callable[[Step], Any]) -> tuple[Any, list[Step]]:
    """Run an engine to its end with ``do`` as its driver, which returns errors; return the result and the steps."""
    steps = [next(engine)]
    try:
        while True:
            answer = do(steps[-1])
            steps.append(engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer))
    except StopIteration as end:
        return end.value, steps


def test_interruptible_changes_nothing_without_an_interruption() -> None:
    """Without an interruption steps, results, errors and the return value are the engine's own."""
    steps: list[Step] = [JOB, LogMessage("a message"), EmitRecord("a line"), JOB, JOB]
    answers = ["one", None, None, BUSY, "two"]
    script = iter(answers)

    result, taken = drive(interruptible(perform_all(steps), Flag()), lambda step: next(script))

    assert taken == steps
    assert result == answers


def test_interruptible_raises_errors_of_the_engine() -> None:
    """An error that the engine does not handle is raised, and is no interruption."""
    engine = interruptible(send(endpoints.get_job("a"), retry_timeout=0), Flag())
    next(engine)

    with pytest.raises(RayJobNotFoundError):
        engine.throw(RayJobNotFoundError("no", status_code=404))


@pytest.mark.parametrize("seconds", [0, 0.1, 1.0])
def test_interruptible_sleeps_in_slices(seconds: float) -> None:
    """A sleep is cut into slices of a quarter of a second, and the engine is sent the time at its end."""
    clock = 50.0

    def sleep(step: Step) -> float:
        nonlocal clock
        assert isinstance(step, Sleep)
        clock += step.seconds
        return clock

    result, steps = drive(interruptible(perform_all([Sleep(seconds)]), Flag()), sleep)

    assert result == [clock]
    assert clock == pytest.approx(50.0 + seconds)
    assert all(isinstance(step, Sleep) and step.seconds <= 0.25 for step in steps)


def test_interrupted_before_the_first_step() -> None:
    """A flag that is set already ends an engine before its first step."""
    flag, closed = Flag(), []
    flag.is_set = True

    with pytest.raises(Interrupted):
        next(interruptible(perform_all([JOB], closed), flag))
    assert closed == []


@pytest.mark.parametrize("answer", ["an answer", BUSY], ids=["answer", "error"])
def test_interrupted_between_two_steps(answer: Any) -> None:
    """A flag that is set during a request closes the engine after it, whether it failed or not."""
    flag, closed = Flag(), []
    engine = interruptible(perform_all([JOB, JOB], closed), flag)
    next(engine)
    flag.is_set = True

    with pytest.raises(Interrupted):
        engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer)
    assert closed == [True]


def test_interrupted_during_a_sleep() -> None:
    """A flag that is set during a long sleep closes the engine within a quarter of a second."""
    flag, closed = Flag(), []
    engine = interruptible(perform_all([Sleep(600), JOB], closed), flag)
    assert next(engine) == Sleep(0)
    assert engine.send(0.0) == Sleep(0.25)
    assert engine.send(0.25) == Sleep(0.25)
    flag.is_set = True

    with pytest.raises(Interrupted):
        engine.send(0.5)
    assert closed == [True]


def test_interruption_is_not_an_exception() -> None:
    """No handler of exceptions catches an interruption."""
    assert not issubclass(Interrupted, Exception)


def test_advance_sends_results_and_throws_errors() -> None:
    """``advance`` starts an engine, passes on each outcome, and returns the engine's value at the end."""
    engine = perform_all([JOB, Sleep(1)])

    assert advance(engine) == JOB
    assert advance(engine, BUSY) == Sleep(1)
    assert advance(engine, 5.0) == Finished([BUSY, 5.0])


def test_advance_raises_errors_of_the_engine() -> None:
    """An error that the engine does not handle leaves ``advance`` unchanged."""
    engine = send(endpoints.get_job("a"), retry_timeout=0)
    advance(engine)
    error = RayJobNotFoundError("no", status_code=404)

    with pytest.raises(RayJobNotFoundError) as caught:
        advance(engine, error)
    assert caught.value is error


def test_worked_example_of_the_contract() -> None:
    """The engine in the module's docstring polls again after a lost answer and returns the terminal status."""
    example = textwrap.dedent(str(steps.__doc__).partition("::\n")[2]).partition("status = ")[0]
    names = vars(steps) | {
        "endpoints": endpoints,
        "JobStatus": JobStatus,
        "RayApiConnectionError": RayApiConnectionError,
    }
    exec(example, names)  # noqa: S102  (our own documentation)
    running, ended = (JobDetails(JobType.SUBMISSION, status) for status in (JobStatus.RUNNING, JobStatus.STOPPED))
    outcomes = iter([LOST, None, None, running, None, ended])

    result, taken = drive(names["wait"]("a"), lambda step: next(outcomes))

    assert result == JobStatus.STOPPED
    assert [type(step) for step in taken] == [Send, LogMessage, Sleep, Send, Sleep, Send]
    assert taken[1:3] == [LogMessage("cut off Polling again."), Sleep(5)]
