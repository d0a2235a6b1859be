"""Why a job is PENDING: the reason as a pure function, its report as an engine, and both with a real head."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import RayApiConnectionError, RayJobsError, RayJobTimeoutError
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.follow import follow_job
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.models import ClusterResources
from airflow_provider_rayjobs.jobs.pending import ClusterView, PendingReport, explain
from airflow_provider_rayjobs.jobs.steps import Engine, Interrupted, LogMessage, Send, Sleep
from sandbox.ray_head import RayHead

START = 1_767_312_000_000
GPU = {"GPU": 1.0}
NODE = {"CPU": 2.0, "memory": 4.0 * 2**30}
ONE_NODE = ClusterResources(((NODE, 1),), {"CPU": 2.0})
LACKS_GPU = replace(ONE_NODE, waiting=(({"GPU": 1.0}, 1),))
WAITS_FOR_RESOURCES = (
    "Job has not started yet. It may be waiting for resources (CPUs, GPUs, memory, custom resources) to become "
    "available. It may be waiting for the runtime environment to be set up."
)
USAGE = "The cluster has 1 node(s); in use: 2 of 2 CPU, 0.0 GiB of 4.0 GiB memory."
SETUP = "may still be installing, or no node has the labels that the job asks for."
NO_INSTALLATION = (
    "and its runtime environment needs no installation. The head may be busy or short of memory, or no node has the "
    "labels that the job asks for."
)


def job(status: str = "PENDING", age: float | None = 60, **fields: Any) -> JobDetails:
    seen_at = None if age is None else START + round(1000 * age)
    details = JobDetails(JobType.SUBMISSION, JobStatus(status), submission_id="a", start_time=START, seen_at=seen_at)
    return replace(details, **fields)


@pytest.mark.parametrize(
    ("details", "demand", "cluster", "kind", "text"),
    [
        pytest.param(
            job(), GPU, LACKS_GPU, "lacking",
            "The job requests 1 GPU on one node. The cluster has 1 node(s); in use: 2 of 2 CPU, 0 of 0 GPU, 0.0 GiB of "
            "4.0 GiB memory. No node has enough GPU.",
            id="no node has it",
        ),
        pytest.param(
            job(), {"CPU": 1}, replace(ONE_NODE, waiting=(({"CPU": 1.0}, 4), ({"CPU": 2.0}, 9))), "busy",
            f"The job requests 1 CPU on one node. {USAGE} A large enough node exists, but other jobs may use it. 4 "
            "requests for the same resources wait.",
            id="others use it",
        ),
        pytest.param(
            job(runtime_env={"env_vars": {"A": "b"}, "pip": ["x"], "_ray_commit": "c", "working_dir": "gcs://a.zip"}),
            {"CPU": 1}, replace(ONE_NODE, waiting=(({"CPU": 2.0}, 9),)), "setup",
            f"Its resources are reserved. Its runtime environment (pip, working_dir) {SETUP}",
            id="it has its resources",
        ),
        pytest.param(
            job(runtime_env={"pip": ["x"]}), {}, LACKS_GPU, "setup",
            f"It requests no resources. Its runtime environment (pip) {SETUP}",
            id="no resources",
        ),
        pytest.param(
            job(runtime_env={"env_vars": {"A": "b"}, "pip": []}), {}, None, "setup",
            f"It requests no resources, {NO_INSTALLATION}",
            id="nothing to wait for",
        ),
        pytest.param(
            job(), GPU, None, "", "The job requests 1 GPU on one node. The resources of the cluster are unknown.",
            id="unknown resources",
        ),
        pytest.param(
            job(), {"CPU": 1}, replace(ONE_NODE, reported_at=START - 1), "",
            "The job requests 1 CPU on one node. The resources of the cluster are unknown.",
            id="report from before the submission",
        ),
        pytest.param(
            job(), {"CPU": 1}, replace(ONE_NODE, reported_at=START + 1), "setup",
            f"Its resources are reserved, {NO_INSTALLATION}",
            id="report from after the submission",
        ),
        pytest.param(
            job(message=WAITS_FOR_RESOURCES), None, replace(ONE_NODE, reported_at=START - 1), "",
            f"Ray says: {WAITS_FOR_RESOURCES}",
            id="another's job, report from before the submission",
        ),
        pytest.param(
            job(message=WAITS_FOR_RESOURCES), None, LACKS_GPU, "busy",
            f"Ray says: {WAITS_FOR_RESOURCES} {USAGE} Requests that wait: 1 for 1 GPU.",
            id="another's job, resources",
        ),
        pytest.param(
            job(message=WAITS_FOR_RESOURCES), None, ONE_NODE, "setup",
            f"Ray says: {WAITS_FOR_RESOURCES} {USAGE} No request for resources waits.",
            id="another's job, it has its resources",
        ),
        pytest.param(
            job(message=WAITS_FOR_RESOURCES), None, None, "", f"Ray says: {WAITS_FOR_RESOURCES}",
            id="another's job, unknown resources",
        ),
        pytest.param(
            job(message="Job has not started yet.", runtime_env={"uv": ["x"]}), None, LACKS_GPU, "setup",
            f"It requests no resources. Its runtime environment (uv) {SETUP}",
            id="another's job, runtime environment",
        ),
    ],
)  # fmt: skip
def test_reason(
    details: JobDetails, demand: dict[str, float] | None, cluster: ClusterResources | None, kind: str, text: str
) -> None:
    """The reason compares the job's demand with the requests that wait; without one, its runtime environment."""
    reason = explain(details, demand, cluster)
    assert (reason.kind, reason.text) == (kind, text)


