"""The jobs of the soak test, from the file SOAK_JOBS_FILE. Half of them are followed on workers, half are deferred."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

jobs = json.loads(Path(os.environ["SOAK_JOBS_FILE"]).read_text())

with DAG("soak", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), max_active_tasks=8):
    for mode, deferrable in (("worker", False), ("deferred", True)):
        RayJobSubmitOperator.partial(
            task_id=mode, deferrable=deferrable, poll_interval=1, unreachable_timeout=300, retries=0
        ).expand_kwargs(jobs[mode])
