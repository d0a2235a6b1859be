"""The end of a job that is stopped: engines driven by hand, until Ray says that it is over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.requests import READ_TIMEOUT
from airflow_provider_rayjobs.jobs.steps import Engine, Send, Sleep
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, StopResult, delete_ended_job, stop_and_wait
from airflow_provider_rayjobs.jobs.submission import NONCE

RUNNING = JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, submission_id="a", metadata={NONCE: "ours"})
PENDING = replace(RUNNING, status=JobStatus.PENDING)
ENDED = [replace(RUNNING, status=status) for status in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)]
STOPPED = ENDED[0]
LOST = RayApiConnectionError("cut off")
BUSY = RayApiBusyError("busy", status_code=503)
GONE = RayJobNotFoundError("gone", status_code=404)
GET, STOP = "GET /api/jobs/a", "POST /api/jobs/a/stop"


@dataclass
class Cluster:
    """A script of answers, one for each request, and a clock; the last pair of answers goes on for ever."""

    answers: list[Any]
    takes: float = 0.0
    clock: float = 1000.0
    asked: list[str] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def drive(self, engine: Engine[StopResult]) -> StopResult:
        step: Any = next(engine)
        try:
            while True:
                if isinstance(step, Sleep):
                    self.clock += step.seconds
                    self.pauses += [step.seconds] if step.seconds else []
                    step = engine.send(self.clock)
                    continue
                assert isinstance(step, Send)
                self.asked.append(f"{step.request.method} {step.request.path}")
                self.timeouts.append(step.request.timeout)
                self.clock += min(self.takes, step.request.timeout)
                answer = self.answers.pop(0)
                if len(self.answers) < 2:
                    self.answers.append(answer)
                step = engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer)
        except StopIteration as end:
            return end.value


def test_by_hand() -> None:
    """A stop asks for the time, looks at the job, asks for its end, and looks again until it is over."""
    engine = stop_and_wait("a")

    assert next(engine) == Sleep(0)
    looked = engine.send(0.0)
    assert (looked.request.method, looked.request.path) == ("GET", "/api/jobs/a")
    assert engine.send(RUNNING) == Sleep(0)
    asked = engine.send(0.0)
    assert (asked.request.method, asked.request.path) == ("POST", "/api/jobs/a/stop")
    assert engine.send(True) == Sleep(0)
    assert engine.send(0.1) == Sleep(0.5)
    assert engine.send(0.6).request.method == "GET"
    with pytest.raises(StopIteration) as end:
        engine.send(STOPPED)
    assert end.value.value == StopResult(True, "Job a is over: STOPPED.", STOPPED)


@pytest.mark.parametrize("ended", ENDED, ids=lambda ended: ended.status)
def test_a_job_that_has_ended(ended: JobDetails) -> None:
    """A job that has ended is looked at once, and nothing is asked of it."""
    cluster = Cluster([ended])

    assert cluster.drive(stop_and_wait("a")) == StopResult(True, f"Job a is over: {ended.status}.", ended)
    assert cluster.asked == [GET]


def test_asked_again_and_again() -> None:
    """A stop is repeated, with pauses that grow to 3 s, until Ray says that the job is over."""
    cluster = Cluster([*[RUNNING, True] * 6, STOPPED])

    assert cluster.drive(stop_and_wait("a")).has_ended
    assert cluster.asked == [GET, STOP] * 6 + [GET]
    assert cluster.pauses == [0.5, 1, 2, 3, 3, 3]


def test_pending() -> None:
    """A PENDING job that took the stop counts as stopped: Ray ends it when it starts."""
    cluster = Cluster([PENDING, True, PENDING])

    stopped = cluster.drive(stop_and_wait("a"))
    assert stopped == StopResult(True, "Job a has not started; Ray ends it when it does.", PENDING)
    assert cluster.asked == [GET, STOP, GET]


def test_pending_that_does_not_listen() -> None:
    """A PENDING job that no stop reaches yet is asked again, and only then counts as stopped."""
    cluster = Cluster([PENDING, False, PENDING, LOST, PENDING, True, PENDING])

    assert cluster.drive(stop_and_wait("a")).has_ended
    assert cluster.asked == [GET, STOP] * 3 + [GET]


def test_pending_that_started() -> None:
    """A PENDING job that took the stop and started all the same is stopped as a running one."""
    cluster = Cluster([PENDING, True, RUNNING, True, STOPPED])

    assert cluster.drive(stop_and_wait("a")).details is STOPPED
    assert cluster.asked == [GET, STOP, GET, STOP, GET]


@pytest.mark.parametrize("answers", [[GONE], [RUNNING, GONE], [RUNNING, True, GONE]], ids=["at once", "stop", "later"])
def test_unknown_job(answers: list[Any]) -> None:
    """Of a job that the cluster does not know, or not any more, there is nothing to stop."""
    stopped = Cluster(answers).drive(stop_and_wait("a"))

    assert stopped == StopResult(True, "The cluster does not know job a; there is nothing to stop.")


@pytest.mark.parametrize("metadata", [{}, {NONCE: "theirs"}], ids=["no nonce", "another nonce"])
@pytest.mark.parametrize("status", list(JobStatus))
def test_a_job_of_somebody_else(status: JobStatus, metadata: dict[str, str]) -> None:
    """A job whose metadata says that it is not ours is left alone, whatever it does."""
    theirs = replace(RUNNING, status=status, metadata=metadata)
    cluster = Cluster([theirs])

    stopped = cluster.drive(stop_and_wait("a", nonce="ours"))
    assert stopped == StopResult(True, "Job a is not ours, as its metadata says; it is left alone.", theirs)
    assert cluster.asked == [GET]


@pytest.mark.parametrize("nonce", ["ours", None])
def test_a_job_of_ours(nonce: str | None) -> None:
    """A job with our nonce is stopped, and without a nonce to compare any job is."""
    assert Cluster([RUNNING, True, STOPPED]).drive(stop_and_wait("a", nonce=nonce)).details is STOPPED


@pytest.mark.parametrize(
    "answers", [[RayApiRejectedError("DRIVER")], [RUNNING, RayApiRejectedError("DRIVER")]], ids=["get", "stop"]
)
def test_refusals_are_raised(answers: list[Any]) -> None:
    """What Ray stops for nobody is an error at once."""
    with pytest.raises(RayApiRejectedError, match="DRIVER"):
        Cluster(answers).drive(stop_and_wait("a"))


@pytest.mark.parametrize("error", [LOST, BUSY, RayApiAuthError("token"), RayJobsError("odd")], ids=repr)
def test_failures_are_borne(error: RayJobsError) -> None:
    """Failures of any other kind are borne: the stop goes on when they are over."""
    cluster = Cluster([error, error, RUNNING, error, error, RUNNING, True, STOPPED])

    assert cluster.drive(stop_and_wait("a")) == StopResult(True, "Job a is over: STOPPED.", STOPPED)


@pytest.mark.parametrize(
    ("answers", "timeout", "summary", "details"),
    [
        pytest.param(
            [RUNNING, True], 30, "within 30 s: it was RUNNING when it was seen last. It may", RUNNING, id="deaf"
        ),
        pytest.param([LOST], 30, "within 30 s: it was not seen at all; last error: cut off. It", None, id="away"),
        pytest.param(
            [RUNNING, LOST, LOST, BUSY],
            2.5,
            "within 2.5 s: it was RUNNING when it was seen last; last error: busy. It may",
            RUNNING,
            id="seen, then away",
        ),
        pytest.param(
            [LOST, BUSY, RUNNING, True],
            3,
            "within 3 s: it was RUNNING when it was seen last. It may",
            RUNNING,
            id="away, then seen",
        ),
        pytest.param(
            [PENDING, False], 30, "within 30 s: it was PENDING when it was seen last. It may", PENDING, id="unreachable"
        ),
    ],
)
def test_not_confirmed(answers: list[Any], timeout: float, summary: str, details: JobDetails | None) -> None:
    """What could not be confirmed in time is told, with what was seen last, and the job may run on."""
    cluster = Cluster(answers)

    stopped = cluster.drive(stop_and_wait("a", timeout))
    assert not stopped.has_ended
    assert f"The end of job a could not be confirmed {summary}" in stopped.summary
    assert stopped.summary.endswith("It may run on: look for it on the cluster.")
    assert stopped.details is details
    assert timeout - 3 <= cluster.clock - 1000 <= timeout


def test_no_time_at_all() -> None:
    """With a timeout of 0 the job is asked once, in requests that may take a second."""
    cluster = Cluster([RUNNING, True])

    assert not cluster.drive(stop_and_wait("a", 0)).has_ended
    assert (cluster.asked, cluster.timeouts, cluster.pauses) == ([GET, STOP], [1, 1], [])


def test_requests_keep_to_the_time() -> None:
    """No request waits for longer than what remains of the time, one second at the least."""
    cluster = Cluster([LOST], takes=99)
    many = Cluster([LOST], takes=4)

    assert not cluster.drive(stop_and_wait("a", 10)).has_ended
    assert cluster.timeouts == [10]
    assert not many.drive(stop_and_wait("a", 10)).has_ended
    assert many.timeouts == [10, 5.5, 1]
    assert max(many.timeouts) <= READ_TIMEOUT
    assert STOP_TIMEOUT == 30


def test_a_slow_head_does_not_double_the_time() -> None:
    """A look that takes most of the time leaves the rest, or a second, for the stop: the whole keeps to the timeout."""
    cluster = Cluster([RUNNING, LOST], takes=28)

    assert not cluster.drive(stop_and_wait("a", 30)).has_ended
    assert cluster.asked[:2] == [GET, STOP]
    assert cluster.clock - 1000 <= 31


@pytest.mark.parametrize(
    ("seen_at", "rest"), [(None, None), (1_000_000, 5.0), (1_002_000, 3.0), (1_060_000, 0)], ids=str
)
def test_a_job_that_has_just_ended_is_deleted_a_little_later(seen_at: int | None, rest: float | None) -> None:
    """Ray still writes to the record of a job for some seconds after its end; deleted before, it would come back."""
    engine = delete_ended_job("a", retry_timeout=0)
    next(engine)
    step = engine.send(replace(STOPPED, end_time=1_000_000, seen_at=seen_at))
    if rest is not None:
        assert step == Sleep(rest)
        step = engine.send(0.0)

    assert (step.request.method, step.request.path) == ("DELETE", "/api/jobs/a")
    with pytest.raises(StopIteration):
        engine.send(True)
