"""The same job with this provider."""

from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START task
with DAG("after_google", schedule=None):
    RayJobSubmitOperator(
        task_id="train",
        ray_conn_id="ray_jobs_default",
        entrypoint=["python", "nightly.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training"},
        entrypoint_num_cpus=1,
        job_timeout=3600,
    )
# END task
