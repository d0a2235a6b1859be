"""Many triggers that write job logs into one pipe: little together, and none much more than another."""

from __future__ import annotations

import itertools
from collections import Counter
from heapq import heapify, heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.log_budget import BURST, RATE, BudgetShare, FlushTimer, LogBudget

SECONDS = 300
# A record of 1,000 characters, and the bytes that it takes in the pipe.
LINE = b"x" * 999 + b"\n"
COST = 1_404


def simulate(
    intervals: list[float], speeds: list[float], *, duration: float = 0.02, is_spread: bool = False
) -> tuple[list[int], list[float], float]:
    """
    Let jobs print records while their triggers poll, for SECONDS.

    :param intervals: seconds between two polls, for each job.
    :param speeds: records per second that each job prints.
    :param duration: seconds that each read takes; reads of several jobs overlap.
    :param is_spread: whether the jobs poll one after the other, and not all at the same moment.
    :return: for each job the records that were shown, and the longest time from the printing of a record until it was
        shown; and the bytes of the busiest second.
    """
    budget = LogBudget()
    shares = [BudgetShare(budget) for _ in speeds]
    shown = [0] * len(speeds)
    delays = [0.0] * len(speeds)
    seconds: Counter[int] = Counter()
    # the time, the job, and the records in its log at the end of a read, -1 without a read; None at a poll
    events: list[tuple[float, int, float | None]] = [
        (interval * (1 + job / len(speeds) * is_spread), job, None) for job, interval in enumerate(intervals)
    ]
    heapify(events)
    while events:
        now, job, found = heappop(events)
        if now > SECONDS:
            continue
        if found is None:
            is_read = shares[job].begin(now)
            heappush(events, (now + duration, job, speeds[job] * now if is_read else -1))
            continue
        if found >= 0:
            is_throttled = False
            while shown[job] + 1 <= found and not is_throttled:
                is_throttled = not shares[job].take(LINE)
                if not is_throttled:
                    shown[job] += 1
                    seconds[int(now)] += COST
                    delays[job] = max(delays[job], now - shown[job] / speeds[job])
            shares[job].end(is_throttled=is_throttled)
        heappush(events, (now + intervals[job], job, None))
    for job, speed in enumerate(speeds):
        if shown[job] + 1 <= speed * SECONDS:
            delays[job] = max(delays[job], SECONDS - (shown[job] + 1) / speed)
    return shown, delays, max(seconds.values(), default=0)


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


def test_no_read_before_a_record_may_be_shown() -> None:
    """A trigger that waits for bytes reads nothing until the bucket holds its record."""
    share = BudgetShare(LogBudget())
    show(share, 1.0)

    assert not share.begin(1.0 + 0.5 * COST / RATE)
    assert share.begin(1.1 + COST / RATE)


@pytest.mark.parametrize(("number", "duration"), [(50, 0.01), (50, 3.0), (200, 0.01), (200, 0.5)])
def test_quiet_jobs_do_not_wait_for_each_other(number: int, duration: float) -> None:
    """However many jobs print little, and however many of them are read at the same moment: each look finds a turn."""
    shown, delays, _ = simulate([5.0] * number, [0.05] * number, duration=duration, is_spread=True)

    assert max(delays) <= 2 * (5 + 2 * duration)
    assert min(shown) >= 0.05 * (SECONDS - 40)


def test_jobs_that_always_ask_at_the_same_moment_have_their_turns() -> None:
    """What all of 200 jobs want at once is more than the pipe takes at once, and nobody goes without."""
    shown, _, _ = simulate([5.0] * 200, [0.05] * 200)

    assert min(shown) >= 5
    assert max(shown) - min(shown) <= 2


def test_a_quiet_job_is_not_held_up() -> None:
    """A job that prints little shows it within seconds, whatever the others print."""
    shown, delays, _ = simulate([5.0] * 50, [0.05] + [100.0] * 49)

    assert delays[0] < 16
    assert shown[0] >= 0.05 * (SECONDS - 40)


def test_a_job_alone_may_use_what_nobody_else_needs() -> None:
    """What 49 silent jobs leave is for the one that prints."""
    alone, _, _ = simulate([5.0], [4.0])
    beside, _, _ = simulate([5.0] * 50, [4.0] + [0.0] * 49)

    assert alone[0] == beside[0] >= 4.0 * (SECONDS - 10)


def test_bytes_count_as_they_go_through_the_pipe() -> None:
    """Control codes take six bytes each in the pipe's JSON: fewer of them are shown."""
    counts = []
    for record in (b"x" * 1_000, b"\x00" * 1_000, b"\xff" * 1_000):
        share = BudgetShare(LogBudget())
        share.begin(1.0)
        counts.append(sum(share.take(record) for _ in range(100)))

    assert counts[0] > 3 * counts[1] > 0
    assert counts[0] > 2 * counts[2] > 0


def show(share: BudgetShare, now: float) -> int:
    """Let the trigger of a job that prints without end read its log; return the records that it shows."""
    shown = 0
    if share.begin(now):
        while share.take(LINE):
            shown += 1
        share.end(is_throttled=True)
    return shown


def test_bytes_taken_while_no_other_waited_do_not_count() -> None:
    """A job that has printed alone for an hour gets as much as one that starts to print now."""
    budget = LogBudget()
    old, new = BudgetShare(budget), BudgetShare(budget)
    shown = Counter[BudgetShare]()
    for second in range(3600):
        assert old.begin(second)
        assert all(old.take(LINE) for _ in range(10))
        old.end(is_throttled=False)
    for second in range(3600, 3700):
        shown[new] += show(new, second)
        shown[old] += show(old, second + 0.5)

    assert shown[new] > shown[old] > 0.9 * shown[new]
    assert shown.total() * COST > 90 * RATE


@pytest.mark.parametrize("is_gone", [pytest.param(True, id="left"), pytest.param(False, id="polls no more")])
def test_nobody_waits_for_an_absent_trigger(is_gone: bool) -> None:
    """A trigger that waits for bytes and then leaves, or polls no more, holds up no other."""
    budget = LogBudget()
    absent, other = BudgetShare(budget), BudgetShare(budget)
    show(absent, 1.0)
    show(other, 1.0)
    if is_gone:
        absent.leave()
    shown = sum(show(other, second) for second in range(2, 20 if is_gone else 40))

    assert shown * COST > 16 * (RATE - COST)


def test_a_relay_shows_nothing_and_looks_after_its_interval() -> None:
    """Whoever hands a log over looks for something new when the interval is over, and never shows any of it."""
    relay = FlushTimer(30.0)

    turns = [relay.begin(now) for now in itertools.accumulate([100.0] + [10.0] * 4)]

    assert turns == [False, False, False, True, True]
    assert not relay.take(LINE)
    assert relay.hands_over
