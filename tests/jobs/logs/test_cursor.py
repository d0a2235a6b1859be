"""A log that is read again and again while it grows: every line once, however the reads are cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.cursor import (
    LAST_LINES,
    NO_ENDING,
    RECORD_BYTES,
    RECORD_LINES,
    LogCursor,
    find_exception,
)

anything = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(max_size=40).map(lambda text: text.encode("utf-8", errors="replace")),
        st.sampled_from(
            [b"\n", b"\n\n", b"\r\n", b"ok\n", b"\xe2\x82\n", "€\n".encode(), b"x" * 5000 + b"\n", b"a\n" * 700]
        ),
    ),
    max_size=30,
).map(lambda pieces: re.sub(rb"\r(?!\n)", b"", b"".join(pieces)))  # bars have tests of their own
# Lines with progress bars: the states of each.
bars = st.lists(st.lists(st.text("ab €\N{ROCKET}", min_size=1, max_size=8), min_size=1, max_size=6), max_size=12)


def read(log: LogCursor, data: bytes, sizes: list[int], *, whole: bool = True) -> list[str]:
    """Read data from its start in chunks of these sizes, over and over; ``whole`` ends as a good read does."""
    log.begin()
    shown: list[str] = []
    start = turn = 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        shown += log.feed(data[start : start + size])
        start, turn = start + size, turn + 1
    return shown + (list(log.flush()) if whole else [])


def text_of(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").removesuffix("\n")


@settings(deadline=None)
@given(
    data=anything,
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
    reads=st.lists(st.tuples(st.integers(0, 20_000), st.booleans()), max_size=6),
)
@example(data=b"one\ntwo", sizes=[1], reads=[(2, False), (5, True), (3, True), (7, True)])
@example(data=b"", sizes=[1], reads=[])
@example(data=b"\n", sizes=[1], reads=[(1, True)])
@example(data=b"a\n" * 5000, sizes=[4000], reads=[(3999, False), (4001, True)])
def test_every_line_once(data: bytes, sizes: list[int], reads: list[tuple[int, bool]]) -> None:
    """However a log is cut into chunks, and its reads break off or come to its present end, each line is shown once."""
    log = LogCursor()
    shown: list[str] = []
    for size, whole in reads:
        shown += read(log, data[:size], sizes, whole=whole)
    shown += read(log, data, sizes)
    unfinished = len(data) - log.position
    shown += log.finish()

    assert "\n".join(shown) == text_of(data)
    assert unfinished == len(data) - data.rfind(b"\n") - 1
    assert log.position == len(data)
    assert list(log.finish()) == list(log.flush()) == read(log, data, sizes) == []


@settings(deadline=None)
@given(data=anything, sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5), cut=st.integers(0, 20_000))
def test_resumption(data: bytes, sizes: list[int], cut: int) -> None:
    """Another reader that starts at the position of the first one repeats nothing and loses nothing."""
    first = LogCursor()
    shown = read(first, data[:cut], sizes)

    second = LogCursor.from_state(first.state)
    shown += read(second, data, sizes)
    shown += second.finish()

    assert "\n".join(shown) == text_of(data)
    assert second.position == len(data)


@settings(deadline=None)
@given(
    data=anything,
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
    allowances=st.lists(st.integers(0, 12), max_size=10),
)
@example(data=b"one\ntwo\n", sizes=[1], allowances=[0, 1])
def test_reads_that_may_show_little(data: bytes, sizes: list[int], allowances: list[int]) -> None:
    """A read shows no record that it may not, says if there is more, and the rest comes later, once."""
    left = 0
    taken: list[bytes] = []

    def may_show(record: bytes) -> bool:
        nonlocal left
        left -= 1
        taken.append(record)
        return left >= 0

    first = LogCursor(record_bytes=6000, meter=may_show)
    shown: list[str] = []
    for allowance in allowances:
        left, position = allowance, first.position
        taken.clear()
        records = read(first, data, sizes)
        shown += records
        assert len(records) <= allowance
        assert b"".join(taken[: len(records)]) == data[position : first.position]
        assert first.is_throttled == (not first.wants_more) == (b"\n" in data[first.position :])
    second = LogCursor.from_state(first.state)
    shown += [*read(second, data, sizes), *second.finish()]

    assert "\n".join(shown) == text_of(data)


@pytest.mark.parametrize(
    ("data", "records"),
    [
        pytest.param(b"\r\nb\n", ["\r\nb"], id="a line end of another system is kept"),
        pytest.param(b"\nb\n", ["b"], id="no blank line"),
        pytest.param(b"\n\nb\n", ["\nb"], id="a blank line that is there"),
    ],
)
def test_a_line_that_fills_a_record_to_its_end(data: bytes, records: list[str]) -> None:
    """What ends a line that just fits into a record makes no line of its own, and no byte of it is lost."""
    log = LogCursor(record_bytes=10)

    assert read(log, b"a" * 19 + data, [100]) == ["a" * 9, "a" * 10, *records]


@settings(deadline=None)
@given(data=anything, size=st.integers(1, 200_000))
@example(data=b"a\n" * 1500, size=100_000)
def test_record_size(data: bytes, size: int) -> None:
    """A record has at most 1,000 lines and 64 KiB."""
    log = LogCursor()

    records = [*read(log, data * 3, [size]), *log.finish()]

    assert max((record.count("\n") + 1 for record in records), default=0) <= RECORD_LINES
    # a byte that is not UTF-8 becomes a character of three bytes
    assert max((len(record.encode()) for record in records), default=0) <= RECORD_BYTES * 3


def test_records_are_filled() -> None:
    """Lines that come one by one are shown a thousand at a time, as one record a line makes task logs slow."""
    log = LogCursor()
    log.begin()

    records = [record for number in range(2500) for record in log.feed(b"%d\n" % number)]
    rest = list(log.flush())

    assert [record.count("\n") + 1 for record in records + rest] == [1000, 1000, 500]
    assert "\n".join(records + rest) == "\n".join(str(number) for number in range(2500))


@pytest.mark.parametrize("character", ["a", "ü", "€", "🚀"])
@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("size", [1000, RECORD_BYTES, 10**6])
def test_long_lines(character: str, shift: int, size: int) -> None:
    """A line longer than 64 KiB is shown in pieces of nearly that size, and no character is cut in two."""
    line = "." * shift + character * (200_000 // len(character.encode()))
    data = f"{line}\nend\n".encode()
    log = LogCursor()

    records = read(log, data, [size])

    assert "".join(records) == f"{line}\nend"
    assert all(RECORD_BYTES - 4 < len(record.encode()) <= RECORD_BYTES for record in records[:-1])
    assert log.position == len(data)


@pytest.mark.parametrize("back", [1, 2, 3, 4])
def test_long_lines_resumed(back: int) -> None:
    """Inside a very long line, too, another reader goes on where the first one stopped."""
    data = "€".encode() * 70_000 + b"\n"
    first = LogCursor()
    shown = read(first, data[:-back], [RECORD_BYTES])
    second = LogCursor.from_state(first.state)

    shown += [*read(second, data, [4096]), *second.finish()]

    assert "".join(shown) == "€" * 70_000


def test_binary_lines() -> None:
    """A very long line without any character boundary is cut all the same, each byte a replacement character."""
    log = LogCursor()

    records = [*read(log, b"\x80" * (RECORD_BYTES + 10), [4096]), *log.finish()]

    assert records == ["\N{REPLACEMENT CHARACTER}" * RECORD_BYTES, "\N{REPLACEMENT CHARACTER}" * 10]


def test_bytes_that_are_not_text() -> None:
    """Bytes that are not UTF-8 spoil only themselves."""
    log = LogCursor()

    assert read(log, b"a\xffb\n\xe2\x82\nok\n", [1]) == ["a\N{REPLACEMENT CHARACTER}b\n\N{REPLACEMENT CHARACTER}\nok"]


def test_abandoned_records() -> None:
    """Only what was taken counts as shown: a reader that fails in the middle is shown the rest again."""
    data = b"".join(b"%d\n" % number for number in range(3000))
    log = LogCursor()
    log.begin()

    shown = [next(log.feed(piece)) for piece in (data[:4000], data[4000:9000])]
    shown += read(log, data, [4096])

    assert "\n".join(shown) == text_of(data)


def test_last_lines() -> None:
    """The last twenty lines are kept for error messages, of a long line its end; none before the log has ended."""
    log = LogCursor()
    read(log, b"".join(b"%d\n" % number for number in range(50)) + b"x" * 3000 + b"END\nunfinished", [7])
    before = log.ending
    list(log.finish())
    resumed = LogCursor.from_state(log.state)
    read(resumed, b"".join(b"%d\n" % number for number in range(50)) + b"x" * 3000 + b"END\nunfinished", [7])
    list(resumed.finish())

    assert before == NO_ENDING
    assert log.ending.last_lines[:-2] == tuple(map(str, range(32, 50)))
    assert log.ending.last_lines[-2:] == ("x" * 1997 + "END", "unfinished")
    assert len(log.ending.last_lines) == LAST_LINES
    assert resumed.ending == log.ending, "another process, which read them to pass them over, knows them as well"


@settings(deadline=None)
@given(
    lines=bars,
    ends=st.sampled_from(["\n", "\r\n", "\r\r\n"]),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    reads=st.lists(st.integers(0, 400), max_size=8),
    resumed=st.booleans(),
)
@example(lines=[["1%", "2%"]], ends="\n", sizes=[1], reads=[4, 5, 6, 7], resumed=False)
@example(lines=[["1%", "2%"], ["a"]], ends="\n", sizes=[9], reads=[5, 8], resumed=True)
def test_progress_bars(lines: list[list[str]], ends: str, sizes: list[int], reads: list[int], resumed: bool) -> None:
    """Of a progress bar each read shows one state, the latest, and its line's last state is shown, once."""
    data = "".join("\r".join(states) + ends for states in lines).encode()
    log = LogCursor()
    shown: list[str] = []
    for size in sorted(reads):
        log = LogCursor.from_state(log.state) if resumed else log
        before = len(shown)
        shown += read(log, data[:size], sizes)
        assert len(shown) <= before + 2, "whole lines are one record, and the present state another"
    shown += [*read(log, data, sizes), *log.finish()]

    assert log.position == len(data)
    assert not log.is_mismatch
    told = "\n".join(record.replace("\r", "") for record in shown) + "\n"
    # a state that was written in two pieces may be shown in two
    pieces = ["\n?".join(map(re.escape, states[-1])) + "\n" for states in lines]
    assert re.fullmatch("".join(f"(?:[ab €\N{ROCKET}]+\n)*?{piece}" for piece in pieces) or "\n", told)


