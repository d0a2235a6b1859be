"""
Local code in a runtime environment: found, selected and named; what has to be on the cluster before the job is.

Nothing is packed or sent here: a name costs one look at each file, and a cluster that holds the package already needs
no more.
"""

from __future__ import annotations

import os
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import IO, Any, Protocol

from airflow_provider_rayjobs.jobs.packages.ignores import default_excludes, heeds_gitignore
from airflow_provider_rayjobs.jobs.packages.naming import digest_tree, name_archive, name_tree
from airflow_provider_rayjobs.jobs.packages.news import MIB, Progress, finish
from airflow_provider_rayjobs.jobs.packages.places import filled_in, find_path, is_path
from airflow_provider_rayjobs.jobs.packages.requirements import read_requirements
from airflow_provider_rayjobs.jobs.packages.tree import (
    Entry,
    Selection,
    Stamp,
    Tree,
    check_name,
    file_entry,
    is_dropped,
    select,
    unreadable,
)

# aiohttp refuses a body of this size in Ray's HTTP server (``DASHBOARD_CLIENT_MAX_SIZE``).
LIMIT = 100 * 1024 * 1024
# How many bytes deflating can make one of at best, with a little to spare (zlib says 1032).
_BEST_RATIO = 1040
# What Ray 2.60 unpacks; older heads may know .zip and .whl alone.
_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.xz")
_LARGEST = 10


class PackageStorage(Protocol):
    """A place beside the cluster for what is too large for its HTTP server."""

    def uri_of(self, name: str) -> str:
        """Return the address by which Ray's workers read a package."""

    def has(self, name: str) -> bool:
        """Tell whether a package is there."""

    def put(self, name: str, file: IO[bytes]) -> Progress[None]:
        """Store a package under its name, whole or not at all."""


@dataclass(frozen=True)
class Package:
    """
    One package: what is in it, how it is called, where it goes.

    :param owner: which part of the runtime environment it is, for messages.
    :param uri: what stands in the runtime environment for it.
    :param tree: what it holds; ``None`` for an archive, which goes as it is.
    :param top: the name of its top directory, "" where its files are at the root.
    :param digests: of the files' contents, by their names.
    :param storage: where it goes; ``None`` for the cluster itself.
    :param seconds: that finding and naming it took.
    """

    owner: str
    source: Path
    name: str
    uri: str
    size: int
    tree: Tree | None = None
    top: str = ""
    digests: dict[str, bytes] = field(default_factory=dict, repr=False)
    storage: PackageStorage | None = None
    seconds: float = 0.0

    @property
    def suffix(self) -> str:
        """By what Ray knows how to unpack it."""
        return next(it for it in (".tar.gz", ".tar.xz", ".whl", ".zip") if self.name.endswith(it))

    @property
    def content(self) -> str:
        """Say how much it is."""
        size = f"{self.size / MIB:.1f} MiB"
        return f"{self.tree.files} files, {size}" if self.tree else size


@dataclass(frozen=True)
class LocalCode:
    """
    A runtime environment as the cluster can read it.

    :param runtime_env: with URIs for paths, and contents for files of requirements.
    :param packages: what has to be there before the job is submitted.
    """

    runtime_env: dict[str, Any]
    packages: tuple[Package, ...] = ()


def name_packages(runtime_env: Mapping[str, Any], **options: Any) -> LocalCode:
    """Do what :func:`find_packages` does, to its end; blocks while files are read."""
    return finish(find_packages(runtime_env, **options))


def find_packages(
    runtime_env: Mapping[str, Any],
    *,
    folders: Sequence[Path] = (),
    secrets: bool | Sequence[str] = False,
    storage: PackageStorage | None = None,
) -> Progress[LocalCode]:
    """
    Find the local code of a runtime environment, and name its packages.

    :param folders: where relative paths are looked for, in this order; the working directory when not given.
    :param secrets: whether files whose names are those of secrets are packed; or patterns for those that are.
    :param storage: where packages of 100 MiB and more go.
    :raises ValueError: for what can never be packed, naming the field.
    :raises RayPackageError: for what cannot be read.
    """
    naming = _Naming(runtime_env, tuple(folders) or (Path.cwd(),), secrets, storage)
    requirements = read_requirements(runtime_env, naming.folders)
    changed = dict(runtime_env) | requirements.changed
    packages = []
    working_dir = filled_in(runtime_env.get("working_dir"))
    if working_dir is not None:
        changed["working_dir"] = working_dir
    if is_path(working_dir) or (requirements.files and not working_dir):
        packages.append((yield from naming.name_working_dir(working_dir, requirements.files)))
        changed["working_dir"] = packages[0].uri
    elif requirements.files:
        raise ValueError(
            f"constraints (-c) travel in the package of a local working_dir, and {working_dir!r} is none. Put them "
            "into it yourself and write -c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt, or give a file's URL."
        )
    modules = runtime_env.get("py_modules")
    if isinstance(modules, Sequence) and not isinstance(modules, str):
        uris = []
        for number, module in enumerate(map(filled_in, modules)):
            if is_path(module):
                packages.append((yield from naming.name_module(f"py_modules[{number}]", module)))
                module = packages[-1].uri  # noqa: PLW2901  (an entry and what stands for it)
            uris.append(module)
        changed["py_modules"] = uris
    return LocalCode(changed, tuple(packages))


