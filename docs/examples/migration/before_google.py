"""A job on a Ray cluster of Vertex AI with the operators of Google's provider."""

from airflow.providers.google.cloud.operators.ray import RaySubmitJobOperator
from airflow.sdk import DAG

# START task
DASHBOARD = "c0ffee-dot-europe-west4.aiplatform-training.googleusercontent.com"

with DAG("before_google", schedule=None):
    RaySubmitJobOperator(
        task_id="train",
        cluster_address=DASHBOARD,
        entrypoint="python nightly.py --day {{ ds }}",
        runtime_env={"working_dir": "/opt/airflow/dags/training"},
        entrypoint_num_cpus=1,
        wait_for_job_done=True,
        get_job_logs=True,
        submit_job_timeout=3600,
    )
# END task
