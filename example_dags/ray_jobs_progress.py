"""Show the progress of a long function in the task's log, and of a job in any language."""

from __future__ import annotations

# START progress
import time

import pendulum
from airflow.sdk import DAG, task

from airflow_provider_rayjobs.in_job import report_progress
from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "ray_jobs_progress",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"epochs": 5},
    tags=["ray"],
    doc_md=__doc__,
):

    @task.ray_job(poll_interval=2)
    def train(epochs: str) -> float:
        loss = 1.0
        for epoch in range(1, int(epochs) + 1):
            time.sleep(1)
            loss *= 0.8
            # The log of the task shows the latest progress every 10 s. The last one is in XCom "progress".
            report_progress(epoch, int(epochs), f"loss {loss:.3f}")
        return loss

    train("{{ params.epochs }}")

    RayJobSubmitOperator(
        task_id="count_lines",
        # A program in any language sends a message with one line of its output.
        entrypoint="""
            lines=$(seq 1000 | wc -l)
            echo "##ray_job $RAY_JOB_NONCE progress {\\"done\\": $lines, \\"text\\": \\"lines\\"}"
            echo "##ray_job $RAY_JOB_NONCE result {\\"lines\\": $lines}"
        """,
        return_result=True,
        poll_interval=2,
    )
# END progress
