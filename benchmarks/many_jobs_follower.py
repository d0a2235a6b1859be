"""
One event loop that follows many jobs, and measures itself: ``python -m benchmarks.many_jobs_follower CASE``.

``CASE`` is the JSON of a :class:`Case`. The result, printed as JSON, is that of :func:`_follow`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.triggers import RayJobTrigger
from benchmarks.event_loop_delay import measure_event_loop_delay

INTERVAL = 5.0
# Seconds without an answer after which a job counts as unreachable, as in the trigger's own options here.
UNREACHABLE = 120.0
# Seconds in which the followers start.
RAMP = 10.0


@dataclass(frozen=True)
class Case:
    """
    What is followed, and how.

    :param way: ``watch`` for this package's triggers, ``naive`` for one request per job and interval.
    :param fails: seconds for which the head answers 503 in the middle.
    :param warm_up: seconds before the measurement.
    :param wait: most seconds from the last end to the last event.
    """

    way: str
    port: int
    jobs: int
    old: int = 0
    latency: float = 0.0
    fails: float = 0.0
    logs: bool = False
    warm_up: float = 30.0
    measured: float = 40.0
    wait: float = 90.0


async def main(case: Case) -> None:
    address = f"http://127.0.0.1:{case.port}"
    os.environ["AIRFLOW_CONN_MANY"] = json.dumps({"conn_type": "ray_jobs", "host": address})
    print(json.dumps(await _follow(case, address)), flush=True)
    os._exit(0)  # to cancel thousands of requests that wait in httpx takes minutes


async def _follow(case: Case, address: str) -> dict[str, float]:
    """Follow jobs until all have ended. Return CPU time, memory, delays and how many ends were reported."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as control:

        async def set_up(**given: Any) -> dict[str, float]:
            figures: dict[str, float] = (await control.post("/stand-in", json=given)).json()
            return figures

        await set_up(jobs=case.jobs, old=case.old, latency=case.latency)
        follow = _watch() if case.way == "watch" else _naive(address)
        process = psutil.Process()
        await _settle(follow, case)
        gc.collect()
        memory = process.memory_info().rss
        ends: dict[int, float] = {}

        async def note(number: int) -> None:
            await asyncio.sleep(RAMP * number / case.jobs)
            if await follow(f"job-{number}", case.logs):
                ends[number] = time.time()

        followers = [asyncio.create_task(note(number)) for number in range(case.jobs)]
        await asyncio.sleep(RAMP + case.warm_up)
        if case.fails:
            await set_up(fails_until=time.time() + case.fails)
            await asyncio.sleep(case.fails + 1)
        gc.collect()
        memory = process.memory_info().rss - memory
        before, cpu, began = await set_up(), time.process_time(), time.perf_counter()
        delay = await measure_event_loop_delay(case.measured)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        after = await set_up()
        end_at, end_over = time.time() + 1, 5.0
        await set_up(end_at=end_at, end_over=end_over)
        await asyncio.wait(followers, timeout=end_over + case.wait)
        late = sorted(at - end_at - end_over * number / case.jobs for number, at in ends.items())
        asked = sum(after[kind] - before[kind] for kind in ("status", "list"))
        return {
            "reported": len(late),
            "cpu": 100 * cpu / seconds,
            "requests": asked / seconds,
            "log reads": (after["log"] - before["log"]) / seconds,
            "busy": 100 * (after["busy_seconds"] - before["busy_seconds"]) / seconds,
            "p50": delay["p50"],
            "p99": delay["p99"],
            "memory": memory / 1000 / case.jobs,
            "median end": late[len(late) // 2] if late else float("nan"),
            "last end": late[-1] if late else float("nan"),
            "connections": after["most_connections"],
        }


async def _settle(follow: Callable[[str, bool], Awaitable[bool]], case: Case) -> None:
    """Follow one job for a moment, so that all modules are imported before the memory is measured."""
    task = asyncio.ensure_future(follow("job-0", case.logs))
    await asyncio.sleep(3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _watch() -> Callable[[str, bool], Awaitable[bool]]:
    async def follow(job: str, logs: bool) -> bool:
        trigger = RayJobTrigger(
            job, "many", INTERVAL, unreachable_timeout=UNREACHABLE, logs=LogOptions().to_json() if logs else None
        )
        return any([event.payload.get("job") is not None async for event in trigger.run()])

    return follow


def _naive(address: str) -> Callable[[str, bool], Awaitable[bool]]:
    client = httpx.AsyncClient(base_url=address, timeout=30)

    async def follow(job: str, logs: bool) -> bool:  # noqa: ARG001  (as the other one)
        since = time.monotonic()
        while time.monotonic() < since + UNREACHABLE:
            try:
                answer = await client.get(f"/api/jobs/{job}")
                answer.raise_for_status()
            except httpx.HTTPError:
                pass
            else:
                since = time.monotonic()
                if answer.json()["status"] == "SUCCEEDED":
                    return True
            await asyncio.sleep(random.uniform(0.8, 1) * INTERVAL)
        return False

    return follow


if __name__ == "__main__":
    asyncio.run(main(Case(**json.loads(sys.argv[1]))))
