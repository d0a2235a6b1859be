"""
Find the local code of a runtime environment and name its packages. Naming reads each file once.

Packing and upload come later, and only for packages that the cluster does not have.
"""

from __future__ import annotations

import os
import stat
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import IO, Any, Protocol

from airflow_provider_rayjobs.jobs.packages.digest import ARCHIVES, digest_tree, name_archive, name_tree
from airflow_provider_rayjobs.jobs.packages.ignores import default_excludes, uses_gitignore
from airflow_provider_rayjobs.jobs.packages.paths import expand_uri, file_mode, find_path, is_path, unreadable
from airflow_provider_rayjobs.jobs.packages.requirements import read_requirements
from airflow_provider_rayjobs.jobs.packages.tree import (
    Entry,
    Selection,
    Tree,
    check_name,
    file_entry,
    select,
)
from airflow_provider_rayjobs.jobs.progress import MIB, Progress, describe_size, finish
from airflow_provider_rayjobs.jobs.redaction import redact_urls

# aiohttp in Ray's HTTP server refuses a request body of this size (``DASHBOARD_CLIENT_MAX_SIZE``).
LIMIT = 100 * MIB
# Ray's documented limit for a directory. The zip of a larger one is hardly ever below ``LIMIT``.
_DIRECTORY_LIMIT = 500 * MIB
_LARGEST = 10


class PackageStorage(Protocol):
    """A storage for packages that are too large for Ray's HTTP server; ``put`` stores completely or not at all."""

    def uri_of(self, name: str) -> str: ...
    def has(self, name: str) -> bool: ...
    def put(self, name: str, file: IO[bytes]) -> Progress[None]: ...


@dataclass(frozen=True)
class Package:
    """
    One package: its contents, its name and its destination.

    :param owner: its key in the runtime environment, e.g. ``py_modules[0]``.
    :param tree: its files; of an archive only the archive itself.
    :param uri: replaces the path in the runtime environment.
    :param top: a directory to put around all files, "" for none.
    :param storage: its destination; ``None`` for the cluster.
    :param seconds: time to find and name it.
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
        """Describe the number and size of its files."""
        size = describe_size(self.tree.size)
        files = sum(not entry.is_directory for entry in self.tree.entries)
        return size if self.is_archive else f"{files} files, {size}"


@dataclass(frozen=True)
class GeneratedModule:
    """A module that is not on the disk: what it is and its name for messages, and the contents of its files by name."""

    owner: str
    name: str
    files: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class LocalCode:
    """A runtime environment with URIs instead of paths, and the packages at these URIs."""

    runtime_env: dict[str, Any] = field(repr=False)
    packages: tuple[Package, ...] = ()


def resolve_local_code(runtime_env: Mapping[str, Any], **options: Any) -> LocalCode:
    """Run :func:`find_packages` to its end. Blocks."""
    return finish(find_packages(runtime_env, **options))


def find_packages(
    runtime_env: Mapping[str, Any],
    *,
    folders: Sequence[Path] = (),
    secrets: bool | Sequence[str] = False,
    storage: PackageStorage | None = None,
    generated: GeneratedModule | None = None,
) -> Progress[LocalCode]:
    """
    Find the local code of a runtime environment and name its packages.

    :param folders: searched for relative paths, in this order; the working directory by default. Files of ``pip``,
        ``uv`` and ``conda`` may also be in ``working_dir``, which is searched last.
    :param secrets: whether to pack files with names of :mod:`.secret_names`, or patterns of those to pack.
    :param storage: for packages of 100 MiB and more.
    :param generated: a module that is added to ``py_modules``.
    :raises ValueError: for local code that cannot be packed.
    :raises RayPackageError: for a file that cannot be read, or changes.
    """
    excludes = runtime_env.get("excludes") or []
    if isinstance(excludes, str) or not all(isinstance(pattern, str) for pattern in excludes):
        raise ValueError("runtime_env['excludes'] must be a list of patterns, as in a .gitignore")
    if isinstance(secrets, str):
        raise ValueError("package_secrets must be True, False or a list of patterns, as in a .gitignore")
    folders = folders or (Path.cwd(),)
    patterns = (*default_excludes(os.environ), *excludes)
    naming = _Naming(Selection(patterns, uses_gitignore(os.environ), secrets), folders, storage)
    packages = []
    working_dir = expand_uri(runtime_env.get("working_dir"))
    requirements = read_requirements(runtime_env, [*folders, *_directory_of(working_dir, folders)])
    changed = dict(runtime_env) | requirements.changed
    if working_dir is not None:
        changed["working_dir"] = working_dir
    if is_path(working_dir) or (requirements.files and not working_dir):
        packages.append((yield from naming.name_working_dir(working_dir, requirements.files)))
        changed["working_dir"] = packages[0].uri
    elif requirements.files:
        raise ValueError(
            "Constraints (-c) need a local working_dir, with which they are uploaded; it is "
            f"{redact_urls(repr(working_dir))}. Add the file to it and write "
            "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt, or give the file's URL."
        )
    modules = runtime_env.get("py_modules")
    if isinstance(modules, Sequence) and not isinstance(modules, str):
        uris = []
        for number, module in enumerate(map(expand_uri, modules)):
            if is_path(module):
                packages.append((yield from naming.name_module(f"py_modules[{number}]", module)))
            uris.append(packages[-1].uri if is_path(module) else module)
        changed["py_modules"] = uris
    if generated is not None:
        packages.append((yield from naming.name_generated(generated)))
        changed["py_modules"] = [*(changed.get("py_modules") or ()), packages[-1].uri]
    return LocalCode(changed, tuple(packages))


def _directory_of(working_dir: Any, folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the directory of the job's code: its requirements are often there, too."""
    if is_path(working_dir) and _is_dir(found := find_path("runtime_env['working_dir']", working_dir, folders)):
        yield found


