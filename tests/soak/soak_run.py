"""Run many jobs in one Airflow on one Ray head, through the cutting proxy, and collect their results."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from cutting_proxy import CuttingProxy
from job_programs import JOB_PROGRAMS, JobProgram
from log_comparison import find_difference

from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

MODES = ("worker", "deferred")
# The logger of the job's own lines. Other records come from the operator, the trigger or Airflow.
JOB_LOGGER = "airflow.task.ray_job"
# Seconds until the DAG run must have ended: a fixed part, and a part for each job.
RUN_TIMEOUT, RUN_TIMEOUT_PER_JOB = 240.0, 15.0
_PAGE = 100


@dataclass
class SoakJob:
    """
    One job, its task, and the results of both.

    :param number: the index among all jobs.
    :param seed: of the whole run.
    :param state: the task's final state.
    :param statuses: the final statuses of all Ray jobs that the task submitted.
    :param folder: contains the copied logs.
    """

    number: int
    seed: int
    state: str | None = None
    statuses: list[str] = field(default_factory=list)
    folder: Path = field(default_factory=Path)

    @property
    def mode(self) -> str:
        return MODES[self.number % 2]

    @property
    def program(self) -> JobProgram:
        return JOB_PROGRAMS[self.number // 2 % len(JOB_PROGRAMS)]

    @property
    def map_index(self) -> int:
        return self.number // 2

    @property
    def name(self) -> str:
        """The test id, and the ``submission_id`` that the task is given."""
        return f"soak-{self.seed}-{self.number:03}-{self.program.name}-{self.mode}"

    @property
    def submission_id(self) -> str:
        """The id of the job: the operator adds the map index."""
        return f"{self.name}-m{self.map_index}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The operator's arguments."""
        return {
            "submission_id": self.name,
            "entrypoint": self.program.entrypoint(self.seed * 1_000 + self.number),
        }

    def copy_logs(self, folder: Path, driver_log: Path, task_logs: Path) -> None:
        """Copy the driver's log and Airflow's log files of the task's only try."""
        self.folder = folder / self.name
        self.folder.mkdir()
        if driver_log.exists():
            shutil.copy(driver_log, self.folder / "driver.log")
        for file in task_logs.glob("attempt=1.log*"):
            shutil.copy(file, self.folder)

    def records(self) -> list[dict[str, Any]]:
        """
        Return the log records of the task's only try.

        The triggerer writes files of its own. They come first, because the worker logs nothing of the job's log before
        it defers the task.
        """
        files = [records for file in self.folder.glob("attempt=1.log.trigger.*") if (records := _read_records(file))]
        files.sort(key=lambda records: _time_of(records[0]))
        return [record for records in [*files, _read_records(self.folder / "attempt=1.log")] for record in records]

    def job_log_records(self) -> list[dict[str, Any]]:
        """Return the records of the job's own log."""
        return [record for record in self.records() if record.get("logger") == JOB_LOGGER]

    def find_difference(self) -> str:
        """Return how the job's log in Airflow differs from the driver's log on the head; empty if it does not."""
        driver_log = self.folder / "driver.log"
        if not driver_log.exists():
            return f"{self.name}: the head has no log file of this job"
        shown = self.job_log_records()
        difference = find_difference(
            driver_log.read_bytes().decode("utf-8", errors="replace"), [str(record["event"]) for record in shown]
        )
        times = [_time_of(record) for record in shown]
        if not difference and times != sorted(times):
            difference = "the records are in order, but their times are not: the web UI would show another order"
        return f"{self.report()}\n{difference}" if difference else ""

    def report(self) -> str:
        """Return the job's parameters and results, and the last log records that are not the job's own."""
        messages = [
            f"{record.get('timestamp')} {record.get('level')}: {str(record['event'])[:500]}"
            for record in self.records()
            if record.get("logger") != JOB_LOGGER
        ]
        summary = (
            f"{self.name}: program {self.program.name}, job {self.number}, seed {self.seed}; task {self.mode}"
            f"[{self.map_index}] ended {self.state}, jobs {self.statuses}; its logs are in {self.folder}"
        )
        return "\n  ".join([summary, *messages[-40:]])


@dataclass
class SoakResult:
    """
    The results of all jobs, and what the proxy did.

    :param outcomes: how many requests had which outcome, see :class:`cutting_proxy.RequestPlan`.
    :param log_reads: how many requests read a log.
    :param logs_cut: how many of them were cut within the bytes of the log.
    """

    jobs: list[SoakJob]
    seed: int
    outcomes: Counter[str]
    log_reads: int
    logs_cut: int


def run_soak_jobs(number_of_jobs: int, seed: int, folder: Path) -> SoakResult:
    """Run jobs to their ends and collect their results."""
    jobs = [SoakJob(number, seed) for number in range(number_of_jobs)]
    jobs_file = folder / "jobs.json"
    jobs_file.write_text(json.dumps({mode: [job.arguments for job in jobs if job.mode == mode] for mode in MODES}))
    settings = {
        "SOAK_JOBS_FILE": str(jobs_file),
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
    }
    with RayHead(num_cpus=16) as head, CuttingProxy(head.port, seed) as proxy:
        connection: dict[str, Any] = {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": proxy.port}
        connections = {"ray_jobs_default": connection}
        with LocalAirflow(
            Path(__file__).parent / "dags", connections, settings, separate_execution_api=True
        ) as airflow:
            run_id = airflow.trigger("soak")
            airflow.wait_for_run("soak", run_id, timeout=RUN_TIMEOUT + RUN_TIMEOUT_PER_JOB * number_of_jobs)
            states = _task_states(airflow, run_id)
            statuses = _job_statuses(head)
            for job in jobs:
                job.state = states.get((job.mode, job.map_index))
                job.statuses = [status for name, status in statuses if name.startswith(job.submission_id)]
                job.copy_logs(
                    folder,
                    head.directory / "session_latest" / "logs" / f"job-driver-{job.submission_id}.log",
                    airflow.home / "logs" / "dag_id=soak" / f"run_id={run_id}" / f"task_id={job.mode}"
                    / f"map_index={job.map_index}",
                )  # fmt: skip
        return SoakResult(jobs, seed, proxy.outcomes, proxy.log_reads, proxy.logs_cut)


def _task_states(airflow: LocalAirflow, run_id: str) -> dict[tuple[str, int], str]:
    """Return the states of all task instances, from all pages of Airflow's answer."""
    states: dict[tuple[str, int], str] = {}
    while True:
        page = airflow.api(
            "GET", f"/dags/soak/dagRuns/{run_id}/taskInstances", params={"limit": _PAGE, "offset": len(states)}
        )["task_instances"]
        states |= {(one["task_id"], one["map_index"]): one["state"] for one in page}
        if len(page) < _PAGE:
            return states


def _job_statuses(head: RayHead) -> list[tuple[str, str]]:
    """Return submission id and status of every job of the head, requested directly."""
    response = httpx.get(f"{head.address}/api/jobs/", timeout=60)
    return [(job["submission_id"], job["status"]) for job in response.json() if job["type"] == "SUBMISSION"]


def _read_records(file: Path) -> list[dict[str, Any]]:
    """Return the records of one of Airflow's log files, which has one JSON document in each line."""
    return [json.loads(line) for line in file.read_bytes().split(b"\n") if line] if file.exists() else []


def _time_of(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(record["timestamp"])
