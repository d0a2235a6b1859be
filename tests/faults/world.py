"""Many cases at once in one Airflow on one Ray head: what they share, what each does, and what came of it."""

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
from proxy import Lane

from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

# Seconds until a case must be over, and until a stop that was sent shows in Ray's list.
CASE_TIMEOUT = 600
STOP_SHOWS_AFTER = 45
TASK_ENDS = ("success", "failed", "skipped")


@dataclass
class Case:
    """
    One thing that goes wrong, and what must come of it.

    :param sentence: what is true of the product.
    :param task: the operator's arguments.
    :param script: makes it go wrong; runs beside the other cases.
    :param state: of the task in the end.
    :param jobs: the statuses of all of its Ray jobs, in the order of their submission.
    :param tries: of the task in the end; ``None`` where it does not matter.
    :param says: what the logs of all tries together say.
    :param once: lines that they have exactly once.
    """

    name: str
    sentence: str
    task: dict[str, Any]
    script: Callable[[Case], None] | None = None
    state: str = "success"
    jobs: tuple[str, ...] = ("SUCCEEDED",)
    tries: int | None = None
    says: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    dag: dict[str, Any] = field(default_factory=dict)
    own_head: bool = False
    world: World = field(init=False, repr=False)
    lane: Lane = field(init=False, repr=False)
    run_id: str = field(init=False, default="")
    timeline: list[tuple[float, str]] = field(init=False, default_factory=list)
    found: dict[str, Any] = field(init=False, default_factory=dict)

    # -- what a script can see ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Put a line into the timeline."""
        self.timeline.append((time.time(), text))

    @property
    def instance(self) -> dict[str, Any]:
        """The task instance as Airflow knew it a moment ago."""
        return self.world.instances.get((self.name, "job"), {"state": None, "try_number": 0})

    @property
    def ray_jobs(self) -> list[dict[str, Any]]:
        """This case's jobs as Ray knew them a moment ago, oldest first."""
        return sorted(
            (job for job in self.world.jobs if (job["metadata"] or {}).get("airflow_dag_id") == self.name),
            key=lambda job: job["start_time"],
        )

    def wait(self, what: str, is_so: Callable[[], Any], timeout: float = 300) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:g} s for: {what}")
            time.sleep(0.3)
        self.say(f"seen: {what}")

    def wait_for_job(self, status: str, number: int = 1) -> None:
        """Wait until the n-th job has a status, and the task is where it waits for it."""
        waiting = ("deferred",) if self.task.get("deferrable") else ("running",)

        def is_so() -> bool:
            jobs = self.ray_jobs
            return len(jobs) >= number and jobs[number - 1]["status"] == status and self.instance["state"] in waiting

        self.wait(f"job {number} is {status}, the task {waiting[0]}", is_so)
        if self.task.get("deferrable"):
            tries = self.instance["try_number"]
            self.wait("the triggerer has the task", lambda: f"/{tries} (ID " in self.log(tries))
        time.sleep(2)

    def wait_for_state(self, *states: str) -> None:
        """Wait until the task instance is in one of some states."""
        self.wait(f"the task is {' or '.join(states)}", lambda: self.instance["state"] in states)

    def wait_for_the_end(self) -> None:
        """Wait until the run is over, too."""
        self.wait_for_state(*TASK_ENDS)
        self.wait("the run's end", lambda: self.world.runs.get(self.name) in ("success", "failed"))

    # -- what a script can do -------------------------------------------------------------------------------------

    def clear(self, reset_dag_runs: bool = True) -> None:
        """Press Clear."""
        self.say("Clear")
        body = {"dry_run": False, "task_ids": ["job"], "dag_run_id": self.run_id, "only_failed": False}
        with self.world.one_at_a_time:
            self.world.airflow.api(
                "POST", f"/dags/{self.name}/clearTaskInstances", json=body | {"reset_dag_runs": reset_dag_runs}
            )
        tries = self.instance["try_number"]
        self.wait("another try", lambda: self.instance["try_number"] > tries or self.instance["state"] not in TASK_ENDS)

    def mark(self, state: str) -> None:
        """Press "Mark state as ..."."""
        self.say(f"mark {state}")
        path = f"/dags/{self.name}/dagRuns/{self.run_id}/taskInstances/job"
        with self.world.one_at_a_time:
            self.world.airflow.api("PATCH", path, json={"new_state": state})

    def pids(self) -> tuple[int, int]:
        """The process ids of the task, and of its supervisor."""
        task, supervisor = (self.world.folder / f"{self.name}.pids").read_text().split()
        return int(task), int(supervisor)

    def kill(self, number: signal.Signals = signal.SIGKILL, *, supervisor: bool = False) -> None:
        """Send a signal to the task's process, or to its supervisor."""
        pid = self.pids()[supervisor]
        self.say(f"{number.name} to {'the supervisor' if supervisor else 'the task'}")
        os.kill(pid, number)

    def ray(self, method: str, path: str) -> Any:
        """Call Ray past the proxy, as somebody else would."""
        self.say(f"by hand: {method} {path}")
        answer = httpx.request(method, f"{self.lane.head}{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def release(self) -> None:
        """Let the entrypoint, or the task ``hold``, end that waits for it."""
        (self.world.folder / f"{self.name}.release").touch()

    # -- from the beginning to the end ----------------------------------------------------------------------------

    def play(self) -> None:
        """Start the run, let it go wrong, wait for the end, and keep what came of it."""
        try:
            with self.world.one_at_a_time:
                self.run_id = self.world.airflow.trigger(self.name)
            self.say("triggered")
            if self.script is not None:
                self.script(self)
            self.wait_for_the_end()
            deadline = time.monotonic() + STOP_SHOWS_AFTER
            seen = self.world.looks_at_ray
            while time.monotonic() < deadline and (
                self.world.looks_at_ray < seen + 2 or any(job["status"] == "RUNNING" for job in self.ray_jobs)
            ):
                time.sleep(0.5)
        except Exception:  # noqa: BLE001  (the test tells it)
            self.found["trouble"] = traceback.format_exc()
        self.found |= {"state": self.instance["state"], "tries": self.instance["try_number"]}
        self.found["jobs"] = tuple(job["status"] for job in self.ray_jobs)
        self.found["logs"] = [self.log(number + 1) for number in range(self.instance["try_number"])]
        self.say(f"over: {self.found['state']}, jobs {self.found['jobs']}")

    def log(self, number: int) -> str:
        """The log of the n-th try, as far as there is one."""
        try:
            return self.world.airflow.log_text(self.name, self.run_id, "job", number)
        except (RuntimeError, httpx.HTTPError) as error:
            return f"(no log: {error})"

    def story(self) -> str:
        """What happened, for a failure's message."""
        start = self.timeline[0][0] if self.timeline else 0.0
        lines = [
            f"{self.name}: {self.sentence}",
            *(f"{moment - start:7.1f} s  {text}" for moment, text in self.timeline),
        ]
        for number, log in enumerate(self.found.get("logs", ()), start=1):
            lines += [f"--- log of try {number}", log[-6000:]]
        return "\n".join([*lines, self.found.get("trouble", "")])


class World:
    """
    A Ray head, an Airflow, and the cases that meet there.

    Airflow and Ray are looked at once a second for all cases together.
    """

    def __init__(self, cases: Iterable[Case], folder: Path) -> None:
        self.cases = list(cases)
        self.folder = folder
        self.head = RayHead(num_cpus=16)
        self.second_head = RayHead(num_cpus=4)
        self.instances: dict[tuple[str, str], dict[str, Any]] = {}
        self.runs: dict[str, str] = {}
        self.jobs: list[dict[str, Any]] = []
        self.looks_at_ray = 0
        # SQLite is one file: what writes through the API server does so in turn
        self.one_at_a_time = threading.Lock()
        self._is_over = threading.Event()
        for case in self.cases:
            case.world = self
            case.lane = Lane((self.second_head if case.own_head else self.head).address, case.say)
        self.write_cases()
        connections = {
            f"ray_{case.name}": {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": case.lane.port}
            for case in self.cases
        }
        settings = {
            "FAULT_CASES": str(folder),
            "AIRFLOW__CORE__PARALLELISM": "10",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "15",
            # a process that is lost is noticed soon, an API server that is started anew is waited for
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "45",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "20",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
        }
        self.airflow = LocalAirflow(Path(__file__).parent / "dags", connections, settings, separate_execution_api=True)

    def write_cases(self) -> None:
        """Tell the DAG file which cases there are."""
        told = {case.name: {"task": case.task, "dag": case.dag} for case in self.cases}
        (self.folder / "cases.new").write_text(json.dumps(told))
        (self.folder / "cases.new").rename(self.folder / "cases.json")

    def start(self) -> None:
        """Start both heads and Airflow, and begin to look."""
        self.head.start()
        self.second_head.start()
        self.airflow.start()
        for look in (self._look, self._look_at_ray):
            threading.Thread(target=look, daemon=True).start()
        for case in self.cases:
            self.airflow.wait_for_dag(case.name)

    def play(self, cases: Iterable[Case], meanwhile: Callable[[list[Case]], None] | None = None) -> None:
        """Play cases side by side; ``meanwhile`` happens to all of them."""
        cases = list(cases)
        threads = [threading.Thread(target=case.play, name=case.name, daemon=True) for case in cases]
        for thread in threads:
            thread.start()
        if meanwhile is not None:
            try:
                meanwhile(cases)
            except Exception:  # noqa: BLE001  (the tests tell it)
                for case in cases:
                    case.say(traceback.format_exc())
        deadline = time.monotonic() + CASE_TIMEOUT
        for case, thread in zip(cases, threads, strict=True):
            thread.join(max(deadline - time.monotonic(), 1))
            if thread.is_alive():
                case.found.setdefault("trouble", "the case did not come to an end")

    def close(self) -> None:
        """Stop everything that was started."""
        self._is_over.set()
        self.airflow.close()
        for case in self.cases:
            case.lane.close()
        self.head.close()
        self.second_head.close()

    def _look_at_ray(self) -> None:
        while not self._is_over.wait(1):
            with suppress(httpx.HTTPError, ValueError):  # a head is being restarted
                jobs = []
                for head in (self.head, self.second_head):
                    jobs += httpx.get(f"{head.address}/api/jobs/", timeout=30).json()
                self.jobs = [job for job in jobs if job["type"] == "SUBMISSION"]
                self.looks_at_ray += 1

    def _look(self) -> None:
        by_name = {case.name: case for case in self.cases}
        seen: dict[str, Any] = {}

        def tell(key: str, name: str, text: str) -> None:
            if name in by_name and seen.get(key) != text:
                seen[key] = text
                by_name[name].say(text)

        while not self._is_over.wait(1.5):
            try:
                answer = self.airflow.api("GET", "/dags/~/dagRuns/~/taskInstances", params={"limit": 500})
                instances = {(one["dag_id"], one["task_id"]): one for one in answer["task_instances"]}
                runs = self.airflow.api("GET", "/dags/~/dagRuns", params={"limit": 500})["dag_runs"]
            except (httpx.HTTPError, RuntimeError):
                continue  # the API server is being restarted, or SQLite is locked
            self.instances, self.runs = instances, {run["dag_id"]: run["state"] for run in runs}
            for (name, task_id), one in instances.items():
                tell(f"{name}/{task_id}", name, f"{task_id} is {one['state']}, try {one['try_number']}")
            for job in self.jobs:
                name = (job["metadata"] or {}).get("airflow_dag_id", "")
                tell(job["submission_id"], name, f"Ray: {job['submission_id']} is {job['status']}")
