"""
Replace ``pip``, ``uv`` and ``conda`` files by their contents, as the cluster does not have the files.

The lines of a file replace the ``-r`` line that includes it. Constraints (``-c``) become files of the working
directory, which pip and uv find through the variable ``RAY_RUNTIME_ENV_CREATE_WORKING_DIR``.

Source: Ray 2.60 ``_private/runtime_env/validation.py``, ``pip.py``, ``uv.py``; pip's requirements file format.
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

from airflow_provider_rayjobs.jobs.packages.paths import find_path, is_path, is_uri, unreadable
from airflow_provider_rayjobs.jobs.redaction import describe_yaml_error, raise_unchained, redact_urls

# The working directory on a node while pip and uv run.
_NODE_WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
_INCLUDE = re.compile(r"(?P<option>-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(?P<file>\S.*)")
# Options whose value may be a path, and options that need a line of their own.
_PATH_OPTION = re.compile(r"(?P<option>-e|--editable|-f|--find-links)(?:=|(?<=-[ef])|$)(?P<value>.*)")
_INCLUDE_OPTION = re.compile(r"-[rc]|--(?:requirement|constraint)(?:=|$)")
_DIRECT_REFERENCE = re.compile(r"[A-Za-z0-9][\w.-]*\s*(?:\[[^\]]*\])?\s*@\s*(?P<value>.*)", re.DOTALL)
_EXTRAS = re.compile(r"\[[^\]]*\]$")
_FILE_SCHEME = re.compile(r"^file:(//(localhost)?(?=/))?")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_DEEPEST, _MOST_FILES = 20, 1000


@dataclass
class Requirements:
    """The new values of ``pip``, ``uv`` and ``conda``, and files to add to the working directory."""

    changed: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    count: int = 0  # of files read


def read_requirements(runtime_env: Mapping[str, Any], folders: Sequence[Path]) -> Requirements:
    """Read the files that ``pip``, ``uv`` and ``conda`` name; ``folders`` are searched for relative paths."""
    found = Requirements()
    for key in ("pip", "uv"):
        value = runtime_env.get(key)
        packages = value.get("packages") if isinstance(value, Mapping) else value
        lines = _read_packages(key, packages, folders, found)
        if lines is not None:
            found.changed[key] = {**value, "packages": lines} if isinstance(value, Mapping) else lines
    conda = runtime_env.get("conda")
    if conda is not None and is_path(conda) and str(conda).endswith((".yml", ".yaml")):
        path = find_path("runtime_env['conda']", conda, folders)
        conda = _read_conda(path)
        folders = [path.parent, *folders]
    if isinstance(conda, Mapping):
        dependencies = conda.get("dependencies")
        if isinstance(dependencies, Sequence):
            conda = {**conda, "dependencies": [_conda_dependency(each, folders, found) for each in dependencies]}
        found.changed["conda"] = conda
    return found


def _read_packages(key: str, packages: Any, folders: Sequence[Path], found: Requirements) -> list[str] | None:
    """Return the lines of a file or of a list, ``None`` for other values."""
    where = f"runtime_env[{key!r}]"
    if is_path(packages):
        return list(_lines_of(find_path(where, packages, folders), where, (), found))
    if not isinstance(packages, Sequence) or isinstance(packages, str):
        return None
    for number, each in enumerate(packages):
        if not isinstance(each, str):
            raise ValueError(f"{where} must be a list of text, but item {number} is of type {type(each).__name__}.")
    # pip on the node reads the list as the lines of one file
    lines = logical_lines("\n".join(packages))
    return [line for each in lines for line in _resolve(each, where, folders, (), found)]


def _read_conda(path: Path) -> Mapping[str, Any]:
    try:
        conda = yaml.safe_load(_read_text(path, "runtime_env['conda']"))
    except yaml.YAMLError as error:
        problem = describe_yaml_error(error)
        raise_unchained(ValueError(f"Invalid YAML: {path} (runtime_env['conda']): {problem}. Correct the file."))
    if not isinstance(conda, Mapping):
        raise ValueError(f"Not a conda environment: {path} (runtime_env['conda']) must hold a dictionary.")
    return conda


def _conda_dependency(dependency: Any, folders: Sequence[Path], found: Requirements) -> Any:
    lines = _read_packages("conda", dependency.get("pip"), folders, found) if isinstance(dependency, Mapping) else None
    return dependency if lines is None else {**dependency, "pip": lines}


def _lines_of(path: Path, where: str, parents: tuple[Path, ...], found: Requirements) -> Iterator[str]:
    if path in parents or len(parents) >= _DEEPEST:
        raise ValueError(f"Requirements file includes itself: {path} ({where}), by {', '.join(map(str, parents))}.")
    found.count += 1
    if found.count > _MOST_FILES:
        raise ValueError(f"Too many requirements files: {where} includes more than {_MOST_FILES}. Include each once.")
    for line in logical_lines(_read_text(path, where)):
        yield from _resolve(line, f"{where}: {path}", [path.parent], (*parents, path), found)


def _resolve(
    line: str, where: str, folders: Sequence[Path], parents: tuple[Path, ...], found: Requirements
) -> Iterator[str]:
    """Yield a line of requirements, or the lines that it includes."""
    include, shown = _INCLUDE.fullmatch(line), redact_urls(repr(line))
    if include is None:
        if path := next(filter(None, map(_relative_path, _path_candidates(line))), None):
            # The path may be a URL with one slash and a password.
            advice = redact_urls(
                f"Give the working_dir that contains {path!r} and write {_NODE_WORKING_DIR}/{os.path.normpath(path)}"
            )
            raise ValueError(f"Path of this machine in requirements: {where} has the line {shown}. {advice} instead.")
        if any(_INCLUDE_OPTION.match(word) for word in line.split()):
            raise ValueError(f"Included file with other options: {where} has the line {shown}. Use two lines.")
        yield line
        return
    name = _FILE_SCHEME.sub("", include["file"].strip().strip("'\""))
    if is_uri(name) or name.startswith(_NODE_WORKING_DIR):
        yield line
        return
    lines = _lines_of(find_path(f"{where}, line {shown}", name, folders), where, parents, found)
    if include["option"] in ("-r", "--requirement"):
        yield from lines
        return
    # included files of a constraints file are constraints, too
    contents = "".join(f"{each}\n" for each in lines).encode()
    # Ray caches pip's environment by its lines, so the file's name must change with its contents
    constraints = f".ray-jobs-constraints-{hashlib.sha256(contents).hexdigest()[:16]}.txt"
    found.files[constraints] = contents
    yield f"-c {_NODE_WORKING_DIR}/{constraints}"


def logical_lines(text: str) -> Iterator[str]:
    """Yield the lines of a requirements file as pip does: without comments, and joined at backslashes."""
    joined = ""
    for line in [*text.splitlines(), ""]:
        # a comment ends a joined line, even with a backslash at its own end
        is_comment = _COMMENT.match(line) is not None
        if line.endswith("\\") and not is_comment:
            joined += line.strip("\\")
            continue
        if logical := _COMMENT.sub("", f"{joined} {line}" if is_comment else joined + line).strip():
            yield logical
        joined = ""


def _path_candidates(line: str) -> Iterator[str]:
    """Yield the parts of a line that pip reads as a path or a URL."""
    words = line.split()
    options = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    requirement = " ".join(words[:options])
    bare = _EXTRAS.sub("", requirement.partition(";")[0].strip())
    if named := _DIRECT_REFERENCE.fullmatch(requirement):
        yield named["value"].partition(" ;")[0]
    elif bare.startswith((".", "~", "file:")) or "/" in bare or bare.lower().endswith(_ARCHIVES):
        yield bare
    for number in range(options, len(words)):
        if option := _PATH_OPTION.fullmatch(words[number]):
            value = option["value"] or " ".join(words[number + 1 : number + 2])
            yield _EXTRAS.sub("", value.strip("'\""))


def _relative_path(value: str) -> str:
    """Return a relative path; "" for a URL, an absolute path (it may exist on the nodes), or one with a variable."""
    text = value.strip().partition("#egg=")[0]
    if not text.startswith("file:") and (is_uri(text) or re.match(r"(git|hg|svn|bzr)\+", text)):
        return ""
    text = _FILE_SCHEME.sub("", text)
    return "" if text.startswith(("/", "${")) else text


def _read_text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Not UTF-8: {path} ({where}): {error}") from None
    except IsADirectoryError:
        raise ValueError(f"Not a file: {path} is a directory ({where}).") from None
    except OSError as error:
        raise unreadable(str(path), error) from error
