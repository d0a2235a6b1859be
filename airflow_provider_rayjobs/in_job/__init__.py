"""
Messages from a Ray job to its Airflow task: a result, progress, and facts for the events of its outlets.

::

    from airflow_provider_rayjobs.in_job import push_result, report_progress

    for epoch in range(100):
        report_progress(epoch, 100, f"loss {loss:.3f}")
    push_result({"loss": loss})

This file needs Python 3.8 or later and nothing else. Copy it into a job's ``working_dir`` under any name, or install
this package on the cluster without its dependencies.

A message is a line of the job's log, or several of them. The task recognises it by the nonce of the submission, which
the job finds in its environment. So no other text in the log is taken for a message, by accident. The nonce does not
protect from the job's own program, which knows it::

    ##ray_job <nonce> result <JSON>
    ##ray_job <nonce> progress {"done": 3, "total": 10, "text": "epoch 3"}
    ##ray_job <nonce> extra {"rows": 1000}
    ##ray_job <nonce> part <id> <number>/<count> <CRC 32 of the whole> <a part of "result <JSON>">

Each line is one write of at most 4096 bytes, which other processes and threads cannot interrupt. So their output may
come before, between and after the lines of a message.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import math
import os
import sys
import threading
import time
import zlib
from typing import Any

# The environment variable with the nonce of the submission.
NONCE_VARIABLE = "RAY_JOB_NONCE"
# Exit codes of a function's job that skip its task, or fail it at once.
SKIP_EXIT_CODE = 99
FAIL_EXIT_CODE = 98
# Most bytes of a result as JSON. Characters beyond ASCII count as six or twelve.
MAX_RESULT_SIZE = 1024 * 1024
# Most bytes of what is added to an asset event at once. Airflow shows it in lists of events.
MAX_EXTRA_SIZE = 64 * 1024
# Most levels of lists and dictionaries. Airflow 3.3 accepts some more in an XCom, and integers of 64 bits.
_MAX_DEPTH = 200
# PIPE_BUF of Linux. One write of so many bytes is atomic, also to a pipe.
_LINE_SIZE = 4096
_LETTERS = str.maketrans("0123456789", "ghijklmnop")
# Seconds between two progress messages of a process.
_PROGRESS_INTERVAL = 1.0
_PROGRESS_TEXT = 500

# The job's log. A copy, so that a program may redirect its own output.
_log: int | None = None
_HINTS = (
    ("numpy.ndarray", "Use .tolist()."),
    ("numpy.", "Use .item()."),
    ("pandas.DataFrame", "Use .to_dict('records')."),
    ("pandas.Series", "Use .tolist()."),
    ("pandas.", "Use str()."),
    ("datetime.", "Use .isoformat() or str()."),
    ("pendulum.", "Use .isoformat() or str()."),
    ("ray.ObjectRef", "Get its value first, with ray.get()."),
    ("torch.", "Use .tolist()."),
    ("set", "Use sorted() or list()."),
    ("frozenset", "Use sorted() or list()."),
    ("bytes", "Use .decode()."),
    ("decimal.", "Use float() or str()."),
    ("pathlib.", "Use str()."),
    ("uuid.", "Use str()."),
    ("coroutine", "Await it."),
)


class AirflowSkipException(Exception):  # noqa: N818  (Airflow's name)
    """Skips the task of a ``@task.ray_job`` function. Any exception class of this name does."""


class AirflowFailException(Exception):  # noqa: N818  (Airflow's name)
    """Fails the task of a ``@task.ray_job`` function at once. Any exception class of this name does."""


class ResultError(ValueError):
    """A value cannot be sent: it is not JSON, or too large."""


def push_result(value: Any) -> None:
    """
    Send the result of the job. The last one counts.

    :param value: anything that is JSON: text, numbers, booleans, ``None``, and lists and dictionaries of these.
    :raises ResultError: the value is not JSON, or has more than 1 MiB as JSON.
    """
    send_result("result", to_json(value, "result"))


def report_progress(done: float, total: float | None = None, text: str = "") -> None:
    """
    Report how much of the work is done. A process sends one message a second at most.

    :param done: in units of your choice, e.g. epochs.
    :param total: of all the work, in the same unit; ``None`` if unknown.
    :param text: a few words, at most 500 characters.
    """
    done, total = _plain(done), None if total is None else _plain(total)
    text = str(text)[:_PROGRESS_TEXT].encode("utf-8", "replace").decode()
    # no program fails because of its progress: a number that is not finite is not sent
    with contextlib.suppress(ResultError):
        _progress.report(to_json({"done": done, "total": total, "text": text}, "progress"))


def add_asset_extra(extra: dict[str, Any]) -> None:
    """
    Add to the ``extra`` of the asset events that the task's outlets cause. Later calls add to earlier ones.

    :param extra: a dictionary with text as keys and JSON as values.
    :raises ResultError: it is no such dictionary, or has more than 64 KiB as JSON. What makes that of all calls larger
        is left out.
    """
    if not isinstance(extra, dict):
        raise ResultError(f"extra is of type {type_name(extra)}, not a dictionary.")
    text = to_json(extra, "extra")
    if len(text) > MAX_EXTRA_SIZE:
        raise ResultError(f"extra has {len(text)} bytes, and at most {MAX_EXTRA_SIZE} can be sent. Return the rest.")
    send("extra", text)


def _plain(number: Any) -> float:
    """Return a number as Python's own type."""
    return number if isinstance(number, int) else float(number)


