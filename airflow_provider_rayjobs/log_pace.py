"""
Spread the log reads of all triggers that follow jobs of one cluster; no I/O.

One read of a short log takes the head 10 ms, so a thousand triggers that read at every poll would take all of its time.
Together they read for 5 % of the time: each reader rests 20 times the mean read for each reader. So all of them read
equally often. Reads at the same time share that time, because most of them wait for each other. A reader does not wait
for its turn: it reads at a later poll, because the end of a job comes first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_rayjobs.jobs.exchange import LOG_READS_AT_ONCE
from airflow_provider_rayjobs.jobs.logs.reader import ReadPolicy

# Seconds of rest for each second of a read.
_REST = 20
# Seconds of a read until one was measured, so that 16 may begin together; and the weight of the last one in the mean.
_FIRST_SECONDS = 0.032
_WEIGHT = 0.1
# Shorter rests, in seconds, are left to each reader, which rests 24 times as long as its own reads.
_SHORT_REST = 2.0
# Seconds until the last one of the reads that have begun ends. Most of them wait for a connection meanwhile and are not
# polled. A few reads would be too few: all triggers of a cluster are polled at the same moment, and read only then.
_LONGEST_QUEUE = 0.5


class LogPace:
    """The log reads of the triggers of one cluster."""

    def __init__(self) -> None:
        self._readers = 0
        self._reading = 0
        self._seconds = _FIRST_SECONDS
        # when the last read ended, or the first of those under way began
        self._since = 0.0

    @contextmanager
    def reading(self, policy: ReadPolicy) -> Iterator[ReadPolicy]:
        """Yield a policy that also observes the pace."""
        self._readers += 1
        paced = _PacedPolicy(self, policy)
        try:
            yield paced
        finally:
            self._readers -= 1
            if paced.began is not None:  # cancelled in the middle of a read
                self._reading -= 1

    @property
    def rest(self) -> float:
        """Seconds between two reads of one reader."""
        seconds = _REST * self._readers * self._seconds
        return seconds if seconds > _SHORT_REST else 0.0

    @property
    def is_busy(self) -> bool:
        return self._reading >= LOG_READS_AT_ONCE and self._reading * self._seconds >= _LONGEST_QUEUE

    def begin(self, now: float) -> None:
        if not self._reading:
            self._since = now
        self._reading += 1

    def end(self, now: float) -> None:
        self._reading -= 1
        self._seconds += _WEIGHT * (now - self._since - self._seconds)
        self._since = now


class _PacedPolicy:
    """A :class:`.ReadPolicy` that lets another one decide when it is this reader's time."""

    def __init__(self, pace: LogPace, policy: ReadPolicy) -> None:
        self.record_bytes = policy.record_bytes
        self.hands_over = policy.hands_over
        self.notice = policy.notice
        # when the read under way has begun
        self.began: float | None = None
        self._pace = pace
        self._policy = policy
        self._rests_since: float | None = None
        # the part of the rest until the first read: readers that start together do not read together
        self._part = random.random()  # noqa: S311  (no secret)

    def begin(self, now: float) -> bool:
        """Tell whether to read now."""
        if self._rests_since is None:
            self._rests_since = now
        is_resting = now - self._rests_since < self._part * self._pace.rest
        if is_resting or self._pace.is_busy or not self._policy.begin(now):
            return False
        self._pace.begin(now)
        self.began = now
        return True

    def take(self, record: bytes) -> bool:
        return self._policy.take(record)

    def end(self, *, is_throttled: bool) -> None:
        now = time.monotonic()
        if self.began is not None:
            self._pace.end(now)
        self.began, self._rests_since, self._part = None, now, 1.0
        self._policy.end(is_throttled=is_throttled)
