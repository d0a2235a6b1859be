"""
A simulated network between the processes of a history and the clusters: an httpx transport.

The seam is below httpx, so requests are encoded and answers are parsed by the real client. Each request takes a moment
there and back. The script of the history may do one of these things to it:

=========================  ==========================================================================
``refused``                the connection is refused; nothing arrives
``request lost``           nothing arrives, and the client waits until its timeout
``answer lost``            the request takes effect, and the connection is cut
``answer late``            the request takes effect, and the client waits until its timeout
``arrives late``           the connection is cut, and the request takes effect 15 s later
``slow``                   the request takes effect after 10 s, and is answered
``slow both ways``         the request takes effect after 2 s, and is answered 10 s later
``twice``                  the request takes effect, and once more 5 s later, as proxies retry
``404 of an ingress`` ...  something else answers; nothing arrives
``502 after arrival`` ...  the request takes effect, and something else answers
=========================  ==========================================================================

A request that is under way when its process dies arrives. One that is under way when its head dies does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import parse_qsl

import httpx

from .clock import Clock, Process, current_thread
from .ray import Cluster, Job, Reply

LATENCY = 0.01
_HTML = "text/html; charset=utf-8"
FOREIGN: Mapping[str, Reply] = {
    "404 of an ingress": Reply(404, b"<html><title>404 Not Found</title>default backend - 404</html>", _HTML),
    "401 of an ingress": Reply(401, b"<html><title>401 Authorization Required</title></html>", _HTML),
    "403 of an ingress": Reply(403, b"<html><title>403 Forbidden</title></html>", _HTML),
    "502 of an ingress": Reply(502, b"<html><title>502 Bad Gateway</title></html>", _HTML),
    "200 login page": Reply(200, b"<html><title>Sign in</title></html>", _HTML),
    "200 of a gateway": Reply(200, b'{"status": "ok"}', "application/json"),
    "502 after arrival": Reply(502, b"<html><title>502 Bad Gateway</title></html>", _HTML),
    "200 of a gateway after arrival": Reply(200, b'{"status": "accepted"}', "application/json"),
}
LOST = ("refused", "request lost", "answer lost", "answer late", "arrives late", "slow", "slow both ways", "twice")
FAULTS = (*LOST, *FOREIGN)
# The answer comes late, but in time.
_SLOW = ("slow", "slow both ways")


class Script(Protocol):
    """What the history does at an operation of a process."""

    def begin(self, process: Process, label: str) -> tuple[str, str | None]:
        """Begin an operation. Return its key, and the fault of the operation itself, if any."""

    def end(self, process: Process, key: str) -> None:
        """End an operation: its effect has happened, its result is not known yet."""

    def saw(self, job: Job) -> None:
        """Note that a process has got its first answer about a job."""

    def note(self, text: str) -> None: ...


class Network:
    """Carries requests to clusters by host name."""

    def __init__(self, clock: Clock, script: Script) -> None:
        self.clusters: dict[str, Cluster] = {}
        # every request is answered so, or refused, until that time
        self.outage_until = 0.0
        self.outage = "refused"
        # the process whose request arrives
        self.sender: Process | None = None
        # whether the request that arrives is one whose answer its sender no longer awaits, or a repetition of one
        self.is_stray = False
        # when requests other than submissions failed
        self.failures: list[float] = []
        # when they were answered slowly
        self.delays: list[float] = []
        self._clock = clock
        self._script = script

    def exchange(self, process: Process, request: httpx.Request) -> Generator[float, None, httpx.Response]:
        """Carry one request; yields the seconds to sleep."""
        process.check()
        label = describe(request)
        key, fault = self._script.begin(process, label)
        if self._clock.now < self.outage_until:
            fault = self.outage
        cluster = self.clusters.get(request.url.host)
        is_down = cluster is None or not cluster.is_up
        if label != "submit" and (is_down or fault not in (None, *_SLOW, "twice")):
            self.failures.append(self._clock.now)
        elif label != "submit" and fault in _SLOW:
            self.delays.append(self._clock.now)
        if cluster is None or not cluster.is_up or fault == "refused":
            raise httpx.ConnectError("[Errno 111] Connection refused", request=request)
        timeout = request.extensions["timeout"]["read"]
        there, back = {"slow": (10.0, LATENCY), "slow both ways": (2.0, 10.0), "arrives late": (15.0, 0.0)}.get(
            fault or "", (LATENCY, LATENCY)
        )
        if fault in ("request lost", "answer late"):
            back = timeout
        replies: list[Reply] = []
        if fault != "request lost" and (fault not in FOREIGN or "after arrival" in fault):
            self._deliver_later(process, cluster, request, there, replies, is_stray=fault == "arrives late")
        if fault == "twice":
            self._deliver_later(process, cluster, request, 5.0, [], is_stray=True)
        session = cluster.session
        yield LATENCY if fault == "arrives late" else min(there, timeout)
        self._script.end(process, key)
        yield min(back, max(timeout - there, 0.0)) if fault in _SLOW else back
        self._script.note(f"{process.name}: {label}: {_shown(replies, fault)}")
        if fault in ("request lost", "answer late") or there + back > timeout:
            raise httpx.ReadTimeout("The read operation timed out", request=request)
        if fault in ("answer lost", "arrives late") or not cluster.is_up or cluster.session != session:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        if label == "status" and fault not in FOREIGN:
            job = cluster.find(request.url.path.rpartition("/")[2])
            if job is not None:
                self._script.saw(job)
        reply = FOREIGN[fault] if fault in FOREIGN else replies[0]
        headers = {"content-type": reply.content_type, "date": formatdate(self._clock.time(), usegmt=True)}
        return httpx.Response(reply.status, headers=headers, content=reply.body)

    def _deliver_later(
        self,
        process: Process,
        cluster: Cluster,
        request: httpx.Request,
        delay: float,
        replies: list[Reply],
        *,
        is_stray: bool,
    ) -> None:
        session = cluster.session

        def arrive() -> None:
            if cluster.is_up and cluster.session == session:
                self.sender, self.is_stray = process, is_stray
                query = dict(parse_qsl(request.url.query.decode()))
                replies.append(cluster.handle(request.method, request.url.path, query, request.content))
                if delay > LATENCY:
                    self._script.note(f"network: {describe(request)} arrives late: {_shown(replies, None)}")

        self._clock.call_later(delay, arrive)


def describe(request: httpx.Request) -> str:
    """Name the kind of a request in a word."""
    path = request.url.path
    if path == "/api/jobs/":
        return "submit" if request.method == "POST" else "list"
    if not path.startswith("/api/jobs/"):
        return {"/api/version": "version", "/api/v0/logs/file": "log"}.get(path, path)
    action = path.removeprefix("/api/jobs/").partition("/")[2]
    return action or {"GET": "status", "DELETE": "delete"}.get(request.method, request.method)


def _shown(replies: list[Reply], fault: str | None) -> str:
    answer = f"{replies[0].status} {replies[0].body[:60]!r}" if replies else "no answer"
    return answer if fault is None else f"{answer} ({fault})"


class SyncTransport(httpx.BaseTransport):
    """Takes the place of httpx's own transport in a worker. The process that creates it owns it."""

    network: Network

    def __init__(self, **_: Any) -> None:
        self._thread = current_thread()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        process = self._thread.process
        request.read()
        carrying = self.network.exchange(process, request)
        while True:
            try:
                pause = next(carrying)
            except StopIteration as end:
                response: httpx.Response = end.value
                return response
            current_thread().wait(pause)


class AsyncTransport(httpx.AsyncBaseTransport):
    """Takes the place of httpx's own transport in a triggerer."""

    network: Network

    def __init__(self, **_: Any) -> None:
        self._process = current_thread().process

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        carrying = self.network.exchange(self._process, request)
        while True:
            try:
                pause = next(carrying)
            except StopIteration as end:
                response: httpx.Response = end.value
                return response
            await asyncio.sleep(pause)
            self._process.check()
