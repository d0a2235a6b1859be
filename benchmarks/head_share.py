"""
What one follower costs the head while a job runs: the share of the time, for logs of 1, 10 and 100 MB.

A job prints so much at once and then a line a second; ``idle`` prints nothing more. Once the bulk is there, a follower
with ``poll_interval=5`` comes and shows it live for 40 s. Two figures for each:

- ``reading``: the share of this time in which the follower's log requests were open, the first with the whole bulk
  included. Beside it: that share for a follower that gets the log as text, ``GET /api/jobs/{id}/logs``, at each look,
  as Ray's own ``get_job_logs`` does; computed from one such request. Wanted: at most 5 %.
- ``CPU``: what the dashboard and its agent used more in this time than they do while a job prints and nobody looks, in
  percent of one core. Beside it: what they use while nobody looks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import psutil

from airflow_provider_rayjobs.jobs import RayJobsClient
from benchmarks.printing import MB, entrypoint, wait_until_printed
from benchmarks.results import Result, Wanted
from sandbox.ray_head import RayHead

SECONDS, UNSEEN_SECONDS = 40.0, 25.0
POLL_INTERVAL = 5.0
PRINTING = "while true; do sleep 1; echo tick; done"
SILENT = "sleep 600"
# the dashboard, its modules, its agent; "dashboard" alone stands in the raylet's command line as well
_PROCESSES = ("ray/dashboard/dashboard.py", "ray-dashboard-", "ray::DashboardAgent")
CASES = {"1 MB": (1, PRINTING), "10 MB": (10, PRINTING), "100 MB": (100, PRINTING), "100 MB, idle": (100, SILENT)}


def measure() -> list[Result]:
    """Measure one case after the other on one head."""
    results: list[Result] = []
    with RayHead() as head:
        unseen = _cpu_unseen(head)
        for name, (megabytes, then) in CASES.items():
            reading, cpu, naive = _follow(head, megabytes * MB, then)
            results += [
                Result(f"reading, {name}", 100 * reading, "%", 100 * naive, Wanted("value", "<=", 5)),
                Result(f"CPU, {name}", 100 * (cpu - unseen), "%", 100 * unseen),
            ]
    return results


class Over(Exception):  # noqa: N818  (no error)
    """The time for a follower is over."""


class TimedTransport(httpx.HTTPTransport):
    """
    Sums up how long requests for logs are open, from the first byte asked to the last one read.

    After :attr:`end` it raises :class:`Over`: a follower would wait for its job's end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.end = float("inf")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        began = time.perf_counter()
        if began > self.end:
            raise Over
        response = super().handle_request(request)
        if "/logs" in request.url.path:
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _TimedStream(response.stream, self, began)
        return response


class _TimedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, transport: TimedTransport, began: float) -> None:
        self._stream = stream
        self._transport = transport
        self._began = began

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()
        self._transport.seconds += time.perf_counter() - self._began


def _cpu_unseen(head: RayHead) -> float:
    """Return the head's share of a core while a job prints and nobody looks."""
    with RayJobsClient(head.address) as client:
        submission_id = client.submit_job(entrypoint(MB, PRINTING))
        wait_until_printed(head, submission_id, MB)
        time.sleep(3)  # until the submission has died away
        before = _cpu_seconds()
        time.sleep(UNSEEN_SECONDS)
        share = (_cpu_seconds() - before) / UNSEEN_SECONDS
        client.stop_job(submission_id)
    return share


def _follow(head: RayHead, size: int, then: str) -> tuple[float, float, float]:
    """Return the shares of the time: reading, the head's CPU, and reading all as text at each look."""
    transport = TimedTransport()
    with RayJobsClient(head.address) as client, RayJobsClient(head.address, transport=transport) as follower:
        submission_id = client.submit_job(entrypoint(size, then))
        wait_until_printed(head, submission_id, size)
        time.sleep(3)
        before, began = _cpu_seconds(), time.perf_counter()
        transport.end = began + SECONDS
        with suppress(Over):
            follower.follow_job(submission_id, on_log=len, poll_interval=POLL_INTERVAL)
        seconds = time.perf_counter() - began
        reading, cpu = transport.seconds / seconds, (_cpu_seconds() - before) / seconds
        naive = _seconds_of_text(client.address, submission_id)
        client.stop_job(submission_id)
    return reading, cpu, naive / (naive + POLL_INTERVAL)


def _seconds_of_text(address: str, submission_id: str) -> float:
    began = time.perf_counter()
    httpx.get(f"{address}/api/jobs/{submission_id}/logs", timeout=60).raise_for_status()
    return time.perf_counter() - began


def _cpu_seconds() -> float:
    """Return what the dashboard's processes and its agent have used so far; this process's only head started them."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if any(name in title for name in _PROCESSES):
                times = process.cpu_times()
                total += times.user + times.system
    return total
