"""The probe, and the deferred tasks that it is to feel; see ``benchmarks.triggerer_delay``."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from benchmarks.probe import Probe
from benchmarks.triggerer_delay import LOADS, SECONDS

BEGINNING = pendulum.datetime(2026, 1, 1, tz="UTC")

with DAG("probe", schedule=None, start_date=BEGINNING):
    Probe(task_id="probe", seconds=SECONDS)

for load in LOADS:
    with DAG(load.dag_id, schedule=None, start_date=BEGINNING, max_active_tasks=load.jobs):
        RayJobSubmitOperator.partial(task_id="job", deferrable=True, poll_interval=5).expand(
            entrypoint=[load.entrypoint] * load.jobs
        )
