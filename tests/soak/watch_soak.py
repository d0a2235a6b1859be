"""
Triggers that come and go for minutes, on one event loop: ``python watch_soak.py PORT PORT SECONDS SEED``.

Each port is that of a stand-in head (:mod:`benchmarks.stand_in_head`). The rounds of the two heads overlap, so that
triggers join while others leave. In a round, triggers join at random, are cancelled at random, and their jobs end. In
half of the rounds the head is slow or fails for a few seconds. Prints the JSON of a :class:`Result`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import psutil

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.triggers import RayJobTrigger

# Jobs of a round, and its parts in seconds: triggers join, then jobs end.
JOBS, JOINING, ENDING = 150, 15.0, 15.0
# What a head does in a round, for some seconds of it.
TROUBLES: tuple[dict[str, float], ...] = ({}, {}, {"latency": 0.5}, {"fails": 6.0})


@dataclass
class Result:
    """
    :param ended: triggers that reported the end of their job.
    :param cancelled: triggers that were cancelled while they followed a job.
    :param failed: events of the others.
    :param memory: the memory of the process in MB, each 5 s.
    :param leftovers: tasks, connections and shared clients at the end.
    """

    ended: int = 0
    cancelled: int = 0
    failed: list[Any] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


async def run(ports: list[int], seconds: float, rng: random.Random) -> Result:
    """Run rounds with both heads for at least the given time."""
    result = Result()
    until = time.monotonic() + seconds
    measurement = asyncio.create_task(_measure_memory(result))
    await asyncio.gather(
        *(_run_rounds(port, until, rng, result, delay) for port, delay in zip(ports, (0.0, JOINING), strict=True))
    )
    measurement.cancel()
    await asyncio.gather(measurement, return_exceptions=True)
    await asyncio.sleep(1)  # the last client is closed in the background
    result.leftovers = _leftovers(ports)
    return result


async def _run_rounds(port: int, until: float, rng: random.Random, result: Result, delay: float) -> None:
    await asyncio.sleep(delay)
    conn_id = f"head_{port}"
    os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(
        {"conn_type": "ray_jobs", "host": f"http://127.0.0.1:{port}"}
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as control:
        while time.monotonic() < until:
            trouble = rng.choice(TROUBLES)
            setup = {
                "jobs": JOBS, "old": 300, "end_at": time.time() + JOINING, "end_over": ENDING,
                "latency": trouble.get("latency", 0.0), "fails_until": time.time() + trouble.get("fails", 0.0),
            }  # fmt: skip
            (await control.post("/stand-in", json=setup)).raise_for_status()
            await asyncio.gather(*(_follow(conn_id, number, rng, result) for number in range(JOBS)))


async def _follow(conn_id: str, number: int, rng: random.Random, result: Result) -> None:
    """Follow one job with a trigger, as a triggerer does."""
    await asyncio.sleep(rng.uniform(0, JOINING))
    logs = LogOptions().to_json() if rng.random() < 0.5 else None
    trigger = RayJobTrigger(f"job-{number}", conn_id, rng.choice((1.0, 2.0, 5.0)), unreachable_timeout=120, logs=logs)
    following = asyncio.create_task(_events(trigger))
    if rng.random() < 0.15:
        await asyncio.wait([following], timeout=rng.uniform(0, JOINING))
        if following.cancel():
            await asyncio.gather(following, return_exceptions=True)
            result.cancelled += 1
            return
    [event] = await following
    if event.get("job") is not None:
        result.ended += 1
    else:
        result.failed.append(event)


async def _events(trigger: RayJobTrigger) -> list[dict[str, Any]]:
    return [event.payload async for event in trigger.run()]


async def _measure_memory(result: Result) -> None:
    while True:
        await asyncio.sleep(5)
        gc.collect()
        result.memory.append(psutil.Process().memory_info().rss / 1e6)


def _leftovers(ports: list[int]) -> list[str]:
    tasks = [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    connections = [
        repr(each)
        for each in psutil.Process().net_connections("tcp")
        if each.raddr and each.raddr.port in ports and each.status != "TIME_WAIT"
    ]
    shared = [repr(client) for client in triggers._shared[asyncio.get_running_loop()].values()]
    return tasks + connections + shared


if __name__ == "__main__":
    *ports, seconds, seed = sys.argv[1:]
    print(json.dumps(asdict(asyncio.run(run([*map(int, ports)], float(seconds), random.Random(seed))))))  # noqa: S311
