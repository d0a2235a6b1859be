"""One run of a task in the campaign: carry out its plan, then check its story."""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from chaos_invariants import GRACE, UNCONFIRMED_CLEAR, Finding, Incident, ShownLog, Story, check, must_end_by
from chaos_network import Network
from chaos_plan import Action, Plan
from chaos_slots import STUBBORN_FOR, Slot
from job_ledger import JobLedger

from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT
from sandbox.local_airflow import record_texts
from sandbox.task_logs import JOB_LOGGER, log_files, time_of
from sandbox.task_runs import TASK_ID, Observer, TaskRun

T = TypeVar("T")

FINAL_STATES = ("success", "failed", "skipped")
_API_ATTEMPTS = 6
# Seconds until a task must have ended, after its last action.
_END_TIMEOUT = 420.0
_LINE = re.compile(r"^(\S+) line (\d+)$", re.MULTILINE)
_DEFERRAL_REJECTED = "Failed to report terminal task state to supervisor"
_OUR_LOGGERS = ("airflow.task.operators.", "airflow.task.hooks.", JOB_LOGGER)
# Airflow's message about the start of a trigger.
_TRIGGER = re.compile(r"trigger \S+ \(ID \d+\) starting")
_CONTINUED = "The triggerer that followed job"
# Characters of a message in a report.
_MESSAGE = 600


