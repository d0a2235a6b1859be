"""
What of a directory goes into its package.

The walk is Ray's: an ignore file counts for its own directory and all below it, any match leaves out, and what is left
out is not looked into. Ray asks a directory's own ignore file about the directory itself as well, under the name ``.``:
a line ``*`` or ``.*`` there leaves all of it out, whatever later lines take back in. What differs from Ray, on purpose:

- a link that leads out of the directory is an error, as is one that leads back to a directory that holds it, and links
  by which one directory would be packed over and over;
- files whose names are those of secrets are left out unless the user wants them;
- sockets, pipes, devices, links to nothing, and names that Ray drops when it unpacks are left out with a warning.

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
from airflow_provider_rayjobs.jobs.packages.ignores import GITIGNORE, RAYIGNORE, IgnoreRules, read_ignore_file
from airflow_provider_rayjobs.jobs.packages.news import Progress
from airflow_provider_rayjobs.jobs.packages.secret_names import looks_secret

# What Ray drops when it unpacks: a backslash, or what Windows would take for a drive.
_DROPPED = re.compile(r".*\\|.:", re.DOTALL)
# How often a directory may be packed by way of links: two links in each of twenty directories make a million of one.
_OFTEN = 100


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return by what a change of a file shows without reading it."""
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns), status.st_ino


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A file of a package, or a directory that is empty.

    :param name: in the package, with ``/``; a directory's ends in one.
    :param stamp: that of :func:`stamp_of`.
    :param path: on this machine; "" for one whose contents we make.
    :param mode: 0o755 for what may be executed, 0o644 for other files, 0o600 for those of :mod:`.secret_names`. Who
        owns a file, and what his umask is, differs from machine to machine and says nothing about the code, as git
        sees it.
    :param data: the contents of a file of our own.
    """

    name: str
    path: str
    mode: int
    size: int
    stamp: tuple[int, int, int] | None = None
    data: bytes | None = None

    @property
    def is_directory(self) -> bool:
        return self.name.endswith("/")


@dataclass(frozen=True)
class Tree:
    """
    What a package is to hold.

    :param entries: by name.
    :param secrets: names of files that were left out as secrets.
    :param warnings: what else was left out that somebody may miss.
    """

    entries: tuple[Entry, ...]
    secrets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    @property
    def files(self) -> int:
        """How many files there are."""
        return sum(not entry.is_directory for entry in self.entries)


@dataclass(frozen=True)
class Selection:
    """
    How to choose.

    :param excludes: patterns, relative to the directory.
    :param gitignore: whether ``.gitignore`` files count.
    :param secrets: whether files of :mod:`.secret_names` are packed; or patterns for those that are.
    :param top: the name of the directory in its package, "" where its files are at the root.
    """

    excludes: Sequence[str] = ()
    gitignore: bool = True
    secrets: bool | Sequence[str] = False
    top: str = ""


def select(root: Path, selection: Selection) -> Progress[Tree]:
    """
    Choose what of a directory is packed.

    :raises ValueError: for a link that may not be followed, a name that no package can hold, and a pattern that is
        none.
    :raises RayPackageError: for what cannot be read.
    """
    walk = _Walk(os.path.abspath(root), selection)  # noqa: PTH100  (without resolving links, which Path does)
    rules = [(0, IgnoreRules(selection.excludes, "excludes"))]
    walk.ahead.append(_Directory(walk.root, "", rules, (), by_link=False))
    # without recursion: a tree may be deeper than Python's calls
    while walk.ahead:
        walk.enter(walk.ahead.pop())
        yield 0
    walk.entries.sort(key=lambda entry: entry.name)
    return Tree(tuple(walk.entries), tuple(sorted(walk.secrets)), tuple(walk.warnings))


Rules = list[tuple[int, IgnoreRules]]


class _Directory(NamedTuple):
    """
    A directory to be looked into.

    :param below: its name in the tree with a last slash, "" for the root.
    :param rules: of those around it, and how many characters of a name stand before what each is relative to.
    :param within: device and number of the directories around it, by which a circle of links shows.
    :param by_link: whether a link leads to it, or to a directory around it.
    """

    path: str
    below: str
    rules: Rules
    within: tuple[tuple[int, int], ...]
    by_link: bool


@dataclass
class _Walk:
    root: str
    selection: Selection
    ahead: list[_Directory] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.real_root = os.path.realpath(self.root)
        self._entered: Counter[tuple[int, int]] = Counter()
        wanted = self.selection.secrets
        self._wanted = IgnoreRules(() if isinstance(wanted, bool) else wanted, "package_secrets")

    def enter(self, directory: _Directory) -> None:
        """Take what is in a directory; those in it are ahead."""
        path, below, rules, within, by_link = directory
        try:
            status = os.stat(path)  # noqa: PTH116  (a path as text: many of them)
            with os.scandir(path) as scan:
                found = list(scan)
        except OSError as error:
            raise unreadable(path, error) from error
        identity = (status.st_dev, status.st_ino)
        within = (*within, identity)
        self._entered[identity] += by_link
        if self._entered[identity] > _OFTEN:
            raise ValueError(
                f"{path}: more than {_OFTEN} links, and links below links, lead to this directory "
                f"({os.path.realpath(path)}), and each would be packed as a copy. Remove some of them, or exclude them."
            )
        rules = [*rules, *((len(below), own) for own in self._own_rules(path))]
        # the parents' rules have let it in; its own, and excludes, are asked about "." here
        if pattern := _left_out_by(rules, below, len(below)):
            if not below:
                self.warnings.append(
                    f"All of {self.root} is left out: Ray asks its ignore files about the directory itself, and "
                    f"{pattern} matches that."
                )
            return
        if not found and (name := self._in_package(below)):
            check_name(path, name)
            self.entries.append(Entry(name, path, 0o755, 0))
        inside = _Directory(path, below, rules, within, by_link)
        for each in found:
            self._take(each, inside)

    def _own_rules(self, directory: str) -> Iterator[IgnoreRules]:
        for name in (GITIGNORE, RAYIGNORE) if self.selection.gitignore else (RAYIGNORE,):
            path = f"{directory}/{name}"
            if os.path.isfile(path):  # noqa: PTH113  (a path as text: many of them)
                try:
                    yield read_ignore_file(path)
                except OSError as error:
                    raise unreadable(path, error) from error

    def _take(self, found: os.DirEntry[str], directory: _Directory) -> None:
        name = directory.below + found.name
        if _left_out_by(directory.rules, name):
            return
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
                raise changed(found.path, "it is gone") from None
            self.warnings.append(f"{printable(name)} is left out: it is a link to nothing.")
            return
        is_directory = stat.S_ISDIR(status.st_mode)
        if not is_directory and not stat.S_ISREG(status.st_mode):
            self.warnings.append(f"{printable(name)} is left out: it is no file, but a socket, a pipe or a device.")
        elif is_dropped(self._in_package(name)):
            self.warnings.append(f"{name!r} is left out: Ray unpacks no such name.")
        elif is_directory:
            if target and (status.st_dev, status.st_ino) in directory.within:
                raise ValueError(
                    f"{found.path} is a link that leads back to a directory that holds it ({target}): it has no end. "
                    "Remove it, or exclude it."
                )
            by_link = directory.by_link or bool(target)
            self.ahead.append(_Directory(found.path, f"{name}/", directory.rules, directory.within, by_link))
        else:
            self._take_file(found.path, name, target, status)

    def _take_file(self, path: str, name: str, target: str, status: os.stat_result) -> None:
        full_name = self._in_package(name)
        check_name(path, full_name)
        is_secret = looks_secret(full_name) or looks_secret(target)
        if is_secret and self.selection.secrets is not True and not self._wanted.match(name):
            self.secrets.append(name)
            return
        self.entries.append(_entry(full_name, path, status, is_secret=is_secret))

    def _in_package(self, name: str) -> str:
        return f"{self.selection.top}/{name}" if self.selection.top else name

    def _target_of(self, link: str) -> str:
        """
        Return where a link leads.

        :raises ValueError: if that is outside.
        """
        target = os.path.realpath(link)
        if target != self.real_root and not target.startswith(self.real_root.rstrip("/") + "/"):
            raise ValueError(
                f"{link} is a link that leads out of {self.root}, to {target}: the cluster would not have that. Copy "
                "it in its place, or exclude the link."
            )
        return target


def _left_out_by(rules: Rules, name: str, length: int | None = None) -> str | None:
    """Return the pattern, and where it stands, that leaves a name out; ``length`` is that of a directory asked anew."""
    for start, each in rules:
        # rules that stand in the directory itself see it as "."; those above it have let it in already
        if length is not None and start != length:
            continue
        if pattern := each.match(name[start:] or "."):
            return f"{pattern!r} of {each.source}"
    return None


def file_entry(path: Path) -> Entry:
    """
    Return the entry of a file that is alone, under its own name.

    :raises RayPackageError: if it cannot be read.
    """
    try:
        return _entry(path.name, str(path), path.stat())
    except OSError as error:
        raise unreadable(str(path), error) from error


def _entry(name: str, path: str, status: os.stat_result, *, is_secret: bool = False) -> Entry:
    mode = 0o600 if is_secret else 0o755 if status.st_mode & 0o111 else 0o644
    return Entry(name, path, mode, status.st_size, stamp_of(status))


def is_dropped(name: str) -> bool:
    """Tell whether Ray drops a file when it unpacks: by its whole name in the package, the top directory's included."""
    return _DROPPED.match(name) is not None


def check_name(path: str, name: str) -> None:
    """
    Make sure that a package can hold a name.

    :param path: whose name it is, for the message.
    :raises ValueError: for one that is not UTF-8.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{os.fsencode(path)!r} has a name that is not UTF-8, which no package can hold. Rename it, or exclude it."
        ) from None


def printable(name: str) -> str:
    """Return a name as a log can hold it: what is not UTF-8 as its bytes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def unreadable(path: str, error: OSError) -> RayPackageError:
    """Return the error of a file or directory that cannot be read."""
    return RayPackageError(
        f"Could not read {path!r} for its package: {error.strerror or error}. Nothing was submitted. Make it readable "
        "for the user that Airflow's worker runs as, or exclude it."
    )


def changed(path: str, how: str) -> RayPackageError:
    """Return the error of a file that is no longer what it was when the package got its name."""
    return RayPackageError(
        f"{path} changed while its directory was packed: {how}. Nothing was submitted. Try again when nobody writes "
        "there; exclude what programs write."
    )
