"""Ways to wait for a job: deferred, with a sensor, and in an operator of one's own."""

from typing import Any

import pendulum
from airflow.sdk import DAG, BaseOperator

from airflow_provider_rayjobs.exceptions import RayJobFailedError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import JobStatus
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event


# START operator
class ScoreOperator(BaseOperator):
    """Submit a job with the hook, and wait for it in the triggerer."""

    def execute(self, context: Any) -> None:
        job = RayJobsHook().submit_job(["echo", "scored"])
        self.defer(
            trigger=RayJobTrigger(job, poll_interval=5, stop_on_kill=True),
            method_name="execute_complete",
        )

    def execute_complete(self, context: Any, event: dict[str, Any]) -> str:
        details = details_from_event(event)  # or raises the error of the trigger
        if details.status != JobStatus.SUCCEEDED:
            raise RayJobFailedError(f"{details.name} ended {details.status}.", details=details)
        return details.name
        # END operator


with DAG("waiting", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"]):
    # START deferrable
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "train.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training"},
        deferrable=True,
        defer_after=20,
    )
    # END deferrable

    # START sensor
    submit = RayJobSubmitOperator(
        task_id="submit",
        entrypoint="sleep 2; echo done",
        wait_for_completion=False,
    )
    wait = RayJobSensor(
        task_id="wait",
        submission_id=submit.output,
        poke_interval=2,
        timeout=3600,
    )
    # END sensor

    ScoreOperator(task_id="score")
