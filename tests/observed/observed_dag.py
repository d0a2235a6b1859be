"""Tasks whose metrics and spans a test compares with what a stand-in head was asked."""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task.attempts import HAS_STORE

JOB: dict[str, Any] = {"entrypoint": "true", "poll_interval": 0.5}
PACKAGE = {"working_dir": str(Path(__file__).parent / "package")}


def process_id(context: Any) -> dict[str, str]:
    """The head kills the process of the task at a poll."""
    return {"pid": str(os.getpid())}


def fail_once(context: Any, result: Any) -> None:
    if context["ti"].try_number == 1:
        raise RuntimeError("after the job")


with DAG(
    "observed",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    default_args={"retry_delay": timedelta(seconds=1), "trigger_rule": "all_done"},
):
    tasks: list[Any] = [
        RayJobSubmitOperator(task_id="on_worker", runtime_env=PACKAGE, **JOB),
        RayJobSubmitOperator(task_id="deferred", deferrable=True, runtime_env=PACKAGE, **JOB),
        RayJobSubmitOperator(task_id="fails", **JOB),
        RayJobCleanupOperator(task_id="cleans_up", grace_period=0, recheck_delay=0),
    ]
    if HAS_STORE:
        tasks += [
            RayJobSubmitOperator(task_id="reattaches", metadata=process_id, retries=1, **JOB),
            RayJobSubmitOperator(task_id="succeeds_twice", post_execute=fail_once, retries=1, **JOB),
            RayJobSubmitOperator(task_id="is_replaced", metadata=process_id, **JOB),
        ]
    for before, after in pairwise(tasks):
        before >> after
