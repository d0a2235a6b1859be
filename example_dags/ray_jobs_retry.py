"""A retry that asks for more: each try is a new job with parameters of its own."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START retry
with DAG(
    "ray_jobs_retry",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"mebibytes": 64},
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobSubmitOperator(
        task_id="train",
        # the first try fails, as a job does that runs out of memory
        entrypoint="echo try {{ ti.try_number }}; test {{ ti.try_number }} -ge 2",
        # rendered anew for each job; a try that finds the job of the last one still running follows that instead
        entrypoint_memory="{{ params.mebibytes * 1024 * 1024 * ti.try_number }}",
        retries=2,
        retry_delay=timedelta(seconds=5),
        job_timeout=timedelta(hours=6),
        pending_timeout=timedelta(minutes=30),
        fail_on_exit_code=[2],  # wrong arguments: no retry can mend those
    )
# END retry
