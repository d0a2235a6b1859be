r"""
The rules of ``excludes``, ``.gitignore`` and ``.rayignore``, with Ray's meaning.

Ray has its own copy of an early pathspec (0.9), which differs from git and from later releases: ``!dir`` re-includes
the directory without its contents, and ``a/*`` does not match deeper paths. Machines may have different pathspecs, but
must make the same package of a tree. So this module implements the rules, and a test compares them with Ray's.

Source: Ray 2.60 ``_private/thirdparty/pathspec/patterns/gitwildmatch.py`` and ``_private/runtime_env/packaging.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

GITIGNORE, RAYIGNORE = ".gitignore", ".rayignore"
# Ray's default for working_dir, here also for py_modules: an import must not change the name of a module's package.
_DEFAULT_EXCLUDES = ".git,.venv,venv,__pycache__"
_DEFAULT_EXCLUDES_VARIABLE = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
_IGNORE_GITIGNORE_VARIABLE = "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"
# An escaped character, a set, or one character. A "]" at the start of a set is a member of it.
_TOKEN = re.compile(r"\\.?|\[(?P<set>!?+\]?+[^\]]*+)\]|.", re.DOTALL)
# The meaning of "**", by whether it is the first and the last segment of a pattern.
_ANY_DIRECTORIES = {
    (True, True): ".+", (True, False): "(?:.+/)?", (False, False): "(?:/.+)?", (False, True): "/.*",
}  # fmt: skip


class Pattern(NamedTuple):
    """One line of an ignore file."""

    regex: re.Pattern[str]
    is_left_out: bool
    text: str


class IgnoreRules:
    """
    The patterns of one source. The last one that matches a path decides.

    :param lines: of an ignore file, or of ``excludes``.
    :param source: for messages.
    :raises ValueError: for an invalid pattern.
    """

    def __init__(self, lines: Iterable[str], source: str) -> None:
        self.source = source
        patterns = [pattern for line in lines if (pattern := _parse(line, source))]
        self._patterns = patterns[::-1]
        # most paths match no pattern: one regular expression finds that out quickly
        self._any = re.compile("|".join(f"(?:{pattern.regex.pattern})" for pattern in patterns))

    def match(self, path: str) -> str | None:
        """Return the pattern that leaves out a path. ``.`` is the directory of the rules; other paths are below it."""
        if self._any.match(path):
            for pattern in self._patterns:
                if pattern.regex.match(path):
                    return pattern.text if pattern.is_left_out else None
        return None


def default_excludes(environ: Mapping[str, str]) -> list[str]:
    """Return the patterns that are left out of every directory, before those of ``excludes``."""
    given = environ.get(_DEFAULT_EXCLUDES_VARIABLE, _DEFAULT_EXCLUDES)
    return [pattern.strip() for pattern in given.split(",") if pattern.strip()]


def uses_gitignore(environ: Mapping[str, str]) -> bool:
    """Tell whether ``.gitignore`` files count."""
    return environ.get(_IGNORE_GITIGNORE_VARIABLE, "0") != "1"


def _parse(line: str, source: str) -> Pattern | None:
    text = line.strip()
    if not text or text.startswith("#") or text == "/":
        return None
    is_left_out = not text.startswith("!")
    pattern = text if is_left_out else text[1:]
    pattern = pattern.removeprefix("\\")  # of an escaped "#" or "!"
    if not pattern:
        return None  # a single "!" or "\", for which Ray raises an error
    try:
        return Pattern(re.compile(_translate(pattern, is_left_out=is_left_out)), is_left_out, text)
    except re.error as error:
        raise ValueError(f"Invalid ignore pattern: {text!r} in {source}: {error}.") from None


def _translate(pattern: str, *, is_left_out: bool) -> str:
    segments = pattern.split("/")
    if not segments[0]:
        del segments[0]  # a leading slash anchors the pattern
    elif (len(segments) == 1 or (len(segments) == 2 and not segments[1])) and segments[0] != "**":
        segments.insert(0, "**")  # a name without a slash matches at any depth
    if len(segments) > 1 and not segments[-1]:
        segments[-1] = "**"  # "name/" matches everything below it
    last = len(segments) - 1
    regex = ""
    for number, segment in enumerate(segments):
        if segment == "**":
            regex += _ANY_DIRECTORIES[number == 0, number == last]
            continue
        if number > 1 or (number == 1 and segments[0] != "**"):
            regex += "/"
        regex += "[^/]+" if segment == "*" else _TOKEN.sub(_translate_token, segment)
    if segments[-1] not in ("*", "**") and is_left_out:
        regex += "(?:/.*)?"  # and everything below it
    return f"{regex}$"


def _translate_token(token: re.Match[str]) -> str:
    text = token[0]
    if text in ("*", "?"):
        return "[^/]*" if text == "*" else "[^/]"
    if (members := token["set"]) is None:
        return re.escape(text[1:] if text[0] == "\\" else text)
    # "[", "&", "~" and "|" have no meaning in a set here, and may get one in Python
    members = re.sub(r"[\\\[&~|]", r"\\\g<0>", members)
    if members[0] in "!^":
        members = ("^" if members[0] == "!" else r"\^") + members[1:]
    return f"[{members}]"