@dataclass
class Follower:
    """Polls a job every ``interval`` seconds, and drives a report with what it sees."""

    report: PendingReport
    cluster: Any = LACKS_GPU
    interval: float = 5.0
    now: float = 1000.0
    submitted_at: float = 1000.0
    asked: list[float] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    messages: list[tuple[float, str]] = field(default_factory=list)

    @property
    def age(self) -> float:
        return self.now - self.submitted_at

    def poll_until(self, age: float, status: str = "PENDING", *, has_age: bool = True, **arguments: Any) -> None:
        while self.age < age:
            self.now += self.interval
            self.drive(self.report.report(job(status, self.age if has_age else None), **arguments))

    def drive(self, engine: Engine[Any]) -> Any:
        step: Any = None
        while True:
            try:
                match step:
                    case None:
                        step = next(engine)
                    case Sleep(seconds):
                        self.now += seconds
                        step = engine.send(self.now)
                    case LogMessage(message):
                        self.messages.append((self.age, message))
                        step = next(engine)
                    case Send(request):
                        assert request.path == "/api/cluster_status"
                        self.asked.append(self.age)
                        self.timeouts.append(request.timeout)
                        failed = isinstance(self.cluster, RayJobsError)
                        step = engine.throw(self.cluster) if failed else engine.send(self.cluster)
            except StopIteration as end:
                return end.value


def follower(demand: dict[str, float] | None = None, limits: Limits | None = None, **arguments: Any) -> Follower:
    return Follower(PendingReport(GPU if demand is None else demand, limits or Limits()), **arguments)


def drive_nothing(report: PendingReport, details: JobDetails) -> list[Any]:
    return list(report.report(details))


def test_reason_is_logged_after_half_a_minute_and_then_rarely() -> None:
    """A wait of 30 minutes is told after 30 s and every ten minutes; the head is asked once a minute."""
    waits = follower()
    waits.poll_until(1800)

    ages, texts = zip(*waits.messages, strict=True)
    assert ages == (30, 630, 1230)
    assert texts[0] == (
        f"Ray job a is PENDING, 30 s after its submission. {explain(job(), GPU, LACKS_GPU).text} Ray fails a job that "
        "has not started after 15 minutes, unless RAY_JOB_START_TIMEOUT_SECONDS is set on its head."
    )
    assert texts[1] == f"Ray job a is PENDING, 630 s after its submission. {explain(job(), GPU, LACKS_GPU).text}"
    assert waits.asked == [30 + 60 * n for n in range(30)]
    assert max(waits.timeouts) == 3


