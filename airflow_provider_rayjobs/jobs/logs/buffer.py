"""A log that is kept in memory."""

from __future__ import annotations

from collections.abc import Iterator


class LogBuffer:
    """What the last read brought."""

    wants_more = True

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def begin(self) -> None:
        """Say that a new read begins; what came before is forgotten."""
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
        """All that the last read brought, as text; bytes that are not UTF-8 are replacement characters."""
        return b"".join(self._pieces).decode("utf-8", errors="replace")
