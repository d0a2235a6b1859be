"""
A stand-in for a head, for load only: it answers with recorded shapes, as fast as a real head, one request at a time.

``python -m benchmarks.stand_in_head`` serves until its standard input closes, and prints its port. A client sets it up
with ``POST /stand-in``, whose JSON has the fields of :class:`Setup`, and reads its :class:`Figures` as the answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parents[1] / "tests" / "samples" / "2.60.0"
# Seconds that a head of Ray 2.60 needs for a request about one job, and for each job of a list.
STATUS_SECONDS, LISTED_SECONDS = 0.004, 0.0003
_LOG = b"".join(b"line %d\n" % number for number in range(100))


@dataclass
class Setup:
    """
    What the head has and does.

    :param jobs: how many jobs run, ``job-0`` and so on.
    :param old: how many other jobs the list has.
    :param latency: seconds that each answer takes in addition.
    :param fails_until: Unix seconds until which each answer is a 503.
    :param end_at: when the first job ends, Unix seconds; the last one ends ``end_over`` seconds later.
    """

    jobs: int = 0
    old: int = 0
    latency: float = 0.0
    fails_until: float = 0.0
    end_at: float = float("inf")
    end_over: float = 0.0

    def ends(self, number: int) -> float:
        return self.end_at + self.end_over * number / max(self.jobs, 1)


@dataclass
class Figures:
    """Since the start: requests by kind, and most connections and requests at the same time."""

    status: int = 0
    list: int = 0
    log: int = 0
    other: int = 0
    most_connections: int = 0
    most_requests: int = 0
    busy_seconds: float = 0.0


@dataclass
class Head:
    setup: Setup = field(default_factory=Setup)
    figures: Figures = field(default_factory=Figures)
    connections: int = 0
    requests: int = 0
    running: list[bytes] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)
    old: list[bytes] = field(default_factory=list)
    submitted: dict[str, bytes] = field(default_factory=dict)
    thread: asyncio.Lock = field(default_factory=asyncio.Lock)

    def set_up(self, given: dict[str, Any]) -> None:
        self.setup = Setup(**{**asdict(self.setup), **given})
        running, ended = (json.loads((SAMPLES / f"job_{name}.json").read_text()) for name in ("running", "succeeded"))
        self.running = [_record(running, f"job-{number}") for number in range(self.setup.jobs)]
        self.ended = [_record(ended, f"job-{number}") for number in range(self.setup.jobs)]
        self.old = [_record(ended, f"old-{number}") for number in range(self.setup.old)]

    def job(self, number: int) -> bytes:
        return self.ended[number] if self.setup.ends(number) <= time.time() else self.running[number]

    def submit(self, given: dict[str, Any]) -> bytes:
        """Take a job that ends at once."""
        name = given["submission_id"]
        ended = json.loads((SAMPLES / "job_succeeded.json").read_text())
        self.submitted[name] = json.dumps(ended | {"submission_id": name, "metadata": given["metadata"]}).encode()
        return json.dumps({"submission_id": name, "job_id": name}).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        self.connections += 1
        self.figures.most_connections = max(self.figures.most_connections, self.connections)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, _, headers = head.partition(b"\r\n")
                method, path, _ = line.decode().split()
                body = b""
                if method == "POST":
                    size = int(headers.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                    body = await reader.readexactly(size)
                status, content = await self.answer(path.partition("?")[0], body)
                kind = b"text/plain" if path.startswith("/api/v0") else b"application/json"
                writer.write(
                    b"HTTP/1.1 %d -\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(content))
                )
                writer.write(content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections -= 1
            writer.close()

    async def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/stand-in":
            self.set_up(json.loads(body))
            return 200, json.dumps(asdict(self.figures)).encode()
        self.requests += 1
        self.figures.most_requests = max(self.figures.most_requests, self.requests)
        try:
            if self.setup.latency:
                await asyncio.sleep(self.setup.latency)
            async with self.thread:
                began = time.perf_counter()
                answer = await self._answer(path, body)
                self.figures.busy_seconds += time.perf_counter() - began
                return answer
        finally:
            self.requests -= 1

    async def _answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if time.time() < self.setup.fails_until:
            return 503, b"{}"
        if body:
            return 200, self.submit(json.loads(body))
        if path == "/api/jobs/":
            self.figures.list += 1
            await asyncio.sleep(LISTED_SECONDS * (self.setup.jobs + self.setup.old))
            jobs = [self.job(number) for number in range(self.setup.jobs)]
            return 200, b"[" + b", ".join([*self.old, *jobs]) + b"]"
        await asyncio.sleep(STATUS_SECONDS)
        if path.startswith("/api/jobs/"):
            self.figures.status += 1
            name = path.rpartition("/")[2]
            return 200, self.submitted.get(name) or self.job(int(name.rpartition("-")[2]))
        if path.startswith("/api/v0/logs/file"):
            self.figures.log += 1
            return 200, _LOG
        self.figures.other += 1
        return 200, (SAMPLES / "version.json").read_bytes()


def _record(shape: dict[str, Any], name: str) -> bytes:
    given = {"submission_id": name, "metadata": {"submission_nonce": name, "airflow_dag_id": "nightly"}}
    return json.dumps(shape | given).encode()


async def _main() -> None:
    head = Head()
    head.set_up({})
    server = await asyncio.start_server(head.serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
