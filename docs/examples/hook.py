"""Use the hook in a task of your own."""

# START hook
import pendulum
from airflow.sdk import dag, task

from airflow_provider_rayjobs.hooks import RayJobsHook


@dag(schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"))
def hook() -> None:
    @task
    def count_failed_jobs() -> int:
        with RayJobsHook("ray_jobs_default").get_conn() as client:
            return sum(job.status == "FAILED" for job in client.list_jobs())

    count_failed_jobs()


hook()
# END hook
