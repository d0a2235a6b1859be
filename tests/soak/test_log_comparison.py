"""The soak test's comparison accepts what a reader would call the same log, and nothing else."""

from __future__ import annotations

import pytest
from log_comparison import LONG_LINE, difference

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
        pytest.param("\n", [""], id="nothing but a blank line"),
        pytest.param("", [], id="nothing"),
        pytest.param(f"a\n{LONG}\nb\n", ["a", LONG[:500], LONG[500:] + "\nb"], id="a long line in two"),
        pytest.param(f"{LONG}\nb", [LONG[:500], LONG[500:], "b"], id="a long line that a record ends with"),
        pytest.param("a\r\n\r\nb\r\n", ["a\r\n\r", "b\r"], id="line ends of another system"),
        pytest.param("a\x0bb\x85c\u2028d\n", ["a\x0bb\x85c\u2028d"], id="what else may be taken for a line end"),
        pytest.param(BAR, ["begin", "100%", "end"], id="the last state of a bar"),
        pytest.param(BAR, ["begin\n100%\nend"], id="the last state of a bar in one record with others"),
        pytest.param(BAR, ["begin", "  0%", " 50%", " 50%", "100%", "end"], id="all states of a bar"),
        pytest.param(BAR, ["begin\n 50%", "100%\nend"], id="some states of a bar"),
        pytest.param("a\r100%\r\nend", ["100%\r\nend"], id="a bar with a carriage return at its end"),
        pytest.param("a\r100%\r\nend", ["100%", "end"], id="a bar without that"),
        pytest.param("a\rb\ra\ra", ["a", "a"], id="a bar that is in one state again, and never ends"),
    ],
)
def test_what_is_the_same_is_accepted(log: str, records: list[str]) -> None:
    """Records may be cut at any line end, long lines anywhere, and bars may be shown by their last states."""
    assert difference(log, records) == ""


@pytest.mark.parametrize(
    ("log", "records"),
    [
        pytest.param(LOG, ["first\n\n  second", "same", "last"], id="one of two equal lines lost"),
        pytest.param(LOG, ["first\n\n  second\nsame\nsame", "same", "last"], id="a line twice"),
        pytest.param(LOG, [LOG, "last"], id="the last line twice"),
        pytest.param(LOG, ["first", "  second\nsame\nsame\nlast"], id="a blank line lost"),
        pytest.param(LOG, ["first\n\n", "  second\nsame\nsame\nlast"], id="a blank line twice"),
        pytest.param(LOG, ["first\n\nsecond\nsame\nsame\nlast"], id="indentation lost"),
        pytest.param(LOG, [LOG[:-1]], id="the last character lost"),
        pytest.param(LOG, ["first\n\n  second\nsame\nsame"], id="the last line lost"),
        pytest.param(LOG, ["first\n\n  second\nsa", "me\nsame\nlast"], id="a short line in two"),
        pytest.param(LOG, ["first", "", "same\nsame", "  second", "last"], id="lines in another order"),
        pytest.param(LOG, [LOG + "\n"], id="a newline too many"),
        pytest.param(LOG, [], id="nothing shown"),
        pytest.param("a\n\n", ["a"], id="a blank line at the end lost"),
        pytest.param("a\n", ["a\n"], id="a blank line at the end too many"),
        pytest.param("a\n", ["a", ""], id="an empty record too many"),
        pytest.param("", [""], id="something shown of nothing"),
        pytest.param(f"{LONG}\n", [LONG[:500], LONG[501:]], id="a character of a long line lost"),
        pytest.param(f"a\n{LONG}", ["a\n", LONG], id="a blank line before a long line"),
        pytest.param("a\r\nb\r\n", ["a\nb"], id="other line ends"),
        pytest.param("a\r\nb\r\n", ["a\r\nb\r\n"], id="a newline too many after a carriage return"),
        pytest.param(BAR, ["begin", " 50%", "end"], id="the last state of a bar lost"),
        pytest.param(BAR, ["begin", "100%", " 50%", "end"], id="states of a bar in another order"),
        pytest.param(BAR, ["begin", " 50%", " 50%", " 50%", "100%", "end"], id="a state of a bar too often"),
        pytest.param(BAR, ["begin", "100%", "100%", "end"], id="the last state of a bar twice"),
        pytest.param(BAR, ["begin", "\r  0%\r 50%\r 50%\r100%", "end"], id="a bar as it is in the file"),
        pytest.param(BAR, ["begin", "5", "100%", "end"], id="a piece of a state"),
        pytest.param(BAR, ["begin", "", "100%", "end"], id="a blank line before a bar"),
        pytest.param(BAR, ["begin", "100%\n", "end"], id="a blank line after a bar"),
        pytest.param("a\rb\ra", ["a", "a", "a"], id="a bar that never ends, once too often"),
        pytest.param("a\rb\rc", ["b"], id="the last state of a bar that never ends lost"),
    ],
)
def test_what_differs_is_told(log: str, records: list[str]) -> None:
    """Nothing may be lost, shown twice, moved or changed."""
    assert difference(log, records)


def test_the_place_is_told() -> None:
    """What differs is said with its place, the text around it on both sides, and a guess."""
    log = "".join(f"line number {n}\n" for n in range(100))

    told = difference(log, [log[:-1].replace("line number 50\n", "")])

    assert "character 753 (line 51)" in told
    assert "it goes on 15 characters later: lost?" in told
    assert "line number 49\\nline number 5' HERE '0\\nline number 51" in told
    assert "line number 49\\nline number 5' HERE '1\\nline number 52" in told
