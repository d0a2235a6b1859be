"""100 MB into a task's log in three ways, one task after the other; see ``benchmarks.log_throughput``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, BaseOperator, Context
from airflow.sdk.bases.operator import chain

from airflow_provider_rayjobs.sensors import RayJobSensor
from benchmarks.log_throughput import KINDS, LINES, RECORD_LINES, ROUNDS
from benchmarks.printing import line

_PATIENCE = 60.0  # seconds that Airflow's supervisor may lag behind the task
_END = 4096  # bytes of the task's log file that surely hold the end of the last record


class WritesLog(BaseOperator):
    """Write the log from memory, so many lines a record."""

    def __init__(self, *, lines: int, lines_a_record: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.lines = lines
        self.lines_a_record = lines_a_record

    def execute(self, context: Context) -> None:
        records = list(self._records())
        timed(context, self.lines, lambda: self._write(records))

    def _records(self) -> Iterator[str]:
        for start in range(0, self.lines, self.lines_a_record):
            yield "\n".join(line(number) for number in range(start, min(start + self.lines_a_record, self.lines)))

    def _write(self, records: list[str]) -> None:
        for record in records:
            self.log.info("%s", record)


class WaitsForJob(RayJobSensor):
    """The sensor, with a watch on its one look at a job that has ended."""

    def poke(self, context: Context) -> bool:
        outcome: list[bool] = []
        timed(context, LINES["provider"], lambda: outcome.append(super(WaitsForJob, self).poke(context)))
        return outcome[0]


def timed(context: Context, lines: int, write: Callable[[], None]) -> None:
    """Push the seconds from before the first byte is asked for until the task's log file has the last line."""
    instance: Any = context["ti"]
    began = time.perf_counter()
    write()
    handed_over = time.perf_counter()
    wait_for_end(instance, line(lines - 1).encode())
    instance.xcom_push(key="seconds", value=time.perf_counter() - began)
    instance.xcom_push(key="lag", value=time.perf_counter() - handed_over)


def wait_for_end(instance: Any, last_line: bytes) -> None:
    """Wait until the supervisor, which writes what the task's process sends it, has written all of it."""
    place = f"dag_id={instance.dag_id}/run_id={instance.run_id}/task_id={instance.task_id}/attempt=1.log"
    path = Path(os.environ["AIRFLOW_HOME"]) / "logs" / place
    deadline = time.monotonic() + _PATIENCE
    with path.open("rb") as file:
        while True:
            file.seek(max(0, path.stat().st_size - _END))
            if last_line in file.read():
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} does not end in the last line after {_PATIENCE:.0f} s")
            time.sleep(0.005)


with DAG("log_throughput", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):
    tasks: list[BaseOperator] = []
    for number in range(ROUNDS):
        for kind in KINDS:
            task_id = f"{kind}_{number}"
            if kind == "provider":
                tasks.append(WaitsForJob(task_id=task_id, submission_id="{{ dag_run.conf['submission_id'] }}"))
            else:
                tasks.append(WritesLog(task_id=task_id, lines=LINES[kind], lines_a_record=RECORD_LINES[kind]))
    chain(*tasks)