def _is_dir(path: Path) -> bool:
    return stat.S_ISDIR(file_mode(path))


@dataclass
class _Naming:
    selection: Selection
    folders: Sequence[Path]
    storage: PackageStorage | None
    began: float = field(default_factory=time.monotonic)

    def name_working_dir(self, given: str | PathLike[str] | None, files: Mapping[str, bytes]) -> Progress[Package]:
        """Name the package of ``working_dir`` with ``files`` added; without a ``working_dir`` it has only these."""
        if not given:
            return (yield from self._name(Package("working_dir", Path(), _with_files(Tree(()), files))))
        source = find_path("runtime_env['working_dir']", given, self.folders)
        if _is_dir(source):
            tree = yield from select(source, self.selection)
            return (yield from self._name(Package("working_dir", source, _with_files(tree, files))))
        if not source.name.endswith(ARCHIVES):
            raise ValueError(
                f"Not a directory or an archive ({', '.join(ARCHIVES)}): runtime_env['working_dir'] is {source}. Give "
                "the directory of the file, or put a single module into py_modules."
            )
        if files:
            raise ValueError(
                f"Constraints (-c) cannot be added to an archive, and runtime_env['working_dir'] is {source}. Unpack "
                "it and give the directory."
            )
        return (yield from self._name_archive("working_dir", source))

    def name_module(self, owner: str, given: str | PathLike[str]) -> Progress[Package]:
        """Name the package of an entry of ``py_modules``."""
        source = find_path(f"runtime_env[{owner!r}]", given, self.folders)
        if _is_dir(source):
            check_name(str(source), f"{source.name}/")
            tree = yield from select(source, replace(self.selection, top=source.name))
        elif source.suffix == ".py":
            check_name(str(source), source.name)
            tree = Tree((file_entry(source),))
        elif source.name.endswith((*ARCHIVES, ".whl")):
            return (yield from self._name_archive(owner, source))
        else:
            raise ValueError(
                f"Not a directory, a .py file, a wheel or an archive ({', '.join(ARCHIVES)}): runtime_env[{owner!r}] "
                f"is {source}."
            )
        return (yield from self._name(Package(owner, source, tree)))

    def name_generated(self, module: GeneratedModule) -> Progress[Package]:
        """Name the package of a module that is not on the disk."""
        return (yield from self._name(Package(module.owner, Path(module.name), _with_files(Tree(()), module.files))))

    def _name_archive(self, owner: str, source: Path) -> Progress[Package]:
        package = yield from self._name(Package(owner, source, Tree((file_entry(source),)), is_archive=True))
        is_zip = source.suffix in (".zip", ".whl")
        is_stored = package.storage is not None and source.suffix != ".whl"
        try:
            with source.open("rb") as file:  # is_zipfile() takes a file that it cannot open for no zip file
                is_archive = zipfile.is_zipfile(file) if is_zip else tarfile.is_tarfile(file)
            top = (yield from _single_top(source)) if is_archive and is_stored else None
        except OSError as error:
            raise unreadable(str(source), error) from error
        if not is_archive:
            raise ValueError(
                f"Not a {'zip' if is_zip else 'tar'} archive: {source} (runtime_env[{owner!r}]). Create it again."
            )
        if top:
            raise ValueError(
                f"Archive with a single top directory: {source} (runtime_env[{owner!r}]) has only {top!r}, which Ray "
                "removes from packages of a package_storage. Unpack the archive and give the directory."
            )
        return package

    def _name(self, package: Package) -> Progress[Package]:
        """Name a package and choose its destination by its size on the disk, before it is packed."""
        tree = package.tree
        is_too_large = tree.size >= LIMIT if package.is_archive else tree.size > _DIRECTORY_LIMIT
        if self.storage is None and is_too_large:
            raise ValueError(too_large(package))  # before its files are read
        digests = yield from digest_tree(tree)
        file = package.source.name
        name = name_archive(file, digests[file]) if package.is_archive else name_tree(tree, digests)
        now = time.monotonic()
        package = replace(package, name=name, digests=digests, uri=f"gcs://{name}", seconds=now - self.began)
        self.began = now
        # the zip file's headers, and a little for files that do not compress
        headers = sum(130 + 2 * len(entry.name.encode()) for entry in tree.entries) + tree.size // 1000
        if self.storage is None or tree.size + (0 if package.is_archive else headers) < LIMIT:
            return package
        # Ray removes a single top directory from a package that it downloads, so add one
        return replace(package, uri=self.storage.uri_of(name), storage=self.storage, top="package")


