"""Many jobs that show their logs through one thin pipe: little together, and each as much as the others."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import ExitStack
from heapq import heapify, heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.trickle import BURST, RATE, FlushTimer, LogBudget

SECONDS = 300
# what a record of 1,000 characters takes in the pipe, as far as this test needs to know
LINE = b"x" * 999 + b"\n"
COST = 1_404


def simulate(
    intervals: list[float], speeds: list[float], *, duration: float = 0.02, is_spread: bool = False
) -> tuple[list[int], list[float], float]:
    """
    Let jobs print records at some speeds (a second) and ask at some intervals, for so many seconds.

    :param duration: seconds that each read takes; many of them are on at the same time.
    :param is_spread: whether they ask one after the other, and not all at the same moment.
    :return: how many records each has shown, its longest time between two reads, and the bytes of the busiest second.
    """
    trickle = LogBudget()
    shown = [0] * len(speeds)
    last_read = [0.0] * len(speeds)
    longest = [0.0] * len(speeds)
    seconds: Counter[int] = Counter()
    with ExitStack() as stack:
        shares = [stack.enter_context(trickle.share()) for _ in speeds]
        # when, which job, and what its read has found (-1 for no read); None where it asks
        events: list[tuple[float, int, float | None]] = [
            (interval * (1 + job / len(speeds) * is_spread), job, None) for job, interval in enumerate(intervals)
        ]
        heapify(events)
        while events:
            now, job, found = heappop(events)
            if now > SECONDS:
                continue
            if found is None:
                begun = shares[job].begin(now)
                heappush(events, (now + duration, job, speeds[job] * now if begun else -1))
                continue
            if found >= 0:
                is_throttled = False
                while shown[job] + 1 <= found and not is_throttled:
                    is_throttled = not shares[job].take(LINE)
                    shown[job] += not is_throttled
                    seconds[int(now)] += 0 if is_throttled else COST
                shares[job].end(now, is_throttled=is_throttled)
                longest[job] = max(longest[job], now - last_read[job])
                last_read[job] = now
            heappush(events, (now + intervals[job], job, None))
        assert len(trickle.shares) == len(speeds)
    assert not trickle.shares
    return shown, longest, max(seconds.values(), default=0)


@settings(deadline=None, max_examples=40)
@given(
    intervals=st.lists(st.sampled_from([1.0, 2.0, 5.0, 5.5]), min_size=1, max_size=60),
    speed=st.sampled_from([0.1, 10.0, 10_000.0]),
)
def test_all_together_show_little(intervals: list[float], speed: float) -> None:
    """However many jobs print, however much and however often they ask: together they stay within the pipe's bounds."""
    shown, _, most = simulate(intervals, [speed] * len(intervals))

    assert sum(shown) * COST <= RATE * SECONDS + BURST
    assert most <= RATE + BURST + COST


@settings(deadline=None, max_examples=40)
@given(number=st.integers(2, 100), interval=st.sampled_from([1.0, 2.0, 5.0]))
def test_talkative_jobs_get_the_same(number: int, interval: float) -> None:
    """Jobs that print more than they may all show about as much, and together what the pipe is given to take."""
    shown, _, _ = simulate([interval] * number, [1e3] * number, is_spread=True)

    assert min(shown) > max(shown) / 2
    assert sum(shown) * COST > 0.5 * min(RATE, BURST / interval) * SECONDS


@settings(deadline=None, max_examples=40)
@given(intervals=st.lists(st.sampled_from([1.0, 2.0, 5.0, 10.0]), min_size=2, max_size=60))
def test_nobody_starves(intervals: list[float]) -> None:
    """A job that asks rarely has its turns as well."""
    shown, _, _ = simulate(intervals, [1e3] * len(intervals))

    assert min(shown) >= 10


@pytest.mark.parametrize(("number", "duration"), [(50, 0.01), (50, 3.0), (200, 0.01), (200, 0.5)])
def test_quiet_jobs_do_not_wait_for_each_other(number: int, duration: float) -> None:
    """However many jobs print little, and however many of them are read at the same moment: each look finds a turn."""
    shown, longest, _ = simulate([5.0] * number, [0.05] * number, duration=duration, is_spread=True)

    assert max(longest) <= 2 * (5 + 2 * duration)
    assert min(shown) >= 0.05 * (SECONDS - 40)


def test_jobs_that_always_ask_at_the_same_moment_have_their_turns() -> None:
    """What all of 200 jobs want at once is more than the pipe takes at once, and nobody goes without."""
    shown, longest, _ = simulate([5.0] * 200, [0.05] * 200)

    assert max(longest) <= 15
    assert min(shown) >= 5


def test_a_quiet_job_is_not_held_up() -> None:
    """A job that prints little shows it within seconds, whatever the others print."""
    shown, longest, _ = simulate([5.0] * 50, [0.05] + [100.0] * 49)

    assert longest[0] < 16
    assert shown[0] >= 0.05 * (SECONDS - 40)


def test_a_job_alone_may_use_what_nobody_else_needs() -> None:
    """What 49 silent jobs leave is for the one that prints."""
    alone, _, _ = simulate([5.0], [4.0])
    beside, _, _ = simulate([5.0] * 50, [4.0] + [0.0] * 49)

    assert alone[0] == beside[0] >= 4.0 * (SECONDS - 10)


def test_what_counts_is_what_goes_through_the_pipe() -> None:
    """Control codes take six bytes each in the pipe's JSON: fewer of them are shown."""
    counts = []
    for record in (b"x" * 1_000, b"\x00" * 1_000, b"\xff" * 1_000):
        with LogBudget().share() as share:
            assert share.begin(1.0)
            counts.append(sum(share.take(record) for _ in range(100)))

    assert counts[0] > 3 * counts[1] > 0
    assert counts[0] > 2 * counts[2] > 0


def test_no_turn_before_what_was_shown_is_kept() -> None:
    """Somebody who keeps how far a log was shown does so before the first turn, and between any two."""
    asked: list[bool] = []
    with LogBudget().share() as share:
        share.keep_bookmark(lambda: asked.append(True))
        assert share.begin(1.0)
        assert not share.take(LINE), "nobody would know that anything was shown"
        share.end(1.1, is_throttled=True)
        assert [share.begin(2.0), len(asked)] == [False, 1]
        share.bookmark_kept()
        assert share.begin(3.0)
        assert share.take(LINE)
        share.end(3.1, is_throttled=False)
        assert [share.begin(9.0), len(asked)] == [False, 2]
        share.bookmark_kept()
        assert share.begin(10.0)
        share.end(10.1, is_throttled=False)
        assert share.begin(15.0), "nothing new was shown"


def test_a_relay_shows_nothing_and_looks_after_its_interval() -> None:
    """Whoever hands a log over looks for something new when the interval is over, and never shows any of it."""
    relay = FlushTimer(30.0)

    turns = [relay.begin(now) for now in itertools.accumulate([100.0] + [10.0] * 4)]

    assert turns == [False, False, False, True, True]
    assert not relay.take(LINE)
    assert relay.defers_to_worker
