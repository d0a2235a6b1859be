"""
Find orphaned jobs every hour, and delete the records of jobs that ended more than a week ago.

Set ``AIRFLOW__RAY_JOBS__DEPLOYMENT_NAME`` on all workers first, to a name that no other Airflow on the
cluster has.
"""

from __future__ import annotations

# START cleanup
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator

with DAG(
    "ray_jobs_cleanup",
    schedule="@hourly",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobCleanupOperator(
        task_id="clean_up",
        delete_older_than=timedelta(days=7),
        # The log names the jobs that would be stopped. Remove this line when they are the right ones.
        dry_run=True,
        retries=2,
        retry_delay=timedelta(minutes=5),
    )
# END cleanup
