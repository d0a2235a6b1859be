"""
Limit how many bytes of job logs the triggers of one triggerer write; no I/O.

All triggers write their logs into one pipe to the triggerer's supervisor, which reads less than 1 MB/s. A full pipe
blocks the event loop of all triggers. So they share a token bucket that fills much more slowly.

Triggers that need more bytes than the bucket holds take turns. A trigger that is one turn ahead of a waiting one waits,
too, unless the bucket also holds the records of those behind it. No line is lost: the worker that resumes the task
continues at the trigger's log offset.
"""

from __future__ import annotations

import json

# Bytes per second of all triggers together, and bytes at once after a pause. The supervisor reads 500 kB per second in
# records of this size, and the pipe holds 170 kB.
RATE = 32 * 1024
BURST = 32 * 1024
# Bytes of a log in one record: few, so that each of many jobs gets a turn.
RECORD_BYTES = 4 * 1024
# Bytes that Airflow adds to each record: time, task, run, location.
_ENVELOPE_BYTES = 400
# Seconds after its last read for which a throttled trigger counts as waiting. Most triggers poll every 5 s.
_ABSENT_AFTER = 15.0


class LogBudget:
    """The token bucket of a triggerer: its triggers share ``rate`` bytes per second, ``burst`` bytes at once."""

    def __init__(self, rate: float = RATE, burst: int = BURST) -> None:
        self.burst = burst
        self.available = float(burst)
        self.shares: set[BudgetShare] = set()
        self.now = 0.0
        self.rate = rate

    def refill(self, now: float) -> None:
        """Add the bytes for the time that has passed."""
        self.available = min(self.available + self.rate * max(now - self.now, 0), self.burst)
        self.now = max(now, self.now)


class BudgetShare:
    """One trigger's share of a :class:`LogBudget`: a :class:`.ReadPolicy`."""

    record_bytes = RECORD_BYTES
    hands_over = False
    notice = (
        "All triggers of a triggerer share one log budget. The worker that resumes this task shows the other lines."
    )

    def __init__(self, budget: LogBudget) -> None:
        # bytes taken while others waited; only the differences between shares matter
        self.taken = 0
        self._budget = budget
        self._asked_at = 0.0
        self._is_throttled = False
        # bytes of the record that was refused
        self._wanted = 0

    @property
    def is_waiting(self) -> bool:
        """Tell whether a record was refused in the last read, and that read is recent."""
        return self._is_throttled and self._budget.now - self._asked_at < _ABSENT_AFTER

    def begin(self, now: float) -> bool:
        """Tell whether to read now. After a refused record, wait until it may be shown."""
        self._budget.shares.add(self)
        self._budget.refill(now)
        was_waiting = self.is_waiting
        self._asked_at = now
        if was_waiting:
            return self._may_take(self._wanted)
        rivals = self._rivals()
        # a share that did not wait may not catch up on earlier turns
        self.taken = max(self.taken, min(share.taken for share in rivals)) if rivals else 0
        return True

    def take(self, record: bytes) -> bool:
        """Take the bytes of a record out of the bucket, unless it is refused."""
        self._wanted = _size_in_pipe(record)
        if not self._may_take(self._wanted):
            return False
        self._budget.available -= self._wanted
        if self._rivals():
            self.taken += self._wanted
        return True

    def end(self, *, is_throttled: bool) -> None:
        self._is_throttled = is_throttled

    def leave(self) -> None:
        """Leave the budget, so that no other share waits for this one."""
        self._budget.shares.discard(self)

    def _rivals(self) -> list[BudgetShare]:
        """Return the other shares that are waiting."""
        return [share for share in self._budget.shares if share is not self and share.is_waiting]

    def _may_take(self, size: int) -> bool:
        rivals = self._rivals()
        least = min((share.taken for share in rivals), default=self.taken)
        lead = self.taken + size - least
        # the share that has taken least may always take one record
        if self.taken <= least or lead <= self._budget.burst / (len(rivals) + 1):
            return size <= self._budget.available
        kept = sum(share._wanted for share in rivals if share.taken < self.taken)  # noqa: SLF001
        return lead <= self._budget.burst and size + kept <= self._budget.available


class FlushTimer:
    """
    A :class:`.ReadPolicy` that shows nothing. After an interval, :func:`.follow_job` returns at new lines.

    :param interval: seconds from the first poll on.
    """

    record_bytes = RECORD_BYTES
    hands_over = True
    notice = ""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._began: float | None = None

    def begin(self, now: float) -> bool:
        """Tell whether the interval has passed."""
        if self._began is None:
            self._began = now
        return now >= self._began + self._interval

    def take(self, record: bytes) -> bool:  # noqa: ARG002
        """Refuse every record."""
        return False

    def end(self, *, is_throttled: bool) -> None:
        pass


def _size_in_pipe(record: bytes) -> int:
    """Return the size of a record in the pipe. There it is JSON, where a control code takes six bytes."""
    text = record.decode("utf-8", errors="replace")
    return _ENVELOPE_BYTES + len(json.dumps(text, ensure_ascii=False).encode())
