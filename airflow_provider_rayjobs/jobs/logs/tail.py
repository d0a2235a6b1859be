"""The last lines of a log that cannot be read from its first byte to its end."""

from __future__ import annotations

from collections.abc import Iterator

# Lines that are requested, and most bytes of them that are kept: a log may be one line.
TAIL_LINES = 1000
TAIL_BYTES = 4 * 1024 * 1024


class LogTail:
    """
    A :class:`.LogSink` that keeps the last bytes of an answer.

    :param lines: the number of lines that are requested.
    """

    needs_more = True

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._data = b""
        self._is_cut = False

    def begin(self) -> None:
        """Discard the bytes of an earlier read."""
        self._data = b""
        self._is_cut = False

    def feed(self, data: bytes) -> Iterator[str]:
        self._data += data
        self._is_cut = self._is_cut or len(self._data) > TAIL_BYTES
        self._data = self._data[-TAIL_BYTES:]
        return iter(())

    def flush(self, *, is_cut: bool = False) -> Iterator[str]:  # noqa: ARG002
        return iter(())

    @property
    def is_whole_log(self) -> bool:
        """Tell whether the log has fewer lines than were requested. The last line may have no newline."""
        return not self._is_cut and self._data.count(b"\n") < self._lines - 1

    @property
    def data(self) -> bytes:
        """The last lines. A first line that was cut is left out if another one follows."""
        return self._data.partition(b"\n")[2] or self._data if self._is_cut else self._data
