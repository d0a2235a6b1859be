"""
Compute a report about yesterday's bicycle trips on a Ray cluster, every night.

The script and its data are not uploaded. They must exist on the head, e.g. in its container image or on a shared disk.
"""

from __future__ import annotations

# START nightly
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

HERE = Path(__file__).parent

with DAG(
    "ray_jobs_nightly",
    schedule="0 3 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"),
    catchup=False,
    default_args={"retries": 2, "retry_delay": pendulum.duration(minutes=5)},
    params={"report": "/tmp/ray_jobs_nightly.json"},
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobSubmitOperator(
        task_id="report",
        # Each item of a list is quoted, so that the value of a template stays one argument.
        entrypoint=[
            "python",
            str(HERE / "jobs" / "daily_report.py"),
            "--trips",
            str(HERE / "data" / "trips.csv"),
            "--weekday",
            "{{ (dag_run.run_after.astimezone(dag.timezone) - macros.timedelta(days=1)).weekday() }}",
            "--report",
            "{{ params.report }}",
        ],
        runtime_env={"env_vars": {"RAY_COLOR_PREFIX": "0"}},
        entrypoint_num_cpus=0.5,
    )
# END nightly
