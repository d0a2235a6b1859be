"""
One history: a scenario, its faults, and what happened.

An *operation* is a request, a write to Airflow, a deferral or a report of a process. It has a key such as
``worker submit#1``: the first submission of a worker. A fault names where it strikes and what it does:

- at ``worker submit#1``: a fault of the operation itself, such as ``answer lost`` (see :mod:`.network`);
- at ``worker submit#1 before`` or ``... after`` its effect: anything that may happen in the world, such as ``die``;
- at a time in seconds: the same.
"""

from __future__ import annotations

import gc
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import invariants, virtual_time
from .airflow import KILL_TIME, Airflow
from .clock import Clock, Process
from .network import FAULTS, Network
from .ray import Cluster, Job, Plan

if TYPE_CHECKING:
    from .scenarios import Scenario

# Seconds after the end of the task in which its jobs must have been stopped.
GRACE = 60.0
# Seconds without an API server after which a supervisor kills its task.
HEARTBEAT_FAILURES = 15.0
# More operations or seconds than any history needs: the code under test is in an endless loop.
MAX_OPERATIONS = 3000
MAX_SECONDS = 20_000.0
HOST, ALIAS, OTHER_HOST = "ray-head", "ray-head.example.com", "other-head"


@dataclass(frozen=True)
class Fault:
    """Where (an operation or a time) and what."""

    at: str
    what: str

    def __str__(self) -> str:
        return f"{self.at}: {self.what}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        at, _, what = text.partition(": ")
        return cls(at.strip(), what.strip())


@dataclass
class Report:
    """The result of a history."""

    violations: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    # when each of them began
    times: list[float] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    seconds: float = 0.0
    state: str | None = None


