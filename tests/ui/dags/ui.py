"""One DAG for each task that a test clicks on. UI_RELEASES is the folder of the release files."""

from __future__ import annotations

import os
from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

BLOCKS_IN_FIRST_TRY = "test {{ ti.try_number }} -gt 1 || sleep 600"

for name, arguments in {
    "ui_growing_log": {
        "entrypoint": ["python", str(Path(__file__).parent / "jobs" / "growing_log.py"), os.environ["UI_RELEASES"]]
    },
    "ui_clear_running": {"entrypoint": BLOCKS_IN_FIRST_TRY},
    "ui_clear_deferred": {"entrypoint": BLOCKS_IN_FIRST_TRY, "deferrable": True},
    "ui_clear_failed": {"entrypoint": "test {{ ti.try_number }} -gt 1"},
    "ui_clear_success": {"entrypoint": "echo done"},
    "ui_mark_failed": {"entrypoint": "sleep 600", "deferrable": True},
}.items():
    with DAG(name, schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"]):
        RayJobSubmitOperator(task_id="job", poll_interval=1, **arguments)
