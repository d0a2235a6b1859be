"""A TCP proxy on this machine with a limited bandwidth, like that of a network link."""

from __future__ import annotations

import asyncio
import threading
from typing import Self

# Bytes; small, so that the rate is even.
_CHUNK = 64 * 1024
# Seconds of delay that later chunks may catch up on, because sleeps end late.
_BURST = 0.05


class SlowLink:
    """
    The proxy, in its own thread. Use it as a context manager.

    :param target: the port on this machine to which it connects.
    :param rate: bytes per second in each direction, for all connections together.
    """

    def __init__(self, target: int, rate: float) -> None:
        self.port = 0
        self._target = target
        self._rate = rate
        self._has_started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="slow link", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._is_closed: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._has_started.wait(10):
            raise RuntimeError("The proxy did not start.")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._is_closed.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._is_closed = asyncio.get_running_loop(), asyncio.Event()
        self._up, self._down = _Direction(self._rate), _Direction(self._rate)
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0, limit=_CHUNK)
        self.port = int(server.sockets[0].getsockname()[1])
        self._has_started.set()
        await self._is_closed.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=_CHUNK)
        both = [
            asyncio.ensure_future(self._up.forward(reader, target_writer)),
            asyncio.ensure_future(self._down.forward(target_reader, writer)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the link is closed; asyncio would report a cancelled handler as an error
        finally:
            for direction in both:
                direction.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            writer.close()
            target_writer.close()


class _Direction:
    """One direction of the link. Chunks of all connections pass it one at a time."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        while data := await reader.read(_CHUNK):
            self._free_at = max(self._free_at, now() - _BURST) + len(data) / self._rate
            await asyncio.sleep(self._free_at - now())
            writer.write(data)
            await writer.drain()
