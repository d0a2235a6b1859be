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

from airflow_provider_rayjobs.jobs.packages.places import find_path, is_path, is_uri
from airflow_provider_rayjobs.jobs.packages.tree import unreadable

# What Ray sets to the working directory's place on a node while pip and uv run.
ON_THE_NODE = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
_INCLUDE = re.compile(r"(?P<option>-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(?P<file>\S.*)")
_LOCAL = re.compile(r"(?:(?:-e|--editable|-f|--find-links)(?:\s*=\s*|\s+))?(?:file:)?(?P<path>\.{1,2}/\S*|\.{1,2}$)")
_DEEPEST = 20


@dataclass
class Requirements:
    """
    A runtime environment's requirements with their files read.

    :param changed: the keys that change: ``pip``, ``uv``, ``conda``.
    :param files: constraints that have to travel: name in the package to contents.
    """

    changed: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


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
        lines = _packages(key, packages, folders, found.files)
        if lines is not None and lines != packages:
            found.changed[key] = {**value, "packages": lines} if isinstance(value, Mapping) else lines
    conda = runtime_env.get("conda")
    if conda is not None and is_path(conda) and str(conda).endswith((".yml", ".yaml")):
        conda, folders = _conda(find_path("runtime_env['conda']", conda, folders), folders)
        found.changed["conda"] = conda
    if isinstance(conda, Mapping) and isinstance(conda.get("dependencies"), Sequence):
        dependencies = [_conda_dependency(each, folders, found.files) for each in conda["dependencies"]]
        if dependencies != conda["dependencies"]:
            found.changed["conda"] = {**conda, "dependencies": dependencies}
    return found


def _packages(key: str, packages: Any, folders: Sequence[Path], files: dict[str, bytes]) -> list[str] | None:
    """Return the lines of a file, or of a list that may name files; ``None`` for what is neither."""
    where = f"runtime_env[{key!r}]"
    if is_path(packages):
        path = find_path(where, packages, folders)
        return list(_lines_of(path, where, (), files))
    if isinstance(packages, Sequence) and not isinstance(packages, str) and all(isinstance(it, str) for it in packages):
        return [line for each in packages for line in _resolve(each, where, folders, (), files)]
    return None


def _conda(path: Path, folders: Sequence[Path]) -> tuple[Any, Sequence[Path]]:
    try:
        conda = yaml.safe_load(_text(path, "runtime_env['conda']"))
    except yaml.YAMLError as error:
        raise ValueError(f"runtime_env['conda']: {path} is not readable as YAML: {error}") from None
    if not isinstance(conda, Mapping):
        raise ValueError(f"runtime_env['conda']: {path} holds no conda environment (a dictionary with dependencies)")
    return dict(conda), [path.parent, *folders]


def _conda_dependency(dependency: Any, folders: Sequence[Path], files: dict[str, bytes]) -> Any:
    if isinstance(dependency, Mapping) and "pip" in dependency:
        return {**dependency, "pip": _packages("conda", dependency["pip"], folders, files)}
    return dependency


def _lines_of(path: Path, where: str, within: tuple[Path, ...], files: dict[str, bytes]) -> Iterator[str]:
    if path in within or len(within) >= _DEEPEST:
        raise ValueError(f"{where}: {path} includes itself, by way of {' and '.join(map(str, within))}")
    for line in logical_lines(_text(path, where)):
        yield from _resolve(line, f"{where}: {path}", [path.parent], (*within, path), files)


def _resolve(
    line: str, where: str, folders: Sequence[Path], within: tuple[Path, ...], files: dict[str, bytes]
) -> Iterator[str]:
    """Return what a line of requirements becomes: itself, or what it includes."""
    text = line.strip()
    include = _INCLUDE.fullmatch(text)
    if include is None:
        if local := _LOCAL.match(text):
            raise ValueError(
                f"{where} has the line {text!r}, which means a place on this machine. Give the working_dir that holds "
                f"it and write {ON_THE_NODE}/{os.path.normpath(local['path'])} in its place."
            )
        yield line
        return
    name = include["file"].strip().strip("'\"")
    if is_uri(name) or name.startswith(ON_THE_NODE):
        yield line
        return
    path = find_path(f"{where}, line {text!r}", name, folders)
    if include["option"] in ("-r", "--requirement"):
        yield from _lines_of(path, where, within, files)
        return
    # what a constraints file includes are constraints, too
    contents = "".join(f"{each}\n" for each in _lines_of(path, where, within, files))
    # pip's environment is kept by its lines: this one changes with the contents
    digits = hashlib.sha256(contents.encode()).hexdigest()[:16]
    sent = f".ray-jobs-constraints-{digits}.txt"
    files[sent] = contents.encode()
    yield f"-c {ON_THE_NODE}/{sent}"


def logical_lines(text: str) -> Iterator[str]:
    """Return the lines of a requirements file that say something, joined where a backslash says that they go on."""
    for line in re.sub(r"\\\r?\n[ \t]*", " ", text).splitlines():
        if said := re.sub(r"(^|\s+)#.*$", "", line).strip():
            yield said


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {path} is not UTF-8: {error}") from None
    except IsADirectoryError:
        raise ValueError(f"{where}: {path} is a directory, not a file") from None
    except OSError as error:
        raise unreadable(str(path), error) from error
