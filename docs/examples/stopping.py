"""Time limits, a job that outlives its task, and a job that another task stops."""

from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobDeleteOperator, RayJobStopOperator, RayJobSubmitOperator

with DAG("stopping", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"]):
    # START limits
    train = RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "train.py", "--day", "2026-11-23"],
        runtime_env={"working_dir": "./training"},
        pending_timeout=timedelta(minutes=10),  # the job must have started
        job_timeout=timedelta(hours=6),  # the job must have ended
        execution_timeout=timedelta(hours=8),  # this try must have ended
    )
    # END limits

    # START stop
    serve = RayJobSubmitOperator(
        task_id="serve",
        entrypoint="sleep 3600",
        wait_for_completion=False,
    )
    stop = RayJobStopOperator(task_id="stop", submission_id=serve.output)
    forget = RayJobDeleteOperator(
        task_id="forget",
        submission_id=serve.output,
        retries=3,
        retry_delay=timedelta(seconds=5),
    )

    serve >> train >> stop >> forget
    # END stop
