"""
Run the nightly example DAG in a real Airflow against a real Ray head.

Print the task log while the task runs, then one summary line. Exit with status 1 unless the job succeeded.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from airflow_provider_rayjobs.jobs import RayJobsClient
from sandbox.local_airflow import FINAL_STATES, LocalAirflow, record_texts
from sandbox.processes import interrupt_on_signals
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]
DAG_ID, TASK_ID = "ray_jobs_nightly", "report"
TASK_TIMEOUT = 150.0  # seconds
OUTPUT_DIR = ROOT / "build" / "demo"


def main() -> int:
    """Run the demo and return its exit status."""
    interrupt_on_signals()
    started = time.monotonic()
    OUTPUT_DIR.mkdir(parents=True, exist_ok=True)
    report = OUTPUT_DIR / "report.json"
    report.unlink(missing_ok=True)
    with ExitStack() as stack:
        say("Starting a Ray head ...")
        head = stack.enter_context(RayHead())
        say(f"Ray is up at {head.address}. Starting Airflow ...")
        airflow = stack.enter_context(LocalAirflow(ROOT / "example_dags", connection_to(head), paused=True))
        say(f"Airflow is up at {airflow.address}. Running DAG {DAG_ID}. The log of its task {TASK_ID}:")
        run_id = airflow.trigger(DAG_ID, conf={"report": str(report)})
        state = print_log_until_end(airflow, run_id)
        (OUTPUT_DIR / "task.log").write_text(airflow.log_text(DAG_ID, run_id, TASK_ID))
        return print_summary(airflow, head, run_id, state, report, time.monotonic() - started)


def print_log_until_end(airflow: LocalAirflow, run_id: str) -> str:
    """Print the task log while the task runs and return the task's final state."""
    printed: Counter[str] = Counter()
    deadline = time.monotonic() + TASK_TIMEOUT
    while True:
        # Read the state before the log, so that the log is complete when the state is final.
        state = str(airflow.task_instance(DAG_ID, run_id, TASK_ID)["state"])
        has_ended = state in ("up_for_retry", *FINAL_STATES)  # the next try has its own log
        if has_ended or state == "running":
            print_new_records(airflow.log_records(DAG_ID, run_id, TASK_ID), printed)
        if has_ended or time.monotonic() > deadline:
            return state
        time.sleep(1)


def print_new_records(records: list[dict[str, Any]], printed: Counter[str]) -> None:
    """Print the records not printed before. Skip those without a timestamp, which only name the log's sources."""
    present: Counter[str] = Counter()
    for record in records:
        if not record.get("timestamp"):
            continue
        key = f"{record['timestamp']} {record['event']}"
        present[key] += 1
        if present[key] > printed[key]:
            printed[key] += 1
            for text in record_texts(record):
                say("\n".join(f"    | {line}" for line in text.split("\n")))


def print_summary(airflow: LocalAirflow, head: RayHead, run_id: str, state: str, report: Path, seconds: float) -> int:
    """Print the summary line and return the exit status."""
    submission_id = airflow.xcoms(DAG_ID, run_id, TASK_ID).get("submission_id")
    if submission_id is None:
        say(f"FAILED: no Ray job was submitted. Task state: {state}. Task log: {OUTPUT_DIR / 'task.log'}")
        return 1
    with RayJobsClient(head.address) as client:
        job = client.get_job(submission_id)  # The task state is only Airflow's view.
    succeeded = state == "success" and job.status == "SUCCEEDED" and report.is_file()
    say(
        f"Ray job {submission_id} {job.status} after {job.duration or 0:.1f} s. Task state: {state}. Total time: "
        f"{seconds:.0f} s. Report: {relative_path(report)}. Task log: {relative_path(OUTPUT_DIR / 'task.log')}."
    )
    return 0 if succeeded else 1


def relative_path(path: Path) -> str:
    """Return a path relative to the current directory if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def say(text: str) -> None:
    """Print a text at once, even if stdout is a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
