"""Wait for a long job in the triggerer. The task occupies no worker slot and survives a restart of the workers."""

from __future__ import annotations

# START deferrable
import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "ray_jobs_deferrable",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"seconds": 3},
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "-c", "import time; time.sleep({{ params.seconds }}); print('trained')"],
        deferrable=True,
        poll_interval=2,
    )
# END deferrable
