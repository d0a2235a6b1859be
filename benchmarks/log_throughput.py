"""
Measure how fast a job's log gets into a task's log: 100 MB in lines of 100 bytes, in MB/s.

A real Airflow runs three kinds of tasks. The time starts before the first byte is requested or logged. It ends when the
task's log file contains the last line.

- ``sensor``: a ``RayJobSensor`` on a job that has already ended.
- ``line_records``: a task that logs one record per line, as other providers do. It logs only 3 MB, as it is slow.
- ``full_records``: a task that logs records of 64 KiB from memory, which is the fastest that Airflow allows.

Tasks run one at a time, the kinds take turns, and each value is a median. Each log file must contain every line once
and in order. The head shares the machine with Airflow, which slows down the sensor only. Target: at least 40 times
``line_records`` and 0.7 times ``full_records``.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from airflow_provider_rayjobs.jobs import RayJobsClient
from benchmarks.printing_jobs import LINE, MB, run_printing_job
from benchmarks.results import Result, Target
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]
DAG_ID = "log_throughput"
ROUNDS = 3
KINDS = ("line_records", "full_records", "sensor")
LINES = {"line_records": 3 * MB // LINE, "full_records": 100 * MB // LINE, "sensor": 100 * MB // LINE}
LINES_PER_RECORD = {"line_records": 1, "full_records": 64 * 1024 // LINE}

_LINE = re.compile(r"^(\d{9}) \.{89}$", re.MULTILINE)


def measure() -> list[Result]:
    """Run the DAG and return the medians."""
    with RayHead() as head, RayJobsClient(head.address) as client:
        job = run_printing_job(client, LINES["sensor"] * LINE)
        settings = {"PYTHONPATH": str(ROOT)}
        with LocalAirflow(ROOT / "benchmarks" / "dags", connection_to(head), settings) as airflow:
            run_id = airflow.trigger(DAG_ID, {"submission_id": job.name})
            state = airflow.wait_for_run(DAG_ID, run_id, timeout=600)
            if state != "success":
                states = {task["task_id"]: task["state"] for task in airflow.task_instances(DAG_ID, run_id)}
                raise RuntimeError(f"The DAG run is {state}. Task states: {states}")
            speed = {kind: statistics.median(_speeds(airflow, run_id, kind)) for kind in KINDS}
    sensor = speed["sensor"]
    return [
        Result("sensor vs one record per line", sensor, "MB/s", speed["line_records"], Target("ratio", ">=", 40)),
        Result("sensor vs records of 64 KiB", sensor, "MB/s", speed["full_records"], Target("ratio", ">=", 0.7)),
    ]


def _speeds(airflow: LocalAirflow, run_id: str, kind: str) -> Iterator[float]:
    for number in range(ROUNDS):
        task_id = f"{kind}_{number}"
        path = airflow.home / "logs" / f"dag_id={DAG_ID}" / f"run_id={run_id}" / f"task_id={task_id}" / "attempt=1.log"
        _check_log(path, LINES[kind])
        yield LINES[kind] * LINE / MB / float(airflow.xcoms(DAG_ID, run_id, task_id)["seconds"])


def _check_log(path: Path, lines: int) -> None:
    """Raise an error if the log is incomplete, because its time would be meaningless."""
    expected = 0
    with path.open() as file:
        for record in file:
            for match in _LINE.finditer(json.loads(record)["event"]):
                if int(match[1]) != expected:
                    raise RuntimeError(f"{path} has line {match[1]} instead of line {expected}.")
                expected += 1
    if expected != lines:
        raise RuntimeError(f"{path} has {expected} of {lines} lines.")
