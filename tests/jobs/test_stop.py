"""Stopping and deleting a job: engines driven by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.requests import READ_TIMEOUT
from airflow_provider_rayjobs.jobs.steps import Engine, Send, Sleep
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, StopResult, delete_ended_job, stop_and_wait
from airflow_provider_rayjobs.jobs.submission import NONCE

ADDRESS = "http://head:8265"
REFUSED = RayApiRejectedError("DRIVER", delivery=Delivery.REFUSED)
FOREIGN = RayApiRejectedError("ingress", status_code=400, delivery=Delivery.FOREIGN)
JOB = JobRef(ADDRESS, "a")

RUNNING = JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, submission_id="a", metadata={NONCE: "ours"})
PENDING = replace(RUNNING, status=JobStatus.PENDING)
STARTED = replace(RUNNING, start_time=1000, metadata={})
ENDED = [replace(RUNNING, status=status) for status in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)]
STOPPED = ENDED[0]
LOST = RayApiConnectionError("cut off")
BUSY = RayApiBusyError("busy", status_code=503)
GONE = RayJobNotFoundError("gone", status_code=404)
GET, STOP = "GET /api/jobs/a", "POST /api/jobs/a/stop"


@dataclass
class Cluster:
    """A clock, and a script of answers, one for each request; the last two answers repeat."""

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


def test_engine_yields_its_steps_in_order() -> None:
    """A stop asks for the time, polls the job, sends the stop, and polls again until the job has ended."""
    engine = stop_and_wait(JOB)

    assert next(engine) == Sleep(0)
    looked = engine.send(0.0)
    assert (looked.request.method, looked.request.path) == ("GET", "/api/jobs/a")
    assert engine.send(RUNNING) == Sleep(0)
    asked = engine.send(0.0)
    assert (asked.request.method, asked.request.path) == ("POST", "/api/jobs/a/stop")
    assert engine.send(True) == Sleep(0)
    pause = engine.send(0.1)
    assert isinstance(pause, Sleep)
    assert 0.25 <= pause.seconds <= 0.5
    assert engine.send(0.6).request.method == "GET"
    with pytest.raises(StopIteration) as end:
        engine.send(STOPPED)
    assert end.value.value == StopResult(True, "Job a ended with status STOPPED.", STOPPED)


@pytest.mark.parametrize("ended", ENDED, ids=lambda ended: ended.status)
def test_ended_job_is_not_stopped(ended: JobDetails) -> None:
    """A job that has already ended is polled once, and no stop is sent."""
    cluster = Cluster([ended])

    assert cluster.drive(stop_and_wait(JOB)) == StopResult(True, f"Job a ended with status {ended.status}.", ended)
    assert cluster.asked == [GET]


def test_stop_is_repeated_until_the_job_ends() -> None:
    """A stop is repeated, with delays that grow to 3 s, half of them random, until the job has ended."""
    cluster = Cluster([*[RUNNING, True] * 6, STOPPED])

    assert cluster.drive(stop_and_wait(JOB)).has_ended
    assert cluster.asked == [GET, STOP] * 6 + [GET]
    assert all(most / 2 <= pause <= most for pause, most in zip(cluster.pauses, [0.5, 1, 2, 3, 3, 3], strict=True))


def test_pending_job_that_accepted_the_stop_counts_as_stopped() -> None:
    """A PENDING job that accepted the stop counts as stopped: Ray stops it when it starts."""
    cluster = Cluster([PENDING, True, PENDING])

    stopped = cluster.drive(stop_and_wait(JOB))
    assert stopped == StopResult(True, "Job a has not started. Ray stops it when it starts.", PENDING)
    assert cluster.asked == [GET, STOP, GET]


def test_pending_job_is_stopped_again_until_it_accepts() -> None:
    """A PENDING job that did not accept the stop is stopped again, and only then counts as stopped."""
    cluster = Cluster([PENDING, False, PENDING, LOST, PENDING, True, PENDING])

    assert cluster.drive(stop_and_wait(JOB)).has_ended
    assert cluster.asked == [GET, STOP] * 3 + [GET]


def test_job_that_started_after_the_stop_is_stopped_again() -> None:
    """A PENDING job that accepted the stop and started nevertheless is stopped like a running job."""
    cluster = Cluster([PENDING, True, RUNNING, True, STOPPED])

    assert cluster.drive(stop_and_wait(JOB)).details is STOPPED
    assert cluster.asked == [GET, STOP, GET, STOP, GET]


@pytest.mark.parametrize("answers", [[GONE], [RUNNING, GONE], [RUNNING, True, GONE]], ids=["at once", "stop", "later"])
def test_unknown_job_needs_no_stop(answers: list[Any]) -> None:
    """A job that the cluster does not know, or no longer knows, needs no stop."""
    stopped = Cluster(answers).drive(stop_and_wait(JOB))

    assert stopped == StopResult(True, "The cluster does not know job a. There is nothing to stop.")


@pytest.mark.parametrize("metadata", [{}, {NONCE: "theirs"}], ids=["no nonce", "another nonce"])
@pytest.mark.parametrize("status", list(JobStatus))
def test_job_of_another_submission_is_left_alone(status: JobStatus, metadata: dict[str, str]) -> None:
    """A job with another nonce, or none, is left alone in every status, and its status is nowhere taken for ours."""
    theirs = replace(RUNNING, status=status, metadata=metadata)
    cluster = Cluster([theirs])

    stopped = cluster.drive(stop_and_wait(JobRef(ADDRESS, "a", nonce="ours")))
    assert stopped == StopResult(True, "Another job at http://head:8265 has the id a now. It is left alone.")
    assert cluster.asked == [GET]


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        pytest.param([replace(STARTED, start_time=2000)], [GET], id="another start time"),
        pytest.param([STARTED, True, replace(STARTED, start_time=2000)], [GET, STOP, GET], id="replaced meanwhile"),
        pytest.param([RUNNING, True, replace(RUNNING, metadata={})], [GET, STOP, GET], id="came back without metadata"),
        pytest.param([STARTED, LOST, LOST, replace(STARTED, start_time=2000)], [GET, STOP, GET, GET], id="outage"),
    ],
)
def test_job_with_another_start_time_is_left_alone(answers: list[Any], asked: list[str]) -> None:
    """A job that got the id later is left alone, even after a stop of the job that is meant."""
    job = JOB if answers[0] is RUNNING else JobRef(ADDRESS, "a", start_time=1000)
    cluster = Cluster([*answers])

    stopped = cluster.drive(stop_and_wait(job))
    assert stopped == StopResult(True, "Another job at http://head:8265 has the id a now. It is left alone.")
    assert cluster.asked == asked


def test_job_whose_submission_may_arrive_is_awaited() -> None:
    """A submission in flight may arrive after the first poll: with ``may_arrive`` its job is awaited and stopped."""
    cluster = Cluster([GONE, LOST, GONE, RUNNING, True, STOPPED])

    assert cluster.drive(stop_and_wait(JOB, may_arrive=True)) == StopResult(
        True, "Job a ended with status STOPPED.", STOPPED
    )
    assert cluster.asked == [GET] * 4 + [STOP, GET]


@pytest.mark.parametrize("timeout", [0, 3, 30])
def test_job_that_never_arrives_is_not_confirmed(timeout: float) -> None:
    """If the job does not arrive within the timeout, it may still do so later: its end is not confirmed."""
    cluster = Cluster([GONE])

    stopped = cluster.drive(stop_and_wait(JOB, timeout, may_arrive=True))
    assert stopped == StopResult(
        False,
        f"The end of job a could not be confirmed within {timeout} s. Its last known status is unknown. The job may "
        "still be running: look for it at http://head:8265. Last error: gone",
    )
    assert max(timeout - 3, 0) <= cluster.clock - 1000 <= timeout
    assert len(cluster.asked) > timeout / 3


@pytest.mark.parametrize("job", [RUNNING, PENDING], ids=lambda job: job.status)
def test_brief_stop_ends_when_ray_accepts_it(job: JobDetails) -> None:
    """A brief stop does not wait for the job's end: it returns as soon as Ray has accepted the stop."""
    cluster = Cluster([job, True])

    stopped = cluster.drive(stop_and_wait(JOB, is_brief=True))
    assert stopped == StopResult(False, "Ray accepted the stop of job a.", job)
    assert (cluster.asked, cluster.pauses) == ([GET, STOP], [])


