"""Read the log files of a task, as Airflow's workers and triggerers wrote them."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

# The logger of a job's own lines. Other records come from the operator, the trigger or Airflow.
JOB_LOGGER = "airflow.task.ray_job"


def log_files(folder: Path, try_number: int) -> list[list[dict[str, Any]]]:
    """
    Return the records of each log file of a try.

    Triggerers write files of their own. They come first, because the worker logs nothing of the job's log before it
    defers the task.

    :param folder: of the logs of the task instance.
    """
    files = [records for file in folder.glob(f"attempt={try_number}.log.trigger.*") if (records := _read(file))]
    files.sort(key=lambda records: time_of(records[0]))
    return [*files, _read(folder / f"attempt={try_number}.log")]


def time_of(record: dict[str, Any]) -> datetime:
    """Return when a record was logged."""
    return datetime.fromisoformat(record["timestamp"])


def _read(file: Path) -> list[dict[str, Any]]:
    """Return the records of one file, which has one JSON document in each line. A killed process may cut the last."""
    records: list[dict[str, Any]] = []
    with suppress(FileNotFoundError, json.JSONDecodeError):
        for line in file.read_bytes().split(b"\n"):
            if line:
                records.append(json.loads(line))  # noqa: PERF401  (the records before a cut line count)
    return records
