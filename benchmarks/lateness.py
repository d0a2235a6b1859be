"""How late an event loop is: the delay of a coroutine that wants to wake up every 5 ms."""

from __future__ import annotations

import asyncio
import time

PERIOD = 0.005


async def lateness(seconds: float) -> dict[str, float]:
    """Watch the running loop for so long and return how late it was, in milliseconds."""
    delays: list[float] = []
    end = time.perf_counter() + seconds
    while (asleep := time.perf_counter()) < end:
        await asyncio.sleep(PERIOD)
        delays.append(1000 * (time.perf_counter() - asleep - PERIOD))
    delays.sort()
    return {"p50": delays[len(delays) // 2], "p99": delays[int(len(delays) * 0.99)], "max": delays[-1]}
