"""Ways to say what a job runs, with what, and where."""

import pendulum
from airflow.sdk import DAG, Param, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "running_jobs",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={
        "cpus": 2,
        "cluster": Param("ray_jobs_default", enum=["ray_jobs_default", "ray_jobs_gpu"]),
    },
    tags=["ray"],
):
    # START shortest
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "train.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training"},
    )
    # END shortest

    # START shell
    RayJobSubmitOperator(
        task_id="shell",
        entrypoint="set -e; nproc; seq {{ params.cpus }} | sort --numeric-sort --reverse",
    )
    # END shell

    # START resources
    RayJobSubmitOperator(
        task_id="resources",
        entrypoint=["python", "describe_job.py"],
        runtime_env={"working_dir": "./training"},
        entrypoint_num_cpus="{{ params.cpus }}",
        entrypoint_num_gpus=0.5,
        entrypoint_memory="512MiB",
    )
    # END resources

    # START yaml
    RayJobSubmitOperator(
        task_id="environment_in_a_file",
        entrypoint=["python", "describe_job.py"],
        runtime_env="training/runtime_env.yaml",
        job_name="training of {{ ds }}",
        metadata={"team": "forecast"},
    )
    # END yaml

    # START context
    @task.ray_job(entrypoint_memory=lambda context: 256 * 2**20 * context["ti"].try_number)
    def train_with_more_memory() -> None:
        print("more memory in each try")

    train_with_more_memory()
    # END context

    # START cluster
    RayJobSubmitOperator(
        task_id="chosen_cluster",
        ray_conn_id="{{ params.cluster }}",
        entrypoint="hostname",
    )
    # END cluster

# START native
with DAG(
    "running_jobs_native",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    render_template_as_native_obj=True,
    params={
        "command": ["echo", "part", "1"],
        "commit": "5e12345",
        "environment": {"env_vars": {"TEAM": "a"}},
    },
):
    RayJobSubmitOperator(
        task_id="score",
        entrypoint="{{ params.command }}",  # one expression: the list itself
        runtime_env="{{ params.environment }}",  # the dictionary
        job_name="{{ params.commit }}",  # the text 5e12345, not the number infinity
    )
# END native
