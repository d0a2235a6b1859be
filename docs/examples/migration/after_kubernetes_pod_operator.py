"""The same job with this provider."""

from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START task
with DAG("after_kubernetes_pod_operator", schedule=None):
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "nightly.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training"},
        pending_timeout=600,
        deferrable=True,
        log_flush_interval=60,
    )
# END task