def test_many_states() -> None:
    """Thousands of states of a bar between two reads are one line, however long they are together."""
    states = [f"{number:5} of 50000 |{'#' * 50}|" for number in range(50_000)]
    log = LogCursor()

    shown = read(log, ("\r" + "\r".join(states)).encode(), [RECORD_BYTES])
    end = ("\r" + "\r".join(states) + "\ndone\n").encode()
    shown += [*read(log, end, [1000]), *log.finish()]

    assert shown == [states[-1], "done"]


@settings(deadline=None)
@given(data=anything, shown=st.integers(0, 20_000), change=st.integers(0, 20_000))
def test_replaced_log(data: bytes, shown: int, change: int) -> None:
    """Of a log that does not begin with what was shown nothing more is shown, until it is shown from its start."""
    log = LogCursor()
    read(log, data[:shown], [4096])
    if not log.position:
        return
    change %= log.position
    other = data[:change] + bytes([data[change] ^ 1]) + data[change + 1 :] + b"more\n"

    assert read(log, other, [1000]) == []
    assert log.is_mismatch
    assert not log.wants_more

    log.restart()
    assert log.wants_more
    assert read(log, other, [1000]) == read(LogCursor(), other, [1000])


TRACEBACK = """\
working
Traceback (most recent call last):
  File "train.py", line 8, in <module>
    main()
    ^^^^^^
%s
bye
"""
OF_A_TASK = """\
ray.exceptions.RayTaskError(KeyError): ray::f() (pid=1)
  File "t.py", line 5, in f
KeyError: 1"""


@pytest.mark.parametrize(
    ("text", "exception"),
    [
        (TRACEBACK % "ValueError: bad: very", "ValueError: bad: very"),
        (TRACEBACK % "KeyboardInterrupt", "KeyboardInterrupt"),
        (TRACEBACK % "my.module.Problem: no", "my.module.Problem: no"),
        (TRACEBACK % OF_A_TASK, "KeyError: 1"),
        (TRACEBACK % "ValueError: a" + TRACEBACK % "TypeError: b", "TypeError: b"),
        ('  File "<string>", line 1\n    1 +\n       ^\nSyntaxError: invalid syntax\n', "SyntaxError: invalid syntax"),
        ("all is well\nError: not Python's\n", ""),
        ("  indented\nNothing: of interest\n", ""),
        ("", ""),
    ],
)
def test_exceptions(text: str, exception: str) -> None:
    """The last exception that Python names at the end of a traceback is found, of a Ray task its own."""
    log = LogCursor()
    read(log, text.encode(), [1000])
    list(log.finish())

    assert log.ending.exception == find_exception(text.splitlines()) == exception
