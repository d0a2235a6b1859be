"""Run one job per parameter value with dynamic task mapping."""

from __future__ import annotations

# START sweep
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "ray_jobs_sweep",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"rates": [0.1, 0.01, 0.001]},
    tags=["ray"],
    doc_md=__doc__,
):

    @task
    def commands(params: Any = None) -> list[list[str]]:  # Airflow passes the params of the DAG run
        return [
            ["python", "-c", "import sys; print('learning rate', sys.argv[1])", str(rate)] for rate in params["rates"]
        ]

    RayJobSubmitOperator.partial(
        task_id="train",
        job_name="sweep {{ ti.map_index }}",
        map_index_template="rate {{ task.entrypoint[-1] }}",  # what the list of instances shows, instead of numbers
        max_active_tis_per_dag=2,  # at most two jobs at the same time
    ).expand(entrypoint=commands())
# END sweep
