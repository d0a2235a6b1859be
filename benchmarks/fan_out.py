"""
Measure mapped deferrable tasks in a real Airflow on a real Ray head: where their time goes, and what the head notices.

- ``50 jobs`` all run at the same time. How long ``/api/version`` takes is measured from when all run until the first
  one ends, and how many connections the triggerer has to the head. Baseline: 50 such jobs that no task follows.
- ``brief jobs`` of 1 to 30 s, one after the other: how much longer the task takes than its job, and how many seconds it
  occupies a worker, with ``defer_after``. Baseline: the task is deferred at once.
- ``200 jobs`` of 1 to 60 s. The time from the start of the DAG run to the end of each task is split into its parts.

The values are medians and maxima over the tasks. Targets: every task succeeds with one job, ``/api/version`` takes at
most 100 ms at p99 while the jobs are followed, and the triggerer has at most 8 connections.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import psutil
from pendulum import parse

from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, RayJobsClient
from benchmarks.results import Result, Target
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]
INTERVAL = 5.0
MAX_TASKS = 200
# Jobs that run at the same time, and how long: two cores start a task and its job in 3 to 6 s.
TOGETHER, TOGETHER_SECONDS = 50, 420
SHORT_JOBS = [1 + 59 * number // 199 for number in range(200)]
# Jobs that run alone, in seconds, and what ``defer_after`` is for them.
BRIEF_JOBS = (1, 5, 12, 30)
DEFER_AFTER = (0, 10, 20)
_TIMEOUT = 3_000.0
_PROBE_PAUSE = 0.1


@dataclass
class Probe:
    """The times of the head's answers to ``/api/version`` in milliseconds, and the most connections of a triggerer."""

    answers: list[float] = field(default_factory=list)
    most_connections: int = 0

    def p99(self) -> float:
        return sorted(self.answers)[int(len(self.answers) * 0.99)]


