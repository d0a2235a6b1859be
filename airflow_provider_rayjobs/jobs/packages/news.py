"""
Long work in turns, and the notes that tell how far it is.

Everything that takes long is a generator that yields how many bytes it did since its last yield. An engine runs it
through ``Work`` steps of a quarter of a second, so that :func:`~airflow_provider_rayjobs.jobs.steps.interruptible` can
end it between two of them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

from airflow_provider_rayjobs.jobs.steps import Engine, Note, Sleep, Work

T = TypeVar("T")
# Long work: yields numbers of bytes, returns its result.
Progress = Generator[int, None, T]

MIB = 1024 * 1024
# Seconds of work between two looks at whether it shall go on.
_TURN = 0.25
# Seconds between two notes.
_PAUSE = 5.0


def finish(work: Progress[T]) -> T:
    """Do long work to its end, and return its result; blocks."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def in_turns(work: Progress[T], what: str, size: int | None = None) -> Engine[T]:
    """
    Do long work in turns, with notes.

    :param what: for the notes, e.g. ``Packing /dags``.
    :param size: bytes in all; ``None`` if unknown.
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
        news = News(what, size, (yield Sleep(0)))
        while (last := (yield Work(advance))) is None:
            yield from news.after(done, (yield Sleep(0)))
    result: T = last.value
    return result


class News:
    """
    Says every few seconds how far long work is.

    :param what: for the notes, e.g. ``Packing /dags``.
    :param size: bytes in all; ``None`` if unknown.
    :param now: when the work began, in seconds of any clock.
    """

    def __init__(self, what: str, size: int | None, now: float) -> None:
        self._what = what
        self._size = size
        self._of_all = "" if size is None else f" of {size // MIB}"
        self._next = now + _PAUSE

    def after(self, done: int, now: float) -> Iterator[Note]:
        """Yield a note if one is due, and there is more to do."""
        if now >= self._next and done != self._size:
            self._next = now + _PAUSE
            yield Note(f"{self._what}: {done // MIB}{self._of_all} MiB.")
