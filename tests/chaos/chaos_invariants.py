"""
The invariants of the campaign, checked in the story of one task instance.

A deviation that the documentation names is an exception, with its reason. Every other one is a violation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from sandbox.log_comparison import find_difference

# Seconds after the end of a task in which its job may be stopped: a worker's heartbeat, then the stop itself.
GRACE = 30.0
# States in which no process of Airflow can hear that a user marks the task.
_UNHEARD = (None, "scheduled", "queued", "up_for_retry", "restarting")
# States in which a Clear is not visible in the task instance until its worker has obeyed.
_UNHEARD_CLEAR = ("running", "restarting")
# Seconds in which a triggerer takes over the triggers of one that was killed.
_TAKEOVER = 30.0
# Seconds in which Airflow notices that a worker is lost, and starts the next try.
_HEARTBEATS = 60.0
# Seconds for which a job may be PENDING after its task.
_MAX_PENDING = 90.0
# Seconds until a worker or a trigger notices a mark.
_HEARTBEAT = 8.0
# Seconds from a mark, in which a worker or a trigger can stop the job.
_WORKER_STOPS, _TRIGGER_STOPS = 5.0, 20.0
# Seconds before the end of a try, with its last requests.
_LAST_REQUESTS = 5.0
# A Clear whose request got no answer.
UNCONFIRMED_CLEAR = "unconfirmed clear"
# What takes the API server away from workers, and the database from triggerers.
API_OUTAGES = ("API server killed", "database restarted")
TRIGGERER_LOSSES = ("triggerer killed", "database restarted")
NETWORK_FAULTS = ("network fault", "head unreachable", "head restarted")


@dataclass
class Incident:
    """
    What the campaign did.

    :param at: when it began, Unix seconds.
    :param until: when it was over; ``None`` if it is not.
    :param state: the state of the task instance at that moment.
    :param is_last_try: whether no retry was left at that moment.
    """

    kind: str
    at: float
    until: float | None = None
    state: str | None = None
    is_last_try: bool = False

    def overlaps(self, start: float, end: float) -> bool:
        """Tell whether it was going on in a period."""
        return self.at <= end and (self.until is None or self.until >= start)


@dataclass
class SeenJob:
    """
    A job as Ray's list showed it last.

    :param status: Ray's status, or ``LOST`` if the head was killed before the job ended.
    :param end: Unix seconds; ``None`` if the job lives.
    :param seen_running: when it was first seen to run.
    """

    submission_id: str
    status: str
    start: float
    end: float | None = None
    seen_running: float | None = None

    def describe(self) -> str:
        """Return id, status and times."""
        return f"{self.submission_id} {self.status} [{self.start:.1f} to {self.end or 0:.1f}]"


@dataclass
class ShownLog:
    """
    The log of one try.

    :param records: the records of jobs' own logs.
    :param numbers: the numbers of their lines, by the submission id in the line.
    :param has_entrypoint_error: whether the try failed because its job's entrypoint failed.
    :param is_deferral_rejected: whether Airflow refused the deferral of this try.
    :param has_begun: whether the operator or its trigger wrote a message. Airflow may fail a try before that.
    :param has_trigger: whether a triggerer started a trigger of this try.
    :param is_continued: whether a triggerer followed the job after another one was lost.
    :param ended_at: the time of the last record, Unix seconds.
    """

    number: int
    records: list[str] = field(default_factory=list)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    has_entrypoint_error: bool = False
    is_deferral_rejected: bool = False
    has_begun: bool = True
    has_trigger: bool = True
    is_continued: bool = False
    ended_at: float = 0.0


@dataclass
class Story:
    """
    What happened to one task instance, until all was over.

    :param state: the final state; ``None`` if the task did not end in time.
    :param result: the submission id that the task returned.
    :param ended_at: Unix seconds.
    :param observed_until: until when its jobs were observed, Unix seconds.
    :param lines: the number of lines of a job that comes to its end.
    :param grace: seconds after the end of the task in which its jobs may be stopped.
    :param stop_timeout: of the task, in seconds.
    :param jobs: all jobs of the task instance.
    :param tries: the logs of all tries, in their order.
    :param driver_logs: the log of each job on the head, as far as it exists, by submission id.
    """

    state: str | None
    result: str | None
    ended_at: float
    observed_until: float
    lines: int
    grace: float = GRACE
    stop_timeout: float = _TRIGGER_STOPS
    incidents: list[Incident] = field(default_factory=list)
    jobs: list[SeenJob] = field(default_factory=list)
    tries: list[ShownLog] = field(default_factory=list)
    driver_logs: dict[str, str] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> list[Incident]:
        """Return the incidents of some kinds, in their order."""
        return sorted((one for one in self.incidents if one.kind in kinds), key=lambda one: one.at)

    @property
    def last_mark(self) -> Incident | None:
        """The user's mark that decided the final state, if no Clear came after it."""
        last = self.of_kind("clear", UNCONFIRMED_CLEAR, "mark failed", "mark success")[-1:]
        return last[0] if last and last[0].kind.startswith("mark") else None


