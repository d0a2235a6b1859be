"""A DAG with native rendering, where templates produce numbers and dictionaries."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "native",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    render_template_as_native_obj=True,
    params={"resources": {"cpus": 0.5, "day": 20260102, "labels": {"a": 1}}},
):
    RayJobSubmitOperator(
        task_id="native",
        entrypoint=["echo", "day", "{{ params.resources.day }}", "try", "{{ ti.try_number }}"],
        runtime_env={"env_vars": {"DAY": "{{ params.resources.day }}"}},
        metadata={"day": "{{ params.resources.day }}"},
        entrypoint_num_cpus="{{ params.resources.cpus }}",
        job_name="{{ params.resources.day }}",
        poll_interval=1,
    )