def measure() -> list[Result]:
    """Measure jobs that no task follows, brief jobs, and both loads."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PARALLELISM": "8",  # more parallel tasks only slow each other down on a small machine
    }
    with RayHead() as head, RayJobsClient(head.address) as client:
        alone = _measure_unfollowed(head, client)
        with LocalAirflow(
            ROOT / "benchmarks" / "dags", connection_to(head), settings, separate_execution_api=True
        ) as airflow:
            results = _measure_brief(airflow)
            results += _measure_together(airflow, head, client, alone)
            results += _measure_short(airflow, head, client)
    return results


def _measure_unfollowed(head: RayHead, client: RayJobsClient) -> Probe:
    jobs = [client.submit_job(f"sleep {TOGETHER_SECONDS}") for _ in range(TOGETHER)]
    _wait(lambda: _count(client, JobStatus.RUNNING) == TOGETHER)
    with _probe(head, None) as probe:
        time.sleep(60)
    for job in jobs:
        client.stop_job(job)
    _wait(lambda: _count(client, JobStatus.RUNNING) == 0)
    return probe


def _measure_brief(airflow: LocalAirflow) -> list[Result]:
    run_id = airflow.trigger("brief")
    airflow.wait_for_run("brief", run_id, _TIMEOUT)
    results: list[Result] = []
    for number, seconds in enumerate(BRIEF_JOBS):
        baseline: dict[str, float] = {}
        for place, defer_after in enumerate(DEFER_AFTER):
            index = len(DEFER_AFTER) * number + place
            task = airflow.task_instance("brief", run_id, "job", index)
            whole = _seconds(task["end_date"]) - _seconds(task["start_date"])
            figures = {"longer than its job": whole - seconds, "on a worker": whole - _deferred(airflow, run_id, index)}
            results += [
                Result(f"{figure}, job of {seconds} s, defer_after={defer_after}", value, "s", baseline.get(figure))
                for figure, value in figures.items()
            ]
            baseline = baseline or figures
    return results


def _deferred(airflow: LocalAirflow, run_id: str, map_index: int) -> float:
    """Return the seconds between the deferral of a task and the event of its trigger; 0 if it was not deferred."""
    paused = _time_in_log(airflow, "brief", run_id, map_index, "Pausing task as DEFERRED")
    return 0.0 if paused is None else (_fired_at(airflow, "brief", run_id, map_index) or paused) - paused


def _measure_together(airflow: LocalAirflow, head: RayHead, client: RayJobsClient, alone: Probe) -> list[Result]:
    run_id = airflow.trigger("fan_out", {"seconds": [TOGETHER_SECONDS] * TOGETHER})
    with _probe(head, airflow) as whole:
        _wait(lambda: _count(client, JobStatus.RUNNING) == TOGETHER)
        with _probe(head, airflow) as following:
            _wait(lambda: _count(client, JobStatus.RUNNING) < TOGETHER, pause=10)
        airflow.wait_for_run("fan_out", run_id, _TIMEOUT)
    name = f"{TOGETHER} jobs"
    return [
        Result(
            f"/api/version p99 while followed, {name}", following.p99(), "ms", alone.p99(), Target("value", "<=", 100)
        ),
        Result(f"/api/version p99 with starts and ends, {name}", whole.p99(), "ms"),
        Result(f"connections of the triggerer, {name}", whole.most_connections, "", None, Target("value", "<=", 8)),
        *_parts(airflow, client, run_id, name, TOGETHER),
    ]


def _measure_short(airflow: LocalAirflow, head: RayHead, client: RayJobsClient) -> list[Result]:
    with _probe(head, airflow) as probe:
        run_id = airflow.trigger("fan_out", {"seconds": SHORT_JOBS})
        airflow.wait_for_run("fan_out", run_id, _TIMEOUT)
    name = f"{len(SHORT_JOBS)} jobs"
    return [
        Result(f"connections of the triggerer, {name}", probe.most_connections, "", None, Target("value", "<=", 8)),
        *_parts(airflow, client, run_id, name, len(SHORT_JOBS)),
    ]


def _parts(airflow: LocalAirflow, client: RayJobsClient, run_id: str, name: str, number: int) -> list[Result]:
    """Return how many tasks succeeded with one job, and the parts of their time in seconds."""
    started = _seconds(airflow.api("GET", f"/dags/fan_out/dagRuns/{run_id}")["start_date"])
    path = f"/dags/fan_out/dagRuns/{run_id}/taskInstances/job/listMapped"
    tasks = airflow.api("GET", path, params={"limit": MAX_TASKS})["task_instances"]
    jobs: dict[int, list[JobDetails]] = {}
    for job in client.list_jobs():
        if (job.metadata or {}).get("airflow_run_id") == run_id:
            jobs.setdefault(int(job.metadata["airflow_map_index"]), []).append(job)
    parts: dict[str, list[float]] = {}
    good = 0
    for task in tasks:
        index = task["map_index"]
        if task["state"] != "success" or len(jobs.get(index, ())) != 1:
            continue
        good += 1
        [job] = jobs[index]
        fired = _fired_at(airflow, "fan_out", run_id, index)
        assert fired is not None
        assert job.start_time is not None
        assert job.end_time is not None
        times = {
            "waits for a worker": _seconds(task["start_date"]),
            "worker starts and submits": job.start_time / 1000,
            "job starts, sleeps and ends": job.end_time / 1000,
            "end is noticed": fired,
            "Airflow resumes the task": _seconds(task["end_date"]),
        }
        before = started
        for part, at in times.items():
            parts.setdefault(part, []).append(at - before)
            before = at
    return [
        Result(f"successes with one job, {name}", good, "", None, Target("value", ">=", number)),
        *(
            Result(f"{part}, {figure}, {name}", of(values), "s")
            for part, values in parts.items()
            for figure, of in (("median", median), ("maximum", max))
        ),
        Result(f"the whole run, {name}", max(_seconds(task["end_date"]) for task in tasks) - started, "s"),
    ]


def _fired_at(airflow: LocalAirflow, dag_id: str, run_id: str, map_index: int) -> float | None:
    return _time_in_log(airflow, dag_id, run_id, map_index, "Trigger fired event")


def _time_in_log(airflow: LocalAirflow, dag_id: str, run_id: str, map_index: int, beginning: str) -> float | None:
    """Return when a task logged a message with this beginning."""
    for record in airflow.log_records(dag_id, run_id, "job", map_index=map_index):
        if str(record["event"]).startswith(beginning):
            return _seconds(record["timestamp"])
    return None


def _seconds(text: str) -> float:
    return float(parse(text).timestamp())  # type: ignore[union-attr]


@contextmanager
def _probe(head: RayHead, airflow: LocalAirflow | None) -> Iterator[Probe]:
    """Ask the head for its version all the time, and count connections."""
    probe = Probe()
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=head.address, timeout=60) as client:
            client.get("/api/version")
            while not is_over.wait(_PROBE_PAUSE):
                began = time.perf_counter()
                client.get("/api/version").raise_for_status()
                probe.answers.append(1000 * (time.perf_counter() - began))
                if airflow is not None and len(probe.answers) % 5 == 0:
                    probe.most_connections = max(probe.most_connections, _connections(airflow, head.port))

    thread = threading.Thread(target=ask, name="probe")
    thread.start()
    try:
        yield probe
    finally:
        is_over.set()
        thread.join()


def _connections(airflow: LocalAirflow, port: int) -> int:
    """Return how many connections the triggerer has to a port, as the operating system knows them."""
    count = 0
    for process in airflow.processes("triggerer"):
        with suppress(psutil.Error):
            found = process.net_connections("tcp")
            count += sum(bool(each.raddr) and each.raddr.port == port for each in found)
    return count


def _count(client: RayJobsClient, status: JobStatus) -> int:
    return sum(job.status == status for job in client.list_jobs())


def _wait(is_over: Callable[[], bool], pause: float = 2.0) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not is_over():
        if time.monotonic() > deadline:
            raise RuntimeError(f"The jobs did not get so far within {_TIMEOUT:.0f} s.")
        time.sleep(pause)