def test_brief_stop_is_repeated_until_ray_accepts_it() -> None:
    """A brief stop continues after failures and after a stop that Ray did not accept; an ended job ends it too."""
    refusing = Cluster([LOST, PENDING, False, PENDING, BUSY, PENDING, True])
    ending, arriving = Cluster([RUNNING, False, STOPPED]), Cluster([GONE, RUNNING, True])

    assert not refusing.drive(stop_and_wait(JOB, is_brief=True)).has_ended
    assert refusing.asked == [GET, GET, STOP, GET, STOP, GET, STOP]
    assert ending.drive(stop_and_wait(JOB, is_brief=True)).details is STOPPED
    assert not arriving.drive(stop_and_wait(JOB, is_brief=True, may_arrive=True)).has_ended
    assert arriving.asked == [GET, GET, STOP]


@pytest.mark.parametrize("nonce", ["ours", None])
def test_job_of_this_submission_is_stopped(nonce: str | None) -> None:
    """A job with the given nonce is stopped, and without a given nonce every job is."""
    assert Cluster([RUNNING, True, STOPPED]).drive(stop_and_wait(JobRef(ADDRESS, "a", nonce=nonce))).details is STOPPED


@pytest.mark.parametrize("answers", [[REFUSED], [RUNNING, REFUSED]], ids=["get", "stop"])
def test_refused_stop_is_an_error(answers: list[Any]) -> None:
    """A stop that Ray refuses is an error at once."""
    with pytest.raises(RayApiRejectedError, match="DRIVER"):
        Cluster(answers).drive(stop_and_wait(JOB))


