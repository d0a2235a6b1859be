"""The job of the RayJob with this provider, on the cluster that exists."""

from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START task
with DAG("after_kubernetes_ray_job", schedule=None):
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "nightly.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training"},
        entrypoint_num_cpus=1,
        job_timeout=3600,
    )
# END task