def test_change_of_the_reason_and_the_start_are_logged() -> None:
    """Once nodes were added, the log says that the runtime environment is set up, and then that the job runs."""
    waits = follower()
    waits.poll_until(100)
    waits.cluster = ClusterResources((({**NODE, "GPU": 1.0}, 1),))
    waits.poll_until(200)
    waits.poll_until(210, "RUNNING")

    assert [age for age, _ in waits.messages] == [30, 150, 205]
    assert "Its resources are reserved" in waits.messages[1][1]
    assert waits.messages[2][1] == "Ray job a is RUNNING, 205 s after its submission."


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED", "FAILED"])
def test_short_wait_is_not_told(status: str) -> None:
    """A job that starts within half a minute causes no message and no question."""
    waits = follower()
    waits.poll_until(25)
    waits.poll_until(100, status)
    assert (waits.messages, waits.asked) == ([], [])


def test_end_of_a_job_is_left_to_the_outcome() -> None:
    """A job that ends while it is PENDING is not said to have started."""
    waits = follower()
    waits.poll_until(60)
    waits.poll_until(65, "STOPPED")
    assert len(waits.messages) == 1


def test_first_status_of_another_job_is_told_once() -> None:
    """A sensor logs in which status it found the job of another task."""
    waits = Follower(PendingReport(tells_first=True))
    waits.poll_until(25)
    waits.poll_until(60, "RUNNING")
    assert [text for _, text in waits.messages] == ["Ray job a is PENDING, 5 s after its submission."]

    assert drive_nothing(PendingReport(tells_first=True), job("SUCCEEDED")) == []


def test_age_is_counted_here_if_the_head_does_not_tell_it() -> None:
    """Without a time in the head's answers the wait counts from the first poll."""
    waits = follower()
    waits.poll_until(100, has_age=False)
    assert [age for age, _ in waits.messages] == [35]
    assert waits.messages[0][1].startswith("Ray job a is PENDING. The job requests 1 GPU on one node.")


def test_unanswered_question_changes_nothing() -> None:
    """An error about the resources is not raised. The message says that they are unknown, until they are known."""
    waits = follower(cluster=RayApiConnectionError("cut off"))
    waits.poll_until(85)
    assert ["unknown" in text for _, text in waits.messages] == [True]

    waits.cluster = LACKS_GPU
    waits.poll_until(140)
    waits.cluster = RayApiConnectionError("cut off")
    waits.poll_until(400)
    assert ["unknown" in text for _, text in waits.messages] == [True, False]


def test_bug_in_the_explanation_ends_no_job() -> None:
    """An unexpected error while the head is asked, or its answer explained, is logged once, and the job goes on."""
    waits = follower(cluster=replace(ONE_NODE, waiting=(({"GPU": "1"}, 1),)))
    waits.poll_until(400)
    waits.poll_until(410, "RUNNING")

    assert [age for age, _ in waits.messages] == [30, 405]
    assert "Its reason could not be determined: TypeError: must be real number, not str." in waits.messages[0][1]


def test_interruption_passes() -> None:
    """An interruption of the task while the head is asked ends the engine."""
    engine = PendingReport(GPU).report(job())
    step = next(engine)
    while not isinstance(step, Send):
        step = engine.send(1000.0)
    with pytest.raises(Interrupted):
        engine.throw(Interrupted)


def test_nothing_is_asked_just_before_a_time_limit() -> None:
    """A question never delays a time limit."""
    waits = follower()
    waits.poll_until(100, time_left=9.9)
    assert waits.asked == []


