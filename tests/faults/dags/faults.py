"""One DAG for each fault case. ``cases.json`` in the folder FAULT_CASES_DIR lists the cases."""

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

FOLDER = Path(os.environ["FAULT_CASES_DIR"])


class CrashingStore:
    """Airflow's task state store. It kills this process at a chosen moment."""

    def __init__(self, store: Any, moment: str) -> None:
        self.store = store
        self.moment = moment

    def get(self, key: str) -> Any:
        return self.store.get(key)

    def set(self, key: str, value: dict[str, Any], **options: Any) -> None:
        if self.moment == "before storing the job record" or (self.moment == "before delivery" and value["delivered"]):
            os.kill(os.getpid(), signal.SIGKILL)
        self.store.set(key, value, **options)
        if self.moment == "before submission":
            os.kill(os.getpid(), signal.SIGKILL)


class FaultyOperator(RayJobSubmitOperator):
    """
    The operator. It stores its process ids in a file, and can kill its process in the first try.

    :param crash: the moment of the kill, see :class:`CrashingStore`; empty for none.
    """

    def __init__(self, *, crash: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.crash = crash

    def execute(self, context: Any) -> str:
        store_pids_and_set_crash(self, context)
        return super().execute(context)

    def execute_complete(self, context: Any, event: Any) -> str:
        store_pids_and_set_crash(self, context)
        return super().execute_complete(context, event)


def store_pids_and_set_crash(operator: FaultyOperator, context: Any) -> None:
    (FOLDER / f"{operator.dag_id}.pids").write_text(f"{os.getpid()} {os.getppid()}")
    if operator.crash and context["ti"].try_number == 1:
        context["task_state_store"] = CrashingStore(context["task_state_store"], operator.crash)


def hold(name: str) -> None:
    """Keep the DAG run running until the test creates the release file."""
    while not (FOLDER / f"{name}.release").exists():
        time.sleep(0.5)


# A task's process needs only the DAG of its task.
needed_dag_id = get_parsing_context().dag_id
for name, case in json.loads((FOLDER / "cases.json").read_text()).items():
    if needed_dag_id not in (None, name):
        continue
    arguments = dict(case["task"])
    if isinstance(arguments["entrypoint"], str):
        entrypoint = arguments["entrypoint"].replace("@RELEASE@", str(FOLDER / f"{name}.release"))
        # each job that succeeds pushes its own id
        result = 'echo "##ray_job $RAY_JOB_NONCE result \\"$RAY_JOB_SUBMISSION_ID\\""'
        arguments |= {"entrypoint": f"{{ {entrypoint}\n}} && {result}", "return_result": True}
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