class History(TaskRun):
    """
    A run of a slot's DAG.

    :param sessions: the directory with the sessions of the head.
    :param common_incidents: those that concern all runs.
    :param supervisor_kills: how many supervisors may still be killed.
    """

    def __init__(
        self,
        slot: Slot,
        plan: Plan,
        *,
        observer: Observer,
        network: Network,
        ledger: JobLedger,
        folder: Path,
        sessions: Path,
        common_incidents: list[Incident],
        supervisor_kills: threading.Semaphore,
    ) -> None:
        super().__init__(slot.name)
        self.observer, self.folder, self.proxy = observer, folder, network.proxy
        self.slot, self.plan, self.network, self.ledger, self.sessions = slot, plan, network, ledger, sessions
        self.common_incidents, self.supervisor_kills = common_incidents, supervisor_kills
        self.incidents: list[Incident] = []
        self.findings: list[Finding] = []
        self.state: str | None = None
        self.error = ""
        # the whole history, if there are findings
        self.report = ""

    @property
    def violations(self) -> list[Finding]:
        """The findings without a documented reason."""
        return [finding for finding in self.findings if not finding.exception]

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self, may_act: Callable[[], bool]) -> None:
        """Start the run, carry out the plan while ``may_act`` says so, wait until all is over, and check the story."""
        started_at = time.time()
        try:
            for action in self.plan.actions:
                if action.kind == "submission fault":
                    self.network.add_submission_fault(action.fault)
            _patiently(lambda: self.trigger(self.plan.conf))
            self._carry_out_plan(started_at, may_act)
            self._wait_for_end()
            self._wait_for_jobs()
            self.findings = check(self._story(started_at))
            self._stop_living_jobs()
        except Exception:  # noqa: BLE001  (the report shows it)
            self.error = traceback.format_exc()
        finally:
            self.observer.forget(self)
        if self.findings or self.error:
            self.report = self._report()  # now, as the log files are removed with Airflow

    def _carry_out_plan(self, started_at: float, may_act: Callable[[], bool]) -> None:
        for action in sorted(self.plan.actions, key=lambda one: (one.kind == "clear at the end", one.at)):
            while may_act() and time.time() < started_at + action.at and not self._is_over():
                time.sleep(0.2)
            if action.kind == "clear at the end":
                self._wait_for_end()
            if not may_act():
                return
            if action.kind.startswith("kill"):
                self._wait_for_process(may_act)
                time.sleep(action.delay)
            if action.kind != "submission fault" and (action.kind.startswith("clear") or not self._is_over()):
                self._act(action)

    def _wait_for_process(self, may_act: Callable[[], bool]) -> None:
        """Wait until the task has a process. A deferred task has none."""
        while may_act() and not self._is_over() and not self.has_process():
            time.sleep(0.1)

    def _act(self, action: Action) -> None:
        """Carry out one action, and record it as an incident."""
        airflow = self.observer.airflow
        try:
            one = airflow.task_instance(self.name, self.run_id, TASK_ID)
            incident = Incident(
                action.kind.removesuffix(" at the end"),
                time.time(),
                state=one["state"],
                is_last_try=one["try_number"] > one["max_tries"],
            )
            self.add_event(f"{action.kind}, while the task is {one['state']} in try {one['try_number']}")
            if action.kind.startswith("kill"):
                incident.until = incident.at
                self.kill(supervisor=action.kind == "kill supervisor" and self.supervisor_kills.acquire(blocking=False))
            elif action.kind.startswith("mark"):
                self.mark(action.kind.removeprefix("mark "))
            elif action.kind.startswith("clear"):
                # A request without an answer may have been obeyed.
                incident.kind = UNCONFIRMED_CLEAR
                self.incidents.append(incident)
                self.clear()
                incident.kind, incident.until = "clear", time.time()
                return
            elif action.kind == "stop job":
                self._stop_living_jobs()
            else:
                self.add_event(f"{action.fault} for {action.share:.0%} of the requests, for {action.seconds:.0f} s")
                self.network.add_fault(action.fault, action.share, action.seconds)
                incident.until = incident.at + action.seconds
            self.incidents.append(incident)
        except (OSError, RuntimeError, httpx.HTTPError) as error:
            self.add_event(f"not done: {error}")

    def _is_over(self) -> bool:
        return self.task_instance["state"] in FINAL_STATES and self.has_ended()

    def _wait_for_end(self) -> None:
        """Wait until the task has ended, as two polls after the last action show."""
        self.state = None
        enough_polls = self.observer.airflow_polls + 2
        deadline = time.monotonic() + _END_TIMEOUT
        while self.observer.airflow_polls < enough_polls or not self._is_over():
            if time.monotonic() > deadline:
                return
            time.sleep(0.3)
        self.state = self.task_instance["state"]

    def _wait_for_jobs(self) -> None:
        """Wait until no job lives, at most as long as a job may live after its task."""
        enough_polls = self.observer.ray_polls + 2
        while self.observer.ray_polls < enough_polls or self._may_still_end():
            time.sleep(0.5)

    def _may_still_end(self) -> bool:
        """Tell whether a job lives, and has time left to end."""
        now = time.time()
        limits = [
            must_end_by(job, self._ended_at(), self.common_incidents, now) + self._grace + 2
            for job in self.ledger.jobs_of((self.name, self.run_id))
            if job.end is None
        ]
        return any(now < limit for limit in limits)

    def _living_jobs(self) -> list[str]:
        return [job.submission_id for job in self.ledger.jobs_of((self.name, self.run_id)) if job.end is None]

    def _stop_living_jobs(self) -> None:
        for submission_id in self._living_jobs():
            with suppress(httpx.HTTPError):
                self.ray("POST", f"/api/jobs/{submission_id}/stop")

    # -- the story ------------------------------------------------------------------------------------------------

    @property
    def _grace(self) -> float:
        return GRACE + (STUBBORN_FOR if self.slot.kind == "stubborn" else 0)

    def _ended_at(self) -> float:
        end = self.task_instance.get("end_date")
        return datetime.fromisoformat(end).timestamp() if end else time.time()

    def _story(self, started_at: float) -> Story:
        now = time.time()
        story = Story(
            state=self.state,
            result=self._result(),
            ended_at=self._ended_at(),
            observed_until=now,
            lines=self.plan.lines,
            grace=self._grace,
            stop_timeout=float(self.slot.task.get("stop_timeout", STOP_TIMEOUT)),
            jobs=self.ledger.jobs_of((self.name, self.run_id)),
            tries=[self._shown_log(number + 1) for number in range(self.task_instance["try_number"])],
        )
        story.incidents = [*self.incidents, *(one for one in self.common_incidents if one.overlaps(started_at, now))]
        for job in story.jobs:
            files = {
                file.resolve() for file in self.sessions.glob(f"session_*/logs/job-driver-{job.submission_id}.log")
            }
            if len(files) == 1:
                story.driver_logs[job.submission_id] = files.pop().read_text(errors="replace")
        return story

    def _result(self) -> str | None:
        """Return what the task returned."""
        path = f"/dags/{self.name}/dagRuns/{self.run_id}/taskInstances/{TASK_ID}/xcomEntries"
        entries = _patiently(lambda: self.observer.airflow.api("GET", path)["xcom_entries"])
        if not any(entry["key"] == "return_value" for entry in entries):
            return None
        return str(_patiently(lambda: self.observer.airflow.api("GET", f"{path}/return_value"))["value"])

    def _files(self, number: int) -> list[list[dict[str, Any]]]:
        logs = self.observer.airflow.home / "logs"
        return log_files(logs / f"dag_id={self.name}" / f"run_id={self.run_id}" / f"task_id={TASK_ID}", number)

    def _shown_log(self, number: int) -> ShownLog:
        shown = ShownLog(number, has_begun=False, has_trigger=False)
        for record in (record for records in self._files(number) for record in records):
            text = str(record.get("event"))
            shown.ended_at = max(shown.ended_at, time_of(record).timestamp())
            if record.get("logger") == JOB_LOGGER:
                shown.records.append(text)
                for submission_id, line in _LINE.findall(text):
                    shown.numbers.setdefault(submission_id, []).append(int(line))
            shown.has_begun |= str(record.get("logger")).startswith(_OUR_LOGGERS)
            shown.has_trigger |= _TRIGGER.fullmatch(text) is not None
            errors = [error.get("exc_type") for error in record.get("error_detail") or ()]
            shown.has_entrypoint_error |= "RayJobEntrypointError" in errors
            shown.is_deferral_rejected |= text == _DEFERRAL_REJECTED and record.get("state") == "deferred"
            shown.is_continued |= text.startswith(_CONTINUED)
        return shown

    # -- the report -----------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """Return one line about the run."""
        jobs = [job.status for job in self.ledger.jobs_of((self.name, self.run_id))]
        actions = [action.kind for action in self.plan.actions]
        return f"{self.name} {self.run_id}: {self.state}, jobs {jobs}, planned {actions}"

    def _report(self) -> str:
        """Return all that a person needs to see what happened."""
        start = self.timeline[0][0] if self.timeline else 0.0
        lines = [
            f"{self.name} {self.run_id}, {self.plan}",
            *(f'VIOLATION of "{finding.invariant}": {finding.text}' for finding in self.violations),
            *(f"{moment - start:7.1f} s  {text}" for moment, text in sorted(self.timeline)),
            *(f"job {job.describe()}" for job in self.ledger.jobs_of((self.name, self.run_id))),
        ]
        for number in range(self.task_instance["try_number"]):
            lines.append(f"--- messages of try {number + 1}")
            for record in (record for records in self._files(number + 1) for record in records):
                if record.get("logger") != JOB_LOGGER:
                    moment = time_of(record).timestamp() - start
                    lines += [f"{moment:7.1f} s  {text[:_MESSAGE]}" for text in record_texts(record)]
        return "\n".join([*lines, self.error])


def _patiently(call: Callable[[], T]) -> T:
    """Call Airflow's API, and once more after each error: on a busy machine, SQLite is locked for long."""
    for _ in range(_API_ATTEMPTS - 1):
        try:
            return call()
        except (RuntimeError, httpx.HTTPError):
            time.sleep(5)
    return call()
