"""
What must hold in every history.

1. At most one job of the task instance lives. A PENDING job whose stop Ray has accepted does not count.
2. When all is over, no job of the task instance lives.
3. A task is green only if the job whose id or value it returned SUCCEEDED, and was a job of this task instance. The
   value is never that of an older job.
4. At most 1 + Clears jobs of the task instance SUCCEED, unless a job's success was lost with its cluster, or a
   try ended because the value of its job can never be read.
5. A try shows each line of its job's log once, in order; a try that ends with its job shows all of them.
6. A job is stopped only if a user, a kill or a time limit ended its task, or if no further try follows it.
7. No try ends with an error that is neither the package's nor Airflow's nor a fault of the history.

Documented exceptions, for a cleanup operator, are tags of the report.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from airflow_provider_rayjobs import exceptions
from airflow_provider_rayjobs.task.kill_switch import VERDICT_TIMEOUT

from .airflow import SIGKILL_DELAY

if TYPE_CHECKING:
    from .history import History
    from .ray import Job

# Messages with which a log may repeat lines, or lack some.
_REPEATS = ("may be repeated", "shown again from its start")
_LACKS = ("is not complete here", "has fewer bytes now", "were left out here", "log_lines_limit")


def check_one_living_job(history: History, job: Job) -> None:
    """Check that no other job of the task instance lives when one is submitted or starts."""
    living = [other for other in history.jobs if other is not job and other.is_living and not other.is_repetition]
    if not living or not job.is_living or job.is_repetition or job not in history.jobs:
        return
    if not history.scenario.stop_on_kill:
        # a Clear leaves the old job alone
        living = [other for other in living if other.generation == job.generation]
    if living:
        others = ", ".join(f"{other.number} {other.name} {other.status}" for other in living)
        history.violate("one living job", f"job {job.number} {job.name} lives beside {others}")


def check_green(history: History, result: Any) -> None:
    """Check a success that the task itself has reported."""
    if history.scenario.is_sensor:
        if history.clears:
            return  # a cleared sensor waits for the job that has the id now
        watched = history.scenario.watched_job(history)
        if watched is not None and watched.status != "SUCCEEDED":
            history.violate("green", f"the sensor is green, but its job {watched.name} is {watched.status}")
        return
    jobs = [job for job in history.jobs if history.scenario.result_of(job) == result]
    if not jobs:
        history.violate("green", f"the task returned {result!r}, which is no job of it")
    elif history.scenario.waits and not any(job.status == "SUCCEEDED" for job in jobs):
        history.violate("green", f"the task is green, but its job {jobs[-1].name} is {jobs[-1].status}")
    elif history.scenario.returns_value:
        for job in history.jobs[history.jobs.index(jobs[-1]) + 1 :]:
            if not job.is_late:
                history.violate("green", f"the task returned {result!r}, but job {job.number} {job.name} is newer")


def check_end(history: History) -> None:
    """Check what must hold when all is over."""
    report = history.report
    report.tags |= history.airflow.tags | tags_of(history)
    _check_orphans(history)
    _check_successes(history)
    _check_stops(history)
    _check_logs(history)
    _check_errors(history)


def tags_of(history: History) -> set[str]:
    """Return the documented exceptions that apply to a history."""
    airflow, tags = history.airflow, set()
    last = airflow.ends[-1] if airflow.ends else None
    if last is not None and last[1] == "lost" and airflow.workers[-1].had_no_time_to_stop:
        tags.add("the process of the last try was killed")
    return tags


# With one of these, nobody is left who could stop the job.
_EXCUSES = {
    "marked while no process or trigger was there",
    "no triggerer had the trigger",
    "marked or cleared while the trigger fired",
    "the process of the last try was killed",
    "marked or cleared after the last look",
    "a worker that had been frozen could not ask whether it was replaced",
}


def _check_orphans(history: History) -> None:
    report = history.report
    for job in history.jobs:
        if not job.is_living or (job.stop_accepted is not None):
            continue
        if not history.scenario.waits and job.submission_id in history.airflow.results:
            continue  # the task was done with it, and left it running
        if not history.scenario.stop_on_kill:
            continue
        if job.is_late:
            report.tags.add("a submission arrived after its process could stop the job")
            continue
        if job.is_repetition:
            report.tags.add("a repetition of a submission arrived after the record of its job was deleted")
            continue
        if report.tags & _EXCUSES:
            report.tags.add("excused orphan")
            continue
        if history.airflow.lookups_fail_until > history.airflow.last_action + 25:
            report.tags.add("the connection could not be read for the stop")
            continue
        since = min(history.airflow.last_action or history.airflow.ended_at, history.airflow.ended_at) - 5
        # a single request that is lost may take all of the time before SIGKILL
        failures, tolerated = history.network.failures, 1
        if any(worker.was_too_slow for worker in history.airflow.workers):
            failures, tolerated = failures + history.network.delays, 0
        if sum(at > since for at in failures) > tolerated:
            report.tags.add("Ray could not be reached for the stop")
            continue
        history.violate("orphan", f"job {job.number} {job.name} is {job.status} after the end of the task")


def _check_successes(history: History) -> None:
    succeeded = [job for job in history.jobs if job.status == "SUCCEEDED" and not (job.is_lost or job.is_deleted)]
    errors = [error for _, _, error in history.airflow.ends if isinstance(error, exceptions.RayJobResultError)]
    allowed = 1 + len(history.clears) + sum(error.is_final for error in errors)
    if len(succeeded) > allowed:
        names = ", ".join(job.name for job in succeeded)
        history.violate("successes", f"{len(succeeded)} jobs SUCCEEDED, {allowed} allowed: {names}")


# What lets Airflow call ``on_kill``, or stops a job by itself.
_KILLS = ("clear", "mark failed", "mark success", "sigterm", "api server down 40", "job stopped by hand")


def _check_stops(history: History) -> None:
    may_stop = (
        any(history.happened[kill] for kill in _KILLS)
        or history.scenario.has_time_limit
        or any(state == "failed" for _, state, _ in history.airflow.ends)
        or history.airflow.state == "failed"
    )
    for job in history.jobs:
        if job.stop_accepted is None or may_stop:
            continue
        if history.airflow.has_lost_record:  # the try could not know whether the next one would find the job
            history.report.tags.add("the job record could not be read when the task resumed")
        elif any(
            worker.terminated_at + VERDICT_TIMEOUT <= job.stop_accepted < worker.terminated_at + SIGKILL_DELAY
            for worker in history.airflow.workers
        ):
            history.report.tags.add("a killed worker had no answer in time about the next try")
        else:
            history.violate("stop", f"job {job.number} {job.name} was stopped, and nothing ended its task")


_LINE = re.compile(r"job (\d+) line (\d+) of ")


def _check_logs(history: History) -> None:
    airflow = history.airflow
    messages = "\n".join(text for _, _, text in airflow.messages)
    repeats, lacks = any(text in messages for text in _REPEATS), any(text in messages for text in _LACKS)
    if history.happened["head restarts and the id is taken"]:
        return  # a log has no identity: a read may get that of the other job
    shown: dict[tuple[int, int], list[int]] = defaultdict(list)
    for record in airflow.shown:
        for line in record.text.split("\n"):
            if match := _LINE.match(line):
                shown[record.try_number, int(match.group(1))].append(int(match.group(2)))
            elif line:
                history.violate("log", f"try {record.try_number} shows {line!r}, which is no line of a job")
    for (try_number, job), numbers in shown.items():
        if repeats:
            continue
        if numbers != sorted(set(numbers)):
            again = [number for number, count in Counter(numbers).items() if count > 1]
            history.violate("log", f"try {try_number} repeats or mixes lines {again[:5]} of job {job}: {numbers}")
        elif numbers != list(range(len(numbers))):
            history.violate("log", f"try {try_number} lacks lines of job {job}: {numbers}")
    if history.scenario.shows_log and not lacks:
        _check_whole_log(history, shown)


def _check_whole_log(history: History, shown: dict[tuple[int, int], list[int]]) -> None:
    """Check that a try that ended green has shown its whole job."""
    for try_number, state, result in history.airflow.ends:
        if state != "success" or not history.scenario.waits:
            continue
        for job in history.jobs:
            is_its_job = history.scenario.result_of(job) == result
            if is_its_job and job.status == "SUCCEEDED" and not (job.is_lost or job.is_deleted):
                count = len(set(shown[try_number, job.number]))
                if count != job.plan.lines:
                    history.violate("log", f"try {try_number} shows {count} of {job.plan.lines} lines of {job.name}")


# The text of an error of this kind, which a trigger's event carries as a plain RayJobsError.
_BUG = re.compile(r"(Type|Key|Attribute|Index|Name|Assertion|Runtime|Unbound\w+)Error\b")


def _check_errors(history: History) -> None:
    for try_number, _state, error in history.airflow.ends:
        if not isinstance(error, BaseException):
            continue
        if isinstance(error, exceptions.RayJobsError):
            if _BUG.match(str(error)):
                history.violate("error", f"try {try_number} ended with {error}")
            continue
        module = type(error).__module__
        if not module.startswith("airflow.") and type(error).__name__ != "ApiServerError":
            history.violate("error", f"try {try_number} ended with {type(error).__name__}: {error}")
