"""
Run long work in time slices, and log its progress.

Long work is a generator that yields the number of bytes processed since its last yield. An engine runs it in
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
# Long work and its result.
Progress = Generator[int, None, T]

MIB = 1024 * 1024
# Seconds of work in one step, and between two messages.
_SLICE = 0.25
_INTERVAL = 5.0


def describe_size(size: int) -> str:
    """Return a number of bytes in MiB, or in KiB if it is below 1 MiB."""
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size / 1024:.1f} KiB"


def finish(work: Progress[T]) -> T:
    """Run long work to its end without slices, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def run_in_slices(work: Progress[T], title: str, size: int | None = None) -> Engine[T]:
    """Run long work in time slices. ``title`` begins each message; ``size`` is the total in bytes, if known."""
    done = 0

    def advance() -> StopIteration | None:
        nonlocal done
        end = time.monotonic() + _SLICE
        while True:
            try:
                done += next(work)
            except StopIteration as last:
                return last
            if time.monotonic() > end:
                return None

    with closing(work):
        progress = ProgressLog(title, size, (yield Sleep(0)))
        while (last := (yield RunBlocking(advance))) is None:
            yield from progress.messages(done, (yield Sleep(0)))
    result: T = last.value
    return result


@dataclass
class ProgressLog:
    """The progress messages of long work: one every 5 s, by a clock of the caller's choice."""

    title: str
    size: int | None
    last_message: float

    def messages(self, done: int, now: float) -> Iterator[LogMessage]:
        """Yield a message if one is due and the work is not complete."""
        if now >= self.last_message + _INTERVAL and done != self.size:
            self.last_message = now
            total = "" if self.size is None else f" of {self.size // MIB}"
            yield LogMessage(f"{self.title}: {done // MIB}{total} MiB.")
