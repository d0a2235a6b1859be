"""
Is what Airflow shows of a job's log what the job printed?

Airflow keeps records of one or many lines, each without its last newline. They are laid on the log one after the
other, and have to cover it from its first character to its last, with two liberties: a very long line may be cut
into several records, and of a progress bar, whose states overwrite each other on a terminal, only the last state has
to be there. Of the others any may be, in their order, each of them in a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Characters that a line must have at least for a record to end within it.
LONG_LINE = 2_000
# What a message shows of a text, on both sides of the place.
_AROUND = 80
# A carriage return that more of the same line follows: what is before it in its line is overwritten.
_OVERWRITING = re.compile(r"\r(?=[^\r\n])")
_LINE_END = re.compile(r"\r*(\n|\Z)")


def difference(expected: str, records: Iterable[str]) -> str:
    """Return how the records differ from the log, empty if they do not."""
    # Mostly there is one place in the log at which a record can have ended; bars with equal states have more.
    places = {0}
    before = ""
    has_bars = "\r" in expected
    for number, record in enumerate(records):
        after = {end for place in places for end in _ends(expected, place, record, has_bars)}
        if not after:
            return f"record {number} does not go on at {_described(expected, max(places), record, before)}"
        places, before = after, record
    if any(place == len(expected) for place in places):
        return ""
    place = max(places)
    return (
        f"the last {len(expected) - place} of {len(expected)} characters are missing, from {_place(expected, place)}\n"
        f"  the log there:   {_around(expected, place)}\n  the last record: {before[-_AROUND:]!r}"
    )


def _ends(expected: str, place: int, record: str, has_bars: bool) -> set[int]:
    """Return where the record can end if it begins at a place; nothing if it cannot begin there."""
    if place == len(expected):
        return set()
    if not has_bars:  # the quick way, for many megabytes
        return set(_line_ends(expected, place, record)) if expected.startswith(record, place) else set()
    places = {place}
    *lines, last = record.split("\n")
    for line in lines:
        places = {end for one in places for end, has_ended in _after(expected, one, line) if has_ended}
    return {end for one in places for end, _ in _after(expected, one, last)}


def _after(expected: str, place: int, shown: str) -> Iterator[tuple[int, bool]]:
    """Yield where the log goes on after a shown line that begins at a place, and whether the log's line is over."""
    if place == len(expected):
        return
    line_start, line_end = _line(expected, place)
    if not _OVERWRITING.search(expected, line_start, line_end + 1):
        if expected.startswith(shown, place):
            for end in _line_ends(expected, place, shown):
                yield end, end > line_end and line_end < len(expected)
        return
    if not shown or _OVERWRITING.search(shown):
        return  # an overwritten state that is no state, or is shown in one line with others
    starts = [place, *(found.end() for found in _OVERWRITING.finditer(expected, place, line_end + 1))]
    for start in starts:
        end = start + len(shown)
        if start <= line_end and expected.startswith(shown, start) and end <= line_end:
            if over := _LINE_END.match(expected, end):
                yield over.end(), over[1] == "\n"
            elif expected[end] == "\r":
                yield end, False


def _line_ends(expected: str, place: int, shown: str) -> Iterator[int]:
    """Yield where the log goes on after exact text: behind its newline, or within a line that is long enough."""
    end = place + len(shown)
    if expected[end : end + 1] == "\n":
        yield end + 1
    elif shown and shown[-1] != "\n":  # else it would show a blank line that is not there
        line_start, line_end = _line(expected, end)
        if end == len(expected) or line_end - line_start >= LONG_LINE:
            yield end


def _line(expected: str, place: int) -> tuple[int, int]:
    """Return where the line of a place begins and ends, without its newline."""
    end = expected.find("\n", place)
    return expected.rfind("\n", 0, place) + 1, len(expected) if end < 0 else end


def _described(expected: str, place: int, record: str, before: str) -> str:
    place, begun = _last_good_line(expected, place, record)
    is_bar = _OVERWRITING.search(expected, *_line(expected, place))
    agreed = begun + (0 if is_bar else _agreement(expected, place, record[begun:]))
    at = place + agreed - begun
    rest = record[agreed : agreed + 200]
    later, earlier = expected.find(rest, at + 1), expected.rfind(rest, 0, at)
    guess = ""
    if is_bar:
        guess = (
            "\n  it is a progress bar, whose states are to be shown in lines of their own, or the last of them alone"
        )
    elif len(rest) >= 20 and later >= 0:
        guess = f"\n  it goes on {later - at} characters later: lost?"
    elif len(rest) >= 20 and earlier >= 0:
        guess = f"\n  it stands {at - earlier} characters before: shown twice?"
    return (
        f"{_place(expected, at)}{guess}\n"
        f"  the log there:     {_around(expected, at)}\n"
        f"  the record there:  {_around(record, agreed)}\n"
        f"  the record before: ...{before[-_AROUND:]!r}"
    )


def _last_good_line(expected: str, place: int, record: str) -> tuple[int, int]:
    """Return where the first line of a record that is not as it should be begins, in the log and in the record."""
    places, begun = {place}, 0
    for line in record.split("\n"):
        after = {end for one in places for end, has_ended in _after(expected, one, line) if has_ended}
        if not after:
            break
        places, begun = after, begun + len(line) + 1
    return max(places), min(begun, len(record))


def _agreement(expected: str, place: int, record: str) -> int:
    """Return how many characters of a record agree with the log from a place on."""
    low, high = 0, len(record)
    while low < high:
        middle = (low + high + 1) // 2
        if expected.startswith(record[:middle], place):
            low = middle
        else:
            high = middle - 1
    return low


def _place(expected: str, place: int) -> str:
    return f"character {place} (line {expected.count(chr(10), 0, place) + 1})"


def _around(text: str, place: int) -> str:
    return f"{text[max(place - _AROUND, 0) : place]!r} HERE {text[place : place + _AROUND]!r}"
