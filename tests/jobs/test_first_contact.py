"""The first contact with a cluster: an engine driven by hand, with a clock of its own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiUnreachableError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import RayVersion
from airflow_provider_rayjobs.jobs.first_contact import FirstContact
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, Sleep
from airflow_provider_rayjobs.jobs.submit import get_session

REFUSED = "Connection refused"
VERSION = RayVersion("4", "2.60.0", "session_1")


def refused() -> RayApiConnectionError:
    return RayApiConnectionError(REFUSED, delivery=Delivery.NOT_SENT)


class Clock:
    """Answers an engine's requests from a list, and counts the seconds that it sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.messages: list[tuple[float, str]] = []

    def drive(self, engine: Engine[Any], answers: Iterable[Any]) -> Any:
        script = iter(answers)
        step = next(engine)
        while True:
            try:
                match step:
                    case Sleep(seconds):
                        self.now += seconds
                        step = engine.send(self.now)
                    case LogMessage(message):
                        self.messages.append((self.now, message))
                        step = next(engine)
                    case _:
                        answer = next(script)
                        step = engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer)
            except StopIteration as end:
                return end.value


def test_first_connection_is_retried_for_a_shorter_time() -> None:
    """Without any connection the error comes after first_contact_timeout, and a warning each minute tells of it."""
    clock = Clock()
    with pytest.raises(RayApiUnreachableError) as caught:
        clock.drive(FirstContact(150).limit(get_session("mine", 600)), (refused() for _ in repeat(None)))

    assert 140 <= clock.now <= 150
    assert str(caught.value) == f"{REFUSED} Retried for 150 s (first_contact_timeout). Job mine was not submitted."
    assert caught.value.delivery is Delivery.NOT_SENT
    (first, begin), (second, middle), (third, end) = clock.messages
    assert (first, begin) == (0, f"{REFUSED} Retrying for 150 s.")
    assert 60 <= second <= 70
    assert middle == f"{REFUSED} Retrying for another {150 - second:.0f} s."
    assert 120 <= third <= 140
    assert end == f"{REFUSED} Retrying for another {150 - third:.0f} s."


def test_shorter_retry_timeout_applies_to_the_first_connection() -> None:
    """A first_contact_timeout never makes a retry longer."""
    clock = Clock()
    with pytest.raises(RayApiUnreachableError, match=r"Retried for 30 s\. Job"):
        clock.drive(FirstContact(90).limit(get_session("mine", 30)), (refused() for _ in repeat(None)))
    assert clock.now <= 30


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(RayApiBusyError("busy", status_code=503), id="busy"),
        pytest.param(RayApiConnectionError("cut off"), id="lost answer"),
    ],
)
def test_outage_after_the_first_connection_is_retried_for_longer(first: RayJobsError) -> None:
    """A cluster that was connected to once, whatever it answered, is retried for unreachable_timeout."""
    clock = Clock()
    with pytest.raises(RayApiUnreachableError, match="Retried for 600 s"):
        clock.drive(FirstContact(90).limit(get_session("mine", 600)), chain([first], (refused() for _ in repeat(None))))
    assert clock.now >= 590


def test_contact_lasts() -> None:
    """A contact that was made in one engine counts in the next one."""
    contact, clock = FirstContact(90), Clock()
    assert clock.drive(contact.limit(get_session("mine", 600)), [refused(), VERSION]) == "session_1"
    with pytest.raises(RayApiUnreachableError, match="Retried for 600 s"):
        clock.drive(contact.limit(get_session("mine", 600)), (refused() for _ in repeat(None)))


def test_final_answer_is_raised_at_once() -> None:
    """An answer that no retry can change is raised as before."""
    error = RayApiAddressError("login page", status_code=200, delivery=Delivery.FOREIGN)
    with pytest.raises(RayApiAddressError):
        Clock().drive(FirstContact(90).limit(get_session("mine", 600)), [error])
