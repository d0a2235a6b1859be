"""Tasks whose jobs are orphaned without a call of any hook, and the cleanup that finds these jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import timedelta
from typing import Any, NoReturn

import httpx
import pendulum
from airflow.providers.common.compat.sdk import conf
from airflow.sdk import DAG

from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator
from airflow_provider_rayjobs.operators import RayJobSubmitOperator

START = pendulum.datetime(2026, 1, 1, tz="UTC")
LONG_JOB = {"entrypoint": "sleep 900", "poll_interval": 1}


class RejectedDeferral(RayJobSubmitOperator):
    """Marks its task instance as failed immediately before the deferral, which Airflow then rejects."""

    def defer(self, **arguments: Any) -> NoReturn:
        supervisor = os.getppid()
        os.kill(supervisor, signal.SIGSTOP)  # otherwise a heartbeat may tell the task of the mark
        try:
            self._mark_as_failed()
        finally:
            subprocess.Popen(["sh", "-c", f"sleep 10; kill -CONT {supervisor}"], start_new_session=True)
        super().defer(**arguments)

    def _mark_as_failed(self) -> None:
        with httpx.Client(base_url=conf.get("api", "base_url"), timeout=60) as api:
            api.headers["Authorization"] = f"Bearer {api.get('/auth/token').json()['access_token']}"
            run = f"/api/v2/dags/{self.dag_id}/dagRuns/{os.environ['AIRFLOW_CTX_DAG_RUN_ID']}"
            for _ in range(30):
                answer = api.patch(f"{run}/taskInstances/{self.task_id}", json={"new_state": "failed"})
                if answer.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                    break
                time.sleep(1)  # SQLite is busy at times
            answer.raise_for_status()


with DAG("leaves_orphans", schedule=None, start_date=START):
    RayJobSubmitOperator(task_id="waits_for_retry", retries=1, retry_delay=timedelta(hours=1), **LONG_JOB)
    RejectedDeferral(task_id="is_rejected", deferrable=True, **LONG_JOB)
    RayJobSubmitOperator(task_id="does_not_wait", wait_for_completion=False, **LONG_JOB)
    RayJobSubmitOperator.partial(task_id="is_mapped", **LONG_JOB).expand(job_name=["the only one"])

with DAG("cleans_up", schedule=None, start_date=START, params={"dry_run": True}):
    RayJobCleanupOperator(task_id="clean_up", grace_period=0, recheck_delay=3, dry_run="{{ params.dry_run }}")
