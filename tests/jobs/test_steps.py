"""What engines share: sending again what may pass, where repeating is safe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    RayApiAuthError,
    RayApiConnectionError,
    RayApiUnavailableError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.logs.buffer import LogBuffer
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
    send,
    with_jitter,
    with_retries,
)
from airflow_provider_rayjobs.jobs.submission import build_submission

BUSY = RayApiUnavailableError("busy", status_code=503)
LOST = RayApiConnectionError("cut off")
UNSENT = RayApiConnectionError("refused", sent=False)


@pytest.mark.parametrize(
    ("error", "read", "delete"),
    [
        pytest.param(BUSY, True, False, id="busy"),
        pytest.param(LOST, True, False, id="answer lost"),
        pytest.param(UNSENT, True, True, id="never sent"),
        pytest.param(RayJobNotFoundError("no", status_code=404), False, False, id="unknown job"),
        pytest.param(RayApiAuthError("no", status_code=403), False, False, id="wrong token"),
        pytest.param(RayJobsError("no"), False, False, id="anything else"),
    ],
)
def test_may_repeat(error: RayJobsError, read: bool, delete: bool) -> None:
    """What may pass is asked again, but a deletion only when it never left this machine."""
    assert may_retry(endpoints.get_job("a"), error) is read
    assert may_retry(endpoints.get_log_file("a", "node"), error) is read
    assert may_retry(endpoints.delete_job("a"), error) is delete


@pytest.mark.parametrize("step", [Send(endpoints.get_job("a")), ReadLog(endpoints.get_log_file("a", "n"), LogBuffer())])
def test_repeated_by_hand(step: Send | ReadLog) -> None:
    """An engine takes its step, says a failure once, sleeps, takes it again, and says when it is over."""
    engine = with_retries(step, retry_timeout=10)

    assert next(engine) == step
    assert engine.throw(BUSY) == Sleep(0)
    assert engine.send(101.0) == LogMessage("busy Retrying for 10 s.", logging.WARNING)
    pause = next(engine)
    assert isinstance(pause, Sleep)
    assert 0.25 <= pause.seconds <= 0.5
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
def test_patience(retry_timeout: float) -> None:
    """Pauses grow from half a second to ten, and when another try would come too late the error is raised."""
    clock, pauses = 0.0, []

    def drive(step: Any) -> None:
        nonlocal clock
        while True:
            if isinstance(step, Sleep):
                clock += step.seconds
                pauses.extend([step.seconds] if step.seconds else [])
                step = engine.send(clock)
            else:
                step = next(engine) if isinstance(step, LogMessage) else engine.throw(BUSY)

    engine = send(endpoints.get_job("a"), retry_timeout)
    with pytest.raises(RayApiUnavailableError) as caught:
        drive(next(engine))

    assert caught.value is BUSY
    assert retry_timeout - 10 <= clock <= retry_timeout
    assert all(min(10, 0.5 * 2**n) / 2 <= pause <= min(10, 0.5 * 2**n) for n, pause in enumerate(pauses))


def test_a_first_try_that_took_long_is_repeated() -> None:
    """Patience counts from the first failure: a time-out longer than all of it is followed by a second try."""
    engine = send(endpoints.submit_job(build_submission("true")), retry_timeout=30)
    submission = next(engine)
    engine.throw(LOST)
    engine.send(120.0)
    pause = next(engine)

    assert isinstance(pause, Sleep)
    assert engine.send(120.0 + pause.seconds) == submission


def test_final_errors() -> None:
    """An error that will not pass is raised at once."""
    engine = send(endpoints.get_job("a"), retry_timeout=10)
    next(engine)

    with pytest.raises(RayJobNotFoundError):
        engine.throw(RayJobNotFoundError("no", status_code=404))


def test_jitter() -> None:
    """A pause is shortened by up to a half, by lot."""
    pauses = {with_jitter(8) for _ in range(100)}

    assert len(pauses) > 1
    assert 4 <= min(pauses) <= max(pauses) <= 8


@pytest.mark.parametrize(
    ("failures", "was_retried"), [pytest.param([], False, id="first try"), pytest.param([LOST], True, id="second try")]
)
def test_final_errors_say_whether_the_request_was_repeated(failures: list[RayJobsError], was_retried: bool) -> None:
    """An error that will not pass says whether the same request was sent before and its answer lost."""
    engine = send(endpoints.submit_job(build_submission("true")), retry_timeout=10)
    next(engine)
    for failure in failures:
        engine.throw(failure)
        engine.send(100.0)
        next(engine)
        engine.send(101.0)

    with pytest.raises(RayJobNotFoundError) as caught:
        engine.throw(RayJobNotFoundError("no", status_code=404))
    assert caught.value.was_retried is was_retried


JOB = Send(endpoints.get_job("a"))


class Mark:
    """What a signal handler leaves: not set, until it is."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self) -> bool:
        return self.is_set


