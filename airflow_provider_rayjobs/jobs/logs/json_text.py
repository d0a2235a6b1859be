"""One text in a JSON answer, decoded while it arrives: a log of a gigabyte shall not be held for it."""

from __future__ import annotations

import json
import re

# Whole units of JSON's notation: a half of one, or of a surrogate pair, waits for the next bytes.
_UNITS = re.compile(
    rb'(?:[^"\\]+|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\]|\\[^u])))+'
)
# Of those what is written with a backslash, and what stands for itself.
_PIECES = re.compile(rb"[^\\]+|(?:\\u[0-9a-fA-F]{4}|\\[^u])+")
_KEY = re.compile(rb'\{\s*"logs"\s*:\s*"')
_LONGEST_KEY = 32


class JsonText:
    """The text of an answer ``{"logs": "..."}``, as UTF-8."""

    def __init__(self) -> None:
        self._waiting = b""
        self._is_inside = False
        # whether the text has ended, so that nothing of it can be missing
        self.is_whole = False

    def decode(self, data: bytes) -> bytes:
        """
        Take the next bytes of the answer and return what they hold of the text.

        :raises ValueError: for an answer that is something else.
        """
        data = self._waiting + data
        if not self._is_inside:
            begun = _KEY.match(data)
            if begun is None:
                if len(data) >= _LONGEST_KEY:
                    raise ValueError("the answer does not begin with a text named logs")
                self._waiting = data
                return b""
            self._is_inside = True
            data = data[begun.end() :]
        if self.is_whole:
            return b""
        units = _UNITS.match(data)
        size = units.end() if units else 0
        self.is_whole = data[size : size + 1] == b'"'
        text, self._waiting = data[:size], data[size:]
        if b"\\" not in text:
            return text
        return b"".join(
            json.loads(b'"' + piece + b'"').encode("utf-8", errors="replace") if piece[:1] == b"\\" else piece
            for piece in _PIECES.findall(text)
        )
