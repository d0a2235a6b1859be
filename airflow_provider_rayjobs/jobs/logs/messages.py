"""
Find the messages of a job's program in its log, and keep them out of what is shown; no I/O.

``in_job/__init__.py`` describes the messages. :class:`MessageFilter` takes the bytes of a log and passes on those that
are not part of a message. What it passes on of a longer log begins with what it passes on of a shorter one: so a log
offset counts filtered bytes, and a log without messages has the offsets of its file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from airflow_provider_rayjobs.in_job import MAX_EXTRA_SIZE, MAX_RESULT_SIZE, check
from airflow_provider_rayjobs.jobs.steps import LogSink

_MARK = b"##ray_job "
_HEADER = re.compile(_MARK + rb"([0-9a-f]{16}) ([a-z]{1,16}) ")
_LONGEST_HEADER = len(_MARK) + 16 + 1 + 16 + 1
_PART = re.compile(rb"([0-9a-z]{8}) ([0-9]{1,4})/([0-9]{1,4}) ([0-9a-f]{8}) (.*)", re.DOTALL)
# What Ray puts before the lines of tasks and actors, which it copies into the driver's log. The lookahead keeps the
# time linear.
_PREFIX = rb"(?:\x1b\[[0-9;]*m)?\((?:(?!pid=\d)[^()\r\n])*pid=\d[^()\r\n]*\)(?:\x1b\[0m)? "
_LINE_PREFIX = re.compile(_PREFIX)
_LONGEST_PREFIX = 300
_MESSAGE = re.compile(rb"(?m:^" + _PREFIX + rb")?##ray_job [0-9a-f]{16} [a-z]{1,16} [^\n]*\n?")
# Most bytes of a line.
_LONGEST_LINE = MAX_RESULT_SIZE + 64
# What is kept of a longer line, and of another job's message, until its end.
_DROPPED = _MARK + b"0000000000000000 dropped "
# Messages of which parts are kept at the same time, and most bytes of them all. A program sends one after the other.
# The escapes of a text that quotes messages may make it six times as long.
_MOST_UNFINISHED = 8
_MOST_BYTES = 16 * MAX_RESULT_SIZE


@dataclass(frozen=True)
class Progress:
    """How much of its work a job has done, in a unit of its own; ``total`` is ``None`` if it does not know."""

    done: float
    total: float | None = None
    text: str = ""

    def __str__(self) -> str:
        share = f" of {self.total:g} ({self.done / self.total:.0%})" if self.total else ""
        return f"{self.done:g}{share}{f': {self.text}' if self.text else ''}"


@dataclass(frozen=True)
class FunctionFailure:
    """
    The exception that a function raised.

    :param function: its name.
    :param types: the names of the exception's class and of its base classes, builtin ones without a module.
    :param traceback: its text, with the message as its last line.
    """

    function: str
    types: tuple[str, ...]
    message: str
    traceback: str


@dataclass(frozen=True)
class Result:
    """The value that a job pushed; the base64 text of a pickle if ``is_pickled``."""

    value: Any
    is_pickled: bool = False

    @classmethod
    def parse(cls, content: bytes, *, is_pickled: bool) -> Result:
        """Read the JSON of a message. Raise :class:`ValueError` for anything else."""
        return cls(_load(content), is_pickled)


@dataclass(frozen=True)
class StoredResult:
    """A result that is too large for a log: the size and the digest of the file in which the job stored it."""

    size: int
    sha256: str
    is_pickled: bool = False

    def parse(self, content: bytes) -> Result:
        """Read the content of the file. Raise :class:`ValueError` if it is another one."""
        if len(content) != self.size or hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"the file has {len(content)} bytes, and not the {self.size} that the job has written")
        return Result.parse(content, is_pickled=self.is_pickled)


@dataclass
class JobMessages:
    """
    What a job's program told its task.

    :param result: the last whole result.
    :param results: the number of whole results.
    :param broken: the number of messages that are not whole: of a program that was killed, or of a full disk.
    :param progresses: the number of progress messages.
    :param extra: what the program added to the events of the task's outlets.
    """

    result: Result | StoredResult | None = None
    results: int = 0
    broken: int = 0
    progress: Progress | None = None
    progresses: int = 0
    failure: FunctionFailure | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def take(self, kind: str, content: bytes) -> None:
        """Take a whole message."""
        try:
            match kind:
                case "result" | "pickle":
                    self.result = Result.parse(content, is_pickled=kind == "pickle")
                    self.results += 1
                case "stored":
                    stored = _load(content)
                    size, is_pickled = int(stored["size"]), stored["kind"] == "pickle"
                    if size < 0:
                        raise ValueError(f"{size} is not a size")
                    self.result = StoredResult(size, str(stored["sha256"]), is_pickled)
                    self.results += 1
                case "progress":
                    self.progress = _progress_of(_load(content))
                    self.progresses += 1
                case "error":
                    self.failure = _failure_of(_load(content))
                case "extra":
                    added = _load(content)
                    check(added, "extra")  # a program in another language did not
                    extra = self.extra | added  # an error for anything but a dictionary
                    if len(json.dumps(extra, separators=(",", ":"))) > MAX_EXTRA_SIZE:
                        raise ValueError("the extra is too large")
                    self.extra = extra
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self.broken += 1


NO_MESSAGES = JobMessages()


class FinishableSink(LogSink, Protocol):
    """A :class:`.LogSink` of a log that ends."""

    def finish(self) -> Iterator[str]:
        """End the log, and yield the remaining records."""


class MessageFilter:
    """
    A :class:`.LogSink` that takes the messages out of a log, and passes the rest on.

    :param sink: receives the rest.
    """

    def __init__(self, sink: FinishableSink) -> None:
        # of the submission; without one, no message counts
        self.nonce: str | None = None
        # of the last complete read
        self.messages = JobMessages()
        # of all reads, also of one that was cut off
        self.progress: Progress | None = None
        self._progress_number = 0
        self._sink = sink
        self._reset()

    def _reset(self) -> None:
        # bytes from the beginning of what may be a message, or Ray's prefix of one
        self._waiting = b""
        self._is_at_line_start = True
        self._unfinished: dict[bytes, _Parts] = {}
        self._read = JobMessages()

    @property
    def needs_more(self) -> bool:
        return self._sink.needs_more

    def begin(self) -> None:
        self._reset()
        self._sink.begin()

    def feed(self, data: bytes) -> Iterator[str]:
        if rest := self._take(data):
            yield from self._sink.feed(rest)

    def flush(self, *, is_cut: bool = False) -> Iterator[str]:
        """End a read. The next one brings an unfinished message again."""
        if not is_cut:
            self.messages = self._read
        return self._sink.flush(is_cut=is_cut)

    def finish(self) -> Iterator[str]:
        """End the log after its last read. A message that was cut off is not shown."""
        rest, cut = _MESSAGE.subn(b"", self._waiting)
        self._waiting = b""
        if rest:
            yield from self._sink.feed(rest)
        self._read.broken += cut + len(self._unfinished)
        self.messages = self._read
        yield from self._sink.finish()

    def _take(self, data: bytes) -> bytes:
        """Take the next bytes of the log, and return those that are certainly not part of a message."""
        data = self._waiting + data
        rest = bytearray()
        position = 0
        newline = -1
        while True:
            start = data.find(_MARK, position)
            if start < 0:
                end = max(len(data) - _length_of_beginning(data), position)
                rest += data[position:end]
                self._waiting = data[end:]
                break
            rest += data[position:start]
            if newline < start:
                newline = data.find(b"\n", start)
                newline = len(data) if newline < 0 else newline
            header = _HEADER.match(data, start)
            if header is None:
                if newline == len(data) < start + _LONGEST_HEADER:
                    self._waiting = data[start:]
                    break
                rest += _MARK
                position = start + len(_MARK)
                continue
            # a line that was cut off is written again
            following = data.find(_MARK, start + len(_MARK), newline)
            end = newline if following < 0 else following
            if end == len(data):
                self._waiting = data[start:]
                if len(self._waiting) > _LONGEST_LINE or not self._is_ours(header):
                    self._take_line(header, data[header.end() :])
                    self._waiting = _DROPPED + data[max(header.end(), len(data) - len(_MARK) + 1) :]
                break
            self._drop_prefix(rest)
            self._take_line(header, data[header.end() : end])
            position = end + 1 if following < 0 else following
        return self._hold_prefix(rest)

    def _drop_prefix(self, rest: bytearray) -> None:
        """Drop Ray's prefix of a line, which is all that is left of a message of a task or an actor."""
        line = self._line_that_may_be_prefix(rest)
        if _LINE_PREFIX.fullmatch(rest, line):
            del rest[line:]

    def _hold_prefix(self, rest: bytearray) -> bytes:
        """Hold back the beginning of a line that may be a prefix, and return the bytes before it."""
        line = self._line_that_may_be_prefix(rest)
        if rest.startswith((b"(", b"\x1b"), line) and b"\r" not in rest[line:]:
            self._waiting = bytes(rest[line:]) + self._waiting
            del rest[line:]
        if rest:
            self._is_at_line_start = rest.endswith(b"\n")
        return bytes(rest)

    def _line_that_may_be_prefix(self, rest: bytearray) -> int:
        """Return the beginning of the last line, or the end of the bytes if that line is too long for a prefix."""
        line = rest.rfind(b"\n", -_LONGEST_PREFIX) + 1
        is_whole = line or (self._is_at_line_start and len(rest) < _LONGEST_PREFIX)
        return line if is_whole else len(rest)

    def _is_ours(self, header: re.Match[bytes]) -> bool:
        return self.nonce is not None and header[1] == self.nonce.encode()

    def _take_line(self, header: re.Match[bytes], text: bytes) -> None:
        if not self._is_ours(header):
            return
        if len(text) > _LONGEST_LINE:
            self._read.broken += 1
            return
        kind = header[2]
        body: bytes | None = kind + b" " + text
        if kind == b"part":
            body = self._join(text)
        if body is not None:
            name, _, content = body.partition(b" ")
            self._read.take(name.decode(), content)
            # a read begins with progress that an earlier one has seen
            if self._read.progresses > self._progress_number:
                self.progress, self._progress_number = self._read.progress, self._read.progresses

    def _join(self, text: bytes) -> bytes | None:
        """Add a part to its message, and return the message if it is whole."""
        part = _PART.fullmatch(text)
        if part is None:
            return None  # cut off; a repetition may follow
        name, number, count, checksum, content = part.groups()
        parts = self._unfinished.setdefault(name, _Parts(int(count), int(checksum, 16)))
        whole = parts.add(int(number), content)
        if whole is not None:
            del self._unfinished[name]
        while (
            len(self._unfinished) > _MOST_UNFINISHED
            or sum(each.size for each in self._unfinished.values()) > _MOST_BYTES
        ):
            del self._unfinished[next(iter(self._unfinished))]
            self._read.broken += 1
        return whole


