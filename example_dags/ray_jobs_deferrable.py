"""Wait in the triggerer: a job of many hours costs no worker slot, and survives a restart of the workers."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START deferrable
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
