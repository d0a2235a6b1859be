"""Limit how often the progress of a long operation is logged."""

from __future__ import annotations

# Seconds between two progress messages.
_INTERVAL = 5.0


class Throttle:
    """Tell when the next progress message is due; ``now`` is in seconds of any clock."""

    def __init__(self, now: float) -> None:
        self._next = now + _INTERVAL

    def is_due(self, now: float) -> bool:
        """Tell whether to log progress now; if so, the next message is due after the interval."""
        if now < self._next:
            return False
        self._next = now + _INTERVAL
        return True