def takes(steps: list[Step], closed: list[bool] | None = None) -> Engine[list[Any]]:
    """Take these steps, and return what came back for each, errors too; note when it is closed."""
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
    """Run an engine to its end, an error in place of an answer thrown; return its result and its steps."""
    steps = [next(engine)]
    try:
        while True:
            answer = do(steps[-1])
            steps.append(engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer))
    except StopIteration as end:
        return end.value, steps


def test_interruptible_that_nobody_interrupts() -> None:
    """Without an interruption the steps, their answers, their errors and the result are the engine's own."""
    steps: list[Step] = [JOB, LogMessage("a note"), EmitRecord("a line"), JOB, JOB]
    answers = ["one", None, None, BUSY, "two"]
    script = iter(answers)

    result, taken = drive(interruptible(takes(steps), Mark()), lambda step: next(script))

    assert taken == steps
    assert result == answers


def test_interruptible_raises_what_the_engine_raises() -> None:
    """An error that the engine does not bear is raised, and is no interruption."""
    engine = interruptible(send(endpoints.get_job("a"), retry_timeout=0), Mark())
    next(engine)

    with pytest.raises(RayJobNotFoundError):
        engine.throw(RayJobNotFoundError("no", status_code=404))


@pytest.mark.parametrize("seconds", [0, 0.1, 1.0])
def test_pauses_in_pieces(seconds: float) -> None:
    """A pause is cut into pieces of a quarter of a second, and the engine is told the time at its end."""
    clock = 50.0

    def sleep(step: Step) -> float:
        nonlocal clock
        assert isinstance(step, Sleep)
        clock += step.seconds
        return clock

    result, steps = drive(interruptible(takes([Sleep(seconds)]), Mark()), sleep)

    assert result == [clock]
    assert clock == pytest.approx(50.0 + seconds)
    assert all(isinstance(step, Sleep) and step.seconds <= 0.25 for step in steps)


def test_interrupted_before_it_began() -> None:
    """A mark that is there already ends an engine before its first step."""
    mark, closed = Mark(), []
    mark.is_set = True

    with pytest.raises(Interrupted):
        next(interruptible(takes([JOB], closed), mark))
    assert closed == []


@pytest.mark.parametrize("answer", ["an answer", BUSY], ids=["answer", "error"])
def test_interrupted_between_two_steps(answer: Any) -> None:
    """A mark that is left during a request ends the engine after it, whatever came of it, and closes it."""
    mark, closed = Mark(), []
    engine = interruptible(takes([JOB, JOB], closed), mark)
    next(engine)
    mark.is_set = True

    with pytest.raises(Interrupted):
        engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer)
    assert closed == [True]


def test_interrupted_in_a_pause() -> None:
    """A mark that is left during a long pause ends the engine within a quarter of a second."""
    mark, closed = Mark(), []
    engine = interruptible(takes([Sleep(600), JOB], closed), mark)
    assert next(engine) == Sleep(0)
    assert engine.send(0.0) == Sleep(0.25)
    assert engine.send(0.25) == Sleep(0.25)
    mark.is_set = True

    with pytest.raises(Interrupted):
        engine.send(0.5)
    assert closed == [True]


def test_an_interruption_is_no_error() -> None:
    """Nobody who handles errors, of the cluster or any other, takes an interruption for one."""
    assert not issubclass(Interrupted, Exception)


def test_advance_sends_results_throws_errors_and_returns_the_value() -> None:
    """``advance`` starts an engine, passes it each outcome, and ends with the engine's return value."""
    engine = takes([JOB, Sleep(1)])

    assert advance(engine) == JOB
    assert advance(engine, BUSY) == Sleep(1)
    assert advance(engine, 5.0) == Finished([BUSY, 5.0])


def test_advance_raises_what_the_engine_raises() -> None:
    """An error that the engine does not handle leaves ``advance`` as it is."""
    engine = send(endpoints.get_job("a"), retry_timeout=0)
    advance(engine)
    error = RayJobNotFoundError("no", status_code=404)

    with pytest.raises(RayJobNotFoundError) as caught:
        advance(engine, error)
    assert caught.value is error
