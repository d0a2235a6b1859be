"""Messages in a log: whole ones are found, and nothing of them is shown."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.in_job import MAX_RESULT_SIZE
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.messages import (
    FunctionFailure,
    JobMessages,
    MessageFilter,
    Progress,
    without_messages,
)

NONCE = "0123456789abcdef"
LINE = f"##ray_job {NONCE} result ".encode()


def parts(text: str, size: int = 10, name: str = "deadbeef") -> list[bytes]:
    """Return the lines of a message."""
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    checksum = zlib.crc32(text.encode())
    return [
        f"##ray_job {NONCE} part {name} {number}/{len(pieces)} {checksum:08x} {piece}\n".encode()
        for number, piece in enumerate(pieces, 1)
    ]


def read(data: bytes, chunks: list[int] | None = None, nonce: str | None = NONCE) -> tuple[JobMessages, str]:
    """Return the messages of a log that arrives in chunks, and what is shown of it."""
    log = MessageFilter(LogCursor())
    log.nonce = nonce
    log.begin()
    records = []
    for size in chunks or []:
        records += log.feed(data[:size])
        data = data[size:]
    records += [*log.feed(data), *log.flush(), *log.finish()]
    return log.messages, "\n".join(records)


TEXT = st.text("#ray_job 01ef\nresultpa") | st.sampled_from(
    ["##ray_job ", f"##ray_job {NONCE} ", LINE.decode(), "\n", "(f pid=12) ", "\x1b[36m(f pid=12)\x1b[0m ", "(f "]
)


@settings(deadline=None)
@given(st.lists(TEXT).map("".join), st.data())
def test_offsets_of_a_growing_log(text: str, data: st.DataObject):
    """What is shown of a longer log begins with what was shown of a shorter one, in whatever chunks it arrives."""
    log = text.encode()
    size = data.draw(st.integers(0, len(log)))
    chunks = data.draw(st.lists(st.integers(0, 40)))

    def shown(part: bytes, sizes: list[int]) -> bytes:
        taken = MessageFilter(LogCursor())
        taken.begin()
        result = b""
        for each in sizes:
            result += taken._take(part[:each])
            part = part[each:]
        return result + taken._take(part)

    assert shown(log, []).startswith(shown(log[:size], chunks))
    assert shown(log, chunks) == shown(log, [])


@given(st.lists(st.text("abc\n", max_size=30), min_size=1), st.integers(1, 30), st.lists(st.integers(0, 50)))
def test_messages_between_the_output_of_others(texts: list[str], size: int, chunks: list[int]):
    """The text of others is shown unchanged, and the message is whole, wherever its lines come."""
    lines = parts('result "some value that has several parts"', size)
    log = b"".join(texts[number % len(texts)].encode() + line for number, line in enumerate(lines)) + b"end"
    expected = "".join(texts[number % len(texts)] for number in range(len(lines))) + "end"
    messages, shown = read(log, chunks)

    assert messages.result.value == "some value that has several parts"
    assert (messages.results, messages.broken) == (1, 0)
    assert shown == expected


@pytest.mark.parametrize(
    ("log", "results", "broken"),
    [
        (b"".join(parts('result "abcdefghij"')[:-1]), 0, 1),
        (b"".join(parts('result "abcdefghij"'))[:-4], 0, 1),
        (b"".join(parts('result "abcdefghij"')).replace(b" cdef", b" cdeg"), 0, 1),
        (b"".join(parts('result "abcdefghij"')).replace(b" 2/", b" 1/"), 0, 1),
        (LINE + b'{"a": \n', 0, 1),
        (LINE + b"NaN\n", 0, 1),
        (LINE + b"\xff\n", 0, 1),
        (LINE + b"1", 0, 1),
        (LINE + b"[" * 100_000 + b"\n", 0, 1),
        (LINE + b"9" * 5000 + b"\n", 0, 1),
        (LINE + b"1\r\n", 1, 0),
        (LINE + b"null\n" + LINE + b"2\n", 2, 0),
        (LINE + b"1\n" + LINE + b"2,\n", 1, 1),
        (LINE.replace(b"0", b"1") + b"1\n", 0, 0),
        (LINE.replace(b"result", b"later") + b"1\n", 0, 0),
        (LINE.replace(b"result", b"progress") + b'{"done": "many"}\n', 0, 1),
        (LINE.replace(b"result", b"progress") + b'{"done": 1, "total": true}\n', 0, 1),
        (LINE.replace(b"result", b"progress") + b'{"done": 1%s}\n' % (b"0" * 400), 0, 1),
        (LINE.replace(b"result", b"progress") + b'{"done": 1, "total": 1e999}\n', 0, 1),
        (LINE.replace(b"result", b"extra") + b"[1]\n", 0, 1),
        (LINE.replace(b"result", b"extra") + b'["ab"]\n', 0, 1),
        (LINE.replace(b"result", b"extra") + b'{"a": "%s"}\n' % (b"x" * 65536), 0, 1),
        (LINE.replace(b"result", b"extra") + b'{"rows": 1%s}\n' % (b"0" * 20), 0, 1),
        (LINE.replace(b"result", b"error") + b"{}\n", 0, 1),
        (LINE.replace(b"result", b"error") + b'{"function":"f","types":[],"message":"","traceback":""}\n', 0, 1),
        (LINE.replace(b"result", b"stored") + b'{"kind":"result","size":1e999,"sha256":""}\n', 0, 1),
        (LINE.replace(b"result", b"stored") + b'{"kind":"result","size":-2,"sha256":""}\n', 0, 1),
        (parts('result "abcdefghij"')[0][:50] + b"".join(parts('result "abcdefghij"')), 1, 0),
    ],
)
def test_bad_messages(log: bytes, results: int, broken: int):
    """A message that is cut off, changed or not JSON counts as broken, and is not shown."""
    messages, shown = read(log)

    assert without_messages(log) == b""
    assert (messages.results, bool(messages.broken)) == (results, bool(broken))
    assert shown == ""


def test_extra_is_limited():
    """The extra of all messages together has at most 64 KiB. A message that would make it larger is left out."""
    line = LINE.replace(b"result", b"extra")
    messages, _ = read(b"".join(line + b'{"%d": "%s"}\n' % (number, b"x" * 40_000) for number in range(3)))

    assert (list(messages.extra), messages.broken) == (["0"], 2)


@pytest.mark.parametrize("chunks", [[], [1] * 200, [30]])
@pytest.mark.parametrize("prefix", ["(train pid=12) ", "\x1b[36m(Actor pid=12, ip=10.0.0.1)\x1b[0m "])
def test_messages_of_ray_tasks(prefix: str, chunks: list[int]):
    """Ray copies the lines of its tasks into the log, with a prefix. That of a message is not shown either."""
    progress = f'##ray_job {NONCE} progress {{"done": 3}}\n'
    log = f"{prefix}one\n{prefix}{progress}{prefix}{progress}{prefix}two\nx{prefix}{progress}(end"
    messages, shown = read(log.encode(), chunks)

    assert messages.progresses == 3
    assert shown == f"{prefix}one\n{prefix}two\nx{prefix}(end"
    assert without_messages(log.encode()).decode() == shown


@pytest.mark.parametrize("length", [200, 290, 300, 400])
def test_long_prefix(length: int):
    """A prefix is dropped or shown whole, in whatever pieces the log arrives."""
    log = b"(" + b"n" * (length - 10) + b" pid=12) " + LINE + b"1\nend\n"

    assert read(log)[1] == read(log, [7] * 100)[1]


def test_unfinished_lines_are_not_held_back():
    """Only the beginning of what may be a prefix waits for more bytes; a progress bar does not."""
    log = MessageFilter(LogCursor())
    log.begin()

    assert list(log.feed(b"(1/3)\r(2/3)")) + list(log.flush()) == ["(2/3)"]
    assert log._waiting == b""


def test_texts_can_be_logged():
    """Texts have no half surrogate pairs, which cannot be encoded, and progress has no codes of a terminal."""
    progress = b'{"done": 1, "text": "a\\u001b[2Jb \\ud800\\nc"}\n'
    error = b'{"function":"f","types":["E"],"message":"\\udc80","traceback":"T\\n\\udc80"}\n'
    messages, _ = read(LINE.replace(b"result", b"progress") + progress + LINE.replace(b"result", b"error") + error)

    assert str(messages.progress) == "1: a [2Jb c"
    assert messages.failure == FunctionFailure("f", ("E",), "\\udc80", "T\n\\udc80")


def test_no_message_counts_without_a_nonce():
    """For a job of another client, messages are left out, and not read."""
    messages, shown = read(LINE + b"1\nline\n", nonce=None)

    assert messages == JobMessages()
    assert shown == "line"


def test_messages_of_several_threads():
    """The lines of two messages may alternate."""
    first, second = parts('result "first of them"', 5, "0" * 8), parts('result "second one"', 5, "1" * 8)
    lines = [*first, *second]
    random.Random(1).shuffle(lines)  # noqa: S311
    messages, _ = read(b"".join(sorted(lines, key=lambda line: line[30:])))

    assert messages.results == 2
    assert messages.broken == 0


def test_a_line_without_end_uses_little_memory():
    """A line that begins as a message and never ends is dropped, and not kept in memory."""
    log = MessageFilter(LogCursor())
    log.nonce = NONCE
    log.begin()
    assert list(log.feed(b"before\n" + LINE)) == []
    for _ in range(20):
        assert list(log.feed(b"x" * 1024 * 1024)) == []
        assert len(log._waiting) < 10 * 1024 * 1024
    records = [*log.feed(b"\nafter\n"), *log.flush(), *log.finish()]

    assert records == ["before\nafter"]
    assert log.messages.broken > 0


@pytest.mark.parametrize("chunks", [[], [65536] * 30])
def test_a_line_that_is_too_long_is_no_result(chunks: list[int]):
    """The end of a line that was dropped does not become a shorter value."""
    messages, shown = read(LINE + b'"' + b"x" * (9 * MAX_RESULT_SIZE) + b'"\nafter\n' + LINE + b"1\n", chunks)

    assert (messages.result.value, messages.results, messages.broken) == (1, 1, 1)
    assert shown == "after"


@pytest.mark.parametrize("prefix", [b"(" + b"pid=1" * 200_000, b"(pid=" + b"1" * 1_000_000])
def test_text_that_resembles_a_prefix(prefix: bytes):
    """The time for a line grows with its length, not with its square: this one would take hours."""
    log = prefix + LINE + b"1\n"

    assert read(log)[0].results == 1
    assert without_messages(log) == prefix


def test_parts_use_little_memory():
    """Messages of many parts, and parts without text, are dropped before they fill the memory."""
    log = MessageFilter(LogCursor())
    log.nonce = NONCE
    log.begin()
    for name in range(100):
        text = b"x" * MAX_RESULT_SIZE
        list(log.feed(f"##ray_job {NONCE} part {name:08x} 1/2 00000000 ".encode() + text + b"\n"))
    for number in range(20_000):
        list(log.feed(f"##ray_job {NONCE} part deadbeef {number}/9999999 00000000 \n".encode()))

    kept = [content for parts in log._unfinished.values() for content in parts.contents.values()]
    assert sum(map(len, kept)) <= 16 * MAX_RESULT_SIZE
    assert len(kept) < 10_000


def test_a_wrong_checksum_is_not_computed_again_and_again():
    """A message whose parts are all there, but wrong, is dropped after some repetitions of a part."""
    content = b"x" * (MAX_RESULT_SIZE - 100)
    log = f"##ray_job {NONCE} part deadbeef 1/2 00000000 ".encode() + content + b"\n"
    log += f"##ray_job {NONCE} part deadbeef 2/2 00000000 \n".encode() * 1000
    messages, _ = read(log)

    assert (messages.results, messages.broken) == (0, 2)


def test_progress_of_a_read_that_was_cut_off():
    """A read begins at the first byte. The old progress in it does not replace the latest."""
    line = b"##ray_job 0123456789abcdef progress "
    data = b"".join(line + b'{"done": %d, "total": 4}\n' % number for number in range(3))
    log = MessageFilter(LogCursor())
    log.nonce = NONCE
    log.begin()
    list(log.feed(data))
    list(log.flush())
    log.begin()
    list(log.feed(data[:60]))

    assert log.progress == Progress(2, 4)
    assert str(log.progress) == "2 of 4 (50%)"
