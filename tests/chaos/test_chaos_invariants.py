"""The checks of the campaign accept stories without a fault, and find every broken invariant."""

from __future__ import annotations

import pytest
from chaos_invariants import GRACE, Finding, Incident, SeenJob, ShownLog, Story, check
from job_ledger import LOST, JobLedger

LINES = 5


def a_job(
    name: str = "a",
    status: str = "SUCCEEDED",
    start: float = 100,
    end: float | None = 110,
    seen_running: float | None = None,
) -> SeenJob:
    return SeenJob(name, status, start, end, seen_running)


def a_log(name: str = "a", numbers: list[int] | None = None, number: int = 1, **options: bool) -> ShownLog:
    numbers = [*range(1, LINES + 1)] if numbers is None else numbers
    return ShownLog(
        number, [f"{name} line {each}" for each in numbers], {name: numbers} if numbers else {}, ended_at=112, **options
    )


def a_story(**changes: object) -> Story:
    """A task whose only job succeeded, with some changes."""
    story = {
        "state": "success",
        "result": "a",
        "ended_at": 112.0,
        "observed_until": 200.0,
        "lines": LINES,
        "jobs": [a_job()],
        "tries": [a_log()],
        "driver_logs": {"a": "".join(f"a line {number}\n" for number in range(1, LINES + 1))},
    }
    return Story(**story | changes)


def a_marked_story(mark: Incident, *others: Incident, **changes: object) -> Story:
    """A task that was marked as failed, and whose job lived on."""
    job = a_job(end=mark.at + GRACE + 20, seen_running=102)
    return a_story(
        state="failed", result=None, ended_at=mark.at, jobs=[job], incidents=[mark, *others], tries=[], **changes
    )


REPLACED = [a_job("a", "STOPPED", 100, 105), a_job("b", "SUCCEEDED", 106, 110)]
GOOD = {
    "one job": a_story(),
    "a failed task": a_story(state="failed", jobs=[a_job(status="FAILED")], tries=[a_log(has_entrypoint_error=True)]),
    "a job replaced after a Clear": a_story(
        result="b", jobs=REPLACED, incidents=[Incident("clear", 104, 104)],
        tries=[a_log("a", [1, 2]), a_log("b", number=2)], driver_logs={},
    ),
    "two successes with a Clear": a_story(
        result="b", jobs=[a_job(), a_job("b", start=120, end=130)], incidents=[Incident("clear", 115, 115)],
        tries=[a_log(), a_log("b", number=2)], driver_logs={}, ended_at=132,
    ),
    "stopped while PENDING": a_story(
        state="failed", result=None, ended_at=105, tries=[], jobs=[a_job(status="STOPPED", end=150, seen_running=147)],
        incidents=[Incident("mark failed", 105, 105, state="running")],
    ),
    "marked while the API server was down": a_story(
        state="failed", result=None, ended_at=105, tries=[], jobs=[a_job(status="STOPPED", end=145, seen_running=102)],
        incidents=[Incident("mark failed", 105, 105, state="running"), Incident("API server killed", 110, 130)],
    ),
    "marked as success": a_story(
        jobs=[a_job(status="STOPPED")], result=None, incidents=[Incident("mark success", 108)], tries=[a_log("a", [1])]
    ),
    "no job at all": a_story(state="failed", result=None, jobs=[], tries=[a_log(numbers=[])]),
}  # fmt: skip
BAD = {
    "every task ends": a_story(state=None),
    "one living job": a_story(jobs=[a_job("b", "STOPPED", 90, 101, 95), a_job()]),
    "nothing alive at the end": a_marked_story(Incident("mark failed", 105, state="running")),
    "green only for its own job that succeeded": a_story(jobs=[a_job(status="STOPPED")]),
    "successes at most 1 + Clears": a_story(jobs=[a_job("b", start=90, end=99), a_job()]),
    "every line once": a_story(tries=[a_log(numbers=[1, 2, 2, 3, 4, 5])], driver_logs={}),
}
ALSO_BAD = {
    "a job that never ends": a_story(jobs=[a_job("b", "RUNNING", 90, None, 92), a_job()]),
    "green with another's job": a_story(result="c", tries=[a_log("c")]),
    "green with a job from before the Clear": a_story(incidents=[Incident("clear", 108, 108)]),
    "green with a lost job": a_story(jobs=[a_job(status=LOST)]),
    "a success after a Clear and a success": a_story(
        jobs=[a_job("b", start=90, end=92), a_job("c", start=95, end=99), a_job()],
        incidents=[Incident("clear", 94, 94)],
    ),
    "alive after a short outage": a_marked_story(
        Incident("mark failed", 105, state="deferred"), Incident("head unreachable", 100, 110)
    ),
    "killed after it had to notice the mark": a_marked_story(
        Incident("mark failed", 105, state="running"), Incident("kill task", 114)
    ),
    "a lost line": a_story(tries=[a_log(numbers=[1, 2, 4, 5])]),
    "a lost end": a_story(tries=[a_log(numbers=[1, 2, 3])]),
    "a lost end of a failed job": a_story(
        state="failed", jobs=[a_job(status="FAILED")], tries=[a_log(numbers=[1, 2], has_entrypoint_error=True)]
    ),
    "a changed line": a_story(driver_logs={"a": "a line 1\nanother line\na line 2\na line 3\na line 4\na line 5\n"}),
    "swapped lines in a try that was killed": a_story(tries=[a_log(numbers=[2, 1]), a_log(number=2)]),
}
MARK = Incident("mark failed", 105, state="deferred")
EXCEPTIONS = {
    "a PENDING job takes a stop, and ends when it starts": a_story(jobs=[a_job("b", "STOPPED", 90, 101), a_job()]),
    "rejected deferral": a_marked_story(MARK, observed_until=300),
    "marked before a triggerer had its trigger": a_marked_story(MARK),
    "Airflow failed the last try before it called the operator": a_story(
        state="failed", jobs=[a_job(end=160, seen_running=102)], tries=[a_log(numbers=[], has_begun=False)]
    ),
    "marked while no process of Airflow had the task": a_marked_story(
        Incident("mark failed", 105, state="up_for_retry")
    ),
    "marked after its worker was killed": a_marked_story(MARK, Incident("kill supervisor", 100)),
    "worker killed before it noticed the mark": a_marked_story(
        Incident("mark success", 105, state="running"), Incident("kill task", 106)
    ),
    "marked while its triggerer was dead": a_marked_story(MARK, Incident("triggerer killed", 100)),
    "triggerer killed before it stopped the job": a_marked_story(MARK, Incident("triggerer killed", 106)),
    "the head did not answer while the job had to be stopped": a_marked_story(
        MARK, Incident("head unreachable", 106, 130)
    ),
    "the head did not answer when the last try had to stop the job": a_story(
        state="failed", jobs=[a_job(end=160, seen_running=102)], tries=[],
        incidents=[Incident("network fault", 90, 112)],
    ),
    "worker killed on the last try": a_story(
        state="failed", ended_at=112.0, jobs=[a_job(end=160, seen_running=102)], tries=[],
        incidents=[Incident("kill supervisor", 105, is_last_try=True)],
    ),
    "cleared while it ran, and its worker was lost": a_story(
        incidents=[Incident("clear", 108, 108, state="running"), Incident("kill task", 109, 109)]
    ),
    "the head was restarted and forgot a success": a_story(
        jobs=[a_job("b", start=80, end=85), a_job()], incidents=[Incident("head restarted", 86, 95)]
    ),
    "a lost triggerer's last lines are repeated": a_story(
        tries=[a_log(numbers=[1, 2, 3, 2, 3, 4, 5], is_continued=True)]
    ),
    "the head did not answer when the end of the log had to be read": a_story(
        tries=[a_log(numbers=[1, 2])], incidents=[Incident("head restarted", 110, 120)]
    ),
}  # fmt: skip
EXCEPTIONS["rejected deferral"].tries = [a_log(numbers=[1], is_deferral_rejected=True)]
EXCEPTIONS["marked before a triggerer had its trigger"].tries = [a_log(numbers=[], has_trigger=False)]


