"""The same job with this provider."""

from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START task
with DAG("after_bash_operator", schedule=None):
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "nightly.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training", "env_vars": {"LEVEL": "debug"}},
        metadata={"team": "forecasts"},
        entrypoint_num_cpus=1,
    )
# END task
