"""The log reads of many triggers of one cluster, with a clock that the test moves."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from heapq import heapify, heappop, heappush

import pytest

from airflow_provider_rayjobs.log_budget import BudgetShare, FlushTimer, LogBudget
from airflow_provider_rayjobs.log_pace import LogPace

SECONDS = 2_000.0


def simulate(
    monkeypatch: pytest.MonkeyPatch, readers: int, took: float, *, together: bool = False
) -> tuple[list[int], int]:
    """
    Let readers poll every 5 s, and read whenever they may, from a head that serves one read at a time.

    :param took: seconds that the head needs for each read.
    :param together: whether all readers poll at the same moment, 0.2 ms apart.
    :return: the reads of each reader, and the most reads at the same time.
    """
    pace, reads, most, free_at, interval = LogPace(), [0] * readers, 0, 0.0, 5.0
    step = 0.0002 if together else interval / readers
    with ExitStack() as stack:
        policies = [stack.enter_context(pace.reading(BudgetShare(LogBudget()))) for _ in range(readers)]
        events = [(interval + reader * step, reader, False) for reader in range(readers)]
        heapify(events)
        while events[0][0] < SECONDS:
            now, reader, is_reading = heappop(events)
            monkeypatch.setattr(time, "monotonic", lambda now=now: now)
            if is_reading:
                policies[reader].end(is_throttled=False)
            elif policies[reader].begin(now):
                reads[reader] += 1
                free_at = max(free_at, now) + took
                heappush(events, (free_at, reader, True))
                most = max(most, sum(each.began is not None for each in policies))
                continue
            rounds = math.ceil((now - reader * step) / interval + 0.001)
            heappush(events, (rounds * interval + reader * step, reader, False))
    return reads, most


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("readers", "took"), [(50, 0.1), (1000, 0.01), (1000, 0.05), (200, 1.0)])
def test_many_readers(monkeypatch: pytest.MonkeyPatch, readers: int, took: float, together: bool):
    """All reads together take 5 % of the time, few at the same time, and each reader reads equally often."""
    reads, most = simulate(monkeypatch, readers, took, together=together)

    assert 0.5 * 0.05 * SECONDS <= sum(reads) * took <= 1.1 * 0.05 * SECONDS + 60 * took
    assert most <= max(16, 0.5 / took), "the last of them ends half a second later"
    assert max(reads) - min(reads) <= 2


def test_few_readers_do_not_wait(monkeypatch: pytest.MonkeyPatch):
    """A few readers of short logs read at every poll."""
    reads, _ = simulate(monkeypatch, 5, 0.01)

    assert min(reads) >= SECONDS / 5 - 5


def test_readers_that_start_together_do_not_read_together():
    """The first reads of a thousand readers are spread."""
    pace = LogPace()
    with ExitStack() as stack:
        policies = [stack.enter_context(pace.reading(BudgetShare(LogBudget()))) for _ in range(1000)]
        assert not [each for each in policies if each.begin(1.0)][1:]
        due = sum(each.begin(21.0) for each in policies)

    assert 1 <= due <= 16


def test_reader_that_leaves_in_the_middle_of_a_read():
    """A reader that is cancelled while it reads takes no turn from the others."""
    pace = LogPace()
    for _ in range(100):
        with pace.reading(BudgetShare(LogBudget())) as policy:
            assert policy.begin(1.0)
    with pace.reading(BudgetShare(LogBudget())) as policy:
        assert policy.begin(2.0)


def test_wrapped_policy_decides():
    """The pace adds a condition; the wrapped policy still decides what is shown and handed over."""
    with LogPace().reading(FlushTimer(30.0)) as policy:
        assert [policy.begin(now) for now in (1.0, 20.0, 40.0)] == [False, False, True]
        assert policy.hands_over
        assert not policy.take(b"line\n")
        assert policy.notice == FlushTimer.notice
