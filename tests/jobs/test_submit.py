"""Submitting a job exactly once: engines driven by hand."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
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
    RayApiTLSError,
    RayApiUnreachableError,
    RayJobExistsError,
    RayJobNotFoundError,
    RayJobsError,
    RayPackageError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayVersion
from airflow_provider_rayjobs.jobs.requests import Request
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, Send, Sleep
from airflow_provider_rayjobs.jobs.submission import NONCE, build_submission
from airflow_provider_rayjobs.jobs.submit import get_session, submit_job

SUBMISSION = replace(build_submission("true", submission_id="mine"), metadata={NONCE: "ours"})
LOST = RayApiConnectionError("cut off")
TAKEN = RayJobExistsError("taken", status_code=500)
BUSY = RayApiBusyError("busy", status_code=503)
UNSENT = RayApiConnectionError("refused", delivery=Delivery.NOT_SENT)
FOREIGN = RayApiAddressError("ingress", status_code=404, delivery=Delivery.FOREIGN)
POST = "POST /api/jobs/"


def existing(**metadata: str) -> JobDetails:
    return JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, submission_id="mine", metadata=metadata)


def drive(engine: Engine[Any], *answers: Any) -> tuple[Any, list[str]]:
    """Drive an engine with one answer for each request, errors thrown; return its result and the requests."""
    sent: list[str] = []
    clock, script = 0.0, iter(answers)
    step = next(engine)
    try:
        while True:
            if isinstance(step, Sleep):
                clock += step.seconds
                step = engine.send(clock)
                continue
            if isinstance(step, LogMessage):
                step = next(engine)
                continue
            assert isinstance(step, Send)
            sent.append(f"{step.request.method} {step.request.path}")
            answer = next(script)
            step = engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer)
    except StopIteration as end:
        return end.value, sent


@pytest.mark.parametrize(
    ("runs", "warnings"),
    [
        ({"working_dir": "gcs://new.zip", "py_modules": []}, 0),
        ({}, 0),
        ({"working_dir": "gcs://old.zip"}, 1),
        ({"working_dir": "gcs://new.zip", "py_modules": ["gcs://m.zip"]}, 1),
    ],
)
def test_job_with_older_code_is_kept_with_a_warning(runs: dict[str, Any], warnings: int) -> None:
    """A job of this submission that was accepted before the code changed is kept, with a warning."""
    submission = replace(SUBMISSION, runtime_env={"working_dir": "gcs://new.zip"})
    engine = submit_job(submission, 0)
    next(engine)
    engine.throw(TAKEN)
    messages: list[LogMessage] = []
    try:
        step = engine.send(replace(existing(submission_nonce="ours"), runtime_env=runs))
        while True:
            assert isinstance(step, LogMessage)
            messages.append(step)
            step = next(engine)
    except StopIteration as end:
        is_confirmed = end.value
    assert is_confirmed is False
    assert len(messages) == warnings
    for message in messages:
        assert message.level == logging.WARNING
        assert str(next(reversed(runs.values()))) in message.message


POST, GET = "POST /api/jobs/", "GET /api/jobs/mine"


@pytest.mark.parametrize(
    ("answers", "requests", "is_confirmed"),
    [
        pytest.param(["mine"], [POST], True, id="accepted"),
        pytest.param([LOST, "mine"], [POST, POST], True, id="lost on the way there"),
        pytest.param(
            [LOST, TAKEN, existing(submission_nonce="ours")], [POST, POST, GET], False, id="lost on the way back"
        ),
        pytest.param(
            [LOST, LOST, BUSY, TAKEN, BUSY, LOST, existing(submission_nonce="ours")],
            [POST, POST, POST, POST, GET, GET, GET],
            False,
            id="failures everywhere",
        ),
        pytest.param(
            [TAKEN, existing(submission_nonce="ours")], [POST, GET], False, id="submitted by an earlier process"
        ),
        pytest.param([BUSY, BUSY, "mine"], [POST, POST, POST], True, id="busy for a while"),
    ],
)
def test_exactly_one_job_is_submitted(answers: list[Any], requests: list[str], is_confirmed: bool) -> None:
    """A submission creates one job even if answers are lost, and the result tells whether Ray confirmed it."""
    assert drive(submit_job(SUBMISSION, 60), *answers) == (is_confirmed, requests)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        pytest.param([TAKEN, existing(submission_nonce="theirs")], RayJobExistsError, id="another nonce"),
        pytest.param([LOST, TAKEN, existing()], RayJobExistsError, id="no nonce"),
        pytest.param([RayApiRejectedError("no", status_code=400)], RayApiRejectedError, id="refused"),
        pytest.param(
            [TAKEN, RayJobNotFoundError("gone", status_code=404)], RayJobNotFoundError, id="deleted meanwhile"
        ),
    ],
)
def test_taken_id_and_refusal_are_errors(answers: list[Any], error: type[RayJobsError]) -> None:
    """An id that belongs to another submission is an error, and a refused submission is not repeated."""
    with pytest.raises(error):
        drive(submit_job(SUBMISSION, 60), *answers)


@pytest.mark.parametrize("error", [BUSY, LOST, UNSENT], ids=["busy", "lost", "refused"])
def test_submission_is_retried_for_retry_timeout(error: RayJobsError) -> None:
    """A submission is retried for ``retry_timeout``; the error then says that the job may exist."""
    with pytest.raises(RayApiUnreachableError, match="look for job mine on the cluster") as caught:
        drive(submit_job(SUBMISSION, 30), *[error] * 100)
    with pytest.raises(RayApiUnreachableError):
        drive(submit_job(SUBMISSION, 0), error)

    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("failures", "delivery"),
    [
        pytest.param([], Delivery.REFUSED, id="refused at once"),
        pytest.param([UNSENT], Delivery.REFUSED, id="refused after a request that was not sent"),
        pytest.param([LOST], Delivery.MAY_HAVE_ARRIVED, id="refused after a lost answer"),
        pytest.param([BUSY], Delivery.MAY_HAVE_ARRIVED, id="refused after a busy head"),
        pytest.param([FOREIGN], Delivery.MAY_HAVE_ARRIVED, id="refused after a proxy's answer"),
    ],
)
def test_refusal_tells_whether_the_job_may_exist(failures: list[RayJobsError], delivery: Delivery) -> None:
    """The error about a refusal tells whether an earlier request may have created the job."""
    refused = RayApiAuthError("no", status_code=403, delivery=Delivery.REFUSED)
    with pytest.raises(RayApiAuthError) as caught:
        drive(submit_job(SUBMISSION, 60), *failures, refused)

    assert caught.value.delivery is delivery


@pytest.mark.parametrize("failures", [[], [LOST]], ids=["first attempt", "after a lost answer"])
@pytest.mark.parametrize(
    "error",
    [UNSENT, LOST, FOREIGN, RayApiAuthError("expired", status_code=403, delivery=Delivery.REFUSED)],
    ids=["refused", "lost", "foreign", "expired token"],
)
def test_job_whose_nonce_cannot_be_read_may_exist(failures: list[RayJobsError], error: RayJobsError) -> None:
    """If the id is taken and its job cannot be read, the job may be this submission's, whatever became of the read."""
    with pytest.raises(type(error)) as caught:
        drive(submit_job(SUBMISSION, 60), *failures, TAKEN, *[copy.copy(error) for _ in range(100)])

    assert caught.value.delivery.may_have_effect


