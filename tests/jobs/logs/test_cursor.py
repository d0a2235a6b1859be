"""Reads of a growing log, each from its start, show every line once, wherever they are interrupted."""

from __future__ import annotations

import re
from pathlib import Path

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
    find_root_cause,
)

SAMPLES = Path(__file__).parents[2] / "samples" / "2.60.0"

anything = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(max_size=40).map(lambda text: text.encode("utf-8", errors="replace")),
        st.sampled_from(
            [b"\n", b"\n\n", b"\r\n", b"ok\n", b"\xe2\x82\n", "€\n".encode(), b"x" * 5000 + b"\n", b"a\n" * 700]
        ),
    ),
    max_size=30,
).map(lambda pieces: re.sub(rb"\r(?!\n)", b"", b"".join(pieces)))  # progress bars have their own tests
# The states of progress bars, one list for each line.
bars = st.lists(st.lists(st.text("ab €\N{ROCKET}", min_size=1, max_size=8), min_size=1, max_size=6), max_size=12)


def read(log: LogCursor, data: bytes, sizes: list[int], *, whole: bool = True) -> list[str]:
    """Feed data from its start in chunks of these sizes; ``whole`` ends like a complete read."""
    log.begin()
    shown: list[str] = []
    start = turn = 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        shown += log.feed(data[start : start + size])
        start, turn = start + size, turn + 1
    return shown + (list(log.flush()) if whole else [])


def in_another_process(log: LogCursor) -> LogCursor:
    """Return the cursor of another process that continues from this one."""
    return LogCursor(log.offset, log.checksum)


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
    """Each line is shown once for all chunk sizes, wherever reads are interrupted."""
    log = LogCursor()
    shown: list[str] = []
    for size, whole in reads:
        shown += read(log, data[:size], sizes, whole=whole)
    shown += read(log, data, sizes)
    unfinished = len(data) - log.offset
    shown += log.finish()

    assert "\n".join(shown) == text_of(data)
    assert unfinished == len(data) - data.rfind(b"\n") - 1
    assert log.offset == len(data)
    assert list(log.finish()) == list(log.flush()) == read(log, data, sizes) == []


@settings(deadline=None)
@given(data=anything, sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5), cut=st.integers(0, 20_000))
def test_resumption(data: bytes, sizes: list[int], cut: int) -> None:
    """A cursor in another process repeats nothing and loses nothing."""
    first = LogCursor()
    shown = read(first, data[:cut], sizes)

    second = in_another_process(first)
    shown += read(second, data, sizes)
    shown += second.finish()

    assert "\n".join(shown) == text_of(data)
    assert second.offset == len(data)


@settings(deadline=None)
@given(
    data=anything,
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
    allowances=st.lists(st.integers(0, 12), max_size=10),
)
@example(data=b"one\ntwo\n", sizes=[1], allowances=[0, 1])
def test_refused_records(data: bytes, sizes: list[int], allowances: list[int]) -> None:
    """A read ends at the first record that may not be shown; later reads show the rest, once."""
    left = 0
    taken: list[bytes] = []

    def may_show(record: bytes) -> bool:
        nonlocal left
        left -= 1
        taken.append(record)
        return left >= 0

    first = LogCursor(record_bytes=6000, may_show=may_show)
    shown: list[str] = []
    for allowance in allowances:
        left, offset = allowance, first.offset
        taken.clear()
        records = read(first, data, sizes)
        shown += records
        assert len(records) <= allowance
        assert b"".join(taken[: len(records)]) == data[offset : first.offset]
        assert first.is_throttled == (not first.needs_more) == (b"\n" in data[first.offset :])
    second = in_another_process(first)
    shown += [*read(second, data, sizes), *second.finish()]

    assert "\n".join(shown) == text_of(data)


