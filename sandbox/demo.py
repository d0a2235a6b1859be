"""
The demonstration: the nightly example DAG through a real Airflow, on a real Ray head.

Shows the task's log as it comes, then one closing line. Ends non-zero unless the job succeeded.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from airflow_provider_rayjobs.jobs import RayJobsClient
from sandbox.local_airflow import FINAL_STATES, LocalAirflow, texts_of
from sandbox.processes import end_on_signals
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]
DAG_ID, TASK_ID = "ray_jobs_nightly", "report"
PATIENCE = 150.0  # seconds that the task may take
OUTCOME = ROOT / "build" / "demo"


def main() -> int:
    """Run the demonstration and return its exit status."""
    end_on_signals()
    began = time.monotonic()
    OUTCOME.mkdir(parents=True, exist_ok=True)
    report = OUTCOME / "report.json"
    report.unlink(missing_ok=True)
    with ExitStack() as stack:
        say("Starting a Ray head ...")
        head = stack.enter_context(RayHead())
        say(f"Ray is up at {head.address}. Starting Airflow ...")
        airflow = stack.enter_context(LocalAirflow(ROOT / "example_dags", connection_to(head), paused=True))
        say(f"Airflow is up at {airflow.address}. Running {DAG_ID}; this is the log of its task {TASK_ID}:")
        run_id = airflow.trigger(DAG_ID, conf={"report": str(report)})
        state = show_log(airflow, run_id)
        (OUTCOME / "task.log").write_text(airflow.log_text(DAG_ID, run_id, TASK_ID))
        return close(airflow, head, run_id, state, report, time.monotonic() - began)


def show_log(airflow: LocalAirflow, run_id: str) -> str:
    """Print the task's log as it comes and return the task's final state."""
    shown: Counter[str] = Counter()
    deadline = time.monotonic() + PATIENCE
    while True:
        # The state first: what was logged before it became final is in the log that is read after it.
        state = str(airflow.task_instance(DAG_ID, run_id, TASK_ID)["state"])
        has_ended = state in ("up_for_retry", *FINAL_STATES)  # a retry would write a log of its own
        if has_ended or state == "running":
            show_new(airflow.log_records(DAG_ID, run_id, TASK_ID), shown)
        if has_ended or time.monotonic() > deadline:
            return state
        time.sleep(1)


def show_new(records: list[dict[str, Any]], shown: Counter[str]) -> None:
    """Print the records that were not shown before; what Airflow says about the log's places has no time and goes."""
    present: Counter[str] = Counter()
    for record in records:
        if not record.get("timestamp"):
            continue
        key = f"{record['timestamp']} {record['event']}"
        present[key] += 1
        if present[key] > shown[key]:
            shown[key] += 1
            for text in texts_of(record):
                say("\n".join(f"    | {line}" for line in text.split("\n")))


def close(airflow: LocalAirflow, head: RayHead, run_id: str, state: str, report: Path, seconds: float) -> int:
    """Print the closing line and return the exit status."""
    submission_id = airflow.xcoms(DAG_ID, run_id, TASK_ID).get("submission_id")
    if submission_id is None:
        say(f"FAILED: no job was submitted, the task is {state}; see {OUTCOME / 'task.log'}")
        return 1
    with RayJobsClient(head.address) as client:
        job = client.get_job(submission_id)  # Ray's word on its job, besides Airflow's
    succeeded = state == "success" and job.status == "SUCCEEDED" and report.is_file()
    say(
        f"Ray job {submission_id} {job.status} after {job.duration or 0:.1f} s (task {state}, all in all "
        f"{seconds:.0f} s): report in {shown_path(report)}, task log in {shown_path(OUTCOME / 'task.log')}"
    )
    return 0 if succeeded else 1


def shown_path(path: Path) -> str:
    """Return a path as short as it reads from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def say(sentence: str) -> None:
    """Print a sentence at once, also into a pipe."""
    print(sentence, flush=True)


if __name__ == "__main__":
    sys.exit(main())
