"""Run many fault cases at once, in one Airflow and on two Ray heads, and collect their results."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sandbox.fault_proxy import FaultProxy
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

# Seconds until a case must have ended.
CASE_TIMEOUT = 600
# Seconds until a stopped job must be STOPPED in Ray's job list.
STOP_TIMEOUT = 45
FINAL_STATES = ("success", "failed", "skipped")


@dataclass
class FaultCase:
    """
    One fault, and the result that the task and its Ray jobs must have.

    :param name: what goes wrong. It is the id of the test and of the DAG.
    :param behaviour: what the product does about it, in one sentence.
    :param task: the operator's arguments.
    :param script: causes the fault. It runs beside the scripts of the other cases.
    :param state: the task's final state.
    :param jobs: the final statuses of all Ray jobs of the task, in the order of their submission.
    :param tries: the task's final try number; ``None`` if any will do.
    :param log_contains: texts that the logs of all tries together must contain.
    :param logged_once: lines that the logs must contain exactly once.
    :param dag: ``dagrun_timeout`` in seconds; ``hold`` adds a task that runs until :meth:`release`.
    :param uses_second_head: whether the jobs run on the head that is restarted.
    """

    name: str
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
    harness: FaultHarness = field(init=False, repr=False)
    proxy: FaultProxy = field(init=False, repr=False)
    run_id: str = field(init=False, default="")
    timeline: list[tuple[float, str]] = field(init=False, default_factory=list)
    result: dict[str, Any] = field(init=False, default_factory=dict)

    # -- what a script can observe --------------------------------------------------------------------------------

    def add_event(self, text: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((time.time(), text))

    @property
    def task_instance(self) -> dict[str, Any]:
        """The task instance at the last poll of Airflow."""
        return self.harness.task_instances.get((self.name, "job"), {"state": None, "try_number": 0})

    @property
    def ray_jobs(self) -> list[dict[str, Any]]:
        """This case's jobs at the last poll of Ray, oldest first."""
        return sorted(
            (job for job in self.harness.jobs if (job["metadata"] or {}).get("airflow_dag_id") == self.name),
            key=lambda job: job["start_time"],
        )

    def wait_until(self, description: str, condition: Callable[[], Any], timeout: float = 300) -> None:
        """Wait until a condition is true, and add its description to the timeline."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true after {timeout:g} s: {description}")
            time.sleep(0.3)
        self.add_event(f"seen: {description}")

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
        self.wait_until("the DAG run has ended", lambda: self.harness.dag_runs.get(self.name) in ("success", "failed"))

    # -- what a script can do -------------------------------------------------------------------------------------

    def clear(self, reset_dag_runs: bool = True) -> None:
        """Clear the task, as the button in Airflow's UI does."""
        self.add_event("Clear")
        body = {"dry_run": False, "task_ids": ["job"], "dag_run_id": self.run_id, "only_failed": False}
        with self.harness.api_write_lock:
            self.harness.airflow.api(
                "POST", f"/dags/{self.name}/clearTaskInstances", json=body | {"reset_dag_runs": reset_dag_runs}
            )
        tries = self.task_instance["try_number"]
        self.wait_until(
            "the cleared task has a new try",
            lambda: self.task_instance["try_number"] > tries or self.task_instance["state"] not in FINAL_STATES,
        )

    def mark(self, state: str) -> None:
        """Mark the task as failed or success, as the button in Airflow's UI does."""
        self.add_event(f"mark as {state}")
        path = f"/dags/{self.name}/dagRuns/{self.run_id}/taskInstances/job"
        with self.harness.api_write_lock:
            self.harness.airflow.api("PATCH", path, json={"new_state": state})

    def pids(self) -> tuple[int, int]:
        """Return the process ids of the task and of its supervisor."""
        task, supervisor = (self.harness.folder / f"{self.name}.pids").read_text().split()
        return int(task), int(supervisor)

    def kill(self, number: signal.Signals = signal.SIGKILL, *, supervisor: bool = False) -> None:
        """Send a signal to the task's process, or to its supervisor."""
        pid = self.pids()[supervisor]
        self.add_event(f"{number.name} to {'the supervisor' if supervisor else 'the task'}")
        os.kill(pid, number)

    def ray(self, method: str, path: str) -> Any:
        """Call Ray directly, as another user of the cluster would."""
        self.add_event(f"outside Airflow: {method} {path}")
        response = httpx.request(method, f"{self.proxy.head}{path}", timeout=60)
        response.raise_for_status()
        return response.json()

    def release(self) -> None:
        """End the entrypoint, or the task ``hold``, that waits for the release file."""
        (self.harness.folder / f"{self.name}.release").touch()

    # -- running the case -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start the DAG run, run the script, wait for the end, and store the result."""
        try:
            with self.harness.api_write_lock:
                self.run_id = self.harness.airflow.trigger(self.name)
            self.add_event("triggered")
            if self.script is not None:
                self.script(self)
            self.wait_for_end()
            deadline = time.monotonic() + STOP_TIMEOUT
            polls = self.harness.ray_polls
            while time.monotonic() < deadline and (
                self.harness.ray_polls < polls + 2 or any(job["status"] == "RUNNING" for job in self.ray_jobs)
            ):
                time.sleep(0.5)
        except Exception:  # noqa: BLE001  (the test reports it)
            self.result["error"] = traceback.format_exc()
        self.result |= {"state": self.task_instance["state"], "tries": self.task_instance["try_number"]}
        self.result["jobs"] = tuple(job["status"] for job in self.ray_jobs)
        self.result["logs"] = [self.log(number + 1) for number in range(self.task_instance["try_number"])]
        self.add_event(f"ended: task {self.result['state']}, jobs {self.result['jobs']}")

    def log(self, number: int) -> str:
        """Return the log of the n-th try, as far as it exists."""
        try:
            return self.harness.airflow.log_text(self.name, self.run_id, "job", number)
        except (RuntimeError, httpx.HTTPError) as error:
            return f"(no log: {error})"

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
    """
    Two Ray heads, an Airflow, and the cases that run there.

    It polls Airflow and Ray about once a second, for all cases together.
    """

    def __init__(self, cases: Iterable[FaultCase], folder: Path) -> None:
        self.cases = list(cases)
        self.folder = folder
        self.head = RayHead(num_cpus=16)
        self.second_head = RayHead(num_cpus=4)
        self.task_instances: dict[tuple[str, str], dict[str, Any]] = {}
        self.dag_runs: dict[str, str] = {}
        self.jobs: list[dict[str, Any]] = []
        self.ray_polls = 0
        # SQLite is one file, so that concurrent API calls that write would fail
        self.api_write_lock = threading.Lock()
        self._is_closed = threading.Event()
        for case in self.cases:
            case.harness = self
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
            # Airflow notices a lost process soon, and tasks wait for an API server that is restarted
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "45",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "20",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
        }
        self.airflow = LocalAirflow(Path(__file__).parent / "dags", connections, settings, separate_execution_api=True)

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
        for poll in (self._poll_airflow, self._poll_ray):
            threading.Thread(target=poll, daemon=True).start()
        for case in self.cases:
            self.airflow.wait_for_dag(case.name)

    def run(self, cases: Iterable[FaultCase], common_fault: Callable[[list[FaultCase]], None] | None = None) -> None:
        """Run cases side by side; ``common_fault`` causes a fault that all of them meet."""
        cases = list(cases)
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
        self._is_closed.set()
        self.airflow.close()
        for case in self.cases:
            case.proxy.close()
        self.head.close()
        self.second_head.close()

    def _poll_ray(self) -> None:
        while not self._is_closed.wait(1):
            with suppress(httpx.HTTPError, ValueError):  # a head is being restarted
                jobs = []
                for head in (self.head, self.second_head):
                    jobs += httpx.get(f"{head.address}/api/jobs/", timeout=30).json()
                self.jobs = [job for job in jobs if job["type"] == "SUBMISSION"]
                self.ray_polls += 1

    def _poll_airflow(self) -> None:
        by_name = {case.name: case for case in self.cases}
        last_texts: dict[str, str] = {}

        def add_change(key: str, name: str, text: str) -> None:
            if name in by_name and last_texts.get(key) != text:
                last_texts[key] = text
                by_name[name].add_event(text)

        while not self._is_closed.wait(1.5):
            try:
                listed = self.airflow.api("GET", "/dags/~/dagRuns/~/taskInstances", params={"limit": 500})
                instances = {(one["dag_id"], one["task_id"]): one for one in listed["task_instances"]}
                runs = self.airflow.api("GET", "/dags/~/dagRuns", params={"limit": 500})["dag_runs"]
            except (httpx.HTTPError, RuntimeError):
                continue  # the API server is being restarted, or SQLite is locked
            self.task_instances, self.dag_runs = instances, {run["dag_id"]: run["state"] for run in runs}
            for (name, task_id), one in instances.items():
                add_change(f"{name}/{task_id}", name, f"{task_id} is {one['state']}, try {one['try_number']}")
            for job in self.jobs:
                name = (job["metadata"] or {}).get("airflow_dag_id", "")
                add_change(job["submission_id"], name, f"Ray: {job['submission_id']} is {job['status']}")
