"""Long work in time slices, driven by hand, and its progress messages."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from airflow_provider_rayjobs.jobs.packages.digest import digest_tree
from airflow_provider_rayjobs.jobs.packages.tree import Selection, select
from airflow_provider_rayjobs.jobs.progress import Progress, finish, run_in_slices
from airflow_provider_rayjobs.jobs.steps import Engine, Interrupted, LogMessage, RunBlocking, Sleep, interruptible


class Reading:
    """Long work: blocks of 1 MiB, each longer than a slice."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.is_closed = False

    def work(self) -> Progress[str]:
        try:
            for _ in range(self.blocks):
                time.sleep(0.3)
                yield 2**20
        finally:
            self.is_closed = True
        return "result"


def drive(engine: Engine[str]) -> tuple[str, int, list[str]]:
    """Return an engine's result, its number of slices and its messages; each request for the time takes 3 s."""
    answer, now, slices = None, 100.0, 0
    messages: list[str] = []
    while True:
        try:
            step = engine.send(answer)
        except StopIteration as end:
            return end.value, slices, messages
        match step:
            case RunBlocking(call):
                answer = call()
                slices += 1
            case Sleep():
                answer = now = now + 3
            case LogMessage(message):
                messages.append(message)


def test_long_work_is_one_step_per_slice_with_messages():
    """A slice ends after a quarter of a second; a message is due every 5 s of the engine's clock."""
    assert drive(run_in_slices(Reading(3).work(), "Reading", 3 * 2**20)) == ("result", 4, ["Reading: 2 of 3 MiB."])


def test_short_work_is_one_step_without_messages():
    """Work that ends within a quarter of a second is one step."""
    assert drive(run_in_slices(Reading(0).work(), "Reading")) == ("result", 1, [])


def test_interrupted_work_is_closed_after_its_slice():
    """An interruption during a slice closes the work at the end of the slice."""
    reading, marks = Reading(3), [False]
    engine = interruptible(run_in_slices(reading.work(), "Reading"), lambda: marks[0])
    next(engine)
    step = engine.send(0.0)
    assert isinstance(step, RunBlocking)
    answer = step.call()
    marks[0] = True

    with pytest.raises(Interrupted):
        engine.send(answer)
    assert reading.is_closed


@pytest.mark.parametrize("sizes", [[0, 1], [600_000] * 9, [4 * 2**20, 4 * 2**20 + 1, 12 * 2**20, 524_288, 524_287]])
def test_digests_from_several_threads_are_correct(tmp_path: Path, sizes: list[int]):
    """Files that several threads hash in slices have the SHA-256 of their contents, and each byte is counted."""
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}").write_bytes(os.urandom(size))
    tree = finish(select(tmp_path, Selection()))

    assert sum(digest_tree(tree)) == sum(sizes)
    assert finish(digest_tree(tree)) == {
        path.name: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()
    }


def test_closed_digest_leaves_no_thread_or_open_file(tmp_path: Path):
    """A digest that is closed between two slices releases its threads and files."""
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(bytes(6 * 2**20))
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208

    digest = digest_tree(finish(select(tmp_path, Selection())))
    next(digest)
    digest.close()

    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)  # noqa: PTH208
