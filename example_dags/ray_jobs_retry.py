"""Request more memory on each retry. Each try submits a new job, whose arguments are rendered for this try."""

from __future__ import annotations

# START retry
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

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
        # The first try fails, like a job that runs out of memory.
        entrypoint="echo try {{ ti.try_number }}; test {{ ti.try_number }} -ge 2",
        # Rendered for each new job. If the job of the previous try still runs, the retry follows it instead.
        entrypoint_memory="{{ params.mebibytes * 1024 * 1024 * ti.try_number }}",
        retries=2,
        retry_delay=timedelta(seconds=5),
        job_timeout=timedelta(hours=6),
        pending_timeout=timedelta(minutes=10),
        fail_on_exit_code=[2],  # the exit code of argparse for wrong arguments; a retry cannot fix those
    )
# END retry
