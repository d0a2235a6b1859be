"""
Measure one event loop that follows 10 to 5,000 deferred jobs of one cluster, beside one request per job and interval.

The head is a stand-in (:mod:`.stand_in_head`) that is as fast as a real one, with 2,000 jobs or as many as are
followed. The interval is 5 s. Each case is a new process, which runs this package's triggers (``watch``) or the
baseline: a loop of request and sleep for each job, with one shared ``httpx`` client (``naive``). At the end, all jobs
end within 5 s. Three more cases have 1,000 jobs: with logs, with a head that needs 2 s more for each answer, and with
a head that answers 503 for a minute.

Targets: all ends are reported. The other ones are those of 1,000 and 5,000 jobs. The longest time from a job's end to
its event is the interval that 5 % of the head's time allow, and a second; 20 s after the 503, for the backoff.

A plot of the first cases is written to ``docs/images/many-jobs.svg``.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.line_plot import Panel, save_plot
from benchmarks.many_jobs_follower import INTERVAL
from benchmarks.results import Result, Target
from benchmarks.stand_in_head import LISTED_SECONDS

ROOT = Path(__file__).parents[1]
PLOT = ROOT / "docs" / "images" / "many-jobs.svg"
SIZES = (10, 100, 1_000, 5_000)
# The followed jobs and the old ones together.
JOBS_OF_HEAD = 2_000
# Percent of the time of one core, and milliseconds.
CPU = {1_000: 5.0, 5_000: 20.0}
DELAY = {1_000: 20.0, 5_000: 50.0}
# Connections of the benchmark itself.
OWN_CONNECTIONS = 1
# Seconds after which a case is given up, and the figures of an event loop that does not even end it.
LONGEST = 420.0
COLLAPSED = {
    "reported": 0.0, "last end": math.inf, "cpu": 100.0, "requests": math.nan, "p99": math.inf, "memory": math.nan,
    "connections": math.nan, "busy": math.nan,
}  # fmt: skip
SLOW_LATENCY = 2.0
HARDER: dict[str, tuple[dict[str, Any], float]] = {
    "with logs": ({"logs": True}, 0.0),
    "2 s latency": ({"latency": SLOW_LATENCY, "measured": 60.0}, SLOW_LATENCY),
    "503 for 60 s": ({"fails": 60.0}, 0.0),
}


def measure() -> list[Result]:
    """Measure all cases, one after the other."""
    results: list[Result] = []
    watch = {size: _follow("watch", size) for size in SIZES}
    naive = {size: _follow("naive", size) for size in SIZES}
    for size in SIZES:
        results += _results(f"{size:,} jobs", size, watch[size], naive[size])
    for name, (given, latency) in HARDER.items():
        figures = _follow("watch", 1_000, **given)
        results += _results(f"1,000 jobs, {name}", 1_000, figures, None, latency)
    _plot(watch, naive)
    return results


def _follow(way: str, jobs: int, **given: Any) -> dict[str, float]:
    interval = _interval(jobs)
    case = {
        "way": way,
        "jobs": jobs,
        "old": max(JOBS_OF_HEAD - jobs, 0),
        "warm_up": max(15.0, 1.5 * interval),
        "measured": max(30.0, 2 * interval),
        **given,
    }
    with stand_in_head() as port, tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.many_jobs_follower",
            json.dumps(case | {"port": port}),
        ]
        environment = os.environ | {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        try:
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=LONGEST
            ).stdout
        except subprocess.TimeoutExpired:
            return COLLAPSED
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


@contextmanager
def stand_in_head() -> Iterator[int]:
    """Run a stand-in, and yield its port."""
    command = [sys.executable, "-m", "benchmarks.stand_in_head"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        yield int(head.stdout.readline())
        head.stdin.close()


def _interval(jobs: int, latency: float = 0.0) -> float:
    """Return the seconds between two polls that the head's time allows."""
    return max(INTERVAL, 20 * (latency + LISTED_SECONDS * max(jobs, JOBS_OF_HEAD) * (jobs > 25)))


def _results(
    name: str, jobs: int, watch: dict[str, float], naive: dict[str, float] | None, latency: float = 0.0
) -> list[Result]:
    longest = _interval(jobs, latency) + 1 + (20 if "503" in name else 0)
    titles = {
        "reported": ("ends reported", "", Target("value", ">=", jobs)),
        "last end": ("longest time from end to event", "s", Target("value", "<=", longest)),
        "cpu": ("CPU of one core", "%", Target("value", "<=", CPU.get(jobs, 100))),
        "requests": ("requests for states", "1/s", Target("value", "<=", 0.5)),
        "p99": ("p99 delay of the event loop", "ms", Target("value", "<=", DELAY.get(jobs, 1000))),
        "memory": ("memory per job", "kB", Target("value", "<=", 60)),
        "connections": ("most connections", "", Target("value", "<=", 8 + OWN_CONNECTIONS)),
        "busy": ("head's time", "%", None),
    }
    always = ("reported", "last end", "connections")
    return [
        Result(
            f"{title}, {name}",
            watch[figure],
            unit,
            _finite(naive[figure]) if naive else None,
            target if jobs >= 1_000 or figure in always else None,
        )
        for figure, (title, unit, target) in titles.items()
        if figure != "memory" or jobs >= 100  # fewer do not show in the memory of a process
    ]


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def _plot(watch: dict[int, dict[str, float]], naive: dict[int, dict[str, float]]) -> None:
    panels = [
        Panel("requests per second", "requests", 0.01, 1_000),
        Panel("CPU of one core, %", "cpu", 0.1, 100),
        Panel("event loop delay p99, ms", "p99", 0.1, 10_000),
        Panel("ends reported, % of the jobs", "reported", 1, 100),
    ]
    for each in (watch, naive):
        for jobs, figures in each.items():
            figures["reported"] *= 100 / jobs
    save_plot(PLOT, "followed jobs", panels, {"one watch": watch, "a request per job": naive})
