"""Many jobs through one Airflow and the cutting proxy on one Ray head, and what came of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from comparison import difference
from cutting_proxy import CuttingProxy
from kinds import KINDS, Kind

from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

MODES = ("worker", "deferred")
# The logger of a job's log; other records are ours or Airflow's.
JOB_LOGGER = "airflow.task.ray_job"
# Seconds in which the run must be over: so many to begin with, and so many for each job.
PATIENCE, PATIENCE_FOR_A_JOB = 240.0, 15.0
_PAGE = 100


@dataclass
class SoakJob:
    """
    One job, its task, and what came of both.

    :param number: among all jobs.
    :param seed: of the whole suite.
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
    def kind(self) -> Kind:
        return KINDS[self.number // 2 % len(KINDS)]

    @property
    def map_index(self) -> int:
        return self.number // 2

    @property
    def name(self) -> str:
        """The job's submission id, too."""
        return f"soak-{self.seed}-{self.number:03}-{self.kind.name}-{self.mode}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the operator is given for it."""
        return {
            "submission_id": self.name,
            "entrypoint": self.kind.entrypoint(self.seed * 1_000 + self.number),
        }

    def keep(self, folder: Path, log: Path, task_logs: Path) -> None:
        """Keep the driver's log and all that Airflow wrote of the task."""
        self.folder = folder / self.name
        self.folder.mkdir()
        if log.exists():
            shutil.copy(log, self.folder / "driver.log")
        for part in task_logs.glob("attempt=1.log*"):
            shutil.copy(part, self.folder)

    def records(self) -> list[dict[str, Any]]:
        """
        Return what Airflow wrote of the task's only try.

        The triggerer writes files of its own. What a worker writes before it hands a task over holds nothing of the
        job's log, so that the triggerer's come first.
        """
        parts = [records for part in self.folder.glob("attempt=1.log.trigger.*") if (records := _read(part))]
        parts.sort(key=lambda records: _time_of(records[0]))
        return [record for part in [*parts, _read(self.folder / "attempt=1.log")] for record in part]

    def shown(self) -> list[dict[str, Any]]:
        """Return the records of the job's own log."""
        return [record for record in self.records() if record.get("logger") == JOB_LOGGER]

    def difference(self) -> str:
        """Return how the job's log in Airflow differs from the one on the head's disk; empty if it does not."""
        printed = self.folder / "driver.log"
        if not printed.exists():
            return f"{self.name}: the head has no such log"
        shown = self.shown()
        told = difference(
            printed.read_bytes().decode("utf-8", errors="replace"), [str(record["event"]) for record in shown]
        )
        times = [_time_of(record) for record in shown]
        if not told and times != sorted(times):
            told = "the records are in order, but their times are not: the web UI would show them otherwise"
        return f"{self.story()}\n{told}" if told else ""

    def story(self) -> str:
        """Say which job this is, and what we and Airflow said of it."""
        said = [
            f"{record.get('timestamp')} {record.get('level')}: {str(record['event'])[:500]}"
            for record in self.records()
            if record.get("logger") != JOB_LOGGER
        ]
        head = (
            f"{self.name}: kind {self.kind.name}, job {self.number}, seed {self.seed}; task {self.mode}"
            f"[{self.map_index}] ended {self.state}, jobs {self.statuses}; its files are in {self.folder}"
        )
        return "\n  ".join([head, *said[-40:]])


@dataclass
class Soaked:
    """What came of all jobs."""

    jobs: list[SoakJob]
    seed: int
    fates: Counter[str]
    log_reads: int
    logs_cut: int


def soak(number: int, seed: int, folder: Path) -> Soaked:
    """Run so many jobs to their ends and keep what came of them."""
    jobs = [SoakJob(each, seed) for each in range(number)]
    plan = folder / "jobs.json"
    plan.write_text(json.dumps({mode: [job.arguments for job in jobs if job.mode == mode] for mode in MODES}))
    settings = {
        "SOAK_JOBS_FILE": str(plan),
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
            airflow.wait_for_run("soak", run_id, timeout=PATIENCE + PATIENCE_FOR_A_JOB * number)
            states = _states(airflow, run_id)
            statuses = _statuses(head)
            for job in jobs:
                job.state = states.get((job.mode, job.map_index))
                job.statuses = [status for name, status in statuses if name.startswith(job.name)]
                job.keep(
                    folder,
                    head.directory / "session_latest" / "logs" / f"job-driver-{job.name}.log",
                    airflow.home / "logs" / "dag_id=soak" / f"run_id={run_id}" / f"task_id={job.mode}"
                    / f"map_index={job.map_index}",
                )  # fmt: skip
        return Soaked(jobs, seed, proxy.fates, proxy.log_reads, proxy.logs_cut)


def _states(airflow: LocalAirflow, run_id: str) -> dict[tuple[str, int], str]:
    """Return the states of all task instances; Airflow tells them in pages."""
    states: dict[tuple[str, int], str] = {}
    while True:
        page = airflow.api(
            "GET", f"/dags/soak/dagRuns/{run_id}/taskInstances", params={"limit": _PAGE, "offset": len(states)}
        )["task_instances"]
        states |= {(one["task_id"], one["map_index"]): one["state"] for one in page}
        if len(page) < _PAGE:
            return states


def _statuses(head: RayHead) -> list[tuple[str, str]]:
    """Return submission id and status of every job that the head has run, asked past the proxy."""
    answer = httpx.get(f"{head.address}/api/jobs/", timeout=60)
    return [(job["submission_id"], job["status"]) for job in answer.json() if job["type"] == "SUBMISSION"]


def _read(part: Path) -> list[dict[str, Any]]:
    """Return the records of one of Airflow's log files; each line is one, in JSON."""
    return [json.loads(line) for line in part.read_bytes().split(b"\n") if line] if part.exists() else []


def _time_of(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(record["timestamp"])
