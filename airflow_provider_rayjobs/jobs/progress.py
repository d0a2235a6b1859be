"""
Long work in turns, with progress notes.

Long work is a generator that yields the number of bytes done since its last yield. An engine runs it through
``RunBlocking`` steps of a quarter of a second, so that :func:`.steps.interruptible` can end it between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, RunBlocking, Sleep

T = TypeVar("T")
# Long work with a result.
Progress = Generator[int, None, T]

MIB = 1024 * 1024
# Seconds of work in one step, and between two notes.
_TURN = 0.25
_INTERVAL = 5.0


def finish(work: Progress[T]) -> T:
    """Run long work to its end and return its result. Blocks."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def in_turns(work: Progress[T], what: str, size: int | None = None) -> Engine[T]:
    """
    Run long work in turns.

    :param what: begins each note, e.g. ``Packing /dags``.
    :param size: total bytes; ``None`` if unknown.
    """
    done = 0

    def advance() -> StopIteration | None:
        nonlocal done
        end = time.monotonic() + _TURN
        while True:
            try:
                done += next(work)
            except StopIteration as last:
                return last
            if time.monotonic() > end:
                return None

    with closing(work):
        news = Throttle(what, size, (yield Sleep(0)))
        while (last := (yield RunBlocking(advance))) is None:
            yield from news.after(done, (yield Sleep(0)))
    result: T = last.value
    return result


@dataclass
class Throttle:
    """The progress notes of long work that begins ``now``, in seconds of any clock: one every 5 s."""

    what: str
    size: int | None
    now: float

    def after(self, done: int, now: float) -> Iterator[LogMessage]:
        """Yield a note if one is due and the work is not complete."""
        if now >= self.now + _INTERVAL and done != self.size:
            self.now = now
            total = "" if self.size is None else f" of {self.size // MIB}"
            yield LogMessage(f"{self.what}: {done // MIB}{total} MiB.")
