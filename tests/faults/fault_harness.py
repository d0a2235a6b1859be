"""Run many fault cases at once, in one Airflow and on two Ray heads, and collect their results."""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.fault_proxy import FaultProxy
from sandbox.local_airflow import QUICK_RECOVERY
from sandbox.production_airflow import new_airflow
from sandbox.ray_head import RayHead
from sandbox.task_runs import TASK_ID, Observer, TaskRun

# Seconds until a case must have ended.
CASE_TIMEOUT = 600
# Seconds until a stopped job must be STOPPED in Ray's job list.
STOP_TIMEOUT = 45
FINAL_STATES = ("success", "failed", "skipped")
# Entrypoints and arguments of many cases. ``@RELEASE@`` is the path of the case's release file.
UNTIL_RELEASED = "echo start; until test -e @RELEASE@; do sleep 0.5; done; echo end"
ENDLESS_IN_FIRST_TRY = "test {{ ti.try_number }} -gt 1 || sleep 600"
RETRY = {"retries": 1, "retry_delay": 1, "poll_interval": 1}
NO_RETRY = {"retries": 0, "poll_interval": 1}
DEFERRED = {"deferrable": True}
MODES = (("worker", {}), ("deferred", DEFERRED))
# What the log of a try says about the job of an earlier one.
FOLLOWS_JOB = "This try follows it"
TAKES_RESULT = "This try takes its result"


@dataclass
class FaultCase(TaskRun):
    """
    One fault, and the result that the task and its Ray jobs must have.

    The name says what goes wrong. It is the id of the test and of the DAG.

    :param behaviour: what the product does about it, in one sentence.
    :param task: the operator's arguments.
    :param before: runs before the DAG run is started.
    :param script: causes the fault. It runs beside the scripts of the other cases.
    :param state: the task's final state.
    :param jobs: the final statuses of all Ray jobs of the task, in the order of their submission.
    :param tries: the task's final try number; ``None`` if any will do.
    :param log_contains: texts that the logs of all tries together must contain.
    :param logged_once: lines that the logs must contain exactly once.
    :param dag: ``dagrun_timeout`` in seconds; ``hold`` adds a task that runs until :meth:`release`.
    :param uses_second_head: whether the jobs run on the head that is restarted.
    """

    behaviour: str
    task: dict[str, Any]
    script: Callable[[FaultCase], None] | None = None
    state: str = "success"
    jobs: tuple[str, ...] = ("SUCCEEDED",)
    tries: int | None = None
    log_contains: tuple[str, ...] = ()
    logged_once: tuple[str, ...] = ()
    dag: dict[str, Any] = field(default_factory=dict)
    uses_second_head: bool = False
    before: Callable[[FaultCase], None] | None = None
    harness: FaultHarness = field(init=False, repr=False)
    result: dict[str, Any] = field(init=False, default_factory=dict)

    # -- what a script can wait for -------------------------------------------------------------------------------

    def wait_for_job(self, status: str, number: int = 1) -> None:
        """Wait until the n-th job has a status and the task follows it, on a worker or in the triggerer."""
        state = "deferred" if self.task.get("deferrable") else "running"

        def is_followed() -> bool:
            jobs = self.ray_jobs
            return len(jobs) >= number and jobs[number - 1]["status"] == status and self.task_instance["state"] == state

        self.wait_until(f"job {number} is {status} and the task is {state}", is_followed)
        if self.task.get("deferrable"):
            tries = self.task_instance["try_number"]
            self.wait_until("the triggerer runs the task's trigger", lambda: f"/{tries} (ID " in self.log(tries))
        time.sleep(2)

    def wait_for_state(self, *states: str) -> None:
        """Wait until the task instance is in one of some states."""
        self.wait_until(f"the task is {' or '.join(states)}", lambda: self.task_instance["state"] in states)

    def wait_for_end(self) -> None:
        """Wait until the task and its DAG run have ended."""
        self.wait_for_state(*FINAL_STATES)
        self.wait_until("the DAG run has ended", self.has_ended)

    def wait_for_following_try(self) -> None:
        """Wait until the second try follows the job of the first."""
        self.wait_until("the second try follows the job", lambda: FOLLOWS_JOB in self.log(2), timeout=300)

    # -- what a script can do -------------------------------------------------------------------------------------

    def clear(self, *, reset_dag_runs: bool = True) -> None:
        """Clear the task, and wait until Airflow shows that."""
        tries = self.task_instance["try_number"]
        super().clear(reset_dag_runs=reset_dag_runs)
        self.wait_until(
            "the cleared task has a new try",
            lambda: self.task_instance["try_number"] > tries or self.task_instance["state"] not in FINAL_STATES,
        )

    def release(self) -> None:
        """End the entrypoint, or the task ``hold``, that waits for the release file."""
        (self.folder / f"{self.name}.release").touch()

    # -- running the case -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start the DAG run, run the script, wait for the end, and store the result."""
        try:
            if self.before is not None:
                self.before(self)
            self.trigger()
            if self.script is not None:
                self.script(self)
            self.wait_for_end()
            deadline = time.monotonic() + STOP_TIMEOUT
            polls = self.observer.ray_polls
            while time.monotonic() < deadline and (
                self.observer.ray_polls < polls + 2 or any(job["status"] == "RUNNING" for job in self.ray_jobs)
            ):
                time.sleep(0.5)
            self.result["value"] = self.harness.airflow.xcoms(self.name, self.run_id, TASK_ID).get("return_value")
        except Exception:  # noqa: BLE001  (the test reports it)
            self.result["error"] = traceback.format_exc()
        self.result |= {"state": self.task_instance["state"], "tries": self.task_instance["try_number"]}
        self.result["jobs"] = tuple(job["status"] for job in self.ray_jobs)
        self.result["last_job"] = self.ray_jobs[-1]["submission_id"] if self.ray_jobs else None
        self.result["logs"] = [self.log(number + 1) for number in range(self.task_instance["try_number"])]
        self.add_event(f"ended: task {self.result['state']}, jobs {self.result['jobs']}")

    def report(self) -> str:
        """Return the timeline, the logs and the error, for the message of a failed assertion."""
        start = self.timeline[0][0] if self.timeline else 0.0
        lines = [
            f"{self.name}: {self.behaviour}",
            *(f"{moment - start:7.1f} s  {text}" for moment, text in self.timeline),
        ]
        for number, log in enumerate(self.result.get("logs", ()), start=1):
            lines += [f"--- log of try {number}", log[-6000:]]
        return "\n".join([*lines, self.result.get("error", "")])


