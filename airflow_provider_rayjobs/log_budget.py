"""
How many bytes of job logs the triggers of one triggerer may write; no I/O.

All triggers write their logs into one pipe to the triggerer's supervisor, which takes less than 1 MB/s. A full pipe
blocks the event loop of all triggers. So they share a token bucket that fills far more slowly than that.

Triggers that need more than the bucket holds take turns: while others wait, a trigger that has taken a turn more than
the one that has taken least waits as well. What a trigger cannot show is not lost: the worker that resumes the task
goes on at its log offset.
"""

from __future__ import annotations

import json

# Bytes per second that all triggers together write, and bytes at once after a pause. The pipe takes 500 kB per second
# in records of this size, and holds 170 kB.
RATE = 32 * 1024
BURST = 32 * 1024
# Bytes of a log in one record: few, so that each of many jobs gets a record.
RECORD_BYTES = 4 * 1024
# What Airflow adds to each record: time, task, run, location.
_ENVELOPE_BYTES = 400
# Seconds after its last read for which others wait for a trigger. Most poll every 5 s.
_ABSENT_AFTER = 15.0


class LogBudget:
    """
    The token bucket, and the shares that draw from it.

    :param rate: bytes per second.
    :param burst: bytes at once.
    """

    def __init__(self, rate: float = RATE, burst: int = BURST) -> None:
        self.shares: set[BudgetShare] = set()
        self._rate = rate
        self._burst = burst
        self._available = float(burst)
        self._now = 0.0

    def refill(self, now: float) -> None:
        """Add the bytes for the time that has passed."""
        self._available = min(self._available + self._rate * max(now - self._now, 0), self._burst)
        self._now = max(now, self._now)

    def rivals(self, share: BudgetShare) -> list[int]:
        """Return the bytes that each of the other waiting shares has taken."""
        return [other.taken for other in self.shares if other is not share and other.is_waiting(self._now)]

    def allows(self, share: BudgetShare, size: int) -> bool:
        """Tell whether the bucket holds so many bytes, and whether it is the share's turn to take them."""
        rivals = self.rivals(share)
        least = min(rivals, default=share.taken)
        turn = self._burst / (len(rivals) + 1)
        # a share that has taken least may always take one record
        is_turn = share.taken <= least or share.taken + size <= least + turn
        return is_turn and size <= self._available

    def take(self, share: BudgetShare, size: int) -> None:
        """Take bytes out of the bucket; they count if other shares wait for bytes."""
        self._available -= size
        if self.rivals(share):
            share.taken += size


class BudgetShare:
    """One trigger's share of a :class:`LogBudget`: a :class:`.ReadPolicy`."""

    hands_over = False
    record_bytes = RECORD_BYTES

    def __init__(self, budget: LogBudget) -> None:
        # bytes, for comparison with other shares
        self.taken = 0
        self._budget = budget
        self._asked_at = 0.0
        self._is_throttled = False
        self._wanted = 0

    def is_waiting(self, now: float) -> bool:
        """Tell whether it has asked lately, and the last read had more to show than it was allowed."""
        return self._is_throttled and now - self._asked_at < _ABSENT_AFTER

    def begin(self, now: float) -> bool:
        """See :class:`.ReadPolicy`; a read is of no use before the record that waits may be shown."""
        self._budget.shares.add(self)
        self._budget.refill(now)
        is_waiting = self.is_waiting(now)
        self._asked_at = now
        if is_waiting:
            return self._budget.allows(self, self._wanted)
        # it starts level with those that wait
        rivals = self._budget.rivals(self)
        self.taken = max(self.taken, min(rivals)) if rivals else 0
        return True

    def take(self, record: bytes) -> bool:
        """See :class:`.ReadPolicy`."""
        self._wanted = _size_in_pipe(record)
        if not self._budget.allows(self, self._wanted):
            return False
        self._budget.take(self, self._wanted)
        return True

    def end(self, *, is_throttled: bool) -> None:
        """See :class:`.ReadPolicy`."""
        self._is_throttled = is_throttled

    def leave(self) -> None:
        """Let no other share wait for this one."""
        self._budget.shares.discard(self)


class FlushTimer:
    """
    The read policy of a trigger that shows nothing, and hands over to a worker if there are new lines.

    :param interval: seconds from the first read on for which it waits.
    """

    hands_over = True
    record_bytes = RECORD_BYTES

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._began: float | None = None

    def begin(self, now: float) -> bool:
        """See :class:`.ReadPolicy`."""
        if self._began is None:
            self._began = now
        return now >= self._began + self._interval

    def take(self, record: bytes) -> bool:  # noqa: ARG002  (it shows none)
        """See :class:`.ReadPolicy`."""
        return False

    def end(self, *, is_throttled: bool) -> None:
        """See :class:`.ReadPolicy`."""


def _size_in_pipe(record: bytes) -> int:
    """Return the bytes that a record takes in the pipe, as JSON: six for a control code."""
    text = record.decode("utf-8", errors="replace")
    return _ENVELOPE_BYTES + len(json.dumps(text, ensure_ascii=False).encode())
