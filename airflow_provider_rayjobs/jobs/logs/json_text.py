"""Decode the text in a JSON answer while it arrives: a log of a gigabyte is not held in memory."""

from __future__ import annotations

import json
import re

# Whole units of a JSON string. Half an escape sequence, or half a surrogate pair, waits for the next bytes.
_UNITS = re.compile(
    rb'(?:[^"\\]+|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\]|\\[^u])))+'
)
# Among those, bytes that stand for themselves, and escape sequences.
_PIECES = re.compile(rb"[^\\]+|(?:\\u[0-9a-fA-F]{4}|\\[^u])+")
_KEY = re.compile(rb'\{\s*"logs"\s*:\s*"')
_LONGEST_KEY = 32


class JsonText:
    """The text of an answer ``{"logs": "..."}``, as UTF-8."""

    def __init__(self) -> None:
        self._waiting = b""
        self._has_begun = False
        # whether the end of the text has arrived
        self.is_whole = False

    def decode(self, data: bytes) -> bytes:
        """
        Return what the next bytes of the answer hold of the text.

        :raises ValueError: for another answer.
        """
        data = self._waiting + data
        if not self._has_begun:
            key = _KEY.match(data)
            if key is None:
                if len(data) >= _LONGEST_KEY:
                    raise ValueError("the answer does not begin with a text named logs")
                self._waiting = data
                return b""
            self._has_begun = True
            data = data[key.end() :]
        if self.is_whole:
            return b""
        units = _UNITS.match(data)
        size = units.end() if units else 0
        self.is_whole = data[size : size + 1] == b'"'
        text, self._waiting = data[:size], data[size:]
        return b"".join(
            json.loads(b'"' + piece + b'"').encode("utf-8", errors="replace") if piece[:1] == b"\\" else piece
            for piece in _PIECES.findall(text)
        )
