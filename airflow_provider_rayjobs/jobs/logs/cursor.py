"""
Find what is new in a growing log, and cut it into records of whole lines; no I/O.

Each read brings the log in chunks, from its first byte:

- Bytes before the log offset were shown by an earlier read. They are passed over, and only feed a checksum. If the
  checksum is wrong at the offset, the log was replaced.
- Bytes from the offset on are pending until they fill a record: 1,000 lines or 64 KiB. Showing a record moves the
  offset past it.
- When the read is complete, the pending whole lines are a record. The start of a line stays pending and is dropped by
  the next read, which brings it again.

So a read that breaks off anywhere loses and repeats nothing, and offset and checksum are all that another process
needs. Of a progress bar, whose states overwrite each other after carriage returns, a record shows the latest state.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Limits of one record. A log that takes 5,000 lines per second one by one takes 540,000 in records of this size; larger
# records gain nothing.
RECORD_LINES = 1_000
RECORD_BYTES = 64 * 1024
# Bytes before the offset that are kept for error messages.
RECENT_BYTES = 64 * 1024
# What an error message quotes: so many lines, and of a long line so many last characters.
LAST_LINES = 20
_LAST_LINE_LENGTH = 2_000

# States of a progress bar that later states of its line overwrite on a terminal. A carriage return before the line's
# end is a line end of another system, and stays.
_OVERWRITTEN = re.compile(rb"^[^\n]*\r(?=[^\r\n])", re.MULTILINE)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(\([\w.]+\))?(: |$)")


@dataclass(frozen=True)
class LogEnding:
    """
    How a log ends, for error messages.

    :param last_lines: oldest first.
    :param exception: the last line in which Python names an exception.
    """

    last_lines: tuple[str, ...] = ()
    exception: str = ""


NO_ENDING = LogEnding()


class LogCursor:
    """
    The place in a growing log up to which it was shown.

    :param offset: bytes that were shown. It is the start of a line or, in a very long line or a progress bar, of a
        record.
    :param checksum: CRC 32 of those bytes.
    :param record_bytes: most bytes in a record.
    :param may_show: called with each record; the first ``False`` ends the read.
    """

    def __init__(
        self,
        offset: int = 0,
        checksum: int = 0,
        *,
        record_bytes: int = RECORD_BYTES,
        may_show: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.offset = offset
        self.checksum = checksum
        # most lines in a record; may be changed between two records
        self.record_lines = RECORD_LINES
        # whether the log does not begin with the bytes that were shown
        self.is_mismatch = False
        # whether the last read ended at a record that may not be shown
        self.is_throttled = False
        # bytes of the log that the last read brought, and the checksum of those that it passed over
        self.bytes_read = 0
        self._passed_checksum = 0
        self._record_bytes = record_bytes
        self._may_show = may_show
        # bytes from the offset on that do not fill a record yet, and the last bytes before the offset
        self._pending = b""
        self._recent = b""
        self._is_complete = False

    def restart(self) -> None:
        """Show the log from its start with the next read."""
        self.offset = self.checksum = 0
        self.is_mismatch = False

    @property
    def needs_more(self) -> bool:
        """Tell whether the rest of the read is needed."""
        return not (self.is_mismatch or self.is_throttled)

    def begin(self) -> None:
        """Begin a read, with the log's first byte."""
        self._pending = self._recent = b""
        self.is_throttled = False
        self.bytes_read = self._passed_checksum = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """
        Take the next bytes of a read, and yield the records that they fill.

        A record is text without its last newline. Bytes that are not UTF-8 become replacement characters. The offset
        moves when a record is yielded.
        """
        passed = max(self.offset - self.bytes_read, 0)
        if passed:
            self._pass_over(data[:passed])
        self.bytes_read += len(data)
        for start in range(passed, 0 if self.is_mismatch else len(data), self._record_bytes):
            self._pending += data[start : start + self._record_bytes]
            while True:
                if size := self._full_record():
                    if not self._is_allowed(size):
                        return
                    yield from self._show(size)
                elif size := self._overwritten():
                    self._move(size)
                else:
                    break

    def flush(self) -> Iterator[str]:
        """Yield the pending whole lines, then the latest state of a progress bar: the read is complete."""
        for size_of in (_whole_lines, _latest_state):
            if size := size_of(self._pending):
                if not self._is_allowed(size):
                    return
                yield from self._show(size)

    def finish(self) -> Iterator[str]:
        """Yield all that is pending, a last line without a newline too: the log has ended and was read to its end."""
        self._is_complete = True
        if self._pending:
            yield from self._show(len(self._pending))

    @property
    def ending(self) -> LogEnding:
        """How the log ends; :data:`NO_ENDING` unless it was read to its end, as other lines would mislead."""
        if not (self._is_complete and self._recent):
            return NO_ENDING
        lines = _text_of(self._recent).split("\n")
        return LogEnding(
            tuple(line[-_LAST_LINE_LENGTH:] for line in lines[-LAST_LINES:]), find_exception(lines)[:_LAST_LINE_LENGTH]
        )

    def _is_allowed(self, size: int) -> bool:
        self.is_throttled = self._may_show is not None and not self._may_show(self._pending[:size])
        return not self.is_throttled

    def _pass_over(self, data: bytes) -> None:
        self._passed_checksum = zlib.crc32(data, self._passed_checksum)
        reaches_offset = self.bytes_read + len(data) == self.offset
        self.is_mismatch = reaches_offset and self._passed_checksum != self.checksum
        self._recent = (self._recent + data)[-RECENT_BYTES:]

    def _full_record(self) -> int:
        """Return the pending bytes that make a full record, 0 if there are too few."""
        start = self._pending[: self._record_bytes]
        lines = start.count(b"\n")
        if lines >= self.record_lines:
            return len(start) - len(start.split(b"\n", self.record_lines)[-1])
        if len(start) < self._record_bytes:
            return 0
        if lines:
            return start.rfind(b"\n") + 1
        return 0 if _OVERWRITTEN.match(start) else _character_boundary(self._pending, self._record_bytes)

    def _overwritten(self) -> int:
        """Return the pending bytes that are overwritten states of a progress bar, 0 unless they fill a record."""
        if len(self._pending) < self._record_bytes:
            return 0
        states = _OVERWRITTEN.match(self._pending)
        return states.end() if states else 0

    def _show(self, size: int) -> Iterator[str]:
        line_start = self._recent.rpartition(b"\n")[2] if self.offset else b""
        record = self._move(size)
        line_end, _, lines = record.partition(b"\n")
        # what is left of a line whose last record, or of a bar whose last state, was shown before
        if line_start and (not line_end or (b"\r" in line_start and not line_end.strip(b"\r"))):
            if not lines:
                return
            record = lines
        yield _text_of(record)

    def _move(self, size: int) -> bytes:
        """Move the offset past pending bytes, and return them."""
        moved, self._pending = self._pending[:size], self._pending[size:]
        self.offset += size
        self.checksum = zlib.crc32(moved, self.checksum)
        self._recent = (self._recent + moved)[-RECENT_BYTES:]
        return moved


