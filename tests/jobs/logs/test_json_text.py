"""The text in a JSON answer, decoded while it arrives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.json_text import JsonText


@given(text=st.text(), size=st.integers(1, 9), ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_text(text: str, size: int, ascii_only: bool, indent: int | None) -> None:
    """The text is the same for all chunk sizes of the answer."""
    data = json.dumps({"logs": text}, ensure_ascii=ascii_only, indent=indent).encode()
    decoder = JsonText()

    pieces = [decoder.decode(data[start : start + size]) for start in range(0, len(data), size)]

    assert b"".join(pieces).decode() == text
    assert decoder.is_whole


def test_text_that_is_cut() -> None:
    """A text without its end is not complete."""
    decoder = JsonText()

    assert decoder.decode(b'{"logs": "one\\ntw') == b"one\ntw"
    assert not decoder.is_whole


def test_half_a_surrogate_pair() -> None:
    """Half of a surrogate pair becomes a question mark; the text around it stays."""
    decoder = JsonText()

    assert decoder.decode(rb'{"logs": "a\ud83db\ud83d\nc"}') == b"a?b?\nc"
    assert decoder.is_whole


@pytest.mark.parametrize("data", [b'"text"' * 10, b'{"result": true, "msg": "something else altogether"}', b"x" * 32])
def test_answer_without_the_text(data: bytes) -> None:
    """An answer without the text is an error."""
    with pytest.raises(ValueError, match="text named logs"):
        JsonText().decode(data)


@pytest.mark.parametrize("escape", [rb"\uZZZZ", rb"\ud83d\uZZZZ"])
def test_invalid_escape_sequence(escape: bytes) -> None:
    """The text after an invalid escape sequence does not wait in memory."""
    with pytest.raises(ValueError, match="invalid escape sequence"):
        JsonText().decode(b'{"logs": "one' + escape + b"x" * 12)
