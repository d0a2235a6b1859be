"""Where the end of a log belongs: proved by a clock that moved on, or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.splice import anchor_of, known_part, seems_unchanged

BEGIN = datetime(2026, 11, 24, 1, 0, 0, tzinfo=UTC)
NOW = int(BEGIN.timestamp() * 1000) + 600_000


def log_of(seconds: list[int], text: str = "step") -> bytes:
    return b"".join(f"{BEGIN + timedelta(seconds=at):%Y-%m-%d %H:%M:%S},123 {text}\n".encode() for at in seconds)


def test_end_with_a_clock() -> None:
    """Lines between which a clock moved on are known again, and what follows on them is new."""
    recent, more = log_of(list(range(100))), log_of(list(range(100, 105)))

    assert known_part(recent, recent[-2000:] + more, NOW) is None, "too little of it to be sure"
    assert known_part(recent, recent + more, NOW) == len(recent)
    assert known_part(recent, b"earlier\n" + recent + more, NOW) == len(recent) + 8
    assert known_part(recent, recent, NOW) == len(recent)


@pytest.mark.parametrize(
    "recent",
    [
        pytest.param(b"again\n" * 4000, id="lines that repeat"),
        pytest.param(b"".join(b"line %d\n" % number for number in range(3000)), id="lines without a clock"),
        pytest.param(log_of([5] * 1000), id="a clock that stands still"),
        pytest.param(log_of(list(range(900, 0, -1))), id="a clock that runs backwards"),
        pytest.param(b"2024-01-01 00:00:00\n2024-01-02 00:00:00\n" * 500, id="times that are data"),
        pytest.param(b"2026-11-24 25:00:00\n2026-11-24 26:00:00\n", id="times that are none"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_end_without_a_proof(recent: bytes) -> None:
    """However much looks the same, it proves nothing: a program may print it again."""
    assert anchor_of(recent, NOW) == b""
    assert known_part(recent, recent + b"more\n", NOW) is None


def test_end_that_repeats_its_lines() -> None:
    """Lines with a clock that stand there twice, as where a program quotes its own log, prove nothing."""
    recent = log_of(list(range(1000)))
    quote = recent[-20_000:]

    assert known_part(recent, recent + b"my log was:\n" + quote + b"new\n", NOW) is None
    assert known_part(recent, b"my log was:\n" + quote[-3000:] + b"new\n", NOW) is None


@settings(deadline=None)
@given(
    times=st.lists(st.integers(0, 500), min_size=0, max_size=400).map(sorted),
    text=st.sampled_from(["a", "b" * 100]),
    shown=st.integers(0, 400),
    cut=st.integers(0, 400),
)
def test_what_is_known_is_right(times: list[int], text: str, shown: int, cut: int) -> None:
    """Of a log whose clock never runs backwards a part that passes for known always ends where it was shown to."""
    lines = log_of(times, text).splitlines(keepends=True)
    recent, end = b"".join(lines[:shown]), b"".join(lines[cut:])

    known = known_part(recent[-65536:], end, NOW)

    assert known is None or end[known:] == b"".join(lines[shown:])


def test_unchanged() -> None:
    """An end that looks like what was shown last is told from another, whichever of the two is longer."""
    assert seems_unchanged(b"one\ntwo\n", b"two\n")
    assert seems_unchanged(b"two\n", b"one\ntwo\n")
    assert not seems_unchanged(b"one\ntwo\n", b"two\nthree\n")