def _with_files(tree: Tree, files: Mapping[str, bytes]) -> Tree:
    added = [Entry(name, "", 0o644, len(data), data=data) for name, data in files.items()]
    kept = [entry for entry in tree.entries if entry.name not in files]
    return replace(tree, entries=tuple(sorted([*kept, *added], key=lambda entry: entry.name)))


def _single_top(source: Path) -> Progress[str | None]:
    """Return the single top directory of an archive; ``None`` or "" if there is none."""
    tops: set[str] = set()
    for name in _names_in(source):
        yield 0
        top, slash, _ = name.removeprefix("./").partition("/")
        if top not in ("", ".", "__MACOSX"):
            tops.add(top if slash else "")
    return tops.pop() if len(tops) == 1 else None


def _names_in(source: Path) -> Iterator[str]:
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            yield from archive.namelist()
    else:
        with tarfile.open(source) as tar:
            for member in tar:
                name = f"{member.name}/" if member.isdir() else member.name
                yield name
                # in steps, as tarfile decompresses a large file to find the next name
                for offset in range(member.offset_data, tar.offset - 1, MIB):
                    tar.fileobj.seek(offset)
                    yield name


def too_large(package: Package) -> str:
    """Return the error message of a package over the limit, with its largest files and directories."""
    limit = "Ray's HTTP server accepts less than 100 MiB"
    if not package.is_archive and package.tree.size > _DIRECTORY_LIMIT:
        limit = "Ray's limit for local code is 500 MiB"
    if all(entry.data is not None for entry in package.tree.entries):  # no file is on the disk
        return (
            f"Package too large: {limit}. The {package.owner} {package.source} with its arguments has "
            f"{package.content}. The package was not uploaded. Store large arguments where the job can read them, and "
            "pass their path, or set package_storage."
        )
    fact = (
        f"Package too large: {limit}. runtime_env[{package.owner!r}] is {package.source} ({package.content}). The "
        "package was not uploaded."
    )
    storage = "For larger packages set package_storage, an object storage path that the cluster can read."
    if package.is_archive:
        return f"{fact} {storage}"
    # show names as patterns match them: relative to the directory
    prefix = "" if package.owner == "working_dir" else f"{package.source.name}/"
    sizes: Counter[str] = Counter()
    for entry in package.tree.entries:
        name = entry.name.removeprefix(prefix)
        sizes[name] += entry.size
        if "/" in name:
            sizes[name[: name.index("/") + 1]] += entry.size
    largest = sizes.most_common(_LARGEST)
    lines = (f"{describe_size(size):>13}  {name}" for name, size in largest)
    fix = (
        f"Exclude what the job does not need, with runtime_env={{'excludes': [{'/' + largest[0][0]!r}, ...]}} or a "
        f".rayignore file in the directory. {storage}"
    )
    return "\n".join([f"{fact} Its largest files and directories:", *lines, fix])
