"""Jobs on a secured cluster, on workers and deferred, with secrets in their environment and their log."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor

# API_TOKEN and DB_PASSWORD are masked by their names. Airflow masks FROM_CONNECTION, as it is a connection's password.
# Nothing masks UNPRINTED, so that no job prints it.
ENVIRONMENT = {
    "env_vars": {
        "API_TOKEN": "{{ var.value.masked_by_env_name }}",
        "DB_PASSWORD": "{{ var.value.number }}",
        "FROM_CONNECTION": "{{ conn.other_service.password }}",
        "UNPRINTED": "{{ var.value.unprinted }}",
    }
}
PRINT_ENVIRONMENT = (
    'echo "by name $API_TOKEN $DB_PASSWORD, from connection $FROM_CONNECTION, and $(echo $UNPRINTED | wc -c) characters'
    ' in production"'
)

with DAG("secured", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), max_active_tasks=4):
    for mode, deferrable in (("worker", False), ("deferred", True)):
        arguments = {
            "deferrable": deferrable,
            "poll_interval": 1,
            "runtime_env": ENVIRONMENT,
            # The worker writes the log: it has read the connection, the triggerer has not.
            "fetch_logs": "on_completion" if deferrable else "live",
        }
        RayJobSubmitOperator(
            task_id=f"mtls_{mode}", entrypoint=f"{PRINT_ENVIRONMENT}; sleep 3", ray_conn_id="ray_jobs_mtls", **arguments
        )
        RayJobSubmitOperator(
            task_id=f"basic_{mode}",
            entrypoint=f"{PRINT_ENVIRONMENT}; sleep 3",
            ray_conn_id="ray_jobs_basic",
            **arguments,
        )
        RayJobSubmitOperator(
            task_id=f"job_fails_{mode}",
            entrypoint=f"{PRINT_ENVIRONMENT}; exit 3",
            ray_conn_id="ray_jobs_http_proxy",
            **arguments,
        )
        RayJobSubmitOperator(
            task_id=f"marked_failed_{mode}",
            entrypoint="echo waiting; sleep 600",
            ray_conn_id="ray_jobs_basic",
            **arguments,
        )
        RayJobSubmitOperator(
            task_id=f"wrong_credentials_{mode}", entrypoint="true", ray_conn_id="ray_jobs_wrong_token", **arguments
        )
    RayJobSubmitOperator.partial(
        task_id="mapped", entrypoint=PRINT_ENVIRONMENT, ray_conn_id="ray_jobs_mtls", poll_interval=1
    ).expand(runtime_env=[ENVIRONMENT])
    RayJobSubmitOperator(
        task_id="pip_fails",
        entrypoint="true",
        ray_conn_id="ray_jobs_basic",
        deferrable=True,
        poll_interval=1,
        runtime_env={
            "pip": {
                "packages": ["--index-url {{ var.value.package_index }}", "no-such-package"],
                "pip_install_options": ["--retries=0", "--timeout=1"],
            }
        },
    )
    # It prints no connection's password: the sensor's process has not read that connection, and cannot mask it.
    submit = RayJobSubmitOperator(
        task_id="submit",
        entrypoint='echo "by name $API_TOKEN"; sleep 2',
        ray_conn_id="ray_jobs_mtls",
        runtime_env=ENVIRONMENT,
        wait_for_completion=False,
    )
    RayJobSensor(task_id="sensor", submission_id=submit.output, ray_conn_id="ray_jobs_mtls", poke_interval=1)
    RayJobSensor(
        task_id="sensor_deferred",
        submission_id=submit.output,
        ray_conn_id="ray_jobs_mtls",
        poke_interval=1,
        deferrable=True,
    )
