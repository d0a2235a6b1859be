"""An Airflow as in production: PostgreSQL, Redis, the CeleryExecutor, two triggerers and two Celery workers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from sandbox.local_airflow import LocalAirflow
from sandbox.processes import Program
from sandbox.services import PostgreSQL, Redis

# Names the deployment that tests use: "local" or "production".
DEPLOYMENT = os.environ.get("AIRFLOW_DEPLOYMENT", "local")
IS_PRODUCTION = DEPLOYMENT == "production"
# Tasks that a Celery worker runs at the same time.
_CONCURRENCY = 6
_MIGRATION_TIMEOUT = 180.0
CELERY_WORKERS = ("celery-1", "celery-2")
_EXECUTION_API = "api-server-execution"
TRIGGERERS = ("triggerer-1", "triggerer-2")


class ProductionAirflow(LocalAirflow):
    """
    The components of a production deployment, each a program of its own that is restarted when it exits.

    Components have names: ``api-server``, ``scheduler``, ``dag-processor``, and those in :data:`CELERY_WORKERS` and
    :data:`TRIGGERERS`. Tasks send their requests to the API server ``api-server-execution``.
    """

    def __init__(
        self, dags: Path, connections: Mapping[str, Mapping[str, Any]], settings: Mapping[str, str] | None = None
    ) -> None:
        self.postgresql = PostgreSQL()
        self.redis = Redis()
        production = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{self.postgresql.address}",
            "AIRFLOW__CELERY__BROKER_URL": f"redis://{self.redis.address}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql+psycopg2://{self.postgresql.address}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(_CONCURRENCY),
            # A task whose message was lost with Redis is queued again after this time.
            # The token in a message expires after it.
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
        }
        super().__init__(dags, connections, production | dict(settings or {}), separate_execution_api=True)
        # the components that are restarted when they exit, by name
        self._kept: dict[str, Program] = {}
        self._released: list[Program] = []
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_components, daemon=True)
        # the names of the components that exited on their own
        self.exits: list[str] = []

    def kill(self, component: str) -> None:
        """
        Kill components with their child processes, as if their node had failed. They are not restarted.

        :param component: a name, or the beginning of several: ``triggerer``.
        """
        for name in [name for name in self._kept if name.startswith(component)]:
            self.release(name).kill()
        super().kill(component)

    def keep(self, name: str) -> Program:
        """Start a component, and restart it whenever it exits."""
        with self._lock:
            self._kept[name] = self._start_kept(name)
            return self._kept[name]

    def release(self, name: str) -> Program:
        """Restart a component no longer, and return its program."""
        with self._lock:
            self._released.append(self._kept.pop(name))
            return self._released[-1]

    def component(self, name: str) -> Program:
        """Return the program of a component that is kept."""
        return self._kept[name]

    def worker_of(self, pid: int) -> str | None:
        """Return the name of the Celery worker that has started a process."""
        try:
            pids = {parent.pid for parent in psutil.Process(pid).parents()}
        except psutil.NoSuchProcess:
            return None
        return next((name for name in CELERY_WORKERS if name in self._kept and self._kept[name].pid in pids), None)

    def kill_execution_api(self) -> None:
        self.kill(_EXECUTION_API)

    def start_execution_api(self, timeout: float = 180.0) -> None:
        self.execution_api = self.keep(_EXECUTION_API)
        self.execution_api.wait_until(self._execution_api_is_healthy, "the execution API server", timeout)

    def _start_components(self, timeout: float) -> None:
        self.postgresql.start()
        self.redis.start()
        airflow = str(Path(sys.executable).with_name("airflow"))
        with (self.home / "migration.log").open("wb") as log:
            subprocess.run(
                [airflow, "db", "migrate"],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_MIGRATION_TIMEOUT,
                check=True,
            )
        api_server = self.keep("api-server")
        for name in ("scheduler", "dag-processor", *TRIGGERERS, *CELERY_WORKERS):
            self.keep(name)
        self.start_execution_api(timeout)
        api_server.wait_until(self._is_healthy, "Airflow", timeout)
        for name in CELERY_WORKERS:
            self.component(name).wait_until(partial(self._worker_is_ready, name), name, timeout)
        self._keeper.start()

    def _worker_is_ready(self, name: str) -> bool:
        return " ready." in self.component(name).tail()

    def _stop_components(self) -> None:
        self._is_closing.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for program in [*self._kept.values(), *self._released, *self._extra_programs]:
            program.kill()  # nothing of this deployment is kept, and a Celery worker would wait for its tasks
        self.redis.close()
        self.postgresql.close()

    def _keep_components(self) -> None:
        while not self._is_closing.wait(1):
            with self._lock:
                for name, program in self._kept.items():
                    if not program.is_running():
                        self.exits.append(name)
                        self._kept[name] = self._start_kept(name)

    def _start_kept(self, name: str) -> Program:
        commands: dict[str, tuple[str, ...]] = {
            "api-server": ("api-server", "--apps", "core"),
            _EXECUTION_API: ("api-server", "--apps", "execution", "--port", str(self.execution_port)),
            **dict.fromkeys(TRIGGERERS, ("triggerer", "--skip-serve-logs")),
        }
        command = commands.get(name, (name,))
        if name in CELERY_WORKERS:
            host = f"{name}-{time.monotonic_ns()}"  # Airflow refuses the name of a worker that it takes for alive
            pid_file = self.home / f"{host}.pid"
            command = ("celery", "worker", "--celery-hostname", host, "--skip-serve-logs", "--pid", str(pid_file))
        airflow = str(Path(sys.executable).with_name("airflow"))
        return Program([airflow, *command], self.environment, self.home / f"{name}.log")


def new_airflow(
    dags: Path, connections: Mapping[str, Mapping[str, Any]], settings: Mapping[str, str] | None = None
) -> LocalAirflow:
    """Return an Airflow for many tasks, in the deployment that :data:`DEPLOYMENT` names."""
    if IS_PRODUCTION:
        return ProductionAirflow(dags, connections, settings)
    return LocalAirflow(dags, connections, settings, separate_execution_api=True)
