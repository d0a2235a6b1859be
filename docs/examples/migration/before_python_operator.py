"""A task that submits a job with Ray's SDK and asks for its status in a loop."""

import time
from pathlib import Path

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from ray.job_submission import JobStatus, JobSubmissionClient


# START task
def train(day: str) -> str:
    client = JobSubmissionClient("http://ray-head:8265")
    submission_id = client.submit_job(
        entrypoint=f"python nightly.py --day {day}",
        runtime_env={"working_dir": str(Path(__file__).parent / "training")},
        metadata={"team": "forecasts"},
        entrypoint_num_cpus=1,
    )
    while not (status := client.get_job_status(submission_id)).is_terminal():
        time.sleep(5)
    print(client.get_job_logs(submission_id))
    if status != JobStatus.SUCCEEDED:
        raise RuntimeError(f"Job {submission_id} ended with status {status}.")
    return submission_id


with DAG("before_python_operator", schedule=None):
    PythonOperator(task_id="train", python_callable=train, op_kwargs={"day": "{{ ds }}"})
# END task
