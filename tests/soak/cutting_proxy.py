"""
A proxy between Airflow and a Ray head that cuts connections at random.

It passes bytes on as they come, in both directions, and keeps connections alive as the head does. Each request that
it sees draws its fate by lot; the lot depends on the seed, on what is asked for and on how often it was asked for.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qs, urlsplit

# How many of the requests are lost before the head has them, answered by the head and not heard of, and cut in the
# midst of the answer: of those for a log, and of all others.
_FAILURES_OF_LOGS = (0.03, 0.03, 0.25)
_FAILURES = (0.05, 0.05, 0.1)
# How many are late, which goes with any of the above, and for how many seconds at most: a log whose reads take long is
# read rarely, and shall be read often here.
_LATE = 0.15
_DELAY_OF_LOGS = 0.05
_DELAY = 0.4
# So many times in a row something that is asked for may fail: an outage as long as that is not what is tested here.
_MOST_IN_A_ROW = 3
# What a first answer is taken to have at most: later ones are cut within the length of the longest so far.
_FIRST_LENGTH = 1_000
_FIRST_LOG_LENGTH = 100_000
# A log has grown since then, and what is new in it is where a cut is of interest.
_GROWTH = 1.3
_CHUNK = 64 * 1024
# An answer's headers are shorter.
_HEADERS = 500
_REQUEST = re.compile(rb"(GET|POST|PUT|DELETE) (\S+) HTTP/1\.1\r\n")


@dataclass
class Fate:
    """What becomes of one request; ``cut`` says after how many bytes of the answer."""

    kind: str = "passed on"
    cut: int | None = None
    delay: float = 0.0
    is_reset: bool = False


@dataclass
class Exchange:
    """A request on a connection, and what has come of it so far."""

    key: str
    fate: Fate
    answered: int = 0


class CuttingProxy:
    """
    The proxy, in a thread of its own; a context manager.

    :param head: the port of the head's dashboard on this machine.
    :param seed: of all that is left to chance.
    """

    def __init__(self, head: int, seed: int) -> None:
        self.seed = seed
        # what was asked of the proxy, by key, and how requests for jobs and logs fared
        self.asked: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        # answers of logs that were cut in the midst of their bytes
        self.logs_cut = 0
        self._in_a_row: Counter[str] = Counter()
        self._longest: dict[str, int] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._head = ("127.0.0.1", head)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        # where Airflow takes the head to be
        self.port = int(self._socket.getsockname()[1])
        self._servers: list[asyncio.Server] = []
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="cutting proxy", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._is_over: asyncio.Event

    @property
    def log_reads(self) -> int:
        """How often a log was asked for."""
        return sum(number for key, number in self.asked.items() if key.startswith("log"))

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        self._servers.append(await asyncio.start_server(partial(self._connect, self._head), sock=self._socket))
        self._is_up.set()
        await self._is_over.wait()
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # -- connections ----------------------------------------------------------------------------------------------

    async def _connect(
        self, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection until one of its sides, or its fate, ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        try:
            head_reader, head_writer = await asyncio.open_connection(*target)
            writers.append(head_writer)
            exchange = Exchange("", Fate())
            both = [
                asyncio.ensure_future(one)
                for one in (
                    self._pass_requests(reader, head_writer, exchange),
                    self._pass_answers(head_reader, writer, exchange),
                )
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in both:
                    one.cancel()
                await asyncio.gather(*both, return_exceptions=True)
            if exchange.fate.is_reset:
                _reset(writer)
        except OSError:
            pass  # the head is gone, or does not listen
        except asyncio.CancelledError:
            pass  # the proxy is; a cancelled handler would be reported as an error
        finally:
            self._connections.discard(task)
            for one_writer in writers:
                with suppress(OSError):
                    one_writer.close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, head: asyncio.StreamWriter, exchange: Exchange
    ) -> None:
        while data := await reader.read(_CHUNK):
            # a request begins with the first bytes after an answer; its body may come by itself
            if begun := _REQUEST.match(data):
                exchange.key = _key_of(*begun.groups())
                exchange.answered = 0
                exchange.fate = self._draw(exchange.key)
                await asyncio.sleep(exchange.fate.delay)
                if exchange.fate.kind == "lost":
                    return
            head.write(data)
            await head.drain()

    async def _pass_answers(self, head: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange) -> None:
        while data := await head.read(_CHUNK):
            fate = exchange.fate
            room = len(data) if fate.cut is None else fate.cut - exchange.answered
            exchange.answered += len(data)
            self._longest[exchange.key] = max(self._longest.get(exchange.key, 0), exchange.answered)
            writer.write(data[:room])
            await writer.drain()
            if room < len(data):
                if fate.kind == "cut" and fate.cut is not None:
                    self.fates["cut"] += 1
                    self.logs_cut += exchange.key.startswith("log") and fate.cut >= _HEADERS
                return

    # -- fates ----------------------------------------------------------------------------------------------------

    def _draw(self, key: str) -> Fate:
        self.asked[key] += 1
        lot = random.Random(f"{self.seed} {key} {self.asked[key]}")  # noqa: S311  (no secret)
        is_log = key.startswith("log")
        draw, place, longest_delay = lot.random(), lot.random(), _DELAY_OF_LOGS if is_log else _DELAY
        fate = Fate(delay=longest_delay * lot.random() if lot.random() < _LATE else 0.0, is_reset=lot.random() < 0.5)
        lost, unheard, cut = _FAILURES_OF_LOGS if is_log else _FAILURES
        if self._in_a_row[key] >= _MOST_IN_A_ROW:
            pass
        elif draw < lost:
            fate.kind = "lost"
        elif draw < lost + unheard:
            fate.kind, fate.cut = "unheard", 0
        elif draw < lost + unheard + cut:
            fate.kind, fate.cut = "cut", self._place_of_cut(key, place)
        if fate.kind == "passed on":
            fate.is_reset = False
        self._in_a_row[key] = 0 if fate.kind == "passed on" else self._in_a_row[key] + 1
        if fate.kind != "cut":
            self.fates[fate.kind] += 1  # an answer may be shorter than the place of its cut
        return fate

    def _place_of_cut(self, key: str, place: float) -> int:
        if key in self._longest:
            return 1 + int(self._longest[key] * _GROWTH * place)
        if key.startswith("log"):  # of any length, and more often a short one
            return int(_HEADERS * (_FIRST_LOG_LENGTH / _HEADERS) ** place)
        return 1 + int(_FIRST_LENGTH * place)


def _key_of(method: bytes, target: bytes) -> str:
    """Return what a request asks for: ``log job-driver-x.log`` however it is read, or ``GET /api/jobs/x``."""
    parts = urlsplit(target.decode())
    filename = parse_qs(parts.query).get("filename")
    if filename:
        return f"log {filename[0]}"
    if parts.path.endswith("/logs"):
        return f"log job-driver-{parts.path.split('/')[-2]}.log"
    return f"{method.decode()} {parts.path}"


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the close of a connection be a reset, as of a machine that has gone; what was sent before arrives."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
