"""
How much of their logs many jobs may show through one thin pipe: a little, and each as much as the others; no I/O.

All triggers of a triggerer write their logs into one pipe to its supervisor, which takes less than 1 MB/s, and a full
pipe stops the event loop that all of them live on. So together they stay far below that, in pieces that the pipe takes
without waiting. What does not fit is not lost: the worker that resumes a task goes on where its trigger has stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

# Bytes a second that all jobs together put into the pipe, and at once after a pause. It takes 500 kB a second in
# records of this size, and holds 170 kB.
RATE = 32 * 1024
BURST = 32 * 1024
# Bytes of a log with which a record is full, so that many jobs can have one each.
PIECE = 4 * 1024
# What Airflow adds to each record: time, task, run, place.
_ENVELOPE = 400
# Seconds after which a job that has not asked again is taken to have lost interest.
_LONGEST_PAUSE = 30.0
# Seconds that others may come first. Room that is kept free is of use to nobody until who waits for it asks again.
_PATIENCE = 3.0
_NEVER = float("inf")


class ReadPolicy(Protocol):
    """When a reader may read, and how much of what it finds it may show."""

    @property
    def defers_to_worker(self) -> bool:
        """Tell whether somebody with more room is to take the log over when there is something to show."""

    def begin(self, now: float) -> bool:
        """Tell whether a read that begins now is of any use."""

    def take(self, record: bytes) -> bool:
        """Tell whether a record may be shown; if so, it counts as shown."""

    def end(self, now: float, *, is_throttled: bool) -> None:
        """Take note that a read is over, and whether it had more to show than it was allowed."""


class LogBudget:
    """
    What one pipe takes, and the jobs that share it.

    :param rate: bytes a second.
    :param burst: bytes at once.
    """

    def __init__(self, rate: float = RATE, burst: int = BURST) -> None:
        self.rate = rate
        self.burst = burst
        # how many bytes the pipe takes at once, as of the last look at the clock
        self.room = float(burst)
        self.shares: set[BudgetShare] = set()
        self._looked_at = 0.0

    @contextmanager
    def share(self) -> Iterator[BudgetShare]:
        """Let one more job share the pipe."""
        share = BudgetShare(self)
        self.shares.add(share)
        try:
            yield share
        finally:
            self.shares.remove(share)

    def look_at(self, now: float) -> None:
        """Take note of the time: there is more room the more of it has passed."""
        self.room = min(self.room + self.rate * max(now - self._looked_at, 0), self.burst)
        self._looked_at = max(now, self._looked_at)

    def rivals(self, now: float) -> int:
        """Return how many jobs have more to show than they may."""
        return sum(share.is_hungry and share.is_asking(now) for share in self.shares)

    def kept_free(self, share: BudgetShare, now: float) -> int:
        """Return the bytes that are kept free for jobs that have waited for room for longer, and by some seconds."""
        return sum(
            other.wanted
            for other in self.shares
            if other.is_asking(now) and other.waiting_since < share.waiting_since - _PATIENCE
        )


class BudgetShare:
    """
    One job's share of a :class:`LogBudget`.

    After n bytes a job rests for as long as it takes all of its rivals to show n bytes each, and who found no room
    comes first: so all get the same, in whatever order they ask.
    """

    defers_to_worker = False

    def __init__(self, trickle: LogBudget) -> None:
        # since when it has found no room for what it has to show
        self.waiting_since = _NEVER
        # and how many bytes that are
        self.wanted = 0
        # whether its last read had more to show than it was allowed
        self.is_hungry = False
        self._trickle = trickle
        self._now = -_NEVER
        self._shown = 0
        self._turn = 0
        self._resting_until = 0.0
        self._ask_bookmark: Callable[[], object] | None = None
        self._is_marked = False
        self._awaits_bookmark = False

    def is_asking(self, now: float) -> bool:
        """Tell whether it still asks for turns."""
        return self._now >= now - _LONGEST_PAUSE

    def begin(self, now: float) -> bool:
        """See :class:`ReadPolicy`."""
        if self._awaits_bookmark or now < self._resting_until:
            return False
        self._now = now
        self._shown = self._turn = 0
        self._trickle.look_at(now)
        return True

    def take(self, record: bytes) -> bool:
        """See :class:`ReadPolicy`."""
        if self._ask_bookmark is not None and not self._is_marked:
            self.await_bookmark()
            return False
        if not self._turn:
            rivals = self._trickle.rivals(self._now) + (not self.is_hungry)
            self._turn = max(self._trickle.burst // rivals, PIECE)
        size = _size_in_pipe(record)
        if self._shown and self._shown + size > self._turn:
            return False
        self.waiting_since = min(self.waiting_since, self._now)
        self.wanted = size
        if size > self._trickle.room - self._trickle.kept_free(self, self._now):
            return False
        self.waiting_since = _NEVER
        self._trickle.room -= size
        self._shown += size
        return True

    def end(self, now: float, *, is_throttled: bool) -> None:
        """See :class:`ReadPolicy`."""
        self.is_hungry = is_throttled
        self._resting_until = now + self._shown * max(self._trickle.rivals(now), 1) / self._trickle.rate
        if self._shown and self._ask_bookmark is not None:
            self.await_bookmark()

    def keep_bookmark(self, ask: Callable[[], object]) -> None:
        """
        Let somebody keep how far the log was shown: before the first turn, and between any two.

        :param ask: called when there is something to keep; no turn is given until :meth:`bookmark_kept` is called.
        """
        self._ask_bookmark = ask

    def await_bookmark(self) -> None:
        """Give no turn until somebody knows how far the log was shown."""
        self._awaits_bookmark = True
        if self._ask_bookmark is not None:
            self._ask_bookmark()

    def bookmark_kept(self, *, is_marked: bool = True) -> None:
        """
        Take note that somebody knows how far the log was shown.

        :param is_marked: whether it would also be known that it was shown at all.
        """
        self._is_marked = is_marked
        self._awaits_bookmark = False


class FlushTimer:
    """
    Turns of somebody who shows nothing, and tells after a while whether there is anything to show.

    :param interval: seconds from the first read on.
    """

    defers_to_worker = True

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._began: float | None = None

    def begin(self, now: float) -> bool:
        """See :class:`ReadPolicy`."""
        if self._began is None:
            self._began = now
        return now >= self._began + self.interval

    def take(self, record: bytes) -> bool:  # noqa: ARG002  (it shows none)
        """See :class:`ReadPolicy`."""
        return False

    def end(self, now: float, *, is_throttled: bool) -> None:
        """See :class:`ReadPolicy`."""


def _size_in_pipe(record: bytes) -> int:
    """Return how many bytes a record takes in the pipe, where it is JSON: up to six for one that is a control code."""
    text = record.decode("utf-8", errors="replace")
    return _ENVELOPE + len(json.dumps(text, ensure_ascii=False).encode())
