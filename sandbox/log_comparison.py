"""
Compare the log records that Airflow shows with the log that the job wrote.

Airflow keeps records of one or more lines, each without its last newline. Put together, the records must cover the log
from its first character to its last. Two deviations are allowed:

- A very long line may be split into several records.
- A progress bar overwrites its states on a terminal. Only its last state must be shown. Earlier states may be shown, in
  their order and each in a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# A record may end within a line that has at least this many characters.
LONG_LINE = 2_000
# Characters that a message shows on each side of the difference.
_CONTEXT = 80
# A carriage return within a line. It overwrites what the line held before.
_OVERWRITING = re.compile(r"\r(?=[^\r\n])")
_LINE_END = re.compile(r"\r*(\n|\Z)")


def find_difference(log: str, records: Iterable[str]) -> str:
    """Return how the records differ from the log; empty if they do not."""
    # Usually a record can end at only one position in the log. A bar with equal states has several.
    positions = {0}
    previous = ""
    has_bars = "\r" in log
    for number, record in enumerate(records):
        ends = {end for position in positions for end in _record_ends(log, position, record, has_bars)}
        if not ends:
            return f"record {number} does not match the log at {_describe(log, max(positions), record, previous)}"
        positions, previous = ends, record
    if any(position == len(log) for position in positions):
        return ""
    position = max(positions)
    return (
        f"the last {len(log) - position} of {len(log)} characters are missing, from {_place(log, position)}\n"
        f"  the log there:   {_around(log, position)}\n  the last record: {previous[-_CONTEXT:]!r}"
    )


def _record_ends(log: str, start: int, record: str, has_bars: bool) -> set[int]:
    """Return the positions at which a record that begins at ``start`` can end; none if it cannot begin there."""
    if start == len(log):
        return set()
    if not has_bars:  # fast, for many megabytes
        return set(_text_ends(log, start, record)) if log.startswith(record, start) else set()
    positions = {start}
    *lines, last = record.split("\n")
    for line in lines:
        positions = {
            end for position in positions for end, is_complete in _line_ends(log, position, line) if is_complete
        }
    return {end for position in positions for end, _ in _line_ends(log, position, last)}


def _line_ends(log: str, start: int, shown: str) -> Iterator[tuple[int, bool]]:
    """Yield each position at which a shown line can end, and whether it completes the log's line."""
    if start == len(log):
        return
    line_start, line_end = _line_at(log, start)
    if not _OVERWRITING.search(log, line_start, line_end + 1):
        if log.startswith(shown, start):
            for end in _text_ends(log, start, shown):
                yield end, end > line_end and line_end < len(log)
        return
    if not shown or _OVERWRITING.search(shown):
        return  # an empty state, or several states in one line
    state_starts = [start, *(match.end() for match in _OVERWRITING.finditer(log, start, line_end + 1))]
    for state_start in state_starts:
        end = state_start + len(shown)
        if state_start <= line_end and log.startswith(shown, state_start) and end <= line_end:
            if line_ending := _LINE_END.match(log, end):
                yield line_ending.end(), line_ending[1] == "\n"
            elif log[end] == "\r":
                yield end, False


def _text_ends(log: str, start: int, shown: str) -> Iterator[int]:
    """Yield the position after exact text: behind its newline, or within a line that is long enough to be split."""
    end = start + len(shown)
    if log[end : end + 1] == "\n":
        yield end + 1
    elif shown and shown[-1] != "\n":  # otherwise the record would show a blank line that the log does not have
        line_start, line_end = _line_at(log, end)
        if end == len(log) or line_end - line_start >= LONG_LINE:
            yield end


def _line_at(log: str, position: int) -> tuple[int, int]:
    """Return start and end of the line at a position, without its newline."""
    end = log.find("\n", position)
    return log.rfind("\n", 0, position) + 1, len(log) if end < 0 else end


def _describe(log: str, position: int, record: str, previous: str) -> str:
    position, offset = _first_wrong_line(log, position, record)
    is_bar = _OVERWRITING.search(log, *_line_at(log, position))
    matching = offset + (0 if is_bar else _common_length(log, position, record[offset:]))
    difference = position + matching - offset
    rest = record[matching : matching + 200]
    later, earlier = log.find(rest, difference + 1), log.rfind(rest, 0, difference)
    guess = ""
    if is_bar:
        guess = "\n  it is a progress bar: each state must be in a line of its own, or only the last one shown"
    elif len(rest) >= 20 and later >= 0:
        guess = f"\n  the record continues {later - difference} characters later in the log: lost?"
    elif len(rest) >= 20 and earlier >= 0:
        guess = f"\n  the log has it {difference - earlier} characters earlier: shown twice?"
    return (
        f"{_place(log, difference)}{guess}\n"
        f"  the log there:       {_around(log, difference)}\n"
        f"  the record there:    {_around(record, matching)}\n"
        f"  the previous record: ...{previous[-_CONTEXT:]!r}"
    )


def _first_wrong_line(log: str, position: int, record: str) -> tuple[int, int]:
    """Return where the first line of a record that does not match begins, in the log and in the record."""
    positions, offset = {position}, 0
    for line in record.split("\n"):
        ends = {end for start in positions for end, is_complete in _line_ends(log, start, line) if is_complete}
        if not ends:
            break
        positions, offset = ends, offset + len(line) + 1
    return max(positions), min(offset, len(record))


def _common_length(log: str, position: int, record: str) -> int:
    """Return how many characters of a record match the log from a position on."""
    low, high = 0, len(record)
    while low < high:
        middle = (low + high + 1) // 2
        if log.startswith(record[:middle], position):
            low = middle
        else:
            high = middle - 1
    return low


def _place(log: str, position: int) -> str:
    return f"character {position} (line {log.count(chr(10), 0, position) + 1})"


def _around(text: str, position: int) -> str:
    return f"{text[max(position - _CONTEXT, 0) : position]!r} HERE {text[position : position + _CONTEXT]!r}"