@dataclass(frozen=True)
class Finding:
    """
    A deviation from an invariant.

    :param exception: the documented reason; "" for a violation.
    """

    invariant: str
    text: str
    exception: str = ""

    def describe(self) -> str:
        """Return all about the deviation in one line."""
        label = f"exception ({self.exception})" if self.exception else "VIOLATION"
        return f"{label}: {self.invariant}: {self.text}"


def must_end_by(job: SeenJob, ended_at: float, incidents: list[Incident], now: float) -> float:
    """
    Return when a job must have ended after its task, Unix seconds, without :attr:`Story.grace`.

    A worker learns from the API server that its task has ended. A PENDING job ends when it starts.
    """
    outages = [one for one in incidents if one.kind in API_OUTAGES]
    ends = [one.until or now for one in outages if one.overlaps(ended_at - _HEARTBEAT, ended_at + _HEARTBEAT)]
    return max([ended_at, *ends, min(job.seen_running or now, ended_at + _MAX_PENDING)])


def check(story: Story) -> list[Finding]:
    """Return all deviations of a story."""
    checks = (_task_ends, _one_living_job, _nothing_alive, _green, _successes, _lines)
    return [finding for each in checks for finding in each(story)]


def _task_ends(story: Story) -> Iterator[Finding]:
    if story.state is None:
        yield Finding("every task ends", "the task did not end in time")


def _one_living_job(story: Story) -> Iterator[Finding]:
    jobs = sorted(story.jobs, key=lambda job: job.start)
    for number, job in enumerate(jobs):
        for later in jobs[number + 1 :]:
            if job.end is None or job.end > later.start:
                has_run = job.status == "SUCCEEDED" or (job.seen_running or later.start) < later.start
                reason = "" if has_run else "a PENDING job takes a stop, and ends when it starts"
                yield Finding(
                    "one living job", f"{job.describe()} and {later.describe()} lived at the same time", reason
                )


def _nothing_alive(story: Story) -> Iterator[Finding]:
    for job in story.jobs:
        end = job.end or story.observed_until
        limit = must_end_by(job, story.ended_at, story.incidents, story.observed_until) + story.grace
        if story.state is not None and end > limit:
            text = f"{job.describe()} lived for {end - story.ended_at:.0f} s after the end of the task"
            yield Finding("nothing alive at the end", text, _reason_for_orphan(story))


