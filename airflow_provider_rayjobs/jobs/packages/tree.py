"""
Select the files of a directory that are packed.

The walk follows Ray's. An ignore file applies to its own directory and everything below it. Any match leaves a path
out, and a directory that is left out is not listed. Ray also matches a directory's ignore file against the directory
itself, as ``.``: a line ``*`` or ``.*`` leaves out everything, even if later lines re-include some paths.

Unlike Ray's, the walk fails at symbolic links that lead out of the directory, loop, or multiply directories. It leaves
out files with names of secrets and, with a warning, sockets, pipes, devices, broken links and names that Ray drops.

Source: Ray 2.60 ``_private/runtime_env/packaging.py``, ``_dir_travel`` and ``_zip_files``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.packages.ignores import GITIGNORE, RAYIGNORE, IgnoreRules
from airflow_provider_rayjobs.jobs.packages.paths import file_mode, unreadable
from airflow_provider_rayjobs.jobs.packages.secret_names import is_secret_file
from airflow_provider_rayjobs.jobs.progress import Progress

# Ray drops names with a backslash or a Windows drive.
_DROPPED = re.compile(r".*\\|.:", re.DOTALL)
# Most links to one directory. Two links in each of twenty directories would make a million copies of the last one.
_MOST_LINKS = 100

# Size, last change and inode number of a file.
FileStamp = tuple[int, int, int]


def stamp_of(status: os.stat_result) -> FileStamp:
    """Return values that change whenever the file changes."""
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns), status.st_ino


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A file in a package, or an empty directory.

    :param name: path in the package, with ``/``; the name of a directory ends in ``/``.
    :param path: on this machine.
    :param mode: 0o755 for executable files, 0o644 for others, 0o600 for secrets, regardless of the umask (as in git).
    :param data: the contents of a file that is not on the disk.
    """

    name: str
    path: str
    mode: int
    size: int
    stamp: FileStamp | None = None
    data: bytes | None = field(default=None, repr=False)

    @property
    def is_directory(self) -> bool:
        return self.name.endswith("/")


@dataclass(frozen=True)
class Tree:
    """The contents of a package, the names of files left out as secrets, and warnings about other files left out."""

    entries: tuple[Entry, ...]
    secrets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class Selection:
    """
    Which files to pack.

    :param excludes: patterns, relative to the directory.
    :param gitignore: whether ``.gitignore`` files count.
    :param secrets: whether to pack files with names of :mod:`.secret_names`, or patterns of those to pack.
    :param top: directory in the package around all files, "" for none.
    """

    excludes: Sequence[str] = ()
    gitignore: bool = True
    secrets: bool | Sequence[str] = False
    top: str = ""


def select(root: Path, selection: Selection) -> Progress[Tree]:
    """List the files of a directory that are packed."""
    walk = _Walk(os.path.abspath(root), selection)  # noqa: PTH100  (unlike Path, it does not resolve links)
    # no recursion: a tree may be deeper than Python's stack
    while walk.to_visit:
        walk.visit(walk.to_visit.pop())
        yield 0
    entries = sorted(walk.entries, key=lambda entry: entry.name)
    return Tree(tuple(entries), tuple(sorted(walk.secrets)), tuple(walk.warnings))


class _Directory(NamedTuple):
    """
    A directory to list.

    :param prefix: its path relative to the root, with a final ``/``; "" for the root.
    :param rules: of its parents, each with the length of its directory's prefix.
    :param parents: device and inode number of each parent.
    :param is_linked: whether its path below the root contains a link.
    """

    path: str
    prefix: str = ""
    rules: tuple[tuple[int, IgnoreRules], ...] = ()
    parents: tuple[tuple[int, int], ...] = ()
    is_linked: bool = False

    def leaves_out(self, name: str) -> bool:
        return any(rules.match(name[start:]) for start, rules in self.rules)