@pytest.mark.parametrize(
    ("pending_timeout", "words"),
    [
        (None, "Ray fails a job that has not started after 15 minutes, unless RAY_JOB_START_TIMEOUT_SECONDS is set"),
        (300, "No node has enough GPU. pending_timeout is 300 s."),
        (1800, "pending_timeout is 1800 s, but Ray fails a job that has not started after 15 minutes, unless"),
    ],
)
def test_limit_of_the_wait_is_named(pending_timeout: float | None, words: str) -> None:
    """The first message names the limit that ends the wait: Ray's own one if pending_timeout is longer."""
    waits = follower(limits=Limits(pending_timeout=pending_timeout))
    waits.poll_until(30)
    assert words in waits.messages[0][1]


def test_followers_of_a_cluster_share_the_question() -> None:
    """A thousand waiting jobs ask once a minute; a job that was just submitted asks within seconds."""
    view = ClusterView()
    waits = [Follower(PendingReport(GPU, view=view)) for _ in range(1000)]
    for age in range(5, 605, 5):
        for each in waits:
            each.poll_until(age)
    assert sum(len(each.asked) for each in waits) == 10
    assert {len(each.messages) for each in waits} == {1}

    late = Follower(PendingReport(GPU, view=view), now=waits[0].now - 20, submitted_at=waits[0].now - 20)
    late.poll_until(40)
    assert len(late.messages) == 1
    assert late.messages[0][0] <= 40


def test_new_jobs_ask_six_times_a_minute_at_most() -> None:
    """However many jobs begin to wait, the head is asked every ten seconds at most, and each job is told in time."""
    view = ClusterView()
    waits: list[Follower] = []
    for now in range(1000, 1300, 2):
        waits.append(Follower(PendingReport(GPU, view=view), interval=2, now=float(now), submitted_at=float(now)))
        for each in waits:
            each.poll_until(now + 2 - each.submitted_at)

    assert sum(len(each.asked) for each in waits) <= 30
    assert all(30 <= each.messages[0][0] <= 40 for each in waits[:-20])


def test_report_continues_in_another_process() -> None:
    """A rescheduled sensor repeats nothing, and asks as rarely as one in a single process."""
    state: dict[str, Any] = {}
    asked, messages = [], []
    for age in range(5, 700, 5):
        waits = Follower(PendingReport(GPU, tells_first=True), now=1000.0 + age - 5)
        waits.report.restore(state)
        waits.poll_until(age)
        state = waits.report.state
        asked += waits.asked
        messages += [age for age, _ in waits.messages]
    assert messages == [5, 30, 630]
    assert asked == [30 + 60 * n for n in range(12)]


def test_time_limit_is_noticed_as_before() -> None:
    """While the head is asked, a pending_timeout ends the wait at the same second as without a report."""

    def end(pending: PendingReport | None) -> float:
        now = 1000.0
        engine = follow_job(JobRef("http://a", "a"), limits=Limits(pending_timeout=100), pending=pending)
        step = next(engine)
        with suppress(RayJobTimeoutError):
            while True:
                match step:
                    case Sleep(seconds):
                        now += seconds
                        step = engine.send(now)
                    case Send(request) if request.job:
                        step = engine.send(job(age=now - 1000))
                    case Send():
                        now += 3
                        step = engine.throw(RayApiConnectionError("no answer"))
                    case _:
                        step = next(engine)
        return now - 1000

    assert 99.9 <= end(None) <= 101
    assert 99.9 <= end(PendingReport(GPU)) <= 101


@pytest.mark.ray
def test_reason_on_a_real_head(ray_head: RayHead) -> None:
    """Ray's report lists the request of a job that no node can serve."""
    with RayJobsClient(ray_head.address) as client:
        name = client.submit_job("true", entrypoint_num_gpus=1)
        try:
            deadline = time.monotonic() + 60
            cluster = ClusterResources()
            while GPU not in [shape for shape, _ in cluster.waiting]:
                assert time.monotonic() < deadline
                time.sleep(1)
                cluster = client.send(endpoints.get_cluster_status())
            details = client.get_job(name)
            assert explain(details, GPU, cluster).text.endswith("No node has enough GPU.")
            assert "for 1 GPU" in explain(details, None, cluster).text
        finally:
            client.stop_job(name)
