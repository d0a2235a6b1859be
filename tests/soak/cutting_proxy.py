"""
A proxy between Airflow and a Ray head that cuts connections at random.

It forwards bytes as they come, in both directions, and keeps connections open as the head does. The proxy plans the
outcome of each request at random. The plan depends on the seed, on the key of the request, and on the number of earlier
requests with this key.
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
from urllib.parse import parse_qs, urlsplit

# The shares of requests that are lost, whose response is lost, and whose response is cut. Reads of a log have their own
# shares.
_LOG_FAILURE_RATES = (0.03, 0.03, 0.25)
_FAILURE_RATES = (0.05, 0.05, 0.1)
# The share of requests that are delayed, with any outcome, and the longest delay in seconds. Reads of a log are delayed
# less: the client reads a log rarely if a read takes long, and this test needs many reads.
_DELAYED_RATE = 0.15
_MAX_LOG_DELAY = 0.05
_MAX_DELAY = 0.4
# A request fails at most this often in a row: longer outages are not tested here.
_MAX_FAILURES_IN_A_ROW = 3
# The assumed length of a first response. Later responses are cut within the length of the longest one so far.
_FIRST_LENGTH = 1_000
_FIRST_LOG_LENGTH = 100_000
# A log has grown since the last read. A cut within the new part is the most interesting one.
_LOG_GROWTH = 1.3
_CHUNK = 64 * 1024
# The headers of a response are shorter than this.
_MAX_HEADERS = 500
_REQUEST = re.compile(rb"(GET|POST|PUT|DELETE) (\S+) HTTP/1\.1\r\n")


@dataclass
class RequestPlan:
    """
    What the proxy does to one request.

    :param outcome: ``forwarded``, ``request_lost``, ``response_lost`` or ``response_cut``.
    :param cut_after: bytes of the response that the client gets; ``None`` for all of them.
    :param delay: seconds before the request is forwarded.
    :param is_reset: whether the connection ends with a TCP reset.
    """

    outcome: str = "forwarded"
    cut_after: int | None = None
    delay: float = 0.0
    is_reset: bool = False


@dataclass
class Exchange:
    """A request on a connection, its plan, and the bytes of its response so far."""

    key: str
    plan: RequestPlan
    received: int = 0


class CuttingProxy:
    """
    The proxy, in a thread of its own; a context manager.

    :param head: the port of the head's dashboard on this machine.
    :param seed: of all random choices.
    """

    def __init__(self, head: int, seed: int) -> None:
        self.seed = seed
        # the number of requests by key, and by outcome
        self.requests: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        # the number of responses that were cut within the bytes of a log
        self.logs_cut = 0
        self._failures_in_a_row: Counter[str] = Counter()
        self._longest: dict[str, int] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._head = ("127.0.0.1", head)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        # the port of Airflow's connection
        self.port = int(self._socket.getsockname()[1])
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="cutting proxy", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._is_closed: asyncio.Event

    @property
    def log_reads(self) -> int:
        """The number of requests that read a log."""
        return sum(number for key, number in self.requests.items() if key.startswith("log"))

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._is_closed.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._is_closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connect, sock=self._socket)
        self._is_up.set()
        await self._is_closed.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # -- connections ----------------------------------------------------------------------------------------------

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client, the head or the plan of a request ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        try:
            head_reader, head_writer = await asyncio.open_connection(*self._head)
            writers.append(head_writer)
            exchange = Exchange("", RequestPlan())
            directions = [
                asyncio.ensure_future(direction)
                for direction in (
                    self._forward_requests(reader, head_writer, exchange),
                    self._forward_responses(head_reader, writer, exchange),
                )
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
            if exchange.plan.is_reset:
                _reset_on_close(writer)
        except OSError:
            pass  # the head closed the connection, or refused it
        except asyncio.CancelledError:
            pass  # the proxy is closed; asyncio would report a cancelled handler as an error
        finally:
            self._connections.discard(task)
            for open_writer in writers:
                with suppress(OSError):
                    open_writer.close()

    async def _forward_requests(
        self, reader: asyncio.StreamReader, head: asyncio.StreamWriter, exchange: Exchange
    ) -> None:
        while data := await reader.read(_CHUNK):
            # a request begins with the first bytes after a response; its body may come separately
            if request := _REQUEST.match(data):
                exchange.key = _key_of(*request.groups())
                exchange.received = 0
                exchange.plan = self._plan_request(exchange.key)
                await asyncio.sleep(exchange.plan.delay)
                if exchange.plan.outcome == "request_lost":
                    return
            head.write(data)
            await head.drain()

    async def _forward_responses(
        self, head: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange
    ) -> None:
        while data := await head.read(_CHUNK):
            plan = exchange.plan
            remaining = len(data) if plan.cut_after is None else plan.cut_after - exchange.received
            exchange.received += len(data)
            self._longest[exchange.key] = max(self._longest.get(exchange.key, 0), exchange.received)
            writer.write(data[:remaining])
            await writer.drain()
            if remaining < len(data):
                if plan.outcome == "response_cut" and plan.cut_after is not None:
                    self.outcomes["response_cut"] += 1
                    self.logs_cut += exchange.key.startswith("log") and plan.cut_after >= _MAX_HEADERS
                return

    # -- plans ----------------------------------------------------------------------------------------------------

    def _plan_request(self, key: str) -> RequestPlan:
        self.requests[key] += 1
        rng = random.Random(f"{self.seed} {key} {self.requests[key]}")  # noqa: S311  (no secret)
        is_log = key.startswith("log")
        draw, cut_position, max_delay = rng.random(), rng.random(), _MAX_LOG_DELAY if is_log else _MAX_DELAY
        plan = RequestPlan(
            delay=max_delay * rng.random() if rng.random() < _DELAYED_RATE else 0.0, is_reset=rng.random() < 0.5
        )
        request_lost, response_lost, response_cut = _LOG_FAILURE_RATES if is_log else _FAILURE_RATES
        if self._failures_in_a_row[key] >= _MAX_FAILURES_IN_A_ROW:
            pass
        elif draw < request_lost:
            plan.outcome = "request_lost"
        elif draw < request_lost + response_lost:
            plan.outcome, plan.cut_after = "response_lost", 0
        elif draw < request_lost + response_lost + response_cut:
            plan.outcome, plan.cut_after = "response_cut", self._cut_after(key, cut_position)
        if plan.outcome == "forwarded":
            plan.is_reset = False
        self._failures_in_a_row[key] = 0 if plan.outcome == "forwarded" else self._failures_in_a_row[key] + 1
        if plan.outcome != "response_cut":
            self.outcomes[plan.outcome] += 1  # a cut counts when it happens: the response may be shorter
        return plan

    def _cut_after(self, key: str, position: float) -> int:
        """Return after how many bytes to cut a response, for a position between 0 and 1."""
        if key in self._longest:
            return 1 + int(self._longest[key] * _LOG_GROWTH * position)
        if key.startswith("log"):  # short lengths are more likely
            return int(_MAX_HEADERS * (_FIRST_LOG_LENGTH / _MAX_HEADERS) ** position)
        return 1 + int(_FIRST_LENGTH * position)


def _key_of(method: bytes, target: bytes) -> str:
    """Return the key of a request: ``log job-driver-x.log`` for each way to read a log, or ``GET /api/jobs/x``."""
    parts = urlsplit(target.decode())
    filename = parse_qs(parts.query).get("filename")
    if filename:
        return f"log {filename[0]}"
    if parts.path.endswith("/logs"):
        return f"log job-driver-{parts.path.split('/')[-2]}.log"
    return f"{method.decode()} {parts.path}"


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Make ``close`` send a TCP reset, as when a machine fails. Bytes sent before still arrive."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