@pytest.mark.parametrize("kind", [RayApiAddressError, RayApiAuthError, RayApiResponseError])
def test_answer_of_another_program_is_a_lost_answer(kind: type[RayApiResponseError]) -> None:
    """An ingress may answer 401, 404 or 200 with its own text. The submission is sent again, with the same id."""
    foreign = kind("ingress", delivery=Delivery.FOREIGN)

    assert drive(submit_job(SUBMISSION, 60), foreign, foreign, "mine") == (True, [POST] * 3)
    with pytest.raises(kind) as caught:
        drive(submit_job(SUBMISSION, 60), *[foreign] * 100)
    assert caught.value.delivery.may_have_effect


VERSION = "GET /api/version"


def prepare(is_repeated: bool) -> Engine[None]:
    """Send a request before an attempt, whose path tells whether an earlier attempt failed."""
    yield Send(Request("prepare", "GET", "/again" if is_repeated else "/first", lambda _: None))


FIRST, AGAIN = "GET /first", "GET /again"


@pytest.mark.parametrize(
    ("answers", "requests", "is_confirmed"),
    [
        pytest.param([None, "mine"], [FIRST, POST], True, id="accepted"),
        pytest.param([None, LOST, None, "mine"], [FIRST, POST, AGAIN, POST], True, id="lost on the way there"),
        pytest.param([LOST, None, "mine"], [FIRST, AGAIN, POST], True, id="failed before the first attempt"),
        pytest.param(
            [None, LOST, BUSY, None, TAKEN, existing(submission_nonce="ours")],
            [FIRST, POST, AGAIN, AGAIN, POST, GET],
            False,
            id="failed between two attempts",
        ),
    ],
)
def test_each_attempt_is_prepared(answers: list[Any], requests: list[str], is_confirmed: bool) -> None:
    """The preparation runs before each attempt, and a temporary failure of it is retried like one of the attempt."""
    assert drive(submit_job(SUBMISSION, 60, prepare), *answers) == (is_confirmed, requests)


