"""
``pip``, ``uv`` and ``conda`` given as files: read here, sent as what they say.

Ray would look for the files on the cluster's disk. What they include with ``-r`` is put in its place. Constraints
(``-c``) have no place among requirements: they travel as a file of the working directory's package, where Ray's pip and
uv find it by the variable ``RAY_RUNTIME_ENV_CREATE_WORKING_DIR``.

Source: Ray 2.60 ``_private/runtime_env/validation.py``, ``pip.py``, ``uv.py``; pip's description of requirements files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_rayjobs.jobs.packages.paths import find_path, is_path, is_uri
from airflow_provider_rayjobs.jobs.packages.tree import unreadable

# What Ray sets to the working directory's place on a node while pip and uv run.
ON_THE_NODE = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
_INCLUDE = re.compile(r"(?P<option>-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(?P<file>\S.*)")
# Options whose value may be a place on a disk, and files that have to be on a line of their own.
_WITH_PLACE = re.compile(r"(?P<option>-e|--editable|-f|--find-links)(?:=|(?<=-[ef])|$)(?P<value>.*)")
_WITH_FILE = re.compile(r"-[rc]|--(?:requirement|constraint)(?:=|$)")
_NAMED = re.compile(r"[A-Za-z0-9][\w.-]*\s*(?:\[[^\]]*\])?\s*@\s*(?P<value>.*)", re.DOTALL)
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz")
# What pip takes for the beginning of a comment.
_COMMENT = re.compile(r"(^|\s+)#.*$")
_DEEPEST = 20
_MOST_FILES = 1000


@dataclass
class Requirements:
    """
    A runtime environment's requirements with their files read.

    :param changed: the keys that change: ``pip``, ``uv``, ``conda``.
    :param files: constraints that have to travel: name in the package to contents.
    :param count: of files that were read.
    """

    changed: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    count: int = 0


def read_requirements(runtime_env: Mapping[str, Any], folders: Sequence[Path]) -> Requirements:
    """
    Read the files that ``pip``, ``uv`` and ``conda`` name.

    :param folders: where relative paths are looked for, in this order.
    :raises ValueError: for a file that is missing or cannot be understood, and a line that means this machine's disk.
    """
    found = Requirements()
    for key in ("pip", "uv"):
        value = runtime_env.get(key)
        packages = value.get("packages") if isinstance(value, Mapping) else value
        lines = _packages(key, packages, folders, found)
        if lines is not None and lines != packages:
            found.changed[key] = {**value, "packages": lines} if isinstance(value, Mapping) else lines
    conda = runtime_env.get("conda")
    if conda is not None and is_path(conda) and str(conda).endswith((".yml", ".yaml")):
        conda, folders = _conda(find_path("runtime_env['conda']", conda, folders), folders)
        found.changed["conda"] = conda
    if isinstance(conda, Mapping) and isinstance(conda.get("dependencies"), Sequence):
        dependencies = [_conda_dependency(each, folders, found) for each in conda["dependencies"]]
        if dependencies != conda["dependencies"]:
            found.changed["conda"] = {**conda, "dependencies": dependencies}
    return found


def _packages(key: str, packages: Any, folders: Sequence[Path], found: Requirements) -> list[str] | None:
    """Return the lines of a file, or of a list that may name files; ``None`` for what is neither."""
    where = f"runtime_env[{key!r}]"
    if is_path(packages):
        path = find_path(where, packages, folders)
        return list(_lines_of(path, where, (), found))
    if isinstance(packages, Sequence) and not isinstance(packages, str):
        for number, each in enumerate(packages):
            if not isinstance(each, str):
                raise ValueError(f"{where} must be a list of text; at {number} there is {type(each).__name__} instead")
        # the node's pip reads the list as the lines of one file
        return [
            line for each in logical_lines("\n".join(packages)) for line in _resolve(each, where, folders, (), found)
        ]
    return None


def _conda(path: Path, folders: Sequence[Path]) -> tuple[Any, Sequence[Path]]:
    try:
        conda = yaml.safe_load(_text(path, "runtime_env['conda']"))
    except yaml.YAMLError as error:
        raise ValueError(f"runtime_env['conda']: {path} is not readable as YAML: {error}") from None
    if not isinstance(conda, Mapping):
        raise ValueError(f"runtime_env['conda']: {path} holds no conda environment (a dictionary with dependencies)")
    return dict(conda), [path.parent, *folders]


def _conda_dependency(dependency: Any, folders: Sequence[Path], found: Requirements) -> Any:
    if isinstance(dependency, Mapping) and dependency.get("pip") is not None:
        lines = _packages("conda", dependency["pip"], folders, found)
        return dependency if lines is None else {**dependency, "pip": lines}
    return dependency


def _lines_of(path: Path, where: str, within: tuple[Path, ...], found: Requirements) -> Iterator[str]:
    if path in within or len(within) >= _DEEPEST:
        raise ValueError(f"{where}: {path} includes itself, by way of {' and '.join(map(str, within))}")
    found.count += 1
    if found.count > _MOST_FILES:
        raise ValueError(
            f"{where}: more than {_MOST_FILES} files are included, {path} among them, and each puts its lines there "
            "anew. Include each file once."
        )
    for line in logical_lines(_text(path, where)):
        yield from _resolve(line, f"{where}: {path}", [path.parent], (*within, path), found)


def _resolve(
    line: str, where: str, folders: Sequence[Path], within: tuple[Path, ...], found: Requirements
) -> Iterator[str]:
    """Return what a line of requirements becomes: itself, or what it includes."""
    text = line.strip()
    include = _INCLUDE.fullmatch(text)
    if include is None:
        if (local := _local_place(text)) is not None:
            raise ValueError(
                f"{where} has the line {text!r}, which means a place on this machine ({local!r}). Give the working_dir "
                f"that holds it and write {ON_THE_NODE}/{os.path.normpath(local)} in its place."
            )
        if any(_WITH_FILE.match(word) for word in text.split()):
            raise ValueError(f"{where} has the line {text!r}. Put the file that it includes on a line of its own.")
        yield line
        return
    name = include["file"].strip().strip("'\"")
    if name.startswith("file:"):
        name = re.sub(r"^file:(//(localhost)?(?=/))?", "", name)
    if is_uri(name) or name.startswith(ON_THE_NODE):
        yield line
        return
    path = find_path(f"{where}, line {text!r}", name, folders)
    if include["option"] in ("-r", "--requirement"):
        yield from _lines_of(path, where, within, found)
        return
    # what a constraints file includes are constraints, too
    contents = "".join(f"{each}\n" for each in _lines_of(path, where, within, found))
    # pip's environment is kept by its lines: this one changes with the contents
    digits = hashlib.sha256(contents.encode()).hexdigest()[:16]
    sent = f".ray-jobs-constraints-{digits}.txt"
    found.files[sent] = contents.encode()
    yield f"-c {ON_THE_NODE}/{sent}"


def logical_lines(text: str) -> Iterator[str]:
    """Return the lines of a requirements file that say something, joined where a backslash says that they go on."""
    begun = ""
    for line in [*text.splitlines(), ""]:
        # a line that begins as a comment ends what goes on, and never goes on itself
        is_comment = _COMMENT.match(line) is not None
        if line.endswith("\\") and not is_comment:
            begun += line.strip("\\")
            continue
        if said := _COMMENT.sub("", f"{begun} {line}" if is_comment else begun + line).strip():
            yield said
        begun = ""


def _local_place(line: str) -> str | None:
    """
    Return what a line says that means the disk of the machine where it was written; ``None`` if nothing does.

    As pip reads it, whatever is no URL. Absolute paths may be meant for the nodes, whose disks we do not know.
    """
    words = line.split()
    options = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    requirement = " ".join(words[:options])
    if named := _NAMED.fullmatch(requirement):
        # "name @ ...", which must be a place of some kind
        if (place := _place(named["value"].partition(" ;")[0])) is not None:
            return place
    else:
        bare = re.sub(r"\[[^\]]*\]$", "", requirement.partition(";")[0].strip())
        if (bare.startswith((".", "~", "file:")) or "/" in bare or bare.lower().endswith(_ARCHIVES)) and (
            place := _place(bare)
        ) is not None:
            return place
    for number in range(options, len(words)):
        if option := _WITH_PLACE.fullmatch(words[number]):
            value = option["value"] or " ".join(words[number + 1 : number + 2])
            if (place := _place(re.sub(r"\[[^\]]*\]$", "", value.strip("'\"")))) is not None:
                return place
    return None


def _place(value: str) -> str | None:
    """Return a place unless it is an address, an absolute path, or one that is filled in on the node."""
    text = value.strip().partition("#egg=")[0]
    if text.startswith("file:"):
        text = re.sub(r"^file:(//(localhost)?(?=/))?", "", text)
    elif is_uri(text) or re.match(r"(git|hg|svn|bzr)\+", text):
        return None
    return None if not text or text.startswith(("/", "${")) else text


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {path} is not UTF-8: {error}") from None
    except IsADirectoryError:
        raise ValueError(f"{where}: {path} is a directory, not a file") from None
    except OSError as error:
        raise unreadable(str(path), error) from error
