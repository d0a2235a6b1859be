"""Many jobs that show their logs through one thin pipe: little together, and each as much as the others."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.trickle import BURST, PIECE, RATE, Relay, Trickle

SECONDS = 300


def simulate(intervals: list[float], speeds: list[float]) -> tuple[list[float], list[float], float]:
    """
    Let jobs print at some speeds (bytes a second) and ask at some intervals for so many seconds.

    :return: what each has shown, how late its last turn was, and the most that all have shown within one second.
    """
    trickle = Trickle()
    shown = [0.0] * len(speeds)
    last_turn = [0.0] * len(speeds)
    seconds = [0.0] * (SECONDS + 1)
    with ExitStack() as stack:
        shares = [stack.enter_context(trickle.share()) for _ in speeds]
        asked = sorted(
            (interval * (number + 1), job)
            for job, interval in enumerate(intervals)
            for number in range(int(SECONDS / interval))
        )
        for now, job in asked:
            allowed = shares[job].allowance(now)
            if allowed is None:
                continue
            assert PIECE <= allowed <= BURST
            there = now * speeds[job] - shown[job]
            size = there if there <= allowed else allowed // PIECE * PIECE
            shares[job].spend(int(size), now)
            shown[job] += size
            seconds[int(now)] += size
            last_turn[job] = now
        assert len(trickle.shares) == len(speeds)
    assert not trickle.shares
    return shown, [SECONDS - turn for turn in last_turn], max(seconds)


@settings(deadline=None, max_examples=40)
@given(
    intervals=st.lists(st.sampled_from([1.0, 2.0, 5.0, 5.5]), min_size=1, max_size=60),
    speed=st.sampled_from([100.0, 10_000.0, 10_000_000.0]),
)
def test_all_together_show_little(intervals: list[float], speed: float) -> None:
    """However many jobs print, however much and however often they ask: together they stay within the pipe's bounds."""
    shown, _, most = simulate(intervals, [speed] * len(intervals))

    assert sum(shown) <= RATE * SECONDS + BURST
    assert most <= RATE + BURST


@settings(deadline=None, max_examples=40)
@given(
    number=st.integers(2, 60), interval=st.sampled_from([1.0, 2.0, 5.0]), stagger=st.sampled_from([0.0, 0.001, 0.01])
)
def test_talkative_jobs_get_the_same(number: int, interval: float, stagger: float) -> None:
    """Jobs that print more than they may all show about as much, also where all of them ask at the same moment."""
    shown, _, _ = simulate([interval + stagger * job for job in range(number)], [1e6] * number)

    assert min(shown) > max(shown) / 3


@settings(deadline=None, max_examples=40)
@given(intervals=st.lists(st.sampled_from([1.0, 2.0, 5.0, 10.0]), min_size=2, max_size=60))
def test_nobody_starves(intervals: list[float]) -> None:
    """A job that asks rarely has its turns as well."""
    shown, since, _ = simulate(intervals, [1e6] * len(intervals))

    assert min(shown) >= 5 * PIECE
    assert max(since) < SECONDS / 4


def test_a_quiet_job_is_not_held_up() -> None:
    """A job that prints little shows all of it within seconds, whatever the others print."""
    shown, since, _ = simulate([5.0] * 50, [20.0] + [10_000.0] * 49)

    assert shown[0] >= 20.0 * (SECONDS - 60)
    assert since[0] < 60


def test_a_job_alone_may_use_what_nobody_else_needs() -> None:
    """What 49 silent jobs leave is for the one that prints."""
    alone, _, _ = simulate([5.0], [5_000.0])
    beside, _, _ = simulate([5.0] * 50, [5_000.0] + [0.0] * 49)

    assert alone[0] == beside[0] == 5_000.0 * SECONDS


def test_a_relay_shows_nothing_and_looks_after_its_interval() -> None:
    """Whoever hands a log over looks for something new when the interval is over, and never shows any of it."""
    relay = Relay(30.0)

    turns = [relay.allowance(now) for now in itertools.accumulate([100.0] + [10.0] * 4)]

    assert turns == [None, None, None, 0, 0]
    assert relay.hands_over
