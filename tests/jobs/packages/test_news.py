"""Long work in turns, driven by hand, and the notes that tell how far it is."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from airflow_provider_rayjobs.jobs.packages.naming import digest_tree
from airflow_provider_rayjobs.jobs.packages.news import Progress, finish, in_turns
from airflow_provider_rayjobs.jobs.packages.tree import Selection, select
from airflow_provider_rayjobs.jobs.steps import Engine, Interrupted, Note, Sleep, Work, interruptible


class Reading:
    """Long work: so many pieces of 1 MiB, each of which takes longer than a turn."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.is_closed = False

    def work(self) -> Progress[str]:
        try:
            for _ in range(self.pieces):
                time.sleep(0.3)
                yield 2**20
        finally:
            self.is_closed = True
        return "result"


def drive(engine: Engine[str]) -> tuple[str, int, list[str]]:
    """Return an engine's result, how many turns it took, and its notes; the clock goes on by 3 s with each look."""
    answer, now, turns = None, 100.0, 0
    notes: list[str] = []
    while True:
        try:
            step = engine.send(answer)
        except StopIteration as end:
            return end.value, turns, notes
        match step:
            case Work(call):
                answer = call()
                turns += 1
            case Sleep():
                answer = now = now + 3
            case Note(message):
                notes.append(message)


def test_each_turn_is_one_step_and_a_note_follows_every_five_seconds():
    """A turn ends after a quarter of a second; the engine's clock decides when a note is due."""
    assert drive(in_turns(Reading(3).work(), "Reading", 3 * 2**20)) == ("result", 4, ["Reading: 2 of 3 MiB."])


def test_short_work_takes_one_turn():
    """Work that ends within a quarter of a second is one step, without a note."""
    assert drive(in_turns(Reading(0).work(), "Reading")) == ("result", 1, [])


def test_interruption_ends_work_between_two_turns():
    """A kill during a turn closes the work when the turn is over."""
    reading, marks = Reading(3), [False]
    engine = interruptible(in_turns(reading.work(), "Reading"), lambda: marks[0])
    next(engine)
    step = engine.send(0.0)
    assert isinstance(step, Work)
    answer = step.call()
    marks[0] = True

    with pytest.raises(Interrupted):
        engine.send(answer)
    assert reading.is_closed


@pytest.mark.parametrize("sizes", [[0, 1], [600_000] * 9, [4 * 2**20, 4 * 2**20 + 1, 12 * 2**20, 524_288, 524_287]])
def test_digests_of_large_files_are_those_of_their_contents(tmp_path: Path, sizes: list[int]):
    """Files that several threads hash in turns have the same digests as at once, and each byte is counted."""
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}").write_bytes(os.urandom(size))
    tree = finish(select(tmp_path, Selection()))

    assert sum(digest_tree(tree)) == sum(sizes)
    assert finish(digest_tree(tree)) == {
        path.name: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()
    }


def test_closed_naming_leaves_neither_threads_nor_open_files(tmp_path: Path):
    """Naming that is closed between two turns has let go of everything."""
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(bytes(6 * 2**20))
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208

    naming = digest_tree(finish(select(tmp_path, Selection())))
    next(naming)
    naming.close()

    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)  # noqa: PTH208
