"""What engines share: sending again what may pass, where repeating is safe."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    RayJobNotFoundError,
    RayJobsConnectionError,
    RayJobsError,
    RayJobsNotAuthorizedError,
    RayJobsUnavailableError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.logs import WholeLog
from airflow_provider_rayjobs.jobs.steps import Note, ReadLog, Send, Sleep, may_repeat, repeated, send, with_jitter
from airflow_provider_rayjobs.jobs.submission import plan_submission

BUSY = RayJobsUnavailableError("busy", status_code=503)
LOST = RayJobsConnectionError("cut off")
UNSENT = RayJobsConnectionError("refused", sent=False)


@pytest.mark.parametrize(
    ("error", "read", "delete"),
    [
        pytest.param(BUSY, True, False, id="busy"),
        pytest.param(LOST, True, False, id="answer lost"),
        pytest.param(UNSENT, True, True, id="never sent"),
        pytest.param(RayJobNotFoundError("no", status_code=404), False, False, id="unknown job"),
        pytest.param(RayJobsNotAuthorizedError("no", status_code=403), False, False, id="wrong token"),
        pytest.param(RayJobsError("no"), False, False, id="anything else"),
    ],
)
def test_may_repeat(error: RayJobsError, read: bool, delete: bool) -> None:
    """What may pass is asked again, but a deletion only when it never left this machine."""
    assert may_repeat(endpoints.get_job("a"), error) is read
    assert may_repeat(endpoints.get_log_file("a", "node"), error) is read
    assert may_repeat(endpoints.delete_job("a"), error) is delete


@pytest.mark.parametrize("step", [Send(endpoints.get_job("a")), ReadLog(endpoints.get_log_file("a", "n"), WholeLog())])
def test_repeated_by_hand(step: Send | ReadLog) -> None:
    """An engine takes its step, says a failure once, sleeps, takes it again, and says when it is over."""
    engine = repeated(step, patience=10)

    assert next(engine) == step
    assert engine.throw(BUSY) == Sleep(0)
    assert engine.send(101.0) == Note("busy Trying again for 10 s.", logging.WARNING)
    pause = next(engine)
    assert isinstance(pause, Sleep)
    assert 0.25 <= pause.seconds <= 0.5
    assert engine.send(101.5) == step
    assert engine.throw(BUSY) == Sleep(0)
    assert isinstance(engine.send(102.0), Sleep)
    assert engine.send(103.0) == step
    assert engine.send("answer") == Sleep(0)
    assert engine.send(104.0).message.endswith(" after all, 3 s after the first failure.")
    with pytest.raises(StopIteration) as end:
        next(engine)
    assert end.value.value == "answer"


@pytest.mark.parametrize("patience", [0, 1, 30, 600])
def test_patience(patience: float) -> None:
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
                step = next(engine) if isinstance(step, Note) else engine.throw(BUSY)

    engine = send(endpoints.get_job("a"), patience)
    with pytest.raises(RayJobsUnavailableError) as caught:
        drive(next(engine))

    assert caught.value is BUSY
    assert patience - 10 <= clock <= patience
    assert all(min(10, 0.5 * 2**n) / 2 <= pause <= min(10, 0.5 * 2**n) for n, pause in enumerate(pauses))


def test_a_first_try_that_took_long_is_repeated() -> None:
    """Patience counts from the first failure: a time-out longer than all of it is followed by a second try."""
    engine = send(endpoints.submit_job(plan_submission("true")), patience=30)
    submission = next(engine)
    engine.throw(LOST)
    engine.send(120.0)
    pause = next(engine)

    assert isinstance(pause, Sleep)
    assert engine.send(120.0 + pause.seconds) == submission


def test_final_errors() -> None:
    """An error that will not pass is raised at once."""
    engine = send(endpoints.get_job("a"), patience=10)
    next(engine)

    with pytest.raises(RayJobNotFoundError):
        engine.throw(RayJobNotFoundError("no", status_code=404))


def test_jitter() -> None:
    """A pause is shortened by up to a half, by lot."""
    pauses = {with_jitter(8) for _ in range(100)}

    assert len(pauses) > 1
    assert 4 <= min(pauses) <= max(pauses) <= 8