def _reason_for_orphan(story: Story) -> str:
    """Return why nothing could stop a job, "" if something should have."""
    mark = story.last_mark
    kills = story.of_kind("kill task", "kill supervisor")
    last = story.tries[-1:]
    reasons = {
        "rejected deferral": any(one.is_deferral_rejected for one in story.tries),
        "worker killed on the last try": any(kill.is_last_try for kill in kills),
        "Airflow failed the last try before it called the operator": any(not one.has_begun for one in last),
    }
    if mark is None:
        reasons["the head did not answer when the last try had to stop the job"] = any(
            fault.overlaps(story.ended_at - _LAST_REQUESTS, story.ended_at) for fault in story.of_kind(*NETWORK_FAULTS)
        )
    else:
        triggerer_kills = story.of_kind(*TRIGGERER_LOSSES) if mark.state == "deferred" else []
        window = min(_TRIGGER_STOPS, story.stop_timeout) if mark.state == "deferred" else _WORKER_STOPS
        reasons |= {
            "marked while no process of Airflow had the task": mark.state in _UNHEARD,
            "marked before a triggerer had its trigger": mark.state == "deferred"
            and any(not one.has_trigger for one in last),
            "marked after its worker was killed": any(0 < mark.at - kill.at < _HEARTBEATS for kill in kills),
            "worker killed before it noticed the mark": mark.state == "running"
            and any(0 <= kill.at - mark.at < _HEARTBEAT for kill in kills),
            "marked while its triggerer was dead": any(0 < mark.at - one.at < _TAKEOVER for one in triggerer_kills),
            "triggerer killed before it stopped the job": any(
                0 <= one.at - mark.at < window for one in triggerer_kills
            ),
            "the head did not answer while the job had to be stopped": any(
                fault.at < mark.at + _HEARTBEAT and (fault.until or story.observed_until) > mark.at + window
                for fault in story.of_kind(*NETWORK_FAULTS)
            ),
        }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _green(story: Story) -> Iterator[Finding]:
    if story.state != "success" or (story.last_mark and story.last_mark.kind == "mark success"):
        return
    name = "green only for its own job that succeeded"
    [*_, job] = [None, *(job for job in story.jobs if job.submission_id == story.result)]
    if job is None:
        yield Finding(name, f"the task returned {story.result}, which is no job of this task instance")
    elif job.status != "SUCCEEDED":
        yield Finding(name, f"the task succeeded with {job.describe()}")
    for clear in story.of_kind("clear"):
        if job is not None and clear.at > job.start:
            # Airflow also takes a worker for lost that cannot reach the API server.
            losses = story.of_kind("kill task", "kill supervisor", *API_OUTAGES)
            is_gap = clear.state in _UNHEARD_CLEAR and any(
                loss.overlaps(clear.at - _HEARTBEATS, clear.at + _HEARTBEATS) for loss in losses
            )
            reason = "cleared while it ran, and its worker was lost" if is_gap else ""
            yield Finding(name, f"{job.describe()} is older than the Clear at {clear.at:.1f}", reason)


def _successes(story: Story) -> Iterator[Finding]:
    succeeded = sorted((job for job in story.jobs if job.status == "SUCCEEDED"), key=lambda job: job.start)
    for job, later in pairwise(succeeded):
        if any(clear.overlaps(job.start, later.start) for clear in story.of_kind("clear", UNCONFIRMED_CLEAR)):
            continue
        is_forgotten = any(one.overlaps(job.end or 0, later.start) for one in story.of_kind("head restarted"))
        reason = "the head was restarted and forgot a success" if is_forgotten else ""
        text = f"{job.describe()} and {later.describe()}, without a Clear between them"
        yield Finding("successes at most 1 + Clears", text, reason)


def _lines(story: Story) -> Iterator[Finding]:
    name = "every line once"
    statuses = {job.submission_id: job.status for job in story.jobs}
    for shown in story.tries:
        for submission_id, numbers in shown.numbers.items():
            if numbers != list(range(1, len(numbers) + 1)):
                is_only_repeated = sorted({*numbers}) == list(range(1, max(numbers) + 1))
                reason = "a lost triggerer's last lines are repeated" if shown.is_continued and is_only_repeated else ""
                yield Finding(name, f"try {shown.number} shows the lines {_ranges(numbers)} of {submission_id}", reason)
    # the try that ends as its job did shows the whole log
    for shown in story.tries:
        is_green = shown is story.tries[-1] and story.state == "success" and story.last_mark is None
        ended_by = [story.result] if is_green else []
        if shown.has_entrypoint_error:
            ended_by = [each for each in shown.numbers if statuses.get(each) == "FAILED"][-1:] or [None]
        for submission_id in ended_by:
            numbers = shown.numbers.get(submission_id or "", [])
            if max(numbers, default=0) != story.lines:
                text = f"try {shown.number} ended as {submission_id} did, and shows the lines {_ranges(numbers)} of it"
                yield Finding(name, f"{text}, of {story.lines}", _reason_for_missing_lines(story, shown, submission_id))
            elif difference := _difference(story, shown, submission_id or ""):
                yield Finding(name, f"try {shown.number}: {difference}")


def _difference(story: Story, shown: ShownLog, submission_id: str) -> str:
    if shown.is_continued or len(shown.numbers) > 1 or submission_id not in story.driver_logs:
        return ""
    return find_difference(story.driver_logs[submission_id], shown.records)


def _reason_for_missing_lines(story: Story, shown: ShownLog, submission_id: str | None) -> str:
    for job in story.jobs:
        if job.submission_id == submission_id and any(
            fault.overlaps((job.end or 0) - 1, shown.ended_at) for fault in story.of_kind(*NETWORK_FAULTS)
        ):
            return "the head did not answer when the end of the log had to be read"
    return ""


def _ranges(numbers: list[int]) -> str:
    """Return numbers with runs abbreviated: ``1-5, 4-9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" for first, last in runs) or "none"
