"""
What is new in a growing log, cut into records of whole lines; no I/O.

A driver's log is read again from its start, and what was shown before is passed over by its bytes. So a read
that breaks off anywhere loses nothing and repeats nothing.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A record of Airflow's task log is full with so many lines or bytes: one line a record is what makes task
# logs slow (5,000 lines a second against 540,000), and larger records gain nothing more.
RECORD_LINES = 1_000
RECORD_BYTES = 64 * 1024
# So much of what was shown last is kept for error messages.
RECENT_BYTES = 64 * 1024
# What an error message quotes of the log.
LAST_LINES = 20
# A dumped blob can make a line of any length; in an error message only its end is of use.
_LAST_LINE_LENGTH = 2_000

# The states of a progress bar that its line's later states overwrite on a terminal. A carriage return before
# the line's end is a line end of another system, and stays.
_SUPERSEDED = re.compile(rb"^[^\n]*\r(?=[^\r\n])", re.MULTILINE)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(\([\w.]+\))?(: |$)")

Meter = Callable[[bytes], bool]


@dataclass(frozen=True)
class LogEnding:
    """
    How a log ends, for error messages.

    :param last_lines: oldest first.
    :param exception: the last line in which Python names one.
    """

    last_lines: tuple[str, ...] = ()
    exception: str = ""


NO_ENDING = LogEnding()


class LogCursor:
    """
    A log that is read again and again while it grows.

    :param position: bytes to pass over, as they were shown before; always at the start of a line or, inside a
        very long line or a progress bar's, of a record. :attr:`position` gives the number for the next time.
    :param checksum: CRC 32 of those bytes, by which the log is known again.
    :param record_bytes: with which a record is full.
    :param record_lines: likewise; it may be changed between two records.
    :param meter: asked whether a record may be shown; the first one that may not ends the read.
    """

    def __init__(
        self,
        position: int = 0,
        checksum: int = 0,
        *,
        record_bytes: int = RECORD_BYTES,
        record_lines: int = RECORD_LINES,
        meter: Meter | None = None,
    ) -> None:
        self.position = position
        self.checksum = checksum
        # whether a read brought other bytes than were shown: the log was replaced
        self.is_mismatch = False
        # the last bytes before the position
        self.recent = b""
        self.record_bytes = record_bytes
        self.record_lines = record_lines
        self._meter = meter
        # whether the last read was cut short: there is more to show than was allowed
        self.is_throttled = False
        # Read, but not shown: the start of a line whose end is yet to come.
        self._pending = b""
        # bytes of the log that the last read has brought, and the checksum of those that were passed over
        self.read_to = 0
        self._passed_checksum = 0
        self._is_complete = False

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None, **bounds: Any) -> LogCursor:
        """Return a log that goes on where another one, whose :attr:`state` this is, has stopped."""
        return cls(state["position"], state["checksum"], **bounds) if state else cls(**bounds)

    def restart(self) -> None:
        """Show the log from its start with the next read."""
        self.position = self.checksum = 0
        self.is_mismatch = False

    @property
    def state(self) -> dict[str, Any]:
        """What another process needs to go on; plain JSON."""
        return {"position": self.position, "checksum": self.checksum}

    @property
    def wants_more(self) -> bool:
        """Tell whether the rest of a read is of any use."""
        return not (self.is_mismatch or self.is_throttled)

    def begin(self) -> None:
        """
        Say that a new read begins, with the log's first byte.

        What an earlier read brought and nobody saw comes again with this one.
        """
        self._pending = self.recent = b""
        self.is_throttled = False
        self.read_to = self._passed_checksum = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """
        Take the next bytes of a read and yield the records that they fill.

        A record is text without its last newline. Bytes that are not UTF-8 become replacement characters.
        Only what was yielded counts as shown.
        """
        known = max(self.position - self.read_to, 0)
        if known:
            self._pass_over(data[:known])
        self.read_to += len(data)
        for start in range(known, 0 if self.is_mismatch else len(data), self.record_bytes):
            self._pending += data[start : start + self.record_bytes]
            while True:
                if size := self._full_record():
                    if not self._may_show(size):
                        return
                    yield from self._show(size)
                elif size := self._surplus():
                    self._take(size)
                else:
                    break

    def flush(self) -> Iterator[str]:
        """
        Yield what waits for a record to fill, as the read has come to the log's present end.

        These are the whole lines, and the present state of a progress bar, whose line ends with the work.
        """
        for end in (_last_line_end, _bar_state):
            if size := end(self._pending):
                if not self._may_show(size):
                    return
                yield from self._show(size)

    def finish(self) -> Iterator[str]:
        """Yield all that is left, a last line without a newline too: the log has ended, and was read to its end."""
        self._is_complete = True
        if self._pending:
            yield from self._show(len(self._pending))

    @property
    def ending(self) -> LogEnding:
        """How the log ends; nothing unless it was read to its end: other lines would mislead."""
        if not (self._is_complete and self.recent):
            return NO_ENDING
        lines = _text_of(self.recent).split("\n")
        return LogEnding(
            tuple(line[-_LAST_LINE_LENGTH:] for line in lines[-LAST_LINES:]), find_exception(lines)[:_LAST_LINE_LENGTH]
        )

    def _may_show(self, size: int) -> bool:
        self.is_throttled = self._meter is not None and not self._meter(self._pending[:size])
        return not self.is_throttled

    def _pass_over(self, data: bytes) -> None:
        """Compare bytes that were shown before with what is known of them."""
        is_all = self.read_to + len(data) == self.position
        self._passed_checksum = zlib.crc32(data, self._passed_checksum)
        self.is_mismatch = is_all and self._passed_checksum != self.checksum
        self.recent = (self.recent + data)[-RECENT_BYTES:]

    def _full_record(self) -> int:
        """Return how many pending bytes make a full record, 0 if there are too few."""
        start = self._pending[: self.record_bytes]
        lines = start.count(b"\n")
        if lines >= self.record_lines:
            return len(start) - len(start.split(b"\n", self.record_lines)[-1])
        if len(start) < self.record_bytes:
            return 0
        if lines:
            return start.rfind(b"\n") + 1
        return 0 if _SUPERSEDED.match(start) else _character_boundary(self._pending, self.record_bytes)

    def _surplus(self) -> int:
        """Return how many pending bytes are nothing but superseded states of a bar, when they fill a record."""
        if len(self._pending) < self.record_bytes:
            return 0
        superseded = _SUPERSEDED.match(self._pending)
        return superseded.end() if superseded else 0

    def _show(self, size: int) -> Iterator[str]:
        begun = self.recent.rpartition(b"\n")[2] if self.position else b""
        shown = self._take(size)
        rest, _, lines = shown.partition(b"\n")
        if begun and (not rest or (b"\r" in begun and not rest.strip(b"\r"))):
            # the end of a line whose last record, or a bar whose last state, was shown before
            if not lines:
                return
            shown = lines
        yield _text_of(shown)

    def _take(self, size: int) -> bytes:
        taken, self._pending = self._pending[:size], self._pending[size:]
        self.position += size
        self.checksum = zlib.crc32(taken, self.checksum)
        self.recent = (self.recent + taken)[-RECENT_BYTES:]
        return taken


def find_exception(lines: Sequence[str]) -> str:
    """
    Return the last line in which Python names an exception, empty if there is none.

    It follows the indented frames of a traceback; an error of a Ray task holds the task's own traceback, whose
    last line is the one of interest.
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
        data = _SUPERSEDED.sub(b"", data)
    return data.decode("utf-8", errors="replace").removesuffix("\n")


def _last_line_end(data: bytes) -> int:
    """Return where the last whole line ends, 0 if there is none."""
    return data.rfind(b"\n") + 1


def _bar_state(line: bytes) -> int:
    """Return where the present state of a progress bar ends in a line that has not ended; 0 if it is no such line."""
    if not _SUPERSEDED.match(line):
        return 0
    state = line.rstrip(b"\r")
    # a character that is still being written will be there at the next read
    return len(state) if _is_whole(state) else 0


def _is_whole(data: bytes) -> bool:
    """Tell whether data ends with a whole UTF-8 character, or with bytes that are none at all."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:])
    return not decoder.getstate()[0]


def _character_boundary(data: bytes, end: int) -> int:
    """Return the last place at or before ``end`` that does not cut a UTF-8 character of up to 4 bytes."""
    for back in range(4):
        if data[end - back : end - back + 1] and data[end - back] & 0xC0 != 0x80:
            return end - back
    return end