class History:
    """
    A scenario with faults.

    :param seed: of everything random in it, such as jitter and Airflow's delays.
    :param is_verbose: whether to keep a journal.
    """

    def __init__(
        self, scenario: Scenario, faults: tuple[Fault, ...] = (), seed: int = 0, *, is_verbose: bool = False
    ) -> None:
        self.scenario = scenario
        self.report = Report()
        self.happened: Counter[str] = Counter()
        self.rng = random.Random(seed)  # noqa: S311  (no secret)
        self.clock = Clock()
        self.cluster = Cluster(self.clock, "one", self._plan_for, self._watch)
        self.other_cluster = Cluster(self.clock, "two", self._plan_for, self._watch)
        self.network = Network(self.clock, self)
        self.network.clusters = {HOST: self.cluster, ALIAS: self.cluster, OTHER_HOST: self.other_cluster}
        self.airflow = Airflow(self.clock, self, self.rng, lambda: scenario.make_task(self), scenario.retries)
        self.airflow.connections["ray_jobs_default"] = _connection(HOST)
        self.airflow.on_success = self._succeeded
        self.airflow.on_terminal = self._task_ended
        # jobs of the task instance, in the order of their submission
        self.jobs: list[Job] = []
        # when each Clear happened
        self.clears: list[float] = []
        self._is_verbose = is_verbose
        self._counts: Counter[str] = Counter()
        self._faults: dict[str, list[str]] = defaultdict(list)
        self._timed: list[tuple[float, str]] = []
        self._timed_left = 0
        for fault in faults:
            if _is_time(fault.at):
                self._timed.append((float(fault.at), fault.what))
            else:
                self._faults[fault.at].append(fault.what)

    def run(self) -> Report:
        """Run the history to its end, and check the invariants."""
        gc_was_enabled = gc.isenabled()
        gc.disable()
        try:
            with virtual_time.entered(self.clock, self.network, self.airflow, self.rng):
                self._run()
        finally:
            if gc_was_enabled:
                gc.enable()
        self.report.seconds = self.clock.now
        self.report.state = self.airflow.state
        return self.report

    def _run(self) -> None:
        self._timed_left = len(self._timed)
        for when, what in self._timed:
            self.clock.call_later(when, lambda what=what: self._strike_timed(what))
        self.scenario.prepare(self)
        self.airflow.start()
        over_since: float | None = None
        while self.clock.step():
            if self.clock.now > MAX_SECONDS:
                self.violate("endless", "the task does not end")
                break
            if not (self.airflow.is_over and self._timed_left == 0):
                over_since = None
            elif over_since is None:
                over_since = self.clock.now
            elif self.clock.now > over_since + GRACE:
                break
            if over_since == self.clock.now:
                # an event marks the end of the grace time, even if nothing else happens
                self.clock.call_later(GRACE + 0.001, lambda: None)
        invariants.check_end(self)
        self._end_processes()

    def _end_processes(self) -> None:
        """Let all simulated processes die, so that their greenlets end."""
        for process in self._processes:
            process.on_exit = lambda: None
            process.kill()
        budget = 1000
        while budget and any(not thread.is_over for process in self._processes for thread in process.threads):
            budget -= 1
            if not self.clock.step():
                break

    @property
    def _processes(self) -> list[Process]:
        processes = [worker.process for worker in self.airflow.workers]
        return processes + [each.process for each in self.airflow.triggerers]

    # -- the script -----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        if self._is_verbose:
            self.report.journal.append(f"{self.clock.now:9.3f}  {text}")

    def begin(self, process: Process, label: str) -> tuple[str, str | None]:
        name = f"{process.name.split()[0]} {label}"
        self._counts[name] += 1
        key = f"{name}#{self._counts[name]}"
        self.report.operations.append(key)
        self.report.times.append(self.clock.now)
        if len(self.report.operations) > MAX_OPERATIONS:
            if len(self.report.operations) == MAX_OPERATIONS + 1:
                self.violate("busy", f"more than {MAX_OPERATIONS} operations")
            self.airflow.retries_are_over = True
            process.kill()
        self._strike(f"{key} before", process)
        process.check()
        faults = self._faults.get(key)
        if faults:
            self.happened[faults[0]] += 1
            self.note(f"fault: {key}: {faults[0]}")
        return key, faults[0] if faults else None

    def end(self, process: Process, key: str) -> None:
        self._strike(f"{key} after", process)
        process.check()

    def _strike(self, at: str, process: Process) -> None:
        for what in self._faults.get(at, ()):
            self.note(f"fault: {at}: {what}")
            self.happened[what] += 1
            self._do(what, process)

    def _strike_timed(self, what: str) -> None:
        self._timed_left -= 1
        self.note(f"fault: {what}")
        self.happened[what] += 1
        self._do(what, None)

    def _do(self, what: str, process: Process | None) -> None:
        name, _, argument = what.rpartition(" ") if what[-1].isdigit() else (what, "", "")
        action: Callable[..., None] = getattr(self, f"_do_{name.replace(' ', '_')}")
        arguments = [float(argument)] if argument else []
        action(process, *arguments)

    def _do_die(self, process: Process | None) -> None:
        """SIGKILL for the process of the operation, or for the one that runs the task."""
        if process is not None:
            if process.name == "triggerer":
                self.airflow.kill_triggerer()
            else:
                process.kill()
        else:
            self.airflow.kill_worker()

    def _do_machine_lost(self, process: Process | None) -> None:
        self.airflow.kill_worker(machine=True)

    def _do_sigterm(self, process: Process | None) -> None:
        self.airflow.terminate()

    def _do_airflow_fails_the_try(self, process: Process | None) -> None:
        self.airflow.fail_try()

    def _do_freeze(self, process: Process | None, seconds: float) -> None:
        self.airflow.freeze_worker(seconds)

    def _do_clear(self, process: Process | None) -> None:
        if self._is_postponed(self._do_clear):
            return
        self.clears.append(self.clock.now)
        self._hold_ends(held=False)
        self.airflow.clear()

    def _is_postponed(self, action: Callable[[None], None]) -> bool:
        """Postpone what a user does while the API server is away."""
        away = self.airflow.api_fails_until - self.clock.now
        if away > 0:
            self.clock.call_later(away + 0.1, lambda: action(None))
        return away > 0

    def _do_mark_failed(self, process: Process | None) -> None:
        if not self._is_postponed(self._do_mark_failed):
            self.airflow.mark("failed")

    def _do_mark_success(self, process: Process | None) -> None:
        if not self._is_postponed(self._do_mark_success):
            self.airflow.mark("success")

    def _do_triggerer_dies(self, process: Process | None) -> None:
        self.airflow.kill_triggerer()

    def _do_triggerer_restarts(self, process: Process | None) -> None:
        self.airflow.kill_triggerer(restart=True)

    def _do_head_restarts(self, process: Process | None, seconds: float = 10.0) -> None:
        self.cluster.go_down()
        self.clock.call_later(seconds, self.cluster.come_up)

    def _do_head_restarts_and_the_id_is_taken(self, process: Process | None, seconds: float = 0.0) -> None:
        """Another user submits a job with the same id to the new cluster."""
        ids = list(self.cluster.jobs)
        self._do_head_restarts(process, seconds)
        self.clock.call_later(seconds, lambda: self._take_ids(ids))

    def _take_ids(self, ids: list[str]) -> None:
        plan = Plan(pending=0.0, runs=1.0, lines=3)
        for key in ids:
            if len(key) == 8:
                self.cluster.connect_driver(plan)
            else:
                self.cluster.submit({"submission_id": key, "metadata": {"owner": "another user"}}, plan)

    def _do_network_down(self, process: Process | None, seconds: float) -> None:
        self.network.outage, self.network.outage_until = "refused", self.clock.now + seconds

    def _do_gateway_errors(self, process: Process | None, seconds: float) -> None:
        outage = self.rng.choice([fault for fault in FAULTS if "ingress" in fault])
        self.network.outage, self.network.outage_until = outage, self.clock.now + seconds

    def _do_connection_unreadable(self, process: Process | None, seconds: float) -> None:
        self.airflow.lookups_fail_until = self.clock.now + seconds

    def _do_api_server_down(self, process: Process | None, seconds: float) -> None:
        self.airflow.api_fails_until = self.clock.now + seconds
        if seconds > HEARTBEAT_FAILURES:  # the supervisor kills a task whose heartbeats fail three times
            self.clock.call_later(HEARTBEAT_FAILURES, self.airflow.terminate)

    def _do_connection_names_an_alias(self, process: Process | None) -> None:
        self.airflow.connections["ray_jobs_default"] = _connection(ALIAS)

    def _do_connection_names_another_cluster(self, process: Process | None) -> None:
        self.airflow.connections["ray_jobs_default"] = _connection(OTHER_HOST)

    def _do_record_deleted(self, process: Process | None) -> None:
        for key in list(self.cluster.jobs):
            self.cluster.delete_record(key)

    def _do_record_deleted_and_comes_back(self, process: Process | None) -> None:
        for key in list(self.cluster.jobs):
            self.cluster.delete_record(key, comes_back=True)

    def _do_job_stopped_by_hand(self, process: Process | None) -> None:
        for job in list(self.cluster.jobs.values()):
            self.cluster.stop(job)

    # -- what is watched ------------------------------------------------------------------------------------------

    def violate(self, invariant: str, text: str) -> None:
        self.note(f"VIOLATION: {invariant}: {text}")
        self.report.violations.append(f"{invariant}: {text}")

    def _plan_for(self, body: Any) -> Plan:
        plans = self.scenario.plans
        return plans[min(len(self.jobs), len(plans) - 1)]

    def saw(self, job: Job) -> None:
        job.seen.setdefault(self.airflow.try_number, self.clock.now)

    def _watch(self, event: str, job: Job) -> None:
        self.note(f"ray: job {job.number} {job.name} {event}")
        if event == "accepted" and job.metadata.get("airflow_task_id") == self.airflow.task_id:
            self.jobs.append(job)
            self._note_sender(job)
            invariants.check_one_living_job(self, job)
        elif event == "started":
            invariants.check_one_living_job(self, job)

    def _note_sender(self, job: Job) -> None:
        """Note whether the sender of a submission is dead, will be before it can stop the job, or does not know it."""
        job.is_repetition = self.network.is_stray and any(
            other.is_deleted and other.submission_id == job.submission_id for other in self.jobs
        )
        for worker in self.airflow.workers:
            if worker.process is self.network.sender:
                job.generation = worker.clear_number
                job.is_late = not worker.process.is_alive or self.clock.now > worker.terminated_at + KILL_TIME

    def _succeeded(self, result: Any) -> None:
        invariants.check_green(self, result)

    def _task_ended(self) -> None:
        if self._timed_left == 0:
            self._hold_ends(held=True)

    def _hold_ends(self, *, held: bool) -> None:
        for cluster in (self.cluster, self.other_cluster):
            cluster.hold_ends(held=held)


def _connection(host: str) -> dict[str, Any]:
    return {"conn_type": "ray_jobs", "host": f"http://{host}:8265"}


def _is_time(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
