"""
How fast a job's log comes into a task's log: MB/s of 100 MB in lines of 100 bytes, all of it real.

A job has printed them and ended; a ``RayJobSensor`` of a real Airflow shows them. The time runs from before the first
byte is asked for until the task's log file has the last line, for all three alike:

- ``provider``: the sensor.
- ``single``: a task that logs line by line, as other providers do. 3 MB only, at 0.5 MB/s.
- ``memory``: the best that Airflow can: a task that has the text in memory, already cut into full records.

One task after the other, the three kinds interleaved, medians. Each log file is then read and must hold every line, in
order, once. The head, which sends the log meanwhile, has no machine of its own here: that counts against ``provider``.
Wanted: 40 times ``single``, 0.7 times ``memory``.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from airflow_provider_rayjobs.jobs import RayJobsClient
from benchmarks.printing import LINE, MB, print_and_end
from benchmarks.results import Result, Wanted
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]
DAG_ID = "log_throughput"
ROUNDS = 3
KINDS = ("single", "memory", "provider")
LINES = {"single": 3 * MB // LINE, "memory": 100 * MB // LINE, "provider": 100 * MB // LINE}
# as many as there are in 64 KiB
RECORD_LINES = {"single": 1, "memory": 64 * 1024 // LINE}

_LINE = re.compile(r"^(\d{9}) \.{89}$", re.MULTILINE)


def measure() -> list[Result]:
    """Run the DAG and return the medians."""
    with RayHead() as head, RayJobsClient(head.address) as client:
        job = print_and_end(client, LINES["provider"] * LINE)
        settings = {"PYTHONPATH": str(ROOT)}
        with LocalAirflow(ROOT / "benchmarks" / "dags", connection_to(head), settings) as airflow:
            run_id = airflow.trigger(DAG_ID, {"submission_id": job.name})
            state = airflow.wait_for_run(DAG_ID, run_id, timeout=600)
            if state != "success":
                states = {task["task_id"]: task["state"] for task in airflow.task_instances(DAG_ID, run_id)}
                raise RuntimeError(f"the run is {state}: {states}")
            speed = {kind: statistics.median(_speeds(airflow, run_id, kind)) for kind in KINDS}
    return [
        Result("beside line by line", speed["provider"], "MB/s", speed["single"], Wanted("ratio", ">=", 40)),
        Result("beside records from memory", speed["provider"], "MB/s", speed["memory"], Wanted("ratio", ">=", 0.7)),
    ]


def _speeds(airflow: LocalAirflow, run_id: str, kind: str) -> Iterator[float]:
    for number in range(ROUNDS):
        task_id = f"{kind}_{number}"
        path = airflow.home / "logs" / f"dag_id={DAG_ID}" / f"run_id={run_id}" / f"task_id={task_id}" / "attempt=1.log"
        _check(path, LINES[kind])
        yield LINES[kind] * LINE / MB / float(airflow.xcoms(DAG_ID, run_id, task_id)["seconds"])


def _check(path: Path, lines: int) -> None:
    """Refuse a log that is not complete: its figure would mean nothing."""
    expected = 0
    with path.open() as file:
        for record in file:
            for found in _LINE.finditer(json.loads(record)["event"]):
                if int(found[1]) != expected:
                    raise RuntimeError(f"{path} has line {found[1]} where {expected} belongs")
                expected += 1
    if expected != lines:
        raise RuntimeError(f"{path} has {expected} of {lines} lines")