class _Walk:
    def __init__(self, root: str, selection: Selection) -> None:
        self.root = root
        self.selection = selection
        self.to_visit = [_Directory(root)]
        self.entries: list[Entry] = []
        self.secrets: list[str] = []
        self.warnings: list[str] = []
        self._real_root = os.path.realpath(root)
        self._links: Counter[tuple[int, int]] = Counter()
        wanted = () if isinstance(selection.secrets, bool) else selection.secrets
        self._wanted_secrets = IgnoreRules(wanted, "package_secrets")

    def visit(self, directory: _Directory) -> None:
        """List one directory, and add its subdirectories to ``to_visit``."""
        path, prefix, rules, parents, is_linked = directory
        try:
            status = os.stat(path)  # noqa: PTH116  (a Path for each file would take longer than its listing)
            with os.scandir(path) as scan:
                found = list(scan)
        except OSError as error:
            raise unreadable(path, error) from error
        identity = (status.st_dev, status.st_ino)
        self._links[identity] += is_linked
        if self._links[identity] > _MOST_LINKS:
            raise ValueError(
                f"Too many symbolic links: more than {_MOST_LINKS} lead to {os.path.realpath(path)}, as {path} does. "
                "Each would be packed as a copy. Remove some of them, or exclude them."
            )
        own = [(len(prefix), each) for each in self._own_rules(path, is_root=not prefix)]
        for _, each in own:
            if pattern := each.match("."):
                if not prefix:
                    self.warnings.append(
                        f"All of {self.root} is left out: Ray also matches ignore rules against the directory itself, "
                        f"and {pattern!r} of {each.source} matches it."
                    )
                return
        if not found and (name := self._in_package(prefix)):
            check_name(path, name)
            self.entries.append(Entry(name, path, 0o755, 0))
        inside = _Directory(path, prefix, (*rules, *own), (*parents, identity), is_linked)
        for item in found:
            if not inside.leaves_out(prefix + item.name):
                self._add(item, inside)

    def _own_rules(self, directory: str, *, is_root: bool) -> Iterator[IgnoreRules]:
        if is_root:
            yield IgnoreRules(self.selection.excludes, "excludes")
        for name in (GITIGNORE, RAYIGNORE) if self.selection.gitignore else (RAYIGNORE,):
            path = f"{directory}/{name}"
            if stat.S_ISREG(file_mode(path)):
                try:
                    # surrogateescape, as in file names
                    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
                        yield IgnoreRules(file, path)
                except OSError as error:
                    raise unreadable(path, error) from error

    def _add(self, found: os.DirEntry[str], directory: _Directory) -> None:
        name = directory.prefix + found.name
        try:
            status = found.stat(follow_symlinks=False)
            target = ""
            if stat.S_ISLNK(status.st_mode):
                target = self._target_of(found.path)
                status = found.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise unreadable(found.path, error) from error
            if not found.is_symlink():
                raise changed(found.path, "it was deleted") from None
            self._warn(name, "it is a broken symbolic link")
            return
        full_name = self._in_package(name)
        if _DROPPED.match(full_name):
            self._warn(name, "Ray does not unpack names with a backslash or a drive letter")
        elif stat.S_ISREG(status.st_mode):
            check_name(found.path, full_name)
            if directory.is_linked and not target:
                target = os.path.realpath(found.path)
            is_secret = is_secret_file(full_name) or is_secret_file(target)
            if is_secret and self.selection.secrets is not True and not self._wanted_secrets.match(name):
                self.secrets.append(name)
            else:
                self.entries.append(_entry(full_name, found.path, status, is_secret=is_secret))
        elif not stat.S_ISDIR(status.st_mode):
            self._warn(name, "it is a socket, a pipe or a device")
        elif target and (status.st_dev, status.st_ino) in directory.parents:
            raise ValueError(
                f"Loop of symbolic links: {found.path} leads to {target}, a directory that contains it. Remove the "
                "link, or exclude it."
            )
        else:
            is_linked = directory.is_linked or bool(target)
            self.to_visit.append(_Directory(found.path, f"{name}/", directory.rules, directory.parents, is_linked))

    def _warn(self, name: str, reason: str) -> None:
        self.warnings.append(f"{printable(name)} is left out: {reason}.")

    def _in_package(self, name: str) -> str:
        return f"{self.selection.top}/{name}" if self.selection.top else name

    def _target_of(self, link: str) -> str:
        target = os.path.realpath(link)
        if target != self._real_root and not target.startswith(self._real_root.rstrip("/") + "/"):
            raise ValueError(
                f"Symbolic link out of {self.root}: {link} leads to {target}, which the cluster does not have. Replace "
                "the link with a copy, or exclude the link."
            )
        return target


def file_entry(path: Path) -> Entry:
    """Return the entry of a single file."""
    try:
        return _entry(path.name, str(path), path.stat())
    except OSError as error:
        raise unreadable(str(path), error) from error


def _entry(name: str, path: str, status: os.stat_result, *, is_secret: bool = False) -> Entry:
    mode = 0o600 if is_secret else 0o755 if status.st_mode & 0o111 else 0o644
    return Entry(name, path, mode, status.st_size, stamp_of(status))


def check_name(path: str, name: str) -> None:
    """Raise a ValueError if no package can hold a name, or Ray drops it."""
    if _DROPPED.match(name):
        raise ValueError(f"Ray does not unpack names with a backslash or a drive letter: {path}. Rename it.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"File name is not UTF-8: {os.fsencode(path)!r}. No package can hold it. Rename the file, or exclude it."
        ) from None


def printable(name: str) -> str:
    """Return a name for the log, with escapes for bytes that are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def changed(path: str, how: str) -> RayPackageError:
    """Return the error for a file that changed after its directory was listed."""
    return RayPackageError(
        f"File changed during packing: {path} ({how}). The package was not uploaded. Try again when no program writes "
        "to it, or exclude it."
    )
