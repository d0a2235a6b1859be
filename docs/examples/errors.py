"""A failed job: its error in a callback."""

# START failure
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.exceptions import (
    RayJobEntrypointError,
    RayJobUnsuccessfulError,
)
from airflow_provider_rayjobs.operators import RayJobSubmitOperator


def tell_the_team(context: Any) -> None:
    error = context["exception"]
    if isinstance(error, RayJobEntrypointError):
        print(f"Exit code {error.exit_code}: {error}")
    elif isinstance(error, RayJobUnsuccessfulError):
        print(f"The cluster failed, or a user stopped the job: {error}")
    else:
        print(f"No job has failed. Check the connection and the network: {error}")


with DAG(
    "errors",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    tags=["ray"],
):
    RayJobSubmitOperator(
        task_id="load",
        entrypoint=["python", "load.py", "--day", "2026-11-23"],
        runtime_env={"working_dir": "./loading"},
        on_failure_callback=tell_the_team,
        poll_interval=1,
    )
# END failure
