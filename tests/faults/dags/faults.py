"""One DAG for each case of the fault suite; which ones there are is in the file that FAULT_CASES names."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, get_parsing_context

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

FOLDER = Path(os.environ["FAULT_CASES"])


class CrashingStore:
    """Airflow's task state store; this process is killed at a chosen moment."""

    def __init__(self, store: Any, moment: str) -> None:
        self.store = store
        self.moment = moment

    def get(self, key: str) -> Any:
        return self.store.get(key)

    def set(self, key: str, value: dict[str, Any], **options: Any) -> None:
        if self.moment == "before remembering" or (self.moment == "before delivery" and value["delivered"]):
            os.kill(os.getpid(), signal.SIGKILL)
        self.store.set(key, value, **options)
        if self.moment == "before sending":
            os.kill(os.getpid(), signal.SIGKILL)


class FaultyOperator(RayJobSubmitOperator):
    """
    The operator, in a process that can be found and crashed.

    :param crash: when the first try is killed.
    """

    def __init__(self, *, crash: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.crash = crash

    def execute(self, context: Any) -> str:
        (FOLDER / f"{self.dag_id}.pids").write_text(f"{os.getpid()} {os.getppid()}")
        if self.crash and context["ti"].try_number == 1:
            context["task_state_store"] = CrashingStore(context["task_state_store"], self.crash)
        return super().execute(context)

    def execute_complete(self, context: Any, event: Any) -> str:
        (FOLDER / f"{self.dag_id}.pids").write_text(f"{os.getpid()} {os.getppid()}")
        if self.crash and context["ti"].try_number == 1:
            context["task_state_store"] = CrashingStore(context["task_state_store"], self.crash)
        return super().execute_complete(context, event)


def hold(name: str) -> None:
    """Keep the run from ending until the test says so."""
    while not (FOLDER / f"{name}.release").exists():
        time.sleep(0.5)


# a task's process needs its own DAG only
wanted = get_parsing_context().dag_id
for name, case in json.loads((FOLDER / "cases.json").read_text()).items():
    if wanted not in (None, name):
        continue
    arguments = dict(case["task"])
    if isinstance(arguments["entrypoint"], str):
        arguments["entrypoint"] = arguments["entrypoint"].replace("@RELEASE@", str(FOLDER / f"{name}.release"))
    for field in ("execution_timeout", "retry_delay"):
        if field in arguments:
            arguments[field] = timedelta(seconds=arguments[field])
    timeout = case["dag"].get("dagrun_timeout")
    with DAG(
        name,
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        dagrun_timeout=timedelta(seconds=timeout) if timeout else None,
    ):
        FaultyOperator(task_id="job", ray_conn_id=f"ray_{name}", **arguments)
        if case["dag"].get("hold"):
            PythonOperator(task_id="hold", python_callable=hold, op_args=[name])