class _Progress:
    """Sends the latest progress once a second, and at the end of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = ""
        self._next = 0.0

    def report(self, message: str) -> None:
        now = time.monotonic()
        with self._lock:
            is_due = now >= self._next
            if is_due:
                self._next = now + _PROGRESS_INTERVAL
            self._waiting = "" if is_due else message
        if is_due:
            self._send(message)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, ""
        if waiting:
            self._send(waiting)

    @staticmethod
    def _send(message: str) -> None:
        with contextlib.suppress(OSError):
            send("progress", message)


_progress = _Progress()
atexit.register(_progress.flush)


def send_result(kind: str, text: str) -> None:
    """
    Send a result.

    :raises ResultError: it is too large.
    """
    if len(text) > MAX_RESULT_SIZE:
        raise ResultError(
            f"the result has {len(text)} bytes, and at most {MAX_RESULT_SIZE} can be sent. Write it to a file or an "
            "object store and return its path, or set package_storage."
        )
    send(kind, text)


def send(kind: str, text: str) -> None:
    """
    Write a message into the job's log. Do nothing outside a job of Airflow.

    :param text: JSON in ASCII.
    """
    nonce = os.environ.get(NONCE_VARIABLE)
    if not nonce:
        return
    with contextlib.suppress(Exception):  # what was printed before the message comes before it
        sys.stdout.flush()
    # a text that quotes a message must not begin one; in JSON a "#" is always within a string
    body = f"{kind} {text}".replace("#", "\\u0023")
    checksum = zlib.crc32(body.encode())
    # Without digits: Ray drops lines of its tasks that differ in words with digits alone.
    name = os.urandom(4).hex().translate(_LETTERS)
    size = _LINE_SIZE - 80
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    for number, part in enumerate(parts, 1):
        _write(f"##ray_job {nonce} part {name} {number}/{len(parts)} {checksum:08x} {part}\n".encode())


def stored_name(nonce: str) -> str:
    """Return the name of a large result in the package storage."""
    return f"ray_job_result_{nonce}.json"


def open_log() -> int:
    """Keep the job's log open, whatever the program does with its output later."""
    global _log  # noqa: PLW0603
    if _log is None:
        _log = os.dup(1)
    return _log


def _write(line: bytes) -> None:
    """Write a line at once. A line that was cut off is written again: its reader ignores the first part."""
    file = open_log()
    while True:
        try:
            if os.write(file, line) == len(line):
                return
        except BlockingIOError:
            time.sleep(0.01)


def to_json(value: Any, place: str) -> str:
    """
    Return a value as JSON in ASCII.

    :param place: the name of the value for the error message.
    :raises ResultError: the value is not JSON. The message names the place and the type of the part that is not.
    """
    check(value, place)
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def check(value: Any, place: str) -> None:
    """
    Check that a value is JSON that an XCom can hold.

    :raises ResultError: see :func:`to_json`.
    """
    problem = _find_problem(value, 0)
    if problem is not None:
        raise ResultError(f"{place}{problem[0]} {problem[1]}")


def _find_problem(value: Any, depth: int) -> tuple[str, str] | None:
    """Return the path of the first part of a value that JSON cannot hold, and the reason."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**64 else ("", "is an integer of more than 64 bits. Use str() or float().")
    if isinstance(value, str):
        return None if _is_utf8(value) else ("", "is text that UTF-8 cannot encode.")
    if isinstance(value, float):
        return None if math.isfinite(value) else ("", f"is {value}, which JSON cannot hold. Use None.")
    if not isinstance(value, (dict, list, tuple)):
        return "", f"is of type {type_name(value)}, which JSON cannot hold. {_hint(value)}"
    if depth == _MAX_DEPTH:
        return "", "contains itself, or is nested too deeply."
    is_dict = isinstance(value, dict)
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        if is_dict and not isinstance(key, str):
            return "", f"has the key {key!r} of type {type_name(key)}. JSON has only text as keys. Use str()."
        if is_dict and not _is_utf8(key):
            return "", f"has the key {key!a}, which UTF-8 cannot encode."
        problem = _find_problem(each, depth + 1)
        if problem:
            return f"[{json.dumps(key, ensure_ascii=False)}]{problem[0]}", problem[1]
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def type_name(value: Any) -> str:
    """Return the name of a value's type, with its module unless it is a builtin."""
    kind = type(value)
    # the module that users know: pandas.core.frame.DataFrame is pandas.DataFrame
    module = kind.__module__.partition(".")[0] if kind.__module__.startswith(("pandas.", "ray.")) else kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _hint(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "Use dataclasses.asdict()."
    if hasattr(value, "model_dump"):
        return "Use .model_dump(mode='json')."
    name = type_name(value)
    for prefix, hint in _HINTS:
        if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
            return hint
    return "Use text, numbers, lists and dictionaries, or store it and use its path."
