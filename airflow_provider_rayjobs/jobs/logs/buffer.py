"""A log, or a part of one, that is kept in memory: for short ones, and for the end of a long one."""

from __future__ import annotations

from collections.abc import Iterator


class LogBuffer:
    """
    What the last read brought.

    :param limit: bytes after which a read is of no more use; no limit when not given.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def wants_more(self) -> bool:
        """Tell whether the rest of a read is of any use."""
        return self._limit is None or self._size <= self._limit

    def begin(self, offset: int = 0) -> None:  # noqa: ARG002  (where it stands is the caller's to know)
        """Say that a new read begins; what came before is forgotten."""
        self._pieces.clear()
        self._size = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """Keep the next bytes of a read; there is nothing to show."""
        self._pieces.append(data)
        self._size += len(data)
        return iter(())

    def flush(self) -> Iterator[str]:
        """Do nothing: nothing waits to be shown."""
        return iter(())

    @property
    def data(self) -> bytes:
        """All that the last read brought."""
        return b"".join(self._pieces)

    @property
    def text(self) -> str:
        """The same as text; bytes that are not UTF-8 are replacement characters."""
        return self.data.decode("utf-8", errors="replace")