@dataclass
class _Naming:
    runtime_env: Mapping[str, Any]
    folders: tuple[Path, ...]
    secrets: bool | Sequence[str]
    storage: PackageStorage | None

    def __post_init__(self) -> None:
        excludes = self.runtime_env.get("excludes") or []
        if isinstance(excludes, str) or not all(isinstance(pattern, str) for pattern in excludes):
            raise ValueError("runtime_env['excludes'] must be a list of patterns, as in a .gitignore")
        if isinstance(self.secrets, str):
            raise ValueError("package_secrets must be True, False or a list of patterns, as in a .gitignore")
        self._excludes = tuple(excludes)
        self._began = time.monotonic()

    def name_working_dir(self, given: str | PathLike[str] | None, files: Mapping[str, bytes]) -> Progress[Package]:
        """Name what becomes the job's working directory; ``files`` of our own are added to it."""
        if given is None:
            # nothing but constraints: the directory exists for their sake
            return (yield from self._named("working_dir", Path(), _with_files(Tree(()), files), ""))
        source = self._find("working_dir", given)
        if source.is_dir():
            selection = self._selection((*default_excludes(os.environ), *self._excludes), "")
            tree = yield from select(source, selection)
            return (yield from self._named("working_dir", source, _with_files(tree, files), ""))
        if not source.name.endswith(_ARCHIVES):
            raise ValueError(
                f"runtime_env['working_dir'] is {os.fspath(given)!r}, which is a file ({source}); it must be a "
                f"directory, or an archive ({', '.join(_ARCHIVES)}). Give the directory that holds it; a single module "
                "goes into py_modules."
            )
        if files:
            raise ValueError(
                "constraints (-c) travel in the package of a local working_dir, and nothing can be added to an "
                "archive. Unpack it and give the directory."
            )
        return (yield from self._archive("working_dir", source))

    def name_module(self, owner: str, given: str | PathLike[str]) -> Progress[Package]:
        """Name an entry of ``py_modules``."""
        source = self._find(owner, given)
        if source.is_dir():
            _check_packable(source, f"{source.name}/")
            selection = self._selection(self._excludes, source.name)
            tree = yield from select(source, selection)
            return (yield from self._named(owner, source, tree, source.name))
        if source.suffix == ".py":
            _check_packable(source, source.name)
            return (yield from self._named(owner, source, Tree((file_entry(source),)), ""))
        if source.name.endswith((*_ARCHIVES, ".whl")):
            return (yield from self._archive(owner, source))
        raise ValueError(
            f"runtime_env[{owner!r}] is {os.fspath(given)!r} ({source}); it must be a directory, a .py file, a wheel, "
            f"or an archive ({', '.join(_ARCHIVES)})."
        )

    def _find(self, owner: str, given: str | PathLike[str]) -> Path:
        return find_path(f"runtime_env[{owner!r}]", given, self.folders)

    def _selection(self, excludes: Sequence[str], top: str) -> Selection:
        return Selection(tuple(excludes), heeds_gitignore(os.environ), self.secrets, top)

    def _named(self, owner: str, source: Path, tree: Tree, top: str) -> Progress[Package]:
        package = Package(owner, source, "", "", tree.size, tree, top)
        if self.storage is None and tree.size >= _BEST_RATIO * LIMIT:
            raise ValueError(too_large(package))  # without hours of reading first
        digests = yield from digest_tree(tree)
        return self._placed(replace(package, name=name_tree(tree, top, digests), digests=digests))

    def _archive(self, owner: str, source: Path) -> Progress[Package]:
        suffix = next(it for it in (*_ARCHIVES, ".whl") if source.name.endswith(it))
        try:
            is_zip = suffix in (".zip", ".whl")
            is_whole = zipfile.is_zipfile(source) if is_zip else tarfile.is_tarfile(source)
            size = source.stat().st_size
        except OSError as error:
            raise unreadable(str(source), error) from error
        if not is_whole:
            raise ValueError(
                f"runtime_env[{owner!r}]: {source} is not a {'zip' if is_zip else 'tar'} archive. Make it anew."
            )
        suffix = ".tar.gz" if suffix == ".tgz" else suffix
        package = Package(owner, source, "", "", size)
        if size >= LIMIT and self.storage is None:
            raise ValueError(too_large(package))
        package = replace(package, name=(yield from name_archive(source, suffix)))
        if size >= LIMIT and suffix != ".whl" and (single := (yield from _single_top(source, is_zip=is_zip))):
            raise ValueError(
                f"runtime_env[{owner!r}]: all of {source} is in one directory, {single!r}, which Ray takes away when "
                "it unpacks what comes from a package_storage. Unpack the archive and give the directory."
            )
        return self._placed(package)

    def _placed(self, package: Package) -> Package:
        """Say where a package goes: by its size on this disk, so that it is known before anything is packed."""
        now = time.monotonic()
        package = replace(package, seconds=now - self._began)
        self._began = now
        if self.storage is None or _bulk(package) < LIMIT:
            return replace(package, uri=f"gcs://{package.name}")
        # Ray takes a single top directory away from what it downloads: so it is given one more
        top = f"package/{package.top}".rstrip("/")
        return replace(package, uri=self.storage.uri_of(package.name), storage=self.storage, top=top)


