"""A limit on the lines of a log keeps the last ones and counts those that it leaves out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.head_tail import HeadTail


def lines_of(records: list[str]) -> list[str]:
    return [line for record in records for line in record.split("\n")]


@pytest.mark.parametrize("live", [True, False])
@given(total=st.integers(0, 60), limit=st.integers(1, 50), seen=st.integers(0, 60))
def test_limit(live: bool, total: int, limit: int, seen: int) -> None:
    """Half of the lines, or none, are shown while the job runs, and the last ones at its end."""
    lines = [f"line {number}" for number in range(total)]
    data = "".join(f"{line}\n" for line in lines).encode()
    log = HeadTail(LogCursor(), limit, live=live)

    log.begin()
    first = [*log.feed(b"".join(data.splitlines(keepends=True)[:seen])), *log.flush()]
    assert log.log.offset == len("".join(f"{line}\n" for line in lines_of(first)))
    assert log.needs_more != log.is_waiting
    log.is_ending = True
    log.begin()
    rest = [*log.feed(data), *log.flush()]
    last = list(log.finish())

    early = lines_of(first + rest)
    head = limit // 2 if live else 0
    assert early == lines[:head]
    assert early + lines_of(last) == (lines if total <= limit else lines[:head] + lines[total - (limit - head) :])
    assert log.left_out == max(total - limit, 0)
    assert log.needs_more


def test_limit_across_processes() -> None:
    """Lines that another process has shown count."""
    log = HeadTail(LogCursor(), 10, live=True, shown=5)
    log.begin()

    assert log.is_waiting
    assert list(log.feed(b"x\n" * 20)) == list(log.flush()) == []
    assert log.log.offset == 0
    log.is_ending = True
    log.begin()
    assert list(log.feed(b"x\n" * 20)) == list(log.flush()) == []
    assert lines_of(list(log.finish())) == ["x"] * 5
    assert log.left_out == 15


def test_memory() -> None:
    """The lines that are kept for the end take at most 4 MiB, even with a high limit."""
    log = HeadTail(LogCursor(), 1_000_000, live=False)
    log.is_ending = True
    log.begin()
    for _ in range(100):
        assert list(log.feed((b"x" * 49_999 + b"\n") * 2)) == []

    shown = lines_of([*log.flush(), *log.finish()])

    assert 80 <= len(shown) <= 4 * 2**20 / 49_999
    assert len(shown) + log.left_out == 200
