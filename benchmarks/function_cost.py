"""
Measure the time from submission to return of a function that does nothing, beside a plain job in the same run.

The plain job is ``RayJobSubmitOperator`` with ``entrypoint="true"``. Each round runs it, the function with the same
arguments as before, whose package the cluster has, and the function with new arguments, whose package is uploaded. The
results are medians. Target: the function takes at most 0.5 s more than the plain job.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import structlog
from airflow.sdk import DAG

from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from benchmarks.results import Result, Target
from sandbox.ray_head import RayHead

ROUNDS = 15
# Seconds. Short, so that the time between two polls is no part of the result.
POLL_INTERVAL = 0.1
LIMIT = 0.5


def measure() -> list[Result]:
    """Run the jobs on a head of their own."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with RayHead() as head, DAG("function_cost", schedule=None):
        os.environ["RAY_API_SERVER_ADDRESS"] = head.address
        plain = RayJobSubmitOperator(task_id="plain", entrypoint="true", poll_interval=POLL_INTERVAL)

        @ray_job(poll_interval=POLL_INTERVAL)
        def nothing(number: int) -> int:
            return number

        function: Any = nothing
        operators = [(plain, function(0).operator, function(number).operator) for number in range(ROUNDS + 1)]
        rounds = [[_seconds(operator) for operator in each] for each in operators][1:]  # the first one warms up
    job, again, new = (statistics.median(column) for column in zip(*rounds, strict=True))
    more_again, more_new = (statistics.median(each[column] - each[0] for each in rounds) for column in (1, 2))
    return [
        Result("function that does nothing, vs a plain job", again, "s", job),
        Result("function with a new package, vs a plain job", new, "s", job),
        Result("additional time of a function", more_again, "s", target=Target("value", "<=", LIMIT)),
        Result("additional time of a function with a new package", more_new, "s", target=Target("value", "<=", LIMIT)),
    ]


def _seconds(operator: Any) -> float:
    began = time.monotonic()
    operator.execute(new_context())
    return time.monotonic() - began


def new_context() -> dict[str, Any]:
    """Return the part of a task's context that a try uses, without a task state store."""
    date = datetime.now(UTC)
    ti = SimpleNamespace(
        id="try", dag_id="function_cost", task_id="task", run_id="run", map_index=-1, try_number=1, max_tries=0,
        start_date=date, xcom_push=lambda **_: None, get_task_states=lambda **_: {},
    )  # fmt: skip
    run = SimpleNamespace(run_id="run", logical_date=date, start_date=date, clear_number=0)
    return {"ti": ti, "task_instance": ti, "dag_run": run, "logical_date": date}
