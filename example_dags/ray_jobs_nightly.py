"""
Every night: a report over yesterday's trips, worked out by a Ray cluster.

The script and its data lie where the head can read them; here, as for a container image or a shared disk, by path.
"""

from __future__ import annotations

from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

HERE = Path(__file__).parent

# START nightly
with DAG(
    "ray_jobs_nightly",
    schedule="0 3 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"),
    catchup=False,
    default_args={"retries": 2, "retry_delay": pendulum.duration(minutes=5)},
    params={"report": "/tmp/ray_jobs_nightly.json"},  # noqa: S108
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobSubmitOperator(
        task_id="report",
        # A list is quoted: whatever a template brings stays one argument.
        entrypoint=[
            "python", str(HERE / "jobs" / "daily_report.py"),
            "--trips", str(HERE / "data" / "trips.csv"),
            "--weekday", "{{ (dag_run.run_after.astimezone(dag.timezone) - macros.timedelta(days=1)).weekday() }}",
            "--report", "{{ params.report }}",
        ],
        runtime_env={"env_vars": {"RAY_COLOR_PREFIX": "0"}},
        entrypoint_num_cpus=0.5,
    )  # fmt: skip
# END nightly
