"""Jobs on a secured cluster, in both modes: what they print, and what they keep to themselves."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor

# secret by its name; known to Airflow, as a connection's password; and neither, so that it is printed by nobody
ENVIRONMENT = {
    "env_vars": {
        "API_TOKEN": "{{ var.value.told_by_name }}",
        "SHOWN": "{{ conn.somewhere.password }}",
        "QUIET": "{{ var.value.quiet }}",
    }
}
PRINTS = 'echo "by name $API_TOKEN, by Airflow $SHOWN, and $(echo $QUIET | wc -c) characters"'

with DAG("secured", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), max_active_tasks=4):
    for mode, deferrable in (("worker", False), ("deferred", True)):
        common = {"deferrable": deferrable, "poll_interval": 1, "runtime_env": ENVIRONMENT}
        RayJobSubmitOperator(
            task_id=f"mtls_{mode}", entrypoint=f"{PRINTS}; sleep 3", ray_conn_id="ray_jobs_mtls", **common
        )
        RayJobSubmitOperator(
            task_id=f"basic_{mode}", entrypoint=f"{PRINTS}; sleep 3", ray_conn_id="ray_jobs_basic", **common
        )
        RayJobSubmitOperator(
            task_id=f"fails_{mode}", entrypoint=f"{PRINTS}; exit 3", ray_conn_id="ray_jobs_proxied", **common
        )
        RayJobSubmitOperator(
            task_id=f"is_stopped_{mode}", entrypoint="echo waiting; sleep 600", ray_conn_id="ray_jobs_basic", **common
        )
        RayJobSubmitOperator(
            task_id=f"not_let_in_{mode}", entrypoint="true", ray_conn_id="ray_jobs_wrong_token", **common
        )
    RayJobSubmitOperator.partial(
        task_id="mapped", entrypoint=PRINTS, ray_conn_id="ray_jobs_mtls", poll_interval=1
    ).expand(runtime_env=[ENVIRONMENT])
    # what a sensor's task cannot know of another's, a connection that only that has read, is not printed here
    submit = RayJobSubmitOperator(
        task_id="submits",
        entrypoint='echo "by name $API_TOKEN"; sleep 2',
        ray_conn_id="ray_jobs_mtls",
        runtime_env=ENVIRONMENT,
        wait_for_completion=False,
    )
    RayJobSensor(task_id="senses", submission_id=submit.output, ray_conn_id="ray_jobs_mtls", poke_interval=1)
    RayJobSensor(
        task_id="senses_deferred",
        submission_id=submit.output,
        ray_conn_id="ray_jobs_mtls",
        poke_interval=1,
        deferrable=True,
    )
