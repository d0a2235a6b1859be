"""The delay probe, and deferred tasks as its load. See ``benchmarks.triggerer_delay``."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from benchmarks.delay_probe import DelayProbe
from benchmarks.triggerer_delay import LOADS, SECONDS

START_DATE = pendulum.datetime(2026, 1, 1, tz="UTC")

with DAG("probe", schedule=None, start_date=START_DATE):
    DelayProbe(task_id="probe", seconds=SECONDS)

for load in LOADS:
    with DAG(load.dag_id, schedule=None, start_date=START_DATE, max_active_tasks=load.jobs):
        RayJobSubmitOperator.partial(task_id="job", deferrable=True, poll_interval=5).expand(
            entrypoint=[load.entrypoint] * load.jobs
        )
