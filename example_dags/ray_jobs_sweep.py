"""One job for each set of parameters, by dynamic task mapping."""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START sweep
with DAG(
    "ray_jobs_sweep",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"rates": [0.1, 0.01, 0.001]},
    tags=["ray"],
    doc_md=__doc__,
):

    @task
    def commands(params: Any = None) -> list[list[str]]:  # Airflow fills in the run's params
        return [["python", "-c", f"print('learning rate', {rate})"] for rate in params["rates"]]

    RayJobSubmitOperator.partial(
        task_id="train",
        job_name="sweep {{ ti.map_index }}",
        max_active_tis_per_dag=2,  # how many jobs the cluster gets at a time
    ).expand(entrypoint=commands())
# END sweep
