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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import IO, Any, Protocol

from airflow_provider_rayjobs.jobs.packages.ignores import default_excludes, heeds_gitignore
from airflow_provider_rayjobs.jobs.packages.naming import ARCHIVES, digest_tree, name_archive, name_tree
from airflow_provider_rayjobs.jobs.packages.news import MIB, Progress, finish
from airflow_provider_rayjobs.jobs.packages.places import filled_in, find_path, is_path
from airflow_provider_rayjobs.jobs.packages.requirements import read_requirements
from airflow_provider_rayjobs.jobs.packages.tree import (
    Entry,
    Selection,
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
    :param tree: what it holds; of an archive, which goes as it is, the file itself.
    :param uri: what stands in the runtime environment for it.
    :param top: the name of a directory around all of it, "" for none.
    :param digests: of the files' contents, by their names.
    :param storage: where it goes; ``None`` for the cluster itself.
    :param seconds: that finding and naming it took.
    """

    owner: str
    source: Path
    tree: Tree
    is_archive: bool = False
    name: str = ""
    uri: str = ""
    top: str = ""
    digests: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    storage: PackageStorage | None = None
    seconds: float = 0.0

    @property
    def content(self) -> str:
        """Say how much it is."""
        size = f"{self.tree.size / MIB:.1f} MiB"
        return size if self.is_archive else f"{self.tree.files} files, {size}"


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
    folders = folders or (Path.cwd(),)
    naming = _Naming(runtime_env, folders, secrets, storage)
    requirements = read_requirements(runtime_env, folders)
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


class _Naming:
    """What the packages of one runtime environment share."""

    def __init__(
        self,
        runtime_env: Mapping[str, Any],
        folders: Sequence[Path],
        secrets: bool | Sequence[str],
        storage: PackageStorage | None,
    ) -> None:
        excludes = runtime_env.get("excludes") or []
        if isinstance(excludes, str) or not all(isinstance(pattern, str) for pattern in excludes):
            raise ValueError("runtime_env['excludes'] must be a list of patterns, as in a .gitignore")
        if isinstance(secrets, str):
            raise ValueError("package_secrets must be True, False or a list of patterns, as in a .gitignore")
        self._selection = Selection(tuple(excludes), heeds_gitignore(os.environ), secrets)
        self._folders = folders
        self._storage = storage
        self._began = time.monotonic()

    def name_working_dir(self, given: str | PathLike[str] | None, files: Mapping[str, bytes]) -> Progress[Package]:
        """Name what becomes the job's working directory; ``files`` of our own are added to it."""
        if not given:
            # nothing but constraints: the directory exists for their sake
            return (yield from self._name(Package("working_dir", Path(), _with_files(Tree(()), files))))
        source = find_path("runtime_env['working_dir']", given, self._folders)
        if source.is_dir():
            excludes = (*default_excludes(os.environ), *self._selection.excludes)
            tree = yield from select(source, replace(self._selection, excludes=excludes))
            return (yield from self._name(Package("working_dir", source, _with_files(tree, files))))
        if not source.name.endswith(ARCHIVES):
            raise ValueError(
                f"runtime_env['working_dir'] is {os.fspath(given)!r}, which is a file ({source}); it must be a "
                f"directory, or an archive ({', '.join(ARCHIVES)}). Give the directory that holds it; a single module "
                "goes into py_modules."
            )
        if files:
            raise ValueError(
                "constraints (-c) travel in the package of a local working_dir, and nothing can be added to an "
                "archive. Unpack it and give the directory."
            )
        return (yield from self._name_archive("working_dir", source))

    def name_module(self, owner: str, given: str | PathLike[str]) -> Progress[Package]:
        """Name an entry of ``py_modules``."""
        source = find_path(f"runtime_env[{owner!r}]", given, self._folders)
        if source.is_dir():
            _check_packable(source, f"{source.name}/")
            tree = yield from select(source, replace(self._selection, top=source.name))
        elif source.suffix == ".py":
            _check_packable(source, source.name)
            tree = Tree((file_entry(source),))
        elif source.name.endswith((*ARCHIVES, ".whl")):
            return (yield from self._name_archive(owner, source))
        else:
            raise ValueError(
                f"runtime_env[{owner!r}] is {os.fspath(given)!r} ({source}); it must be a directory, a .py file, a "
                f"wheel, or an archive ({', '.join(ARCHIVES)})."
            )
        return (yield from self._name(Package(owner, source, tree)))

    def _name_archive(self, owner: str, source: Path) -> Progress[Package]:
        package = Package(owner, source, Tree((file_entry(source),)), is_archive=True)
        is_zip = source.suffix in (".zip", ".whl")
        try:
            is_whole = zipfile.is_zipfile(source) if is_zip else tarfile.is_tarfile(source)
        except OSError as error:
            raise unreadable(str(source), error) from error
        if not is_whole:
            raise ValueError(
                f"runtime_env[{owner!r}]: {source} is not a {'zip' if is_zip else 'tar'} archive. Make it anew."
            )
        package = yield from self._name(package)
        if package.storage is None or source.suffix == ".whl":
            return package
        if top := (yield from _single_top(source, is_zip=is_zip)):
            raise ValueError(
                f"runtime_env[{owner!r}]: all of {source} is in one directory, {top!r}, which Ray takes away when "
                "it unpacks what comes from a package_storage. Unpack the archive and give the directory."
            )
        return package

    def _name(self, package: Package) -> Progress[Package]:
        """Name a package, and say where it goes: by its size on this disk, so that it is known before it is packed."""
        tree = package.tree
        # what is too large whatever a zip makes of it: without hours of reading first
        if self._storage is None and tree.size >= (LIMIT if package.is_archive else _BEST_RATIO * LIMIT):
            raise ValueError(too_large(package))
        digests = yield from digest_tree(tree)
        if package.is_archive:
            name = name_archive(package.source.name, digests[package.source.name])
        else:
            name = name_tree(tree, digests)
        now = time.monotonic()
        package = replace(package, name=name, digests=digests, uri=f"gcs://{name}", seconds=now - self._began)
        self._began = now
        if self._storage is None or _bulk(package) < LIMIT:
            return package
        # Ray takes a single top directory away from what it downloads: so it is given one more
        return replace(package, uri=self._storage.uri_of(name), storage=self._storage, top="package")


def _with_files(tree: Tree, files: Mapping[str, bytes]) -> Tree:
    ours = [Entry(name, "", 0o644, len(data), data=data) for name, data in files.items()]
    theirs = [entry for entry in tree.entries if entry.name not in files]
    return replace(tree, entries=tuple(sorted([*theirs, *ours], key=lambda entry: entry.name)))


def _bulk(package: Package) -> int:
    """Return the most that a package may need: a zip adds headers for each entry, and a little to what it holds."""
    size = package.tree.size
    if package.is_archive:
        return size
    return size + size // 1000 + sum(130 + 2 * len(entry.name.encode()) for entry in package.tree.entries)


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
    if package.is_archive:
        return f"{said} {advice}"
    # as patterns name them: without the top directory of a module
    prefix = "" if package.owner == "working_dir" else f"{package.source.name}/"
    sizes: Counter[str] = Counter()
    for entry in package.tree.entries:
        name = entry.name.removeprefix(prefix)
        sizes[name] += entry.size
        # many small files: no single one says where the room goes
        if "/" in name:
            sizes[name[: name.index("/") + 1]] += entry.size
    shown = sizes.most_common(_LARGEST)
    how = (
        f"Exclude what the job does not need: runtime_env={{'excludes': [{'/' + shown[0][0]!r}, ...]}}, or lines like "
        f"/{shown[0][0]} in a .rayignore beside it. {advice}"
    )
    return "\n".join(
        [f"{said} Its largest files and directories:", *(f"{size / MIB:9.1f} MiB  {name}" for name, size in shown), how]
    )
