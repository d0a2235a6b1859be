"""
Measure how much triggers that follow jobs delay the other triggers of the same triggerer.

A probe trigger sleeps for 5 ms at a time, for 30 s, and measures how late it wakes up:

- ``no jobs``: it is the only trigger. This is the baseline.
- ``1 job``: one ``RayJobSubmitOperator`` is deferred. Its job prints 100 MB during the measurement and keeps running.
- ``50 jobs``: 50 tasks are deferred. Each of their jobs prints 100 lines per second.

At the same time, the same coroutine runs in a separate process that does nothing else. The machine causes its
delay, not the triggerer. Target: a p99 delay of at most 20 ms.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from benchmarks.event_loop_delay import measure_event_loop_delay
from benchmarks.printing_jobs import LINE, MB, log_directory, printing_entrypoint
from benchmarks.results import Result, Target
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]
SECONDS = 30.0


@dataclass(frozen=True)
class Load:
    """
    Deferred tasks in a DAG of their own.

    :param entrypoint: the entrypoint of each job. (templated)
    :param size: the bytes that all jobs together must print during the measurement.
    """

    dag_id: str
    name: str
    jobs: int
    entrypoint: str
    size: int


LOADS = (
    Load(
        "one_job",
        "1 job",
        1,
        "until [ -e {{ dag_run.conf['go'] }} ]; do sleep 0.2; done; " + printing_entrypoint(100 * MB, "sleep 3600"),
        100 * MB,
    ),
    Load(
        "many_jobs",
        "50 jobs",
        50,
        # printf is a shell builtin, so that 50 jobs use little CPU.
        f"""text=$(printf '%0{LINE - 1}d\\n' $(seq 100)); while true; do printf '%s\\n' "$text"; sleep 1; done""",
        int(50 * 100 * LINE * SECONDS * 0.8),
    ),
)
_TARGET = Target("value", "<=", 20)
# Seconds within which all tasks of a load must be deferred. Two cores start a job in 2 s.
_DEFER_TIMEOUT = 300.0
# Seconds from the start of the probe to the output of the single job. By then the worker of the probe task is gone.
_PRINT_DELAY = 5.0


def measure() -> list[Result]:
    """Probe an otherwise idle triggerer, then the same triggerer with each load."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PARALLELISM": "8",  # more parallel tasks only slow each other down on a small machine
    }
    with (
        RayHead() as head,
        LocalAirflow(
            ROOT / "benchmarks" / "dags", connection_to(head), settings, separate_execution_api=True
        ) as airflow,
    ):
        alone, machine = _probe(airflow)
        results = _results("no jobs", alone, machine, None)
        for load in LOADS:
            run_id = _defer(airflow, load)
            before = _printed(head)
            found, machine = _probe(airflow)
            _check(load, _states(airflow, load, run_id), _printed(head) - before)
            results += _results(load.name, found, machine, alone)
            airflow.api("PATCH", f"/dags/{load.dag_id}/dagRuns/{quote(run_id)}", json={"state": "failed"})
        return results


def _results(
    name: str, found: dict[str, float], machine: dict[str, float], alone: dict[str, float] | None
) -> list[Result]:
    baseline = alone or {}
    return [
        Result(f"p50 delay, {name}", found["p50"], "ms", baseline.get("p50")),
        Result(f"p99 delay, {name}", found["p99"], "ms", baseline.get("p99"), _TARGET if alone else None),
        Result(f"max delay, {name}", found["max"], "ms", baseline.get("max")),
        Result(f"p99 delay of a separate process, {name}", machine["p99"], "ms"),
    ]


def _defer(airflow: LocalAirflow, load: Load) -> str:
    """Start a load, wait until all of its tasks are deferred, and return the run id."""
    run_id = airflow.trigger(load.dag_id, {"go": str(_go(airflow))})
    deadline = time.monotonic() + _DEFER_TIMEOUT
    while (states := _states(airflow, load, run_id)) != ["deferred"] * load.jobs:
        if "failed" in states or time.monotonic() > deadline:
            raise RuntimeError(f"The tasks of {load.name} are {states}, not deferred.\n{airflow.output}")
        time.sleep(2)
    return run_id


def _probe(airflow: LocalAirflow) -> tuple[dict[str, float], dict[str, float]]:
    """Return the delay of the triggerer's event loop, and of an event loop in this process."""
    run_id = airflow.trigger("probe")
    airflow.wait_for_task("probe", run_id, "probe", ("deferred",))
    go = _go(airflow)
    machine = asyncio.run(_measure_machine(go))
    go.unlink()
    state = airflow.wait_for_task("probe", run_id, "probe")
    if state != "success":
        raise RuntimeError(f"The probe is {state}.\n{airflow.log_text('probe', run_id, 'probe')}")
    found: dict[str, float] = airflow.xcoms("probe", run_id, "probe")["return_value"]
    return found, machine


async def _measure_machine(go: Path) -> dict[str, float]:
    asyncio.get_running_loop().call_later(_PRINT_DELAY, go.touch)
    return await measure_event_loop_delay(SECONDS)


def _check(load: Load, states: list[str], printed: int) -> None:
    """Raise an error if the load was too small, because the result would be meaningless."""
    if set(states) != {"deferred"}:
        raise RuntimeError(f"The tasks of {load.name} did not stay deferred during the measurement: {states}.")
    if printed < load.size:
        raise RuntimeError(f"{load.name}: {printed} of {load.size} bytes were printed during the measurement.")


def _states(airflow: LocalAirflow, load: Load, run_id: str) -> list[str]:
    return [str(task["state"]) for task in airflow.task_instances(load.dag_id, run_id)]


def _go(airflow: LocalAirflow) -> Path:
    """Return the path of the file that the single job waits for before it prints."""
    return airflow.home / "go"


def _printed(head: RayHead) -> int:
    return sum(path.stat().st_size for path in log_directory(head).glob("job-driver-*.log"))
