"""Submit a job without Airflow, and show its log while it runs."""

import os

# START client
from airflow_provider_rayjobs.jobs import RayJobsClient

address = os.environ["RAY_API_SERVER_ADDRESS"]  # such as http://ray-head:8265
with RayJobsClient(address) as client:
    job = client.submit_job(["python", "-c", "print('hello')"], entrypoint_num_cpus=1)
    details = client.follow_job(job, on_log=print)
    print(details.status, details.driver_exit_code)
# END client