class FaultHarness:
    """Two Ray heads, an Airflow, and the cases that run there."""

    def __init__(self, cases: Iterable[FaultCase], folder: Path) -> None:
        self.cases = list(cases)
        self.folder = folder
        self.head = RayHead(num_cpus=16)
        self.second_head = RayHead(num_cpus=4)
        for case in self.cases:
            case.harness, case.folder = self, folder
            case.proxy = FaultProxy((self.second_head if case.uses_second_head else self.head).address, case.add_event)
        self.write_cases()
        connections = {
            f"ray_{case.name}": {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": case.proxy.port}
            for case in self.cases
        }
        settings = {
            "FAULT_CASES_DIR": str(folder),
            "AIRFLOW__CORE__PARALLELISM": "10",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "15",
        } | QUICK_RECOVERY  # fmt: skip
        self.airflow = new_airflow(Path(__file__).parent / "dags", connections, settings)
        self.observer = Observer(self.airflow, [self.head, self.second_head])
        for case in self.cases:
            case.observer = self.observer

    def write_cases(self) -> None:
        """Write the cases into the file from which the DAG file reads them."""
        cases = {case.name: {"task": case.task, "dag": case.dag} for case in self.cases}
        (self.folder / "cases.new").write_text(json.dumps(cases))
        (self.folder / "cases.new").rename(self.folder / "cases.json")

    def start(self) -> None:
        """Start both heads and Airflow, and begin to poll them."""
        self.head.start()
        self.second_head.start()
        self.airflow.start()
        self.observer.start()
        for case in self.cases:
            self.airflow.wait_for_dag(case.name)

    def run(self, cases: Iterable[FaultCase], common_fault: Callable[[list[FaultCase]], None] | None = None) -> None:
        """Run those of some cases that are here side by side; ``common_fault`` causes a fault that all of them meet."""
        here = {case.name for case in self.cases}
        cases = [case for case in cases if case.name in here]
        if not cases:
            return
        threads = [threading.Thread(target=case.run, name=case.name, daemon=True) for case in cases]
        for thread in threads:
            thread.start()
        if common_fault is not None:
            try:
                common_fault(cases)
            except Exception:  # noqa: BLE001  (the tests report it)
                for case in cases:
                    case.add_event(traceback.format_exc())
        deadline = time.monotonic() + CASE_TIMEOUT
        for case, thread in zip(cases, threads, strict=True):
            thread.join(max(deadline - time.monotonic(), 1))
            if thread.is_alive():
                case.result.setdefault("error", f"the case did not end within {CASE_TIMEOUT} s")

    def close(self) -> None:
        """Stop Airflow, the proxies and the heads."""
        self.observer.close()
        self.airflow.close()
        for case in self.cases:
            case.proxy.close()
        self.head.close()
        self.second_head.close()
