"""
Where in the end of a log stands what was read before? A pure decision, and a careful one.

A head gives the last lines of a log, but not where in the log they stand. That some of them look like the ones
that were shown last proves nothing: a program may print the same again. What it cannot print again are lines
between which a clock moved on: by then it is later. So a log whose lines tell the time can be followed by its end
alone, and every other one has to be read from its start.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

# As Python's logging and most others write it, with or without a fraction.
_TIME = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?")
# Seconds that a time may be away from now, whatever the time zone of the job: times further away are data, which a
# program may well print twice.
_NEAR = 26 * 3600.0
# So much has to agree, where there is so much: a program that quotes a few lines of its own log is no proof.
_OVERLAP = 16 * 1024


def anchor_of(recent: bytes, now: int) -> bytes:
    """
    Return the shortest end of what was shown, from the start of a line, within which a clock moved on.

    :param recent: the last bytes that were shown.
    :param now: Unix milliseconds.
    :return: empty where no clock is seen to move.
    """
    latest: bytes | None = None
    for match in reversed(list(_TIME.finditer(recent[-_OVERLAP:]))):
        if not _is_near(match[0], now):
            continue
        if latest is None:
            latest = match[0]
        elif match[0] < latest and len(match[0]) == len(latest):
            start = len(recent[:-_OVERLAP]) + match.start()
            line = recent.rfind(b"\n", 0, start) + 1
            return recent[line:] if line else b""
    return b""


def known_part(recent: bytes, end: bytes, now: int) -> int | None:
    """
    Return how many bytes of a log's end were shown before, ``None`` where that cannot be proved.

    :param recent: the last bytes that were shown.
    :param end: the last lines of the log, all of them after its first byte.
    :param now: Unix milliseconds.
    """
    anchor = anchor_of(recent, now)
    at = end.find(anchor) if anchor else -1
    if at < 0 or end.find(anchor, at + 1) >= 0:
        return None
    known = at + len(anchor)
    overlap = min(known, len(recent))
    is_proved = overlap >= min(_OVERLAP, len(recent)) and recent[-overlap:] == end[known - overlap : known]
    return known if is_proved else None


def seems_unchanged(recent: bytes, end: bytes) -> bool:
    """Tell whether a log's end looks like what was shown last; it may be new lines that look the same."""
    size = min(len(recent), len(end))
    return recent[len(recent) - size :] == end[len(end) - size :]


def _is_near(time: bytes, now: int) -> bool:
    try:
        at = datetime.fromisoformat(time[:19].decode()).replace(tzinfo=UTC)
    except ValueError:
        return False
    return abs(at.timestamp() - now / 1000) < _NEAR
