"""The same job with this provider, and a task that works with the job as a client does."""

from airflow.sdk import DAG, task

from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.operators import RayJobSubmitOperator


# START hook
@task
def show_last_line(submission_id: str) -> str:
    job = RayJobsHook().get_job(submission_id)
    lines = RayJobsHook().get_job_logs(submission_id).splitlines()
    return f"{job.status}: {lines[-1]}"


# END hook

# START task
with DAG("after_python_operator", schedule=None):
    train = RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "nightly.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training"},
        metadata={"team": "forecasts"},
        entrypoint_num_cpus=1,
    )
    # END task
    show_last_line(train.output)  # type: ignore[arg-type]  # the id is known when the task runs
