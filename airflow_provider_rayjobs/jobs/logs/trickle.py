"""
How much of their logs many jobs may show through one thin pipe: a little, and each as much as the others; no I/O.

All triggers of a triggerer write their logs into one pipe to its supervisor, which takes less than 1 MB/s, and a full
pipe stops the event loop that all of them live on. So together they stay far below that, in pieces that the pipe takes
without waiting. What does not fit is not lost: the worker that resumes a task goes on where its trigger has stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

# Bytes a second, for all jobs together: a tenth of what the pipe takes in records of this size.
RATE = 32 * 1024
# Bytes that may be shown at once after a pause; the pipe holds more.
BURST = 32 * 1024
# Bytes with which a record is full, so that many jobs can have one each.
PIECE = 4 * 1024
# Seconds after which a job that has not asked again is taken to have lost interest.
_LONGEST_PAUSE = 30.0
_NEVER = float("inf")


class Turns(Protocol):
    """When a reader may show how much."""

    @property
    def hands_over(self) -> bool:
        """Tell whether somebody with more room is to take the log over when there is something to show."""

    def allowance(self, now: float) -> int | None:
        """Return how many bytes a read that begins now may show, none or a piece at least; ``None`` for no read."""

    def spend(self, shown: int, now: float) -> None:
        """Take note of how many bytes a read has shown."""


class Trickle:
    """
    What one pipe takes, and the jobs that share it.

    :param rate: bytes a second.
    :param burst: bytes at once.
    """

    def __init__(self, rate: float = RATE, burst: int = BURST) -> None:
        self.rate = rate
        self.burst = burst
        self.shares: set[Share] = set()
        self._room = float(burst)
        self._room_at = 0.0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Let one more job share the pipe."""
        share = Share(self)
        self.shares.add(share)
        try:
            yield share
        finally:
            self.shares.remove(share)

    def room(self, now: float) -> float:
        """Return how many bytes the pipe takes at once."""
        self._room = min(self._room + self.rate * max(now - self._room_at, 0), self.burst)
        self._room_at = now
        return self._room

    def take(self, size: int) -> None:
        """Take note of bytes that went into the pipe."""
        self._room -= size

    def rivals(self, now: float) -> int:
        """Return how many jobs have more to show than they may."""
        return sum(share.is_hungry and share.is_asking(now) for share in self.shares)

    def ahead_of(self, share: Share, now: float) -> int:
        """Return how many jobs have waited for longer."""
        return sum(other.is_asking(now) and other.waiting_since < share.waiting_since for other in self.shares)


class Share:
    """
    One job's share of a :class:`Trickle`.

    After n bytes a job rests for as long as it takes all of its rivals to show n bytes each, and who was given no turn
    comes first at the next one: so all get the same, in whatever order they ask.
    """

    hands_over = False

    def __init__(self, trickle: Trickle) -> None:
        # when it first asked for the turn that it has not been given yet
        self.waiting_since = _NEVER
        # whether it has more to show than it may, as far as anybody knows
        self.is_hungry = False
        self._trickle = trickle
        self._asked_at = -_NEVER
        self._allowed = 0
        self._resting_until = 0.0

    def is_asking(self, now: float) -> bool:
        """Tell whether it still asks for turns."""
        return self._asked_at >= now - _LONGEST_PAUSE

    def allowance(self, now: float) -> int | None:
        """See :class:`Turns`."""
        if now < self._resting_until:
            return None
        self._asked_at = now
        self.is_hungry = True
        self.waiting_since = min(self.waiting_since, now)
        room = self._trickle.room(now) - PIECE * self._trickle.ahead_of(self, now)
        if room < PIECE:
            return None
        self._allowed = max(min(int(room), self._trickle.burst // self._trickle.rivals(now)), PIECE)
        return self._allowed

    def spend(self, shown: int, now: float) -> None:
        """See :class:`Turns`."""
        self.is_hungry = shown > self._allowed - PIECE
        self.waiting_since = _NEVER
        self._trickle.take(shown)
        self._resting_until = now + shown * max(self._trickle.rivals(now), 1) / self._trickle.rate


class Relay:
    """
    Turns of somebody who shows nothing, and tells after a while whether there is anything to show.

    :param interval: seconds from the first read on.
    """

    hands_over = True

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._began: float | None = None

    def allowance(self, now: float) -> int | None:
        """See :class:`Turns`."""
        if self._began is None:
            self._began = now
        return 0 if now >= self._began + self.interval else None

    def spend(self, shown: int, now: float) -> None:
        """See :class:`Turns`."""