def violated(findings: list[Finding]) -> list[str]:
    return [finding.invariant for finding in findings if not finding.exception]


@pytest.mark.parametrize("story", [pytest.param(story, id=name) for name, story in GOOD.items()])
def test_good_story_has_no_findings(story: Story):
    """A task instance whose story keeps the promises has no findings."""
    assert check(story) == []


@pytest.mark.parametrize(("invariant", "story"), [pytest.param(*each, id=each[0]) for each in BAD.items()])
def test_each_broken_invariant_is_found(invariant: str, story: Story):
    """Each invariant has a story that breaks only this one."""
    assert violated(check(story)) == [invariant]


@pytest.mark.parametrize("story", [pytest.param(story, id=name) for name, story in ALSO_BAD.items()])
def test_further_violations_are_found(story: Story):
    """An invariant can be broken in several ways."""
    assert violated(check(story)) != []


@pytest.mark.parametrize(("reason", "story"), [pytest.param(*each, id=each[0]) for each in EXCEPTIONS.items()])
def test_documented_exception_is_named(reason: str, story: Story):
    """A deviation that the documentation names is an exception with its reason."""
    assert [finding.exception for finding in check(story)] == [reason]


def test_ledger_remembers_jobs_of_a_head_that_restarts():
    """A job that lived when its head was killed is lost, also if an older list of jobs arrives late."""
    ledger = JobLedger()
    metadata = {"airflow_dag_id": "dag", "airflow_run_id": "run"}
    listed = {"submission_id": "a", "status": "RUNNING", "start_time": 1000, "end_time": None, "metadata": metadata}
    ledger.record([listed])
    ledger.lose_living_jobs(5.0)
    ledger.record([listed, listed | {"start_time": 6000, "status": "SUCCEEDED", "end_time": 7000}])

    lost, other = ledger.jobs_of(("dag", "run"))
    assert (lost.status, lost.start, lost.end) == (LOST, 1.0, 5.0)
    assert other == SeenJob("a", "SUCCEEDED", 6.0, 7.0)
