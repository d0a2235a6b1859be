"""Decode the log in a JSON answer chunk by chunk, as it may be too large for the memory."""

from __future__ import annotations

import json
import re

# Complete characters of a JSON string. Half an escape sequence or surrogate pair waits for the next bytes.
_CHARACTERS = re.compile(
    rb'(?:[^"\\]+|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\]|\\[^u])))+'
)
# Runs of plain bytes, and runs of escape sequences.
_RUNS = re.compile(rb"[^\\]+|(?:\\u[0-9a-fA-F]{4}|\\[^u])+")
_KEY = re.compile(rb'\{\s*"logs"\s*:\s*"')
_LONGEST_KEY = 32
# Bytes of a surrogate pair as escape sequences.
_LONGEST_CHARACTER = 12


class JsonText:
    """Extracts the text of an answer ``{"logs": "..."}``, as UTF-8."""

    def __init__(self) -> None:
        self._waiting = b""
        self._has_begun = False
        # whether the end of the text has arrived
        self.is_whole = False

    def decode(self, data: bytes) -> bytes:
        """
        Take the next bytes of the answer, and return the text in them.

        :raises ValueError: for an answer of another form.
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
        complete = _CHARACTERS.match(data)
        size = complete.end() if complete else 0
        self.is_whole = data[size : size + 1] == b'"'
        text, self._waiting = data[:size], data[size:]
        if not self.is_whole and len(self._waiting) > _LONGEST_CHARACTER:
            raise ValueError("the text named logs has an invalid escape sequence")
        return b"".join(
            json.loads(b'"' + run + b'"').encode("utf-8", errors="replace") if run[:1] == b"\\" else run
            for run in _RUNS.findall(text)
        )
