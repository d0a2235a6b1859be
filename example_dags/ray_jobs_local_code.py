"""
Run code from the folder of the DAG file. The folder becomes the working directory of the job.

The worker packs the folder and uploads the package, unless the cluster already has it. The worker does not need Ray.
"""

from __future__ import annotations

# START local_code
import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "ray_jobs_local_code",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobSubmitOperator(
        task_id="report",
        entrypoint=["python", "jobs/daily_report.py", "--trips", "data/trips.csv"],
        # working_dir is relative to this file. excludes has the syntax of a .gitignore file.
        runtime_env={"working_dir": ".", "excludes": ["/ray_jobs_*.py", ".airflowignore"]},
        poll_interval=2,
    )
# END local_code
