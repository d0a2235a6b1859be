"""An operator of your own that waits for a Ray job in the triggerer."""

# START operator
from typing import Any

import pendulum
from airflow.sdk import DAG, BaseOperator, Context

from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event


class ReportOperator(BaseOperator):
    def execute(self, context: Context) -> None:
        job = RayJobsHook().submit_job(["python", "-c", "print('report')"])
        self.defer(trigger=RayJobTrigger(job, poll_interval=1, stop_on_kill=True), method_name="report")

    def report(self, context: Context, event: dict[str, Any]) -> float | None:
        details = details_from_event(event)  # raises the trigger's error
        if details.status != "SUCCEEDED":
            raise RuntimeError(f"{details.submission_id} {details.status}")
        return details.duration


with DAG("own_operator", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):
    ReportOperator(task_id="report")
# END operator
