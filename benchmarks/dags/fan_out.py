"""DAGs of mapped deferrable tasks. See ``benchmarks.fan_out``."""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from benchmarks.fan_out import BRIEF_JOBS, DEFER_AFTER, INTERVAL, MAX_TASKS

START_DATE = pendulum.datetime(2026, 1, 1, tz="UTC")

with DAG("fan_out", schedule=None, start_date=START_DATE, max_active_tasks=MAX_TASKS):

    @task
    def entrypoints(**context: Any) -> list[str]:
        return [f"sleep {seconds}" for seconds in context["dag_run"].conf["seconds"]]

    RayJobSubmitOperator.partial(task_id="job", deferrable=True, poll_interval=INTERVAL, retries=0).expand(
        entrypoint=entrypoints()
    )

with DAG("brief", schedule=None, start_date=START_DATE, max_active_tasks=1):
    RayJobSubmitOperator.partial(task_id="job", deferrable=True, poll_interval=INTERVAL).expand_kwargs(
        [
            {"entrypoint": f"sleep {seconds}", "defer_after": defer_after}
            for seconds in BRIEF_JOBS
            for defer_after in DEFER_AFTER
        ]
    )
