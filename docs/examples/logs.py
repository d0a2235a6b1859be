"""Choose when the log of a job is shown, and read it afterwards."""

import tempfile
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG("logs", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"]):
    # START shortest
    train = RayJobSubmitOperator(
        task_id="train",
        entrypoint="seq 1 5000",
        fetch_logs="live",
        log_lines_limit=1000,
    )
    # END shortest

    # START flush
    RayJobSubmitOperator(
        task_id="train_for_hours",
        entrypoint="for epoch in 1 2 3; do echo epoch $epoch; sleep 1; done",
        deferrable=True,
        log_flush_interval=300,
    )
    # END flush

    # START secret
    RayJobSubmitOperator(
        task_id="secret",
        entrypoint="""test -n "$API_TOKEN" && echo the token is not empty""",
        runtime_env={"env_vars": {"API_TOKEN": "{{ var.value.get('api_token', 'no-token-yet') }}"}},
    )
    # END secret

    # START afterwards
    @task
    def count_lines(submission_id: Any) -> int:
        path = Path(tempfile.mkdtemp()) / "job.log"
        RayJobsHook("ray_jobs_default").save_job_logs(submission_id, path)
        return len(path.read_text().splitlines())

    count_lines(submission_id=train.output)
    # END afterwards
