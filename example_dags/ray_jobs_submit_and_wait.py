"""Submit in one task and wait in another: other tasks may start as soon as the job is on its way."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor

# START submit_and_wait
with DAG(
    "ray_jobs_submit_and_wait",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    tags=["ray"],
    doc_md=__doc__,
):
    submit = RayJobSubmitOperator(
        task_id="submit",
        entrypoint="for step in 1 2 3; do echo step $step; sleep 1; done",
        wait_for_completion=False,
    )
    RayJobSensor(
        task_id="wait",
        submission_id=submit.output,
        poke_interval=2,
        timeout=3600,
    )
# END submit_and_wait
