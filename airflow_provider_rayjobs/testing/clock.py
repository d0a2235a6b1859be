"""A clock whose time passes only from event to event."""

from __future__ import annotations

import heapq
import math
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

    def next_at(self) -> float:
        """Return the time of the next event; infinity if there is none."""
        while self._events and self._events[0][2].call is None:
            heapq.heappop(self._events)
        return self._events[0][0] if self._events else math.inf

    def step(self) -> bool:
        """Run the next event. Return ``False`` if there is none."""
        if self.next_at() == math.inf:
            return False
        when, _, timer = heapq.heappop(self._events)
        self.now = max(self.now, when)
        if timer.call is not None:
            timer.call()
        return True
