"""Submit a job in one task and wait for it in another. Further tasks can start as soon as the job is submitted."""

from __future__ import annotations

# START submit_and_wait
import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor

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
