"""Write 100 MB into a task log in three ways, one task after the other. See ``benchmarks.log_throughput``."""

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
from benchmarks.log_throughput import KINDS, LINES, LINES_PER_RECORD, ROUNDS
from benchmarks.printing_jobs import log_line

_WRITE_TIMEOUT = 60.0  # seconds within which Airflow's supervisor must have written the last record
_TAIL_SIZE = 4096  # bytes at the end of the task's log file that contain the last line


class LogWriteOperator(BaseOperator):
    """Log lines from memory, ``lines_per_record`` in each record."""

    def __init__(self, *, lines: int, lines_per_record: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.lines = lines
        self.lines_per_record = lines_per_record

    def execute(self, context: Context) -> None:
        records = list(self._records())
        push_duration(context, self.lines, lambda: self._write(records))

    def _records(self) -> Iterator[str]:
        for start in range(0, self.lines, self.lines_per_record):
            yield "\n".join(log_line(number) for number in range(start, min(start + self.lines_per_record, self.lines)))

    def _write(self, records: list[str]) -> None:
        for record in records:
            self.log.info("%s", record)


class TimedRayJobSensor(RayJobSensor):
    """The sensor, with its one poke timed. The job has already ended."""

    def poke(self, context: Context) -> bool:
        outcome: list[bool] = []
        push_duration(context, LINES["sensor"], lambda: outcome.append(super(TimedRayJobSensor, self).poke(context)))
        return outcome[0]


def push_duration(context: Context, lines: int, write: Callable[[], None]) -> None:
    """Call ``write`` and push the seconds until the task's log file contains the last line."""
    instance: Any = context["ti"]
    started = time.perf_counter()
    write()
    returned = time.perf_counter()
    wait_for_last_line(instance, log_line(lines - 1).encode())
    instance.xcom_push(key="seconds", value=time.perf_counter() - started)
    instance.xcom_push(key="lag", value=time.perf_counter() - returned)


def wait_for_last_line(instance: Any, last_line: bytes) -> None:
    """Wait until the supervisor has written the last line that the task process sent to it."""
    relative = f"dag_id={instance.dag_id}/run_id={instance.run_id}/task_id={instance.task_id}/attempt=1.log"
    path = Path(os.environ["AIRFLOW_HOME"]) / "logs" / relative
    deadline = time.monotonic() + _WRITE_TIMEOUT
    with path.open("rb") as file:
        while True:
            file.seek(max(0, path.stat().st_size - _TAIL_SIZE))
            if last_line in file.read():
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} does not contain the last line after {_WRITE_TIMEOUT:.0f} s.")
            time.sleep(0.005)


with DAG("log_throughput", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):
    tasks: list[BaseOperator] = []
    for number in range(ROUNDS):
        for kind in KINDS:
            task_id = f"{kind}_{number}"
            if kind == "sensor":
                tasks.append(TimedRayJobSensor(task_id=task_id, submission_id="{{ dag_run.conf['submission_id'] }}"))
            else:
                tasks.append(
                    LogWriteOperator(task_id=task_id, lines=LINES[kind], lines_per_record=LINES_PER_RECORD[kind])
                )
    chain(*tasks)
