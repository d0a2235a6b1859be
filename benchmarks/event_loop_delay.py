"""Measure the delay of an event loop: how late a coroutine wakes up that sleeps for 5 ms at a time."""

from __future__ import annotations

import asyncio
import time

PERIOD = 0.005


async def measure_event_loop_delay(seconds: float) -> dict[str, float]:
    """Return p50, p99 and maximum of the running loop's delay over ``seconds``, in milliseconds."""
    delays: list[float] = []
    end = time.perf_counter() + seconds
    while (asleep := time.perf_counter()) < end:
        await asyncio.sleep(PERIOD)
        delays.append(1000 * (time.perf_counter() - asleep - PERIOD))
    delays.sort()
    return {"p50": delays[len(delays) // 2], "p99": delays[int(len(delays) * 0.99)], "max": delays[-1]}
