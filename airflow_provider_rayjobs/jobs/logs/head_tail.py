"""The part of a long log that is shown where somebody limits its lines; no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from airflow_provider_rayjobs.jobs.logs.cursor import RECORD_LINES, LogCursor

# Memory for the last lines, whatever the limit: they wait for the log's end.
_KEPT_BYTES = 4 * 1024 * 1024


class HeadTail:
    """
    A log of which at most so many lines are shown: some as they come, and the last ones when it has ended.

    In between it is not read: so the log's position is where the shown lines end, for whoever goes on from there.

    :param log: the whole log.
    :param limit: lines that are shown.
    :param live: whether half of them are shown as they come; otherwise all wait for the end, and are its last ones.
    :param shown: lines that another process has shown.
    """

    def __init__(self, log: LogCursor, limit: int, *, live: bool, shown: int = 0) -> None:
        self.log = log
        self.limit = limit
        self.shown = shown
        self.left_out = 0
        # whether the job has ended, so that what is read are the last lines
        self.is_ending = False
        self._head = limit // 2 if live else 0
        self._kept: deque[str] = deque()
        self._kept_bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Tell whether nothing more is shown before the log's end."""
        return not self.is_ending and self.shown >= self._head

    @property
    def wants_more(self) -> bool:
        """Tell whether the rest of a read is of any use."""
        return self.log.wants_more and not self.is_waiting

    def begin(self) -> None:
        """See :meth:`.LogCursor.begin`."""
        self.log.begin()

    def feed(self, data: bytes) -> Iterator[str]:
        """See :meth:`.LogCursor.feed`."""
        return self._choose(self.log.feed(data))

    def flush(self) -> Iterator[str]:
        """See :meth:`.LogCursor.flush`."""
        return self._choose(self.log.flush())

    def finish(self) -> Iterator[str]:
        """Yield what is left of the lines that are shown, :attr:`left_out` being known before the first of them."""
        shown = list(self._choose(self.log.finish()))
        while len(self._kept) > self.limit - self.shown:
            self._forget()
        yield from shown
        while self._kept:
            yield "\n".join(self._kept.popleft() for _ in range(min(RECORD_LINES, len(self._kept))))

    def _choose(self, records: Iterator[str]) -> Iterator[str]:
        while not self.is_waiting:
            room = max(self._head - self.shown, 0)
            # a record that held more lines than are shown now would move the log's position past the others
            self.log.record_lines = min(RECORD_LINES, room or RECORD_LINES)
            record = next(records, None)
            if record is None:
                return
            lines = record.split("\n")
            if now := lines[:room]:
                self.shown += len(now)
                yield "\n".join(now)
            for line in lines[room:]:
                self._kept.append(line)
                self._kept_bytes += len(line)
                while len(self._kept) > self.limit - self.shown or self._kept_bytes > _KEPT_BYTES:
                    self._forget()

    def _forget(self) -> None:
        self._kept_bytes -= len(self._kept.popleft())
        self.left_out += 1
