"""When to say another sentence about something that takes long."""

from __future__ import annotations

# Seconds between two of them.
_PAUSE = 5.0


class Throttle:
    """
    Tells when the next sentence is due.

    :param now: when the work began, in seconds of any clock.
    """

    def __init__(self, now: float) -> None:
        self._next = now + _PAUSE

    def is_due(self, now: float) -> bool:
        """Tell whether it is time for one; the next is due some seconds after it."""
        if now < self._next:
            return False
        self._next = now + _PAUSE
        return True
