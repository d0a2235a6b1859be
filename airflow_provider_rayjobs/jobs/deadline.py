"""
The time limit of a whole request. httpx limits only the time between two pieces of an answer.

The blocking client has no threads. So each connection reads and writes with the time that is left to the current
request. On an event loop the request is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

# Bytes that a connection sends between two looks at the time.
_PIECE = 64 * 1024
# Shortest timeout of a socket, in seconds: 0 would mean "do not wait".
_MIN_TIMEOUT = 0.001


class DeadlineError(Exception):
    """A request did not end in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the answer was not complete in time")
        self.seconds = seconds


class Deadline:
    """
    The time at which a request must have ended.

    :param seconds: from now on.
    :param rate: bytes per second of the slowest transfer that may go on: each received byte postpones the deadline.
    """

    def __init__(self, seconds: float, rate: float | None = None) -> None:
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._rate = rate

    @property
    def remaining(self) -> float:
        return self._end - time.monotonic()

    def extend(self, received: int) -> None:
        """Postpone the deadline for bytes that were received."""
        if self._rate is not None:
            self._end += received / self._rate

    def check(self) -> None:
        if self.remaining <= 0:
            raise self._error()

    def _error(self) -> DeadlineError:
        return DeadlineError(round(time.monotonic() - self._began, 1))

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise :class:`DeadlineError` when a connection of :func:`observe_deadlines` reads or writes too long."""
        self.check()
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @asynccontextmanager
    async def enforced_async(self) -> AsyncIterator[None]:
        """Do the same on an event loop, by cancellation."""
        self.check()
        timeout = asyncio.timeout(self.remaining)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._error() from None


_current: ContextVar[Deadline] = ContextVar("deadline")


def observe_deadlines(event: str, info: Mapping[str, Any]) -> None:
    """Let a new connection observe the deadline of each request: a callback for httpcore's extension ``trace``."""
    if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
        stream = info["return_value"]
        stream.read = _limited_read(stream.read)
        stream.write = _limited_write(stream.write)


def _limited_read(read: Callable[..., bytes]) -> Callable[..., bytes]:
    def limited(max_bytes: int, timeout: float | None = None) -> bytes:
        with _limit(timeout) as seconds:
            return read(max_bytes, seconds)

    return limited


def _limited_write(write: Callable[..., None]) -> Callable[..., None]:
    def limited(buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            with _limit(timeout) as seconds:
                write(buffer[start : start + _PIECE], seconds)

    return limited


@contextmanager
def _limit(timeout: float | None) -> Iterator[float | None]:
    """Yield the timeout of one read or write. An error after the deadline is a :class:`DeadlineError`."""
    deadline = _current.get(None)
    if deadline is None:
        yield timeout
        return
    deadline.check()
    remaining = max(deadline.remaining, _MIN_TIMEOUT)
    try:
        yield remaining if timeout is None else min(timeout, remaining)
    except Exception:
        deadline.check()
        raise
