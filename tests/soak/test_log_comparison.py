"""The soak test's comparison accepts records that show the whole log, and nothing else."""

from __future__ import annotations

import pytest

from sandbox.log_comparison import LONG_LINE, find_difference

LOG = "first\n\n  second\nsame\nsame\nlast"
LONG = "x" * LONG_LINE
BAR = "begin\n\r  0%\r 50%\r 50%\r100%\nend\n"


@pytest.mark.parametrize(
    ("log", "records"),
    [
        pytest.param(LOG, [LOG], id="one record"),
        pytest.param(LOG, LOG.split("\n"), id="one record for each line"),
        pytest.param(LOG, ["first\n", "  second\nsame", "same", "last"], id="a record that ends with a blank line"),
        pytest.param("a\n\n\n", ["a", "", ""], id="blank lines at the end, one by one"),
        pytest.param("a\n\n\n", ["a\n\n"], id="blank lines at the end, together"),
        pytest.param("\n", [""], id="only a blank line"),
        pytest.param("", [], id="an empty log"),
        pytest.param(f"a\n{LONG}\nb\n", ["a", LONG[:500], LONG[500:] + "\nb"], id="a long line split in two"),
        pytest.param(f"{LONG}\nb", [LONG[:500], LONG[500:], "b"], id="a long line split at the end of a record"),
        pytest.param("a\r\n\r\nb\r\n", ["a\r\n\r", "b\r"], id="Windows line ends"),
        pytest.param("a\x0bb\x85c\u2028d\n", ["a\x0bb\x85c\u2028d"], id="characters that only look like line ends"),
        pytest.param(BAR, ["begin", "100%", "end"], id="only the last state of a bar"),
        pytest.param(BAR, ["begin\n100%\nend"], id="the last state of a bar within a record"),
        pytest.param(BAR, ["begin", "  0%", " 50%", " 50%", "100%", "end"], id="all states of a bar"),
        pytest.param(BAR, ["begin\n 50%", "100%\nend"], id="some states of a bar"),
        pytest.param("a\r100%\r\nend", ["100%\r\nend"], id="a bar that ends with carriage return and newline"),
        pytest.param("a\r100%\r\nend", ["100%", "end"], id="a bar without its last carriage return"),
        pytest.param("a\rb\ra\ra", ["a", "a"], id="a bar without newline that repeats a state"),
    ],
)
def test_complete_records_are_accepted(log: str, records: list[str]) -> None:
    """A record may end at any line end, or anywhere in a long line. A progress bar may be shown by its last state."""
    assert find_difference(log, records) == ""


@pytest.mark.parametrize(
    ("log", "records"),
    [
        pytest.param(LOG, ["first\n\n  second", "same", "last"], id="one of two equal lines lost"),
        pytest.param(LOG, ["first\n\n  second\nsame\nsame", "same", "last"], id="a line shown twice"),
        pytest.param(LOG, [LOG, "last"], id="the last line shown twice"),
        pytest.param(LOG, ["first", "  second\nsame\nsame\nlast"], id="a blank line lost"),
        pytest.param(LOG, ["first\n\n", "  second\nsame\nsame\nlast"], id="a blank line shown twice"),
        pytest.param(LOG, ["first\n\nsecond\nsame\nsame\nlast"], id="indentation lost"),
        pytest.param(LOG, [LOG[:-1]], id="the last character lost"),
        pytest.param(LOG, ["first\n\n  second\nsame\nsame"], id="the last line lost"),
        pytest.param(LOG, ["first\n\n  second\nsa", "me\nsame\nlast"], id="a short line split in two"),
        pytest.param(LOG, ["first", "", "same\nsame", "  second", "last"], id="lines in another order"),
        pytest.param(LOG, [LOG + "\n"], id="an extra newline"),
        pytest.param(LOG, [], id="no record"),
        pytest.param("a\n\n", ["a"], id="a blank line at the end lost"),
        pytest.param("a\n", ["a\n"], id="an extra blank line at the end"),
        pytest.param("a\n", ["a", ""], id="an extra empty record"),
        pytest.param("", [""], id="an empty record for an empty log"),
        pytest.param(f"{LONG}\n", [LONG[:500], LONG[501:]], id="a character of a long line lost"),
        pytest.param(f"a\n{LONG}", ["a\n", LONG], id="an extra blank line before a long line"),
        pytest.param("a\r\nb\r\n", ["a\nb"], id="converted line ends"),
        pytest.param("a\r\nb\r\n", ["a\r\nb\r\n"], id="an extra newline after a carriage return"),
        pytest.param(BAR, ["begin", " 50%", "end"], id="the last state of a bar lost"),
        pytest.param(BAR, ["begin", "100%", " 50%", "end"], id="states of a bar in another order"),
        pytest.param(BAR, ["begin", " 50%", " 50%", " 50%", "100%", "end"], id="a state of a bar shown too often"),
        pytest.param(BAR, ["begin", "100%", "100%", "end"], id="the last state of a bar shown twice"),
        pytest.param(BAR, ["begin", "\r  0%\r 50%\r 50%\r100%", "end"], id="all states of a bar in one line"),
        pytest.param(BAR, ["begin", "5", "100%", "end"], id="a part of a state"),
        pytest.param(BAR, ["begin", "", "100%", "end"], id="an extra blank line before a bar"),
        pytest.param(BAR, ["begin", "100%\n", "end"], id="an extra blank line after a bar"),
        pytest.param("a\rb\ra", ["a", "a", "a"], id="a state of a bar without newline shown too often"),
        pytest.param("a\rb\rc", ["b"], id="the last state of a bar without newline lost"),
    ],
)
def test_lost_repeated_moved_or_changed_text_is_found(log: str, records: list[str]) -> None:
    """No text of the log may be lost, shown twice, moved or changed."""
    assert find_difference(log, records)


def test_message_shows_the_position_and_the_context_of_the_difference() -> None:
    """The message contains the position, the text around it in log and record, and a guess at the cause."""
    log = "".join(f"line number {n}\n" for n in range(100))

    message = find_difference(log, [log[:-1].replace("line number 50\n", "")])

    assert "character 753 (line 51)" in message
    assert "the record continues 15 characters later in the log: lost?" in message
    assert "line number 49\\nline number 5' HERE '0\\nline number 51" in message
    assert "line number 49\\nline number 5' HERE '1\\nline number 52" in message
