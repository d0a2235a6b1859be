"""Watch task instances and their Ray jobs, and do to them what users, kernels and networks do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from sandbox.fault_proxy import FaultProxy
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

TASK_ID = "job"
# Airflow's limit for one page.
_PAGE = 100


@dataclass
class TaskRun:
    """
    One run of the task ``job`` of a DAG.

    :param name: the id of the DAG.
    :param folder: contains the file ``<name>.pids``, in which the task stores the ids of its process and supervisor.
    :param proxy: the proxy of the task's connection.
    """

    name: str
    observer: Observer = field(init=False, repr=False)
    folder: Path = field(init=False, repr=False)
    proxy: FaultProxy = field(init=False, repr=False)
    run_id: str = field(init=False, default="")
    timeline: list[tuple[float, str]] = field(init=False, default_factory=list)

    # -- what can be observed -------------------------------------------------------------------------------------

    def add_event(self, text: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((time.time(), text))

    @property
    def task_instance(self) -> dict[str, Any]:
        """The task instance at the last poll of Airflow."""
        key = (self.name, self.run_id, TASK_ID)
        return self.observer.task_instances.get(key, {"state": None, "try_number": 0, "max_tries": 0})

    @property
    def ray_jobs(self) -> list[dict[str, Any]]:
        """The task's jobs at the last poll of Ray, oldest first."""
        return sorted(
            (job for job in self.observer.jobs if run_of(job) == (self.name, self.run_id)),
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

    def has_ended(self) -> bool:
        """Tell whether the DAG run has ended."""
        return self.observer.dag_runs.get((self.name, self.run_id)) in ("success", "failed")

    def log(self, number: int) -> str:
        """Return the log of the n-th try, as far as it exists."""
        try:
            return self.observer.airflow.log_text(self.name, self.run_id, TASK_ID, number)
        except (RuntimeError, httpx.HTTPError) as error:
            return f"(no log: {error})"

    def pids(self) -> tuple[int, int]:
        """Return the process ids of the task and of its supervisor."""
        task, supervisor = (self.folder / f"{self.name}.pids").read_text().split()
        return int(task), int(supervisor)

    def has_process(self) -> bool:
        """Tell whether the task's process and its supervisor live."""
        file = self.folder / f"{self.name}.pids"
        try:
            task, supervisor = self.pids()
            process = psutil.Process(task)
            # A process that started after the file was written is another one with the same id.
            return process.create_time() < file.stat().st_mtime and process.ppid() == supervisor
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return False

    # -- what can be done -----------------------------------------------------------------------------------------

    def trigger(self, conf: dict[str, Any] | None = None) -> None:
        """Start a run of the DAG."""
        with self.observer.api_write_lock:
            self.run_id = self.observer.airflow.trigger(self.name, conf)
        self.observer.watch(self)
        self.add_event("triggered")

    def clear(self, *, reset_dag_runs: bool = True) -> None:
        """Clear the task, as the button in Airflow's UI does."""
        self.add_event("Clear")
        body = {"dry_run": False, "task_ids": [TASK_ID], "dag_run_id": self.run_id, "only_failed": False}
        with self.observer.api_write_lock:
            self.observer.airflow.api(
                "POST", f"/dags/{self.name}/clearTaskInstances", json=body | {"reset_dag_runs": reset_dag_runs}
            )

    def mark(self, state: str) -> None:
        """Mark the task as failed or success, as the button in Airflow's UI does."""
        self.add_event(f"mark as {state}")
        path = f"/dags/{self.name}/dagRuns/{self.run_id}/taskInstances/{TASK_ID}"
        with self.observer.api_write_lock:
            self.observer.airflow.api("PATCH", path, json={"new_state": state})

    def kill(self, number: signal.Signals = signal.SIGKILL, *, supervisor: bool = False) -> None:
        """
        Send a signal to the task's process, or to its supervisor.

        :raises ProcessLookupError: the process has ended, or the supervisor runs another task meanwhile.
        """
        if not self.has_process():
            raise ProcessLookupError("the task has no process with a supervisor")
        self.add_event(f"{number.name} to {'the supervisor' if supervisor else 'the task'}")
        os.kill(self.pids()[supervisor], number)

    def ray(self, method: str, path: str) -> Any:
        """Call Ray directly, as another user of the cluster would."""
        self.add_event(f"outside Airflow: {method} {path}")
        response = httpx.request(method, f"{self.proxy.head}{path}", timeout=60)
        response.raise_for_status()
        return response.json()


class Observer:
    """
    Polls Airflow and Ray about once a second, for all task runs together.

    :param on_jobs: called with the jobs of all heads after each poll of Ray.
    """

    def __init__(
        self,
        airflow: LocalAirflow,
        heads: Sequence[RayHead],
        on_jobs: Callable[[list[dict[str, Any]]], None] = lambda _: None,
    ) -> None:
        self.airflow = airflow
        self.heads = heads
        # by DAG id, run id and task id
        self.task_instances: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.dag_runs: dict[tuple[str, str], str] = {}
        self.jobs: list[dict[str, Any]] = []
        self.airflow_polls = 0
        self.ray_polls = 0
        # SQLite is one file, so that concurrent API calls that write would fail
        self.api_write_lock = threading.Lock()
        self._on_jobs = on_jobs
        self._runs: dict[tuple[str, str], TaskRun] = {}
        self._last_texts: dict[tuple[str, ...], str] = {}
        self._is_closed = threading.Event()
        self._threads = [threading.Thread(target=poll, daemon=True) for poll in (self._poll_airflow, self._poll_ray)]

    def start(self) -> None:
        """Begin to poll. The programs must have been started."""
        for thread in self._threads:
            thread.start()

    def watch(self, run: TaskRun) -> None:
        """Add each change of a run's task instances and jobs to its timeline."""
        self._runs[run.name, run.run_id] = run

    def forget(self, run: TaskRun) -> None:
        """Watch a run no longer."""
        self._runs.pop((run.name, run.run_id), None)

    def close(self) -> None:
        """Stop polling."""
        self._is_closed.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def poll_ray(self) -> None:
        """
        Poll Ray once.

        :raises httpx.HTTPError: a head does not answer.
        """
        jobs: list[dict[str, Any]] = []
        for head in self.heads:
            jobs += httpx.get(f"{head.address}/api/jobs/", timeout=30).raise_for_status().json()
        self.jobs = [job for job in jobs if job["type"] == "SUBMISSION"]
        self._on_jobs(self.jobs)
        self.ray_polls += 1

    def _poll_ray(self) -> None:
        while not self._is_closed.wait(1):
            with suppress(httpx.HTTPError, ValueError):  # a head is being restarted
                self.poll_ray()

    def _poll_airflow(self) -> None:
        latest = {"limit": _PAGE, "order_by": "-run_after"}
        while not self._is_closed.wait(1.5):
            try:
                listed = self.airflow.api("GET", "/dags/~/dagRuns/~/taskInstances", params=latest)
                dag_runs = self.airflow.api("GET", "/dags/~/dagRuns", params=latest)["dag_runs"]
            except (httpx.HTTPError, RuntimeError):
                continue  # the API server is being restarted, or SQLite is locked
            self.task_instances = {
                (one["dag_id"], one["dag_run_id"], one["task_id"]): one for one in listed["task_instances"]
            }
            self.dag_runs = {(run["dag_id"], run["dag_run_id"]): run["state"] for run in dag_runs}
            self.airflow_polls += 1
            self._add_changes()

    def _add_changes(self) -> None:
        for (name, run_id, task_id), one in self.task_instances.items():
            text = f"{task_id} is {one['state']}, try {one['try_number']}"
            self._add_change((name, run_id), (name, run_id, task_id), text)
        for job in self.jobs:
            self._add_change(run_of(job), (job["submission_id"],), f"Ray: {job['submission_id']} is {job['status']}")

    def _add_change(self, run: tuple[str, str], key: tuple[str, ...], text: str) -> None:
        if run in self._runs and self._last_texts.get(key) != text:
            self._last_texts[key] = text
            self._runs[run].add_event(text)


def run_of(job: dict[str, Any]) -> tuple[str, str]:
    """Return the DAG id and the run id in the metadata of a job."""
    metadata = job["metadata"] or {}
    return metadata.get("airflow_dag_id", ""), metadata.get("airflow_run_id", "")
