"""A local ``airflow standalone`` on SQLite and free ports, in a temporary home that is removed afterwards."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psutil

from sandbox.processes import Program, Startable, clean_environment, free_port

# Attempts for one API call. The components of Airflow share one SQLite file, which is sometimes locked.
_API_ATTEMPTS = 8
# Items of a page that the API gives out at most. By default these are 100, whatever a request asks for.
_PAGE_LIMIT = 200
# Settings with which Airflow notices a lost process soon, and tasks wait for an API server that is restarted.
QUICK_RECOVERY = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "45",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "20",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
}
FINAL_STATES = ("success", "failed", "skipped", "upstream_failed", "removed")


class LocalAirflow(Startable):
    """
    ``airflow standalone``: API server with web UI, scheduler, triggerer, DAG processor. Use it as a context manager.

    :param dags: the folder of the DAG files.
    :param connections: the fields of each connection, as in Airflow's JSON format, by connection id.
    :param settings: additional environment variables, e.g. ``AIRFLOW__TRIGGERER__CAPACITY``.
    :param paused: create new DAGs paused.
    :param separate_execution_api: start a second API server for the requests of tasks. Use it when many tasks run at
        the same time: in one server, REST calls and task requests block each other on SQLite until a timeout.
    """

    def __init__(
        self,
        dags: Path,
        connections: Mapping[str, Mapping[str, Any]],
        settings: Mapping[str, str] | None = None,
        *,
        paused: bool = False,
        separate_execution_api: bool = False,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="airflow-"))
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.execution_port = free_port() if separate_execution_api else self.port
        self.environment = (
            clean_environment("AIRFLOW", "_AIRFLOW", "RAY_")
            | {
                "AIRFLOW_HOME": str(self.home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": str(paused),
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.execution_port}/execution/",
                "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
                "AIRFLOW__API__HOST": "127.0.0.1",
                "AIRFLOW__API__PORT": str(self.port),
                "AIRFLOW__API__BASE_URL": self.address,
                "AIRFLOW__API__WORKERS": "1",
                "AIRFLOW__API__MAXIMUM_PAGE_LIMIT": str(_PAGE_LIMIT),
                "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
                "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
                "AIRFLOW__RAY_JOBS__DEPLOYMENT_NAME": "sandbox",
                "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
                "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
                "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            }
            | {f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in connections.items()}
            | dict(settings or {})
        )
        # the separate API server for tasks, if there is one
        self.execution_api: Program | None = None
        self._program: Program | None = None
        self._extra_programs: list[Program] = []
        self._http = httpx.Client(base_url=self.address, timeout=60)

    def start(self, timeout: float = 180.0) -> Self:
        """Start all components and wait until they are healthy."""
        self._start_components(timeout)
        token = self._http.get("/auth/token").json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"
        return self

    def _start_components(self, timeout: float) -> None:
        self._program = Program(
            [str(Path(sys.executable).with_name("airflow")), "standalone"],
            self.environment,
            self.home / "standalone.log",
        )
        self._program.wait_until(self._is_healthy, "Airflow", timeout)
        if self.execution_port != self.port:
            self.start_execution_api(timeout)

    def close(self) -> None:
        """Stop all components and remove the home."""
        self._http.close()
        self._stop_components()
        shutil.rmtree(self.home, ignore_errors=True)

    def _stop_components(self) -> None:
        for program in (*self._extra_programs, self._program):
            if program is not None:
                program.stop()

    def kill(self, component: str) -> None:
        """
        Kill a component with its child processes, as if its node had failed.

        :param component: ``api-server``, ``scheduler``, ``triggerer`` or ``dag-processor``.
        """
        for program in (self._program, *self._extra_programs):
            if program is not None:
                program.kill_matching(component)

    def processes(self, component: str) -> list[psutil.Process]:
        """Return the processes of a component of ``airflow standalone``."""
        return list(self._program.matching(component)) if self._program else []

    def start_component(self, *command: str) -> Program:
        """Start an additional component, or one that was killed: ``start_component("triggerer")``."""
        airflow = str(Path(sys.executable).with_name("airflow"))
        log = self.home / f"{command[0]}-{len(self._extra_programs)}.log"
        program = Program([airflow, *command], self.environment, log)
        self._extra_programs.append(program)
        return program

    def start_api_servers(self, timeout: float = 180.0) -> None:
        """Start the API servers after they were killed, and wait until they answer."""
        program = self.start_component("api-server")
        if self.execution_port != self.port:
            self.start_execution_api(timeout)
        program.wait_until(self._api_answers, "the API server", timeout)

    def start_execution_api(self, timeout: float = 180.0) -> None:
        """Start the API server for the requests of tasks, and wait until it is healthy."""
        program = self.start_component("api-server", "--apps", "execution", "--port", str(self.execution_port))
        self.execution_api = program
        program.wait_until(self._execution_api_is_healthy, "the execution API server", timeout)

    def kill_execution_api(self) -> None:
        """Kill the API server for the requests of tasks."""
        if self.execution_api is not None:
            self.execution_api.kill()

    @property
    def output(self) -> str:
        """The last lines that ``airflow standalone`` printed, for error messages."""
        return self._program.tail() if self._program else ""

    def api(self, method: str, path: str, **arguments: Any) -> Any:
        """Send a request to Airflow's REST API v2 and return the JSON of the response."""
        for _ in range(_API_ATTEMPTS):
            response = self._http.request(method, f"/api/v2{path}", **arguments)
            if not (response.status_code == 500 and "Database error" in response.text):
                break
            time.sleep(1)  # Airflow rolled the transaction back, so that the request can be repeated.
        if response.is_error:
            raise RuntimeError(f"{method} {path}: HTTP {response.status_code}: {response.text[:2000]}")
        return response.json() if response.content else None

    def wait_for_dag(self, dag_id: str, timeout: float = 120.0) -> None:
        """Wait until the DAG processor has parsed a DAG."""
        deadline = time.monotonic() + timeout
        while self._http.get(f"/api/v2/dags/{dag_id}").is_error:
            if time.monotonic() > deadline:
                errors = self.api("GET", "/importErrors")["import_errors"]
                raise RuntimeError(f"DAG {dag_id} was not parsed within {timeout:.0f} s: {errors}\n{self.output}")
            time.sleep(0.5)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, logical_date: str | None = None) -> str:
        """Start a run of a DAG and return its run id."""
        self.wait_for_dag(dag_id)
        if self.api("GET", f"/dags/{dag_id}")["is_paused"]:
            self.api("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
        run = self.api("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": logical_date, "conf": conf or {}})
        return str(run["dag_run_id"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run as the API describes them."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances"
        response = self.api("GET", path, params={"limit": _PAGE_LIMIT})
        return list(response["task_instances"])

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return one task instance."""
        return next(
            instance
            for instance in self.task_instances(dag_id, run_id)
            if (instance["task_id"], instance["map_index"]) == (task_id, map_index)
        )

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = 240.0) -> str:
        """Wait until a run is finished and return its state."""
        deadline = time.monotonic() + timeout
        while (state := self.api("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}")["state"]) not in FINAL_STATES:
            if time.monotonic() > deadline:
                states = {task["task_id"]: task["state"] for task in self.task_instances(dag_id, run_id)}
                raise RuntimeError(f"{dag_id} {run_id} is {state} after {timeout:.0f} s: {states}\n{self.output}")
            time.sleep(0.5)
        return str(state)

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, states: tuple[str, ...] = FINAL_STATES, timeout: float = 180.0
    ) -> str:
        """Wait until a task instance is in one of the states and return that state."""
        deadline = time.monotonic() + timeout
        while (state := self.task_instance(dag_id, run_id, task_id)["state"]) not in states:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{dag_id} {run_id} {task_id} is {state} after {timeout:.0f} s\n{self.output}")
            time.sleep(0.3)
        return str(state)

    def log_records(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> list[dict[str, Any]]:
        """Return the log records of a try, as the web UI gets them."""
        response = self.api(
            "GET",
            f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/logs/{try_number}",
            params={"map_index": map_index, "full_content": "true"},
            headers={"Accept": "application/json"},
        )
        return [record if isinstance(record, dict) else {"event": record} for record in response["content"]]

    def log_text(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of a try as one text: the message of each record, followed by its errors."""
        records = self.log_records(dag_id, run_id, task_id, try_number, map_index)
        return "\n".join(text for record in records for text in record_texts(record))

    def xcoms(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return the XComs of a task instance by key."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/xcomEntries"
        entries = self.api("GET", path, params={"map_index": map_index})["xcom_entries"]
        return {
            entry["key"]: self.api("GET", f"{path}/{entry['key']}", params={"map_index": map_index})["value"]
            for entry in entries
        }

    def links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """Return the extra links of a task instance: URL by name."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/links"
        return dict(self.api("GET", path, params={"map_index": map_index})["extra_links"])

    def _api_answers(self) -> bool:
        try:
            return self._http.get("/api/v2/version").is_success
        except httpx.HTTPError:
            return False

    def _execution_api_is_healthy(self) -> bool:
        try:
            return self._http.get(f"http://127.0.0.1:{self.execution_port}/execution/health").is_success
        except httpx.HTTPError:
            return False

    def _is_healthy(self) -> bool:
        try:
            response = self._http.get("/api/v2/monitor/health")
        except httpx.HTTPError:
            return False
        health = response.json() if response.status_code == 200 else {}
        return all(
            health.get(component, {}).get("status") == "healthy"
            for component in ("metadatabase", "scheduler", "triggerer")
        )


def record_texts(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the message of a log record, then the class and text of each of its errors."""
    yield str(record.get("event", ""))
    for error in record.get("error_detail") or ():
        yield f"{error.get('exc_type')}: {error.get('exc_value')}"