def test_failed_preparation_ends_the_submission() -> None:
    """A preparation that cannot succeed is an error that tells whether the job was sent before."""
    first, second = RayPackageError("changed"), RayPackageError("changed")
    with pytest.raises(RayPackageError) as caught:
        drive(submit_job(SUBMISSION, 60, prepare), first)
    assert caught.value.delivery is Delivery.NOT_SENT

    with pytest.raises(RayPackageError) as caught:
        drive(submit_job(SUBMISSION, 60, prepare), None, RayApiConnectionError("cut off"), second)
    assert caught.value is second
    assert caught.value.delivery is Delivery.MAY_HAVE_ARRIVED


@pytest.mark.parametrize(
    ("answers", "session"),
    [
        pytest.param([RayVersion("4", "2.60.0", "session_1")], "session_1", id="at once"),
        pytest.param([LOST, BUSY, RayVersion("4", "2.60.0", "session_1")], "session_1", id="after failures"),
        pytest.param([RayVersion("4", "2.9.3")], None, id="an old head"),
    ],
)
def test_session_is_returned(answers: list[Any], session: str | None) -> None:
    """The name of the current session is returned; old heads have none."""
    assert drive(get_session("mine", 60), *answers) == (session, [VERSION] * len(answers))


@pytest.mark.parametrize("error", [BUSY, LOST], ids=["busy", "lost"])
def test_unavailable_session_is_an_error(error: RayJobsError) -> None:
    """If the head reports no session within ``retry_timeout``, the error says that nothing was submitted."""
    with pytest.raises(RayApiUnreachableError, match="Retried for 30 s. Job mine was not submitted") as caught:
        drive(get_session("mine", 30), *[error] * 100)

    assert caught.value.delivery is Delivery.NOT_SENT
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("engine", [submit_job(SUBMISSION, 30), get_session("mine", 30)], ids=["submit", "session"])
def test_tls_error_is_not_retried(engine: Engine[Any]) -> None:
    """A TLS error is raised at once, under its own class: a retry cannot fix a certificate."""
    error = RayApiTLSError("certificate has expired")

    with pytest.raises(RayApiTLSError) as caught:
        drive(engine, error)

    assert caught.value is error
