r"""
Which paths ``excludes``, ``.gitignore`` and ``.rayignore`` leave out, in Ray's meaning.

Ray brings its own copy of an early pathspec (0.9), which reads patterns a little differently from git and from later
releases: ``!dir`` takes back the directory and not what is below it, ``a/*`` is not said of what lies deeper. An
Airflow worker may have any pathspec from 0.9 to 1.1, and the same tree shall have the same package everywhere. So the
meaning is written down here, and a test holds it beside Ray's own.

Source: Ray 2.60 ``_private/thirdparty/pathspec/patterns/gitwildmatch.py`` and ``_private/runtime_env/packaging.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import NamedTuple

GITIGNORE, RAYIGNORE = ".gitignore", ".rayignore"
# Ray's default for working_dir, and the variables by which a user changes what is left out.
_DEFAULT_EXCLUDES = ".git,.venv,venv,__pycache__"
_DEFAULT_EXCLUDES_VARIABLE = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
_IGNORE_GITIGNORE_VARIABLE = "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"
# What a part of a pattern is made of: an escaped character, a set, one character. A "]" that is a set's first belongs
# to the set.
_TOKEN = re.compile(r"\\.?|\[(?P<set>!?+\]?+[^\]]*+)\]|.", re.DOTALL)


class Pattern(NamedTuple):
    """One line of an ignore file: what it matches, and whether that is left out or taken back in."""

    regex: re.Pattern[str]
    is_left_out: bool
    text: str


class IgnoreRules:
    """
    The patterns of one place; the last one that matches a path decides about it.

    :param lines: of an ignore file, or of ``excludes``.
    :param source: where they come from, for messages.
    :raises ValueError: for a pattern that is none, naming it.
    """

    def __init__(self, lines: Iterable[str], source: str) -> None:
        self.source = source
        patterns = [pattern for line in lines if (pattern := _read(line, source)) is not None]
        # the last one counts: looked at first
        self._patterns = patterns[::-1]
        # most paths match none of them: that is found out at once
        self._any = re.compile("|".join(f"(?:{pattern.regex.pattern})" for pattern in patterns))

    def match(self, path: str) -> str | None:
        """
        Return the pattern that leaves a path out, ``None`` if none does.

        :param path: relative to the rules' own directory, with ``/``; ``.`` is that directory itself.
        """
        if self._any.match(path) is None:
            return None
        for pattern in self._patterns:
            if pattern.regex.match(path):
                return pattern.text if pattern.is_left_out else None
        return None


def read_ignore_file(path: str | PathLike[str]) -> IgnoreRules:
    """Read an ignore file. Names that are not UTF-8 are kept as Python keeps those of files."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123  (a path as text: many of them)
        return IgnoreRules(file, str(path))


def default_excludes(environ: Mapping[str, str]) -> list[str]:
    """Return what Ray leaves out of a ``working_dir`` without being told."""
    given = environ.get(_DEFAULT_EXCLUDES_VARIABLE, _DEFAULT_EXCLUDES)
    return [pattern.strip() for pattern in given.split(",") if pattern.strip()]


def heeds_gitignore(environ: Mapping[str, str]) -> bool:
    """Tell whether ``.gitignore`` files count."""
    return environ.get(_IGNORE_GITIGNORE_VARIABLE, "0") != "1"


def _read(line: str, source: str) -> Pattern | None:
    text = line.strip()
    if not text or text.startswith("#") or text == "/":
        return None
    is_left_out = not text.startswith("!")
    body = text if is_left_out else text[1:]
    body = body.removeprefix("\\")  # before a "#" or a "!" that is part of a name
    if not body:
        return None  # a lone "!" or "\", at which Ray breaks
    try:
        return Pattern(re.compile(_translate(body, is_left_out=is_left_out)), is_left_out, text)
    except re.error as error:
        raise ValueError(f"{source}: {text!r} is no pattern: {error}") from None


def _translate(body: str, *, is_left_out: bool) -> str:
    segments = body.split("/")
    if not segments[0]:
        del segments[0]  # a leading slash ties the pattern to the rules' directory
    elif (len(segments) == 1 or (len(segments) == 2 and not segments[1])) and segments[0] != "**":
        segments.insert(0, "**")  # a name alone is meant at any depth
    if len(segments) > 1 and not segments[-1]:
        segments[-1] = "**"  # "name/": what is below it
    last = len(segments) - 1
    pieces: list[str] = []
    needs_slash = False
    for number, segment in enumerate(segments):
        if segment == "**":
            if number == 0:
                pieces.append(".+" if number == last else "(?:.+/)?")
                needs_slash = False
            elif number == last:
                pieces.append("/.*")
            else:
                pieces.append("(?:/.+)?")
                needs_slash = True
            continue
        pieces.append("/" if needs_slash else "")
        if segment == "*":
            pieces.append("[^/]+")
        else:
            pieces.append(_TOKEN.sub(_translate_token, segment))
            if number == last and is_left_out:
                pieces.append("(?:/.*)?")  # with all that is below it
        needs_slash = True
    return "".join(pieces) + r"$"


def _translate_token(token: re.Match[str]) -> str:
    text = token[0]
    if text in ("*", "?"):
        return "[^/]*" if text == "*" else "[^/]"
    if (members := token["set"]) is None:
        return re.escape(text[1:] if text[0] == "\\" else text)
    # "[", "&", "~" and "|" mean themselves here, and will mean more to Python one day
    members = re.sub(r"[\\\[&~|]", r"\\\g<0>", members)
    if members[0] in "!^":
        members = ("^" if members[0] == "!" else r"\^") + members[1:]
    return f"[{members}]"
