"""
Run many jobs, but only a few at the same time, with an Airflow pool.

Create the pool first. Without --include-deferred, deferred tasks take no slot, and all jobs run at once::

    airflow pools set ray_cluster 2 "Jobs on the Ray cluster" --include-deferred
"""

from __future__ import annotations

# START pool
import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "ray_jobs_pool",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobSubmitOperator.partial(
        task_id="score",
        deferrable=True,
        pool="ray_cluster",
        pool_slots=1,  # a job that needs twice the resources takes 2
    ).expand(entrypoint=[["python", "-c", f"print('part {part}')"] for part in range(6)])
# END pool