@pytest.mark.parametrize("error", [LOST, BUSY, FOREIGN, RayApiAuthError("token"), RayJobsError("odd")], ids=repr)
def test_failed_requests_are_repeated(error: RayJobsError) -> None:
    """After any other failure the stop continues."""
    cluster = Cluster([error, error, RUNNING, error, error, RUNNING, True, STOPPED])

    assert cluster.drive(stop_and_wait(JOB)) == StopResult(True, "Job a ended with status STOPPED.", STOPPED)


@pytest.mark.parametrize(
    ("answers", "timeout", "last_error", "details"),
    [
        pytest.param([RUNNING, True], 30, "", RUNNING, id="stop has no effect"),
        pytest.param([PENDING, False], 30, "", PENDING, id="stop is not accepted"),
        pytest.param([LOST], 30, " Last error: cut off", None, id="outage"),
        pytest.param([RUNNING, LOST, LOST, BUSY], 2.5, " Last error: busy", RUNNING, id="outage after an answer"),
        pytest.param([LOST, BUSY, RUNNING, True], 3, "", RUNNING, id="answer after an outage"),
    ],
)
def test_unconfirmed_end_is_reported(
    answers: list[Any], timeout: float, last_error: str, details: JobDetails | None
) -> None:
    """A stop that is not confirmed within its timeout reports the last known status, the last error and the remedy."""
    cluster = Cluster(answers)

    stopped = cluster.drive(stop_and_wait(JOB, timeout))
    assert not stopped.has_ended
    assert stopped.summary == (
        f"The end of job a could not be confirmed within {timeout} s. Its last known status is "
        f"{details.status if details else 'unknown'}. The job may still be running: look for it at http://head:8265."
        f"{last_error}"
    )
    assert stopped.details is details
    assert timeout - 3 <= cluster.clock - 1000 <= timeout


def test_timeout_of_zero_sends_each_request_once() -> None:
    """With a timeout of 0 each request is sent once and may take a second."""
    cluster = Cluster([RUNNING, True])

    assert not cluster.drive(stop_and_wait(JOB, 0)).has_ended
    assert (cluster.asked, cluster.timeouts, cluster.pauses) == ([GET, STOP], [1, 1], [])


def test_request_timeouts_fit_the_remaining_time() -> None:
    """No request takes longer than a third of the time or the remaining time, with a minimum of one second."""
    cluster = Cluster([LOST], takes=99)
    many = Cluster([LOST], takes=2)

    assert not cluster.drive(stop_and_wait(JOB, 10)).has_ended
    assert cluster.timeouts[:2] == pytest.approx([10 / 3, 10 / 3])
    assert 10 - 20 / 3 - 1.5 <= cluster.timeouts[2] <= 10 - 20 / 3 - 0.75
    assert not many.drive(stop_and_wait(JOB, 10)).has_ended
    assert many.timeouts[:3] == pytest.approx([10 / 3] * 3, abs=0.5)
    assert min(many.timeouts) >= 1
    assert max(many.timeouts) <= READ_TIMEOUT
    assert STOP_TIMEOUT == 30


def test_slow_head_does_not_exceed_the_timeout() -> None:
    """A slow poll leaves only the remaining time, or a second, for the stop."""
    cluster = Cluster([RUNNING, LOST], takes=28)

    assert not cluster.drive(stop_and_wait(JOB, 30)).has_ended
    assert cluster.asked[:2] == [GET, STOP]
    assert cluster.clock - 1000 <= 31


@pytest.mark.parametrize(
    ("seen_at", "rest"),
    [
        pytest.param(None, None, id="unknown"),
        pytest.param(1_000_000, 5.0, id="just now"),
        pytest.param(1_002_000, 3.0, id="2 s ago"),
        pytest.param(1_060_000, 0, id="a minute ago"),
        pytest.param(1_000_000 - 3_600_000, 5.0, id="clock an hour behind"),
        pytest.param(1_000_000 + 3_600_000, 0, id="clock an hour ahead"),
    ],
)
def test_delete_waits_until_ray_has_written_the_record(seen_at: int | None, rest: float | None) -> None:
    """
    A job that has just ended is deleted after 5 s: Ray still writes to its record and would bring it back.

    The wait is never longer. A proxy's clock may differ from the head's by hours.
    """
    engine = delete_ended_job("a", retry_timeout=0)
    next(engine)
    step = engine.send(replace(STOPPED, end_time=1_000_000, seen_at=seen_at))
    if rest is not None:
        assert step == Sleep(rest)
        step = engine.send(0.0)

    assert (step.request.method, step.request.path) == ("DELETE", "/api/jobs/a")
    with pytest.raises(StopIteration, match="True"):
        engine.send(True)