def find_exception(lines: Sequence[str]) -> str:
    """
    Return the last line in which Python names an exception, empty if there is none.

    It follows the indented frames of a traceback. An error of a Ray task holds the task's own traceback: its last line
    is found.
    """
    found = ""
    has_frames = False
    for line in lines:
        if line[:1].isspace():
            has_frames = has_frames or line.startswith('  File "')
        else:
            if has_frames and _EXCEPTION.match(line):
                found = line
            has_frames = False
    return found


def _text_of(data: bytes) -> str:
    if b"\r" in data:
        data = _OVERWRITTEN.sub(b"", data)
    return data.decode("utf-8", errors="replace").removesuffix("\n")


def _whole_lines(data: bytes) -> int:
    """Return the bytes of the whole lines."""
    return data.rfind(b"\n") + 1


def _latest_state(line: bytes) -> int:
    """Return the bytes up to the end of a progress bar's latest state, 0 if the line is no progress bar."""
    if not _OVERWRITTEN.match(line):
        return 0
    state = line.rstrip(b"\r")
    # the rest of a character that is being written comes with the next read
    return len(state) if _ends_with_whole_character(state) else 0


def _ends_with_whole_character(data: bytes) -> bool:
    """Tell whether no UTF-8 character is cut at the end; bytes that are not UTF-8 count as whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:])
    return not decoder.getstate()[0]


def _character_boundary(data: bytes, end: int) -> int:
    """Return the last index up to ``end`` that cuts no UTF-8 character of up to 4 bytes."""
    for back in range(4):
        if data[end - back : end - back + 1] and data[end - back] & 0xC0 != 0x80:
            return end - back
    return end
