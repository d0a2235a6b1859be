"""The log budget of a triggerer: a total rate, and equal shares of it."""

from __future__ import annotations

import itertools
import random
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
def test_total_rate(intervals: list[float], speed: float) -> None:
    """All triggers together stay within rate and burst, however many jobs print, and however often they are polled."""
    shown, _, most = simulate(intervals, [speed] * len(intervals))

    assert sum(shown) * COST <= RATE * SECONDS + BURST
    assert most <= RATE + BURST + COST


@settings(deadline=None, max_examples=40)
@given(number=st.integers(2, 100), interval=st.sampled_from([1.0, 2.0, 5.0]))
def test_equal_shares(number: int, interval: float) -> None:
    """Jobs that print more than the budget show about equal amounts, and together use the budget."""
    shown, _, _ = simulate([interval] * number, [1e3] * number, is_spread=True)

    assert min(shown) > max(shown) / 2
    assert sum(shown) * COST > 0.5 * min(RATE, BURST / interval) * SECONDS


@settings(deadline=None, max_examples=40)
@given(intervals=st.lists(st.sampled_from([1.0, 2.0, 5.0, 10.0]), min_size=2, max_size=60))
def test_no_job_starves(intervals: list[float]) -> None:
    """A job that is polled less often than the others gets turns, too."""
    shown, _, _ = simulate(intervals, [1e3] * len(intervals))

    assert min(shown) >= 10


def test_no_read_before_a_record_may_be_shown() -> None:
    """A trigger whose record was refused reads nothing until the bucket holds that record."""
    share = BudgetShare(LogBudget())
    show(share, 1.0)

    assert not share.begin(1.0 + 0.5 * COST / RATE)
    assert share.begin(1.1 + COST / RATE)


@pytest.mark.parametrize(("number", "duration"), [(50, 0.01), (50, 3.0), (200, 0.01), (200, 0.5)])
def test_quiet_jobs_do_not_wait_for_each_other(number: int, duration: float) -> None:
    """Jobs that print little show each line within two polls, however many reads overlap."""
    shown, delays, _ = simulate([5.0] * number, [0.05] * number, duration=duration, is_spread=True)

    assert max(delays) <= 2 * (5 + 2 * duration)
    assert min(shown) >= 0.05 * (SECONDS - 40)


def test_polls_at_the_same_moment() -> None:
    """200 jobs that are always polled at the same moment, and need more than the burst, show equal amounts."""
    shown, _, _ = simulate([5.0] * 200, [0.05] * 200)

    assert min(shown) >= 5
    assert max(shown) - min(shown) <= 2


def test_quiet_job_beside_busy_ones() -> None:
    """A job that prints little shows its lines within seconds, even if all others print more than the budget."""
    shown, delays, _ = simulate([5.0] * 50, [0.05] + [100.0] * 49)

    assert delays[0] < 16
    assert shown[0] >= 0.05 * (SECONDS - 40)


def test_many_quiet_jobs_beside_a_busy_one() -> None:
    """199 jobs with small records do not wait for each other, nor a busy job for them, while the bucket is full."""
    budget = LogBudget()
    shares = [BudgetShare(budget) for _ in range(200)]
    rng = random.Random(0)  # noqa: S311
    polls = [(rng.uniform(0, 5), job) for job in range(200)]
    heapify(polls)
    shown = [0] * 200
    while polls[0][0] < 4 * SECONDS:
        now, job = heappop(polls)
        heappush(polls, (now + 5 * rng.uniform(0.98, 1.02), job))
        if shares[job].begin(now):
            printed = 30 * now if job else float("inf")
            is_throttled = False
            while (size := int(min(printed - shown[job], 4096))) > 0 and not is_throttled:
                is_throttled = not shares[job].take(b"x" * size)
                shown[job] += 0 if is_throttled else size
            shares[job].end(is_throttled=is_throttled)

    assert min(shown) > 30 * (4 * SECONDS - 30)
    assert shown[0] > 4_000_000


def test_silent_jobs_need_no_budget() -> None:
    """One job that prints has the whole budget beside 49 silent jobs."""
    alone, _, _ = simulate([5.0], [4.0])
    beside, _, _ = simulate([5.0] * 50, [4.0] + [0.0] * 49)

    assert alone[0] == beside[0] >= 4.0 * (SECONDS - 10)


def test_bytes_are_counted_as_in_the_pipe() -> None:
    """A control code takes six bytes in the pipe's JSON, so fewer of them are shown."""
    counts = []
    for record in (b"x" * 1_000, b"\x00" * 1_000, b"\xff" * 1_000):
        share = BudgetShare(LogBudget())
        share.begin(1.0)
        counts.append(sum(share.take(record) for _ in range(100)))

    assert counts[0] > 3 * counts[1] > 0
    assert counts[0] > 2 * counts[2] > 0


def show(share: BudgetShare, now: float) -> int:
    """Read the log of a job that prints without end; return the records that are shown."""
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


@pytest.mark.parametrize("is_gone", [pytest.param(True, id="left"), pytest.param(False, id="stopped polling")])
def test_no_trigger_waits_for_an_absent_one(is_gone: bool) -> None:
    """A trigger that waited for bytes and then left, or stopped polling, delays no other."""
    budget = LogBudget()
    absent, other = BudgetShare(budget), BudgetShare(budget)
    show(absent, 1.0)
    show(other, 1.0)
    if is_gone:
        absent.leave()
    shown = sum(show(other, second) for second in range(2, 20 if is_gone else 40))

    assert shown * COST > 16 * (RATE - COST)


def test_flush_timer() -> None:
    """A flush timer allows reads after its interval, refuses every record, and hands over."""
    timer = FlushTimer(30.0)

    turns = [timer.begin(now) for now in itertools.accumulate([100.0] + [10.0] * 4)]

    assert turns == [False, False, False, True, True]
    assert not timer.take(LINE)
    assert timer.hands_over
