"""Show only the first and the last lines of a long log; no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from airflow_provider_rayjobs.jobs.logs.cursor import RECORD_LINES, LogCursor

# Most bytes of last lines that are kept until the log ends.
_TAIL_BYTES = 4 * 1024 * 1024


class HeadTail:
    """
    Shows at most ``limit`` lines of a log. After the first lines the log offset stays where it is until the job ends.

    :param log: the whole log.
    :param limit: lines.
    :param live: show half of the lines from the log's start while the job runs. Otherwise show only its last lines.
    :param shown: lines that another process has shown.
    """

    def __init__(self, log: LogCursor, limit: int, *, live: bool, shown: int = 0) -> None:
        self.log = log
        self.limit = limit
        self.shown = shown
        self.left_out = 0
        # set when the job has ended, so that the rest of the log is read
        self.is_ending = False
        self._head = limit // 2 if live else 0
        self._tail: deque[str] = deque()
        self._tail_bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Tell whether the next lines are shown only after the job's end."""
        return not self.is_ending and self.shown >= self._head

    @property
    def needs_more(self) -> bool:
        return self.log.needs_more and not self.is_waiting

    def begin(self) -> None:
        self.log.begin()

    def feed(self, data: bytes) -> Iterator[str]:
        return self._select(self.log.feed(data))

    def flush(self, *, is_cut: bool = False) -> Iterator[str]:
        return self._select(self.log.flush(is_cut=is_cut))

    def finish(self) -> Iterator[str]:
        """Yield the remaining lines. :attr:`left_out` is final before the first one."""
        first = list(self._select(self.log.finish()))
        while len(self._tail) > self.limit - self.shown:
            self._drop_oldest()
        yield from first
        yield from self.kept()

    def kept(self) -> Iterator[str]:
        """Yield the last lines that have arrived."""
        while self._tail:
            yield "\n".join(self._tail.popleft() for _ in range(min(RECORD_LINES, len(self._tail))))

    def _select(self, records: Iterator[str]) -> Iterator[str]:
        """Yield lines of the head, and keep the last ones of the rest."""
        while not self.is_waiting:
            room = max(self._head - self.shown, 0)
            # a record with lines beyond the head would move the offset past them
            self.log.record_lines = min(RECORD_LINES, room or RECORD_LINES)
            record = next(records, None)
            if record is None:
                return
            lines = record.split("\n")
            if head := lines[:room]:
                self.shown += len(head)
                yield "\n".join(head)
            for line in lines[room:]:
                self._tail.append(line)
                self._tail_bytes += len(line)
                while len(self._tail) > self.limit - self.shown or self._tail_bytes > _TAIL_BYTES:
                    self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._tail_bytes -= len(self._tail.popleft())
        self.left_out += 1
