"""One DAG for each slot of the campaign, from the file ``slots.json`` in the folder CHAOS_DIR."""

from __future__ import annotations

import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, get_parsing_context

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

FOLDER = Path(os.environ["CHAOS_DIR"])


class ChaosOperator(RayJobSubmitOperator):
    """The operator. It stores its process ids in a file, and can kill its process after the work of the first try."""

    def execute(self, context: Any) -> str:
        self._store_pids()
        return super().execute(context)

    def execute_complete(self, context: Any, event: Any) -> str:
        self._store_pids()
        return super().execute_complete(context, event)

    def post_execute(self, context: Any, result: Any = None) -> None:
        if context["dag_run"].conf["dies_after_execute"] and context["ti"].try_number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().post_execute(context, result)

    def _store_pids(self) -> None:
        (FOLDER / f"{self.dag_id}.pids").write_text(f"{os.getpid()} {os.getppid()}")


# A task's process needs only the DAG of its task.
needed_dag_id = get_parsing_context().dag_id
for name, slot in json.loads((FOLDER / "slots.json").read_text()).items():
    if needed_dag_id not in (None, name):
        continue
    with DAG(name, schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):
        ChaosOperator(
            task_id="job",
            poll_interval=1,
            retry_delay=timedelta(seconds=4),
            unreachable_timeout="{{ dag_run.conf['unreachable_timeout'] }}",
            **slot,
        )
