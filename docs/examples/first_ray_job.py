"""The first DAG of the quickstart."""

# START dag
import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "first_ray_job",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    schedule=None,  # started by hand
):
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "train.py", "--day", "{{ dag_run.run_after | ds }}"],
        runtime_env={"working_dir": "./training"},
    )
# END dag