def _with_files(tree: Tree, files: Mapping[str, bytes]) -> Tree:
    ours = [Entry(name, "", 0o644, Stamp(len(data), 0, 0), data) for name, data in files.items()]
    if not ours:
        return tree
    entries = [entry for entry in tree.entries if entry.name not in files and entry.name != "./"]
    return replace(tree, entries=tuple(sorted([*entries, *ours], key=lambda entry: entry.name)))


def _bulk(package: Package) -> int:
    """Return the most that a package may need: a zip adds headers for each entry, and a little to what it holds."""
    if package.tree is None:
        return package.size
    top = len(package.top.encode()) + 1
    headers = sum(130 + 2 * (top + len(entry.name.encode())) for entry in package.tree.entries)
    return package.size + package.size // 1000 + headers


def _check_packable(source: Path, name: str) -> None:
    check_name(str(source), name)
    if is_dropped(name):
        raise ValueError(
            f"{source!s}: Ray drops names with a backslash, or x: at their beginning, when it unpacks. Rename it."
        )


def _single_top(source: Path, *, is_zip: bool) -> Progress[str | None]:
    """Return the directory that holds all of an archive, ``None`` if there is none."""
    tops: set[str] = set()
    for name in _names_in(source, is_zip=is_zip):
        yield 0
        top, slash, _ = name.removeprefix("./").partition("/")
        if top in ("", ".", "__MACOSX"):
            continue
        tops.add(top)
        if len(tops) > 1 or not slash:
            return None
    return tops.pop() if tops else None


def _names_in(source: Path, *, is_zip: bool) -> Iterator[str]:
    if is_zip:
        with zipfile.ZipFile(source) as archive:
            yield from archive.namelist()
    else:
        with tarfile.open(source) as tar:
            for member in tar:
                yield f"{member.name}/" if member.isdir() else member.name


def too_large(package: Package) -> str:
    """Say that a package is over the limit of Ray's HTTP server, what takes the room, and what can be done."""
    said = (
        f"runtime_env[{package.owner!r}] is too large: Ray's HTTP server takes no package of 100 MiB or more, and the "
        f"one of {package.source} ({package.content}) is. Nothing was submitted."
    )
    advice = "Or give package_storage, an object storage path that the cluster can read too, for what is larger."
    if package.tree is None:
        return f"{said} {advice}"
    largest = sorted(package.tree.entries, key=lambda entry: -entry.size)[:_LARGEST]
    shown = [f"{entry.size / MIB:9.1f} MiB  {entry.name}" for entry in largest]
    folders: dict[str, int] = {}
    for entry in package.tree.entries:
        top = entry.name.partition("/")[0]
        if top != entry.name:
            folders[f"{top}/"] = folders.get(f"{top}/", 0) + entry.size
    # many small files: no single one says where the room goes
    if sum(entry.size for entry in largest) < package.size / 2:
        top_folders = sorted(folders.items(), key=lambda item: -item[1])[:_LARGEST]
        shown = [f"{size / MIB:9.1f} MiB  {name}" for name, size in top_folders] + shown
        example = top_folders[0][0] if top_folders else largest[0].name
    else:
        example = largest[0].name
    how = (
        f"Exclude what the job does not need: runtime_env={{'excludes': [{'/' + example!r}, ...]}}, or lines like "
        f"/{example} in a .rayignore beside it. {advice}"
    )
    return "\n".join([f"{said} Its largest entries:", *shown, how])
