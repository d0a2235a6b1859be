"""
Measure the load on the head while one client follows a running job, for logs of 1, 10 and 100 MB.

The job prints the whole log at once, then one line per second, or nothing in the ``silent`` case. Afterwards a client
follows it for 40 s with ``poll_interval=5``. Two results for each log:

- Time in log requests: the share of the 40 s in which a log request was open, including the first read of the whole
  log. The baseline is a client that reads the whole log at each poll (``GET /api/jobs/{id}/logs``), as Ray's own
  ``get_job_logs`` does. It is calculated from one such request. Target: at most 5 %.
- Additional dashboard CPU: the CPU time of the dashboard and its agent, in percent of one core, minus the baseline. The
  baseline is their CPU time while a job prints and no client follows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import psutil

from airflow_provider_rayjobs.jobs import RayJobsClient
from benchmarks.printing_jobs import MB, printing_entrypoint, wait_until_printed
from benchmarks.results import Result, Target
from sandbox.ray_head import RayHead

FOLLOW_SECONDS, BASELINE_SECONDS = 40.0, 25.0
POLL_INTERVAL = 5.0
LINE_PER_SECOND = "while true; do sleep 1; echo tick; done"
SILENT = "sleep 600"
# The dashboard, its modules and its agent. "dashboard" alone would also match the command line of the raylet.
_PROCESSES = ("ray/dashboard/dashboard.py", "ray-dashboard-", "ray::DashboardAgent")
CASES = {
    "1 MB log": (1, LINE_PER_SECOND),
    "10 MB log": (10, LINE_PER_SECOND),
    "100 MB log": (100, LINE_PER_SECOND),
    "100 MB log, then silent": (100, SILENT),
}


def measure() -> list[Result]:
    """Measure all cases, one after the other, on one head."""
    results: list[Result] = []
    with RayHead() as head:
        cpu_baseline = _cpu_without_follower(head)
        for name, (megabytes, then) in CASES.items():
            reading, cpu, full_reads = _follow(head, megabytes * MB, then)
            results += [
                Result(f"time in log requests, {name}", 100 * reading, "%", 100 * full_reads, Target("value", "<=", 5)),
                Result(f"additional dashboard CPU, {name}", 100 * (cpu - cpu_baseline), "%", 100 * cpu_baseline),
            ]
    return results


class StopFollowing(Exception):  # noqa: N818  (no error)
    """Ends :meth:`RayJobsClient.follow_job` before the job ends."""


class TimedTransport(httpx.HTTPTransport):
    """
    Add up the time in which log requests are open, from sending the request to reading the last byte.

    Raise :class:`StopFollowing` on the first request after :attr:`end`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.end = float("inf")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        started = time.perf_counter()
        if started > self.end:
            raise StopFollowing
        response = super().handle_request(request)
        if "/logs" in request.url.path:
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = _TimedStream(response.stream, self, started)
        return response


class _TimedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, transport: TimedTransport, started: float) -> None:
        self._stream = stream
        self._transport = transport
        self._started = started

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()
        self._transport.seconds += time.perf_counter() - self._started


def _cpu_without_follower(head: RayHead) -> float:
    """Return the dashboard's share of one core while a job prints and no client follows it."""
    with RayJobsClient(head.address) as client:
        submission_id = client.submit_job(printing_entrypoint(MB, LINE_PER_SECOND))
        wait_until_printed(head, submission_id, MB)
        time.sleep(3)  # the submission itself must not count
        before = _cpu_seconds()
        time.sleep(BASELINE_SECONDS)
        share = (_cpu_seconds() - before) / BASELINE_SECONDS
        client.stop_job(submission_id)
    return share


def _follow(head: RayHead, size: int, then: str) -> tuple[float, float, float]:
    """Return the share of time in log requests, the dashboard's share of one core, and the share for full reads."""
    transport = TimedTransport()
    with RayJobsClient(head.address) as client, RayJobsClient(head.address, transport=transport) as follower:
        submission_id = client.submit_job(printing_entrypoint(size, then))
        wait_until_printed(head, submission_id, size)
        time.sleep(3)
        before, started = _cpu_seconds(), time.perf_counter()
        transport.end = started + FOLLOW_SECONDS
        with suppress(StopFollowing):
            follower.follow_job(submission_id, on_log=len, poll_interval=POLL_INTERVAL)
        seconds = time.perf_counter() - started
        reading, cpu = transport.seconds / seconds, (_cpu_seconds() - before) / seconds
        full_read = _full_read_seconds(client.address, submission_id)
        client.stop_job(submission_id)
    return reading, cpu, full_read / (full_read + POLL_INTERVAL)


def _full_read_seconds(address: str, submission_id: str) -> float:
    started = time.perf_counter()
    httpx.get(f"{address}/api/jobs/{submission_id}/logs", timeout=60).raise_for_status()
    return time.perf_counter() - started


def _cpu_seconds() -> float:
    """Return the CPU time so far of the dashboard and its agent. They descend from this process, which has one head."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if any(name in title for name in _PROCESSES):
                times = process.cpu_times()
                total += times.user + times.system
    return total
