"""
Find the new lines of a growing log, and cut them into records; no I/O.

Each read feeds the log to a :class:`LogCursor` in chunks, from its first byte:

- The cursor skips the bytes before the log offset, as an earlier read has shown them. It only computes their checksum.
  A wrong checksum means that the log was replaced.
- Bytes after the offset are pending until they fill a record: 1,000 lines or 64 KiB. Showing a record moves the offset
  past it.
- At the end of a read, the pending whole lines become a record. The next read brings an unfinished line again.

So an interrupted read neither loses nor repeats a line. Another process needs only offset and checksum to continue.
A progress bar overwrites its states after carriage returns: a record shows the latest one.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Limits of one record. A logger that writes 5,000 single lines per second writes 540,000 in records of this size.
# Larger records gain nothing.
RECORD_LINES = 1_000
RECORD_BYTES = 64 * 1024
# Bytes before the offset that the cursor keeps for error messages.
RECENT_BYTES = 64 * 1024
# Lines that an error message quotes, and the most characters of each, from its end.
LAST_LINES = 20
_LAST_LINE_LENGTH = 2_000

# States of a progress bar that a terminal overwrites. A carriage return at the end of a line stays: it is part of a
# Windows line end.
_OVERWRITTEN = re.compile(rb"^[^\n]*\r(?=[^\r\n])", re.MULTILINE)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(\([\w.]+\))?(: |$)")
# What Python writes between two exceptions of a chain.
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


@dataclass(frozen=True)
class LogEnding:
    """
    The end of a log, for error messages.

    :param last_lines: the last lines, oldest first.
    :param exception: the line of the last Python exception.
    :param root_cause: the line of the first exception in its chain, if that is another one.
    """

    last_lines: tuple[str, ...] = ()
    exception: str = ""
    root_cause: str = ""


NO_ENDING = LogEnding()


class LogCursor:
    """
    A position in a growing log: everything before it was shown.

    :param offset: bytes that were shown. It is within a line only if that line is very long or a progress bar.
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
        # whether the log no longer begins with the bytes that were shown
        self.is_mismatch = False
        # whether ``may_show`` refused a record of the last read
        self.is_throttled = False
        # bytes of the last read, and the checksum of those that the cursor skipped
        self.bytes_read = 0
        self._skipped_checksum = 0
        self._record_bytes = record_bytes
        self._may_show = may_show
        # bytes from the offset on that do not fill a record yet, and the last bytes before the offset
        self._pending = b""
        self._recent = b""
        self._is_complete = False

    def restart(self) -> None:
        """Let the next read show the log from its start."""
        self.offset = self.checksum = 0
        self.is_mismatch = False

    @property
    def needs_more(self) -> bool:
        """Tell whether the cursor can use the rest of the read."""
        return not (self.is_mismatch or self.is_throttled)

    def begin(self) -> None:
        self._pending = self._recent = b""
        self.is_throttled = False
        self.bytes_read = self._skipped_checksum = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """
        Take the next bytes of a read, and yield the records that they fill.

        A record is text without its last newline. Bytes that are not UTF-8 become replacement characters. The offset
        moves when a record is yielded.
        """
        skipped = max(self.offset - self.bytes_read, 0)
        if skipped:
            self._skip(data[:skipped])
        self.bytes_read += len(data)
        for start in range(skipped, 0 if self.is_mismatch else len(data), self._record_bytes):
            self._pending += data[start : start + self._record_bytes]
            while True:
                if size := self._size_of_full_record():
                    if not self._is_allowed(size):
                        return
                    yield from self._show(size)
                elif size := self._size_of_overwritten():
                    self._move(size)
                else:
                    break

    def flush(self, *, is_cut: bool = False) -> Iterator[str]:
        """
        End a read: yield the pending whole lines, then the latest state of a progress bar.

        :param is_cut: whether the read was cut off, perhaps within a state of the progress bar.
        """
        for size_of in (_size_of_whole_lines,) if is_cut else (_size_of_whole_lines, _size_of_latest_state):
            if size := size_of(self._pending):
                if not self._is_allowed(size):
                    return
                yield from self._show(size)

    def finish(self) -> Iterator[str]:
        """End the log after its last read: yield all pending bytes, even a last line without a newline."""
        self._is_complete = True
        if self._pending:
            yield from self._show(len(self._pending))

    def finish_with(self, tail: bytes) -> None:
        """End a log that cannot be read to its end, but whose last bytes are known."""
        self._recent = tail[-RECENT_BYTES:]
        self._is_complete = True

    @property
    def ending(self) -> LogEnding:
        """The end of the log; :data:`NO_ENDING` before :meth:`finish`, as earlier lines would mislead."""
        if not (self._is_complete and self._recent):
            return NO_ENDING
        lines = _text_of(self._recent).split("\n")
        return LogEnding(
            tuple(line[-_LAST_LINE_LENGTH:] for line in lines[-LAST_LINES:]),
            find_exception(lines)[:_LAST_LINE_LENGTH],
            find_root_cause(lines)[:_LAST_LINE_LENGTH],
        )

    def _is_allowed(self, size: int) -> bool:
        self.is_throttled = self._may_show is not None and not self._may_show(self._pending[:size])
        return not self.is_throttled

    def _skip(self, data: bytes) -> None:
        self._skipped_checksum = zlib.crc32(data, self._skipped_checksum)
        reaches_offset = self.bytes_read + len(data) == self.offset
        self.is_mismatch = reaches_offset and self._skipped_checksum != self.checksum
        self._recent = (self._recent + data)[-RECENT_BYTES:]

    def _size_of_full_record(self) -> int:
        """Return the size of the first full record, 0 if too few bytes are pending."""
        start = self._pending[: self._record_bytes]
        lines = start.count(b"\n")
        if lines >= self.record_lines:
            return len(start) - len(start.split(b"\n", self.record_lines)[-1])
        if len(start) < self._record_bytes:
            return 0
        if lines:
            return start.rfind(b"\n") + 1
        return 0 if _OVERWRITTEN.match(start) else _character_boundary(self._pending, self._record_bytes)

    def _size_of_overwritten(self) -> int:
        """Return the size of the overwritten states of a progress bar, 0 if too few bytes are pending."""
        if len(self._pending) < self._record_bytes:
            return 0
        states = _OVERWRITTEN.match(self._pending)
        return states.end() if states else 0

    def _show(self, size: int) -> Iterator[str]:
        line_start = self._recent.rpartition(b"\n")[2] if self.offset else b""
        record = self._move(size)
        line_end, _, lines = record.partition(b"\n")
        # an earlier record has shown this line, or this state of a progress bar: only the line end is left
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
    Return the last line that names a Python exception, empty if there is none.

    Such a line follows the indented frames of a traceback. The error of a failed Ray task quotes the task's traceback:
    its last line names the task's own exception.
    """
    return _find_chain(lines)[-1]


def find_root_cause(lines: Sequence[str]) -> str:
    """Return the first exception in the chain of :func:`find_exception`, empty if that is the same one or not shown."""
    root, last = _find_chain(lines)
    return "" if root == last else root


def _find_chain(lines: Sequence[str]) -> tuple[str, str]:
    """Return the lines of the first and the last exception in the last chain."""
    root = last = ""
    has_frames = is_chained = False
    for line in lines:
        if line[:1].isspace():
            has_frames = has_frames or line.startswith('  File "')
            continue
        if has_frames and _EXCEPTION.match(line):
            root, last, is_chained = root if is_chained else line, line, False
        is_chained = is_chained or line in _CHAINED
        has_frames = False
    return root, last


def _text_of(data: bytes) -> str:
    if b"\r" in data:
        data = _OVERWRITTEN.sub(b"", data)
    return data.decode("utf-8", errors="replace").removesuffix("\n")


def _size_of_whole_lines(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _size_of_latest_state(line: bytes) -> int:
    """Return the size of a progress bar up to the end of its latest state, 0 if the line is no progress bar."""
    if not _OVERWRITTEN.match(line):
        return 0
    state = line.rstrip(b"\r")
    # the next read brings the rest of an unfinished character
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
