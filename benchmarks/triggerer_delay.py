"""
What following jobs does to everybody else's triggers: the delay of an unrelated coroutine in a real triggerer.

A probe, a trigger of its own, wants to wake up every 5 ms for 30 s. Its delay is measured

- ``one job``: with one deferred ``RayJobSubmitOperator``, whose job prints 100 MB while the probe looks and
  then runs on;
- ``50 jobs``: with 50 of them, whose jobs print 100 lines a second each,

beside the same probe with no other trigger. ``machine`` is the same coroutine in a process that does nothing else, at
the same time: what it is late is the machine's doing. Wanted: p99 of at most 20 ms.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from benchmarks.lateness import lateness
from benchmarks.printing import LINE, MB, entrypoint, logs
from benchmarks.results import Result, Wanted
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]
SECONDS = 30.0


@dataclass(frozen=True)
class Load:
    """
    Deferred tasks, in a DAG of their own.

    :param entrypoint: of each job. (templated)
    :param size: bytes that all of them together print at least while the probe looks.
    """

    dag_id: str
    name: str
    jobs: int
    entrypoint: str
    size: int


LOADS = (
    Load(
        "one_job",
        "one job",
        1,
        "until [ -e {{ dag_run.conf['go'] }} ]; do sleep 0.2; done; " + entrypoint(100 * MB, "sleep 3600"),
        100 * MB,
    ),
    Load(
        "many_jobs",
        "50 jobs",
        50,
        # the shell itself prints, so that 50 of them cost nothing to speak of
        f"""text=$(printf '%0{LINE - 1}d\\n' $(seq 100)); while true; do printf '%s\\n' "$text"; sleep 1; done""",
        int(50 * 100 * LINE * SECONDS * 0.8),
    ),
)
_LIMIT = Wanted("value", "<=", 20)
# Seconds in which all tasks of a load are deferred: two cores start a job in 2 s.
_PATIENCE = 300.0
# Seconds of the probe before the one job prints: then the worker that deferred the probe is gone.
_CALM = 5.0


def measure() -> list[Result]:
    """Probe an idle triggerer, then one with each of the loads."""
    settings = {
        "PYTHONPATH": str(ROOT),
        "AIRFLOW__CORE__PARALLELISM": "8",  # more would only wait for each other on a small machine
    }
    with (
        RayHead() as head,
        LocalAirflow(
            ROOT / "benchmarks" / "dags", connection_to(head), settings, separate_execution_api=True
        ) as airflow,
    ):
        alone, machine = _probe(airflow)
        results = _results("alone", alone, machine, None)
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
    beside = alone or {}
    return [
        Result(f"p50, {name}", found["p50"], "ms", beside.get("p50")),
        Result(f"p99, {name}", found["p99"], "ms", beside.get("p99"), _LIMIT if alone else None),
        Result(f"max, {name}", found["max"], "ms", beside.get("max")),
        Result(f"p99 of the machine, {name}", machine["p99"], "ms"),
    ]


def _defer(airflow: LocalAirflow, load: Load) -> str:
    """Start a load, wait until all of its tasks are deferred, and return its run id."""
    run_id = airflow.trigger(load.dag_id, {"go": str(_go(airflow))})
    deadline = time.monotonic() + _PATIENCE
    while (states := _states(airflow, load, run_id)) != ["deferred"] * load.jobs:
        if "failed" in states or time.monotonic() > deadline:
            raise RuntimeError(f"the tasks of {load.name} are {states}, not deferred\n{airflow.output}")
        time.sleep(2)
    return run_id


def _probe(airflow: LocalAirflow) -> tuple[dict[str, float], dict[str, float]]:
    """Return how late the triggerer's event loop was, and one of this process."""
    run_id = airflow.trigger("probe")
    airflow.wait_for_task("probe", run_id, "probe", ("deferred",))
    go = _go(airflow)
    machine = asyncio.run(_watch_machine(go))
    go.unlink()
    state = airflow.wait_for_task("probe", run_id, "probe")
    if state != "success":
        raise RuntimeError(f"the probe is {state}\n{airflow.log_text('probe', run_id, 'probe')}")
    found: dict[str, float] = airflow.xcoms("probe", run_id, "probe")["return_value"]
    return found, machine


async def _watch_machine(go: Path) -> dict[str, float]:
    asyncio.get_running_loop().call_later(_CALM, go.touch)
    return await lateness(SECONDS)


def _check(load: Load, states: list[str], printed: int) -> None:
    """Refuse a load that was none: the figure would mean nothing."""
    if set(states) != {"deferred"}:
        raise RuntimeError(f"the tasks of {load.name} did not stay deferred while the probe looked: {states}")
    if printed < load.size:
        raise RuntimeError(f"{load.name} printed {printed} of {load.size} bytes while the probe looked")


def _states(airflow: LocalAirflow, load: Load, run_id: str) -> list[str]:
    return [str(task["state"]) for task in airflow.task_instances(load.dag_id, run_id)]


def _go(airflow: LocalAirflow) -> Path:
    """Return the file whose coming lets the one job print."""
    return airflow.home / "go"


def _printed(head: RayHead) -> int:
    return sum(path.stat().st_size for path in logs(head).glob("job-driver-*.log"))
