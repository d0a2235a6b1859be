"""
Code beside the DAG file: packed on the worker, sent to the cluster unless it is there, the job's working directory.

Ray is not needed on the worker. A second run of the same code sends nothing.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START local_code
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
        # relative to this file; as in a .gitignore, the job needs none of the DAG files
        runtime_env={"working_dir": ".", "excludes": ["/ray_jobs_*.py", ".airflowignore"]},
        poll_interval=2,
    )
# END local_code
