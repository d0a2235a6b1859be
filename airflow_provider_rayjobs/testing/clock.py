"""A clock whose time passes only from event to event."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Timer:
    """An event of the clock; :meth:`cancel` removes it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """
    Events in the order of their time.

    :param epoch: Unix seconds at the start.
    """

    def __init__(self, epoch: float) -> None:
        self.now = 0.0
        self._epoch = epoch
        self._events: list[tuple[float, int, Timer]] = []
        self._count = count()

    def time(self) -> float:
        """Return Unix seconds."""
        return self._epoch + self.now

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._events, (self.now + max(delay, 0.0), next(self._count), timer))
        return timer

    def step(self) -> bool:
        """Run the next event. Return ``False`` if there is none."""
        while self._events:
            when, _, timer = heapq.heappop(self._events)
            if (call := timer.call) is not None:
                self.now = max(self.now, when)
                call()
                return True
        return False
