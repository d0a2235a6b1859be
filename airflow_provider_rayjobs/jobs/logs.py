"""
What is new in a growing log, cut into records of whole lines; no I/O.

A driver's log is read again from its start, and what was shown before is passed over by its bytes. So a read
that breaks off anywhere loses nothing and repeats nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

# A record of Airflow's task log is full with so many lines or bytes: one line a record is what makes task
# logs slow (5,000 lines a second against 540,000), and larger records gain nothing more.
RECORD_LINES = 1_000
RECORD_BYTES = 64 * 1024
# What an error message quotes of the log.
LAST_LINES = 20
# A progress bar or a dumped blob can make a line of any length; in an error message only its end is of use.
_LAST_LINE_LENGTH = 2_000


class LogText:
    """
    A log that is read again and again while it grows.

    :param position: bytes to pass over, as they were shown before; always at the start of a line or, inside a
        very long line, of a record. :attr:`position` gives the number for the next time.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position
        # Read, but not shown: the start of a line whose end is yet to come.
        self._pending = b""
        self._offset = 0
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._is_complete = False

    def begin(self) -> None:
        """
        Say that the next bytes fed are the log's first: a new read begins.

        What an earlier read brought and nobody saw comes again with this one.
        """
        self._offset = 0
        self._pending = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """
        Take the next bytes of a read and yield the records that they fill.

        A record is text without its last newline. Bytes that are not UTF-8 become replacement characters.
        Only what was yielded counts as shown.
        """
        known = self.position + len(self._pending) - self._offset
        self._offset += len(data)
        for start in range(max(known, 0), len(data), RECORD_BYTES):
            self._pending += data[start : start + RECORD_BYTES]
            while (end := self._full_record()) > 0:
                yield self._show(end)

    def flush(self) -> Iterator[str]:
        """Yield the whole lines that wait for a record to fill: the read has come to the log's present end."""
        if end := self._pending.rfind(b"\n") + 1:
            yield self._show(end)

    def finish(self) -> Iterator[str]:
        """Yield all that is left, a last line without a newline too: the log has ended, and was read to its end."""
        self._is_complete = True
        if self._pending:
            yield self._show(len(self._pending))

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The log's last lines, oldest first; none unless it was read to its end: others would mislead."""
        return tuple(self._last_lines) if self._is_complete else ()

    def _full_record(self) -> int:
        """Return how many pending bytes make a full record, 0 if there are too few."""
        start = self._pending[:RECORD_BYTES]
        *lines, rest = start.split(b"\n", RECORD_LINES)
        if len(lines) == RECORD_LINES:
            return len(start) - len(rest)
        if len(start) == RECORD_BYTES:
            return len(start) - len(rest) if lines else _character_boundary(self._pending, RECORD_BYTES)
        return 0

    def _show(self, size: int) -> str:
        shown, self._pending = self._pending[:size], self._pending[size:]
        self.position += size
        record = shown.decode("utf-8", errors="replace").removesuffix("\n")
        self._last_lines.extend(line[-_LAST_LINE_LENGTH:] for line in record.rsplit("\n", LAST_LINES)[-LAST_LINES:])
        return record


class WholeLog:
    """A log that is read once and kept as one text; the small sibling of :class:`LogText`."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def begin(self) -> None:
        """Say that the next bytes fed are the log's first: a new read begins."""
        self._pieces.clear()

    def feed(self, data: bytes) -> Iterator[str]:
        """Keep the next bytes of a read; there is nothing to show."""
        self._pieces.append(data)
        return iter(())

    def flush(self) -> Iterator[str]:
        """Do nothing: nothing waits to be shown."""
        return iter(())

    @property
    def text(self) -> str:
        """All that was read; bytes that are not UTF-8 are replacement characters."""
        return b"".join(self._pieces).decode("utf-8", errors="replace")


def _character_boundary(data: bytes, end: int) -> int:
    """Return the last place at or before ``end`` that does not cut a UTF-8 character of up to 4 bytes."""
    for back in range(4):
        if data[end - back : end - back + 1] and data[end - back] & 0xC0 != 0x80:
            return end - back
    return end
