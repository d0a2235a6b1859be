"""Retries by the class of an error (Airflow 3.3 and later)."""

# START policy
from datetime import timedelta

import pendulum
from airflow.sdk import DAG, RetryAction, RetryRule, task

from airflow_provider_rayjobs.exceptions import (
    RayJobRuntimeEnvError,
    RayJobUnschedulableError,
)
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.retries import RayJobRetryPolicy

policy = RayJobRetryPolicy(
    rules=[
        # no retry makes a wrong requirement right
        RetryRule(exception=RayJobRuntimeEnvError, action=RetryAction.FAIL),
        # a full cluster may need longer than the usual retry_delay
        RetryRule(
            exception=RayJobUnschedulableError,
            action=RetryAction.RETRY,
            retry_delay=timedelta(minutes=10),
        ),
    ],
    # exceptions of functions, by the name of their class or of a base class
    function_errors={"ValueError": RetryAction.FAIL},
)

with DAG(
    "retry_policy",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_policy": policy,
    },
    tags=["ray"],
):
    train = RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "train.py", "--day", "{{ ds | default('2026-01-01') }}"],
        runtime_env={"working_dir": "./training"},
        fail_on_exit_code=2,  # argparse ends with 2 for wrong arguments
    )

    @task.ray_job
    def check(accuracy: float) -> None:
        if accuracy < 0.9:
            raise ValueError(f"an accuracy of {accuracy} is too low")

    train >> check(0.91)
# END policy
