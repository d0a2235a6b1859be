"""A DAG of mapped deferrable tasks. See ``benchmarks.fan_out``."""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from benchmarks.fan_out import INTERVAL, MAX_TASKS

with DAG(
    "fan_out", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), max_active_tasks=MAX_TASKS
) as dag:

    @task
    def entrypoints(**context: Any) -> list[str]:
        return [f"sleep {seconds}" for seconds in context["dag_run"].conf["seconds"]]

    RayJobSubmitOperator.partial(task_id="job", deferrable=True, poll_interval=INTERVAL, retries=0).expand(
        entrypoint=entrypoints()
    )
