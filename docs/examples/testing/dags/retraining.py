"""The DAG under test."""

# START dag
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "retraining",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
) as dag:
    prepare = RayJobSubmitOperator(
        task_id="prepare",
        entrypoint="python prepare.py",
        pending_timeout=timedelta(minutes=10),
        deferrable=True,
    )
    train = RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "train.py", "--run", "{{ run_id }}"],
        runtime_env={"pip": ["torch"]},
        entrypoint_num_gpus=1,
        return_result=True,
    )

    @task
    def publish(loss: Any) -> str:
        return f"the loss is {loss}"

    prepare >> train
    publish(train.output)
# END dag