@pytest.mark.parametrize(
    ("data", "records"),
    [
        pytest.param(b"\r\nb\n", ["\r\nb"], id="carriage return before the newline"),
        pytest.param(b"\nb\n", ["b"], id="no blank line"),
        pytest.param(b"\n\nb\n", ["\nb"], id="blank line"),
    ],
)
def test_line_that_fills_a_record(data: bytes, records: list[str]) -> None:
    """The newline after a line that just fits into a record makes no blank line."""
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
    """Lines that arrive one by one are shown a thousand at a time."""
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
    """A line longer than 64 KiB is shown in records of nearly that size, and no character is cut."""
    line = "." * shift + character * (200_000 // len(character.encode()))
    data = f"{line}\nend\n".encode()
    log = LogCursor()

    records = read(log, data, [size])

    assert "".join(records) == f"{line}\nend"
    assert all(RECORD_BYTES - 4 < len(record.encode()) <= RECORD_BYTES for record in records[:-1])
    assert log.offset == len(data)


@pytest.mark.parametrize("back", [1, 2, 3, 4])
def test_long_lines_resumed(back: int) -> None:
    """A cursor in another process continues inside a very long line."""
    data = "€".encode() * 70_000 + b"\n"
    first = LogCursor()
    shown = read(first, data[:-back], [RECORD_BYTES])
    second = in_another_process(first)

    shown += [*read(second, data, [4096]), *second.finish()]

    assert "".join(shown) == "€" * 70_000


def test_binary_lines() -> None:
    """A very long line that is not UTF-8 is cut at 64 KiB, each byte a replacement character."""
    log = LogCursor()

    records = [*read(log, b"\x80" * (RECORD_BYTES + 10), [4096]), *log.finish()]

    assert records == ["\N{REPLACEMENT CHARACTER}" * RECORD_BYTES, "\N{REPLACEMENT CHARACTER}" * 10]


def test_bytes_that_are_not_text() -> None:
    """Only the bytes that are not UTF-8 become replacement characters."""
    log = LogCursor()

    assert read(log, b"a\xffb\n\xe2\x82\nok\n", [1]) == ["a\N{REPLACEMENT CHARACTER}b\n\N{REPLACEMENT CHARACTER}\nok"]


def test_offset_moves_with_each_record_taken() -> None:
    """After a failure the next read shows the records that were not taken."""
    data = b"".join(b"%d\n" % number for number in range(3000))
    log = LogCursor()
    log.begin()

    shown = [next(log.feed(piece)) for piece in (data[:4000], data[4000:9000])]
    shown += read(log, data, [4096])

    assert "\n".join(shown) == text_of(data)


def test_last_lines() -> None:
    """An ending has the last twenty lines, and only the end of a long line. It is empty before the log has ended."""
    log = LogCursor()
    read(log, b"".join(b"%d\n" % number for number in range(50)) + b"x" * 3000 + b"END\nunfinished", [7])
    before = log.ending
    list(log.finish())
    resumed = in_another_process(log)
    read(resumed, b"".join(b"%d\n" % number for number in range(50)) + b"x" * 3000 + b"END\nunfinished", [7])
    list(resumed.finish())

    assert before == NO_ENDING
    assert log.ending.last_lines[:-2] == tuple(map(str, range(32, 50)))
    assert log.ending.last_lines[-2:] == ("x" * 1997 + "END", "unfinished")
    assert len(log.ending.last_lines) == LAST_LINES
    assert resumed.ending == log.ending, "another process reads them while it passes over them"


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
    """Each read shows the latest state of a progress bar, and the last state is shown once."""
    data = "".join("\r".join(states) + ends for states in lines).encode()
    log = LogCursor()
    shown: list[str] = []
    for size in sorted(reads):
        log = in_another_process(log) if resumed else log
        before = len(shown)
        shown += read(log, data[:size], sizes)
        assert len(shown) <= before + 2, "whole lines are one record, and the latest state is another"
    shown += [*read(log, data, sizes), *log.finish()]

    assert log.offset == len(data)
    assert not log.is_mismatch
    text = "\n".join(record.replace("\r", "") for record in shown) + "\n"
    # a state that was written in two chunks may be shown in two
    pieces = ["\n?".join(map(re.escape, states[-1])) + "\n" for states in lines]
    assert re.fullmatch("".join(f"(?:[ab €\N{ROCKET}]+\n)*?{piece}" for piece in pieces) or "\n", text)


def test_cut_read_shows_no_part_of_a_progress_bar() -> None:
    """A read that was cut off may end within a state of a progress bar. The next read shows the whole state."""
    log = LogCursor()
    log.begin()
    cut = [*log.feed(b"begin\n\r 4%|#     | 4/100\r24%|###"), *log.flush(is_cut=True)]
    log.begin()
    rest = [*log.feed(b"begin\n\r 4%|#     | 4/100\r24%|####  | 24/100"), *log.flush()]

    assert (cut, rest) == (["begin"], ["24%|####  | 24/100"])


def test_many_states_of_a_progress_bar() -> None:
    """Thousands of states between two reads are one line."""
    states = [f"{number:5} of 50000 |{'#' * 50}|" for number in range(50_000)]
    log = LogCursor()

    shown = read(log, ("\r" + "\r".join(states)).encode(), [RECORD_BYTES])
    end = ("\r" + "\r".join(states) + "\ndone\n").encode()
    shown += [*read(log, end, [1000]), *log.finish()]

    assert shown == [states[-1], "done"]


@settings(deadline=None)
@given(data=anything, shown=st.integers(0, 20_000), change=st.integers(0, 20_000))
def test_replaced_log(data: bytes, shown: int, change: int) -> None:
    """A log that no longer begins with the shown bytes is a mismatch, until it is shown from its start."""
    log = LogCursor()
    read(log, data[:shown], [4096])
    if not log.offset:
        return
    change %= log.offset
    other = data[:change] + bytes([data[change] ^ 1]) + data[change + 1 :] + b"more\n"

    assert read(log, other, [1000]) == []
    assert log.is_mismatch
    assert not log.needs_more

    log.restart()
    assert log.needs_more
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
    """The exception of the last traceback is found; for a failed Ray task, the task's own exception."""
    log = LogCursor()
    read(log, text.encode(), [1000])
    list(log.finish())

    assert log.ending.exception == find_exception(text.splitlines()) == exception


DIRECT = "\nThe above exception was the direct cause of the following exception:\n\n"
HANDLED = "\nDuring handling of the above exception, another exception occurred:\n\n"
FRAMES = 'Traceback (most recent call last):\n  File "t.py", line 1, in f\n    f()\n'


@pytest.mark.parametrize(
    ("text", "last", "root"),
    [
        ((SAMPLES / "chained_exceptions.txt").read_text(), "RuntimeError: training failed", "ValueError: bad row 7"),
        (f"{FRAMES}KeyError: 1\n{HANDLED}{FRAMES}TypeError: 2\n", "TypeError: 2", "KeyError: 1"),
        (f"{FRAMES}A: 1\n{DIRECT}{FRAMES}B: 2\n{HANDLED}{FRAMES}C: 3\n", "C: 3", "A: 1"),
        (f"{FRAMES}A: 1\n{DIRECT}{FRAMES}B: 2\nrecovered\n{FRAMES}C: 3\n", "C: 3", ""),
        (f"of a cut excerpt{DIRECT}{FRAMES}B: 2\n", "B: 2", ""),
        (f"{FRAMES}A: 1\n", "A: 1", ""),
        ("", "", ""),
    ],
)
def test_root_cause(text: str, last: str, root: str) -> None:
    """The root cause is the first exception of the last chain, whether it was raised from another or beside it."""
    log = LogCursor()
    read(log, text.encode(), [1000])
    list(log.finish())

    assert (log.ending.exception, log.ending.root_cause) == (last, root)
    assert (find_exception(text.splitlines()), find_root_cause(text.splitlines())) == (last, root)