@dataclass
class _Parts:
    count: int
    checksum: int
    contents: dict[int, bytes] = field(default_factory=dict)
    size: int = 0

    def add(self, number: int, content: bytes) -> bytes | None:
        """Add a part. Return the whole message if all parts are there and the checksum is right."""
        self.size += len(content)
        self.contents[number] = content
        if len(self.contents) < self.count:
            return None
        whole = b"".join(content for _, content in sorted(self.contents.items()))
        if zlib.crc32(whole) == self.checksum:
            return whole
        # a part may be written again, but not so often that the checksums take long
        self.size += len(whole)
        return None


def without_messages(data: bytes) -> bytes:
    """Return a piece of a log without the messages in it."""
    return _MESSAGE.sub(b"", data)


def _length_of_beginning(data: bytes) -> int:
    """Return how many of the last bytes may be the beginning of a message."""
    return next((size for size in range(len(_MARK) - 1, 0, -1) if data.endswith(_MARK[:size])), 0)


def _load(content: bytes) -> Any:
    return json.loads(content, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _progress_of(value: Mapping[str, Any]) -> Progress:
    done, total = value["done"], value.get("total")
    for number in (done, 0 if total is None else total):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{number!r} is not a number")
        if not math.isfinite(number):
            raise ValueError(f"{number!r} is not finite")
    # no control codes, as the text is shown in consoles and messages
    text = "".join(each if each.isprintable() else " " for each in str(value.get("text") or ""))
    return Progress(done, total, " ".join(text.split())[:500])


def _failure_of(value: Mapping[str, Any]) -> FunctionFailure:
    function, message, traceback = (_text_of(value[name]) for name in ("function", "message", "traceback"))
    types = tuple(_text_of(each) for each in value["types"])
    if not types:
        raise ValueError("an exception has a class")
    return FunctionFailure(function, types, message, traceback)


def _text_of(value: Any) -> str:
    """Return a text that can be logged: half a surrogate pair cannot be encoded."""
    return str(value).encode("utf-8", errors="backslashreplace").decode()
