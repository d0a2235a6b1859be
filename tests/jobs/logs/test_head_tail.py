"""A limit on the lines that are shown: the last ones are kept, and the others counted."""

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
    """At most so many lines are shown: half of them as they come, or none, and the last ones at the end."""
    lines = [f"line {number}" for number in range(total)]
    data = "".join(f"{line}\n" for line in lines).encode()
    excerpt = HeadTail(LogCursor(), limit, live=live)

    excerpt.begin()
    first = [*excerpt.feed(b"".join(data.splitlines(keepends=True)[:seen])), *excerpt.flush()]
    assert excerpt.log.position == len("".join(f"{line}\n" for line in lines_of(first)))
    assert excerpt.wants_more != excerpt.is_waiting
    excerpt.is_ending = True
    excerpt.begin()
    rest = [*excerpt.feed(data), *excerpt.flush()]
    last = list(excerpt.finish())

    early = lines_of(first + rest)
    head = limit // 2 if live else 0
    assert early == lines[:head]
    assert early + lines_of(last) == (lines if total <= limit else lines[:head] + lines[total - (limit - head) :])
    assert excerpt.left_out == max(total - limit, 0)
    assert excerpt.wants_more


def test_limit_across_processes() -> None:
    """What another process has shown counts."""
    excerpt = HeadTail(LogCursor(), 10, live=True, shown=5)
    excerpt.begin()

    assert excerpt.is_waiting
    assert list(excerpt.feed(b"x\n" * 20)) == list(excerpt.flush()) == []
    assert excerpt.log.position == 0
    excerpt.is_ending = True
    excerpt.begin()
    assert list(excerpt.feed(b"x\n" * 20)) == list(excerpt.flush()) == []
    assert lines_of(list(excerpt.finish())) == ["x"] * 5
    assert excerpt.left_out == 15


def test_memory() -> None:
    """Long lines that wait for the end take no more than 4 MiB together, whatever the limit."""
    excerpt = HeadTail(LogCursor(), 1_000_000, live=False)
    excerpt.is_ending = True
    excerpt.begin()
    for _ in range(100):
        assert list(excerpt.feed((b"x" * 49_999 + b"\n") * 2)) == []

    shown = lines_of([*excerpt.flush(), *excerpt.finish()])

    assert 80 <= len(shown) <= 4 * 2**20 / 49_999
    assert len(shown) + excerpt.left_out == 200
