"""
A package's name: a digest of what is in it, and of nothing else.

Names, contents and whether a file may be executed go into it, in the names' order. Times, owners, umask, the order in
which a disk lists files, the compression and the place of the directory do not: so the same tree has the same name on
any machine, and a cluster that holds it is not sent it again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from airflow_provider_rayjobs.jobs.packages.tree import Entry, FileStamp, Tree, changed, unreadable, unwritable

# Another meaning of the digest needs another word here.
_VERSION = b"rayjobs package 1\n"
# Ray's own name for what it holds of local code.
_PREFIX = "_ray_pkg_"
# 160 bits, as many as Ray's own names have.
_DIGITS = 40
# Small enough to stay in a processor's cache between the reading and the hashing.
CHUNK = 256 * 1024
_LARGE = 512 * 1024
_THREADS = 4


Watch = Callable[[int], object]


def unwatched(_: int) -> None:
    """Let the naming go on without a look at it."""


def name_tree(tree: Tree, top: str, digests: dict[str, bytes] | None = None, watch: Watch = unwatched) -> str:
    """
    Return the name of a tree's package.

    :param top: the name of its top directory, "" where its files are at the root.
    :param digests: filled with those of the contents, by the entries' names.
    :param watch: told how many bytes more were read, from whatever thread; what it raises ends the naming.
    :raises RayPackageError: for a file that cannot be read, or that changes meanwhile.
    """
    whole = hashlib.sha256(_VERSION)
    known = _digests_of_large(tree, watch)
    for entry in tree.entries:
        name = f"{top}/{entry.name}".encode() if top else entry.name.encode()
        content = b"" if entry.is_directory else known.get(entry.name) or _digest(entry, watch)
        if digests is not None:
            digests[entry.name] = content
        whole.update(b"%o %d %s%s" % (entry.mode, len(name), name, content))
    return f"{_PREFIX}{whole.hexdigest()[:_DIGITS]}.zip"


def name_archive(path: Path, suffix: str, copy: IO[bytes] | None = None, watch: Watch = unwatched) -> str:
    """
    Return the name of an archive that goes to the cluster as it is.

    Ray installs a wheel by its file's name, and keeps what it has installed by that name. So a wheel keeps its own,
    with the digest in the one part that may be added: the build tag.

    :param suffix: by which Ray knows how to unpack it.
    :param copy: where its bytes are written to as well.
    :param watch: as for :func:`name_tree`.
    """
    digest = hashlib.sha256(_VERSION + suffix.encode())
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                watch(len(chunk))
                if copy is not None:
                    write(copy, chunk)
        if copy is not None:
            write(copy, b"", is_last=True)
    except OSError as error:
        raise unreadable(str(path), error) from error
    digits = digest.hexdigest()[:_DIGITS]
    return _name_wheel(path.name, digits) if suffix == ".whl" else f"{_PREFIX}{digits}{suffix}"


def write(file: IO[bytes], data: bytes, *, is_last: bool = False) -> None:
    """
    Write into a temporary file.

    :param is_last: whether it is the end: what is still held back goes to the disk.
    :raises RayPackageError: if the disk does not take it.
    """
    try:
        file.write(data)
        if is_last:
            file.flush()
    except OSError as error:
        raise unwritable(error) from error


def _name_wheel(name: str, digits: str) -> str:
    parts = name.removesuffix(".whl").split("-")
    if len(parts) not in (5, 6) or not all(parts) or (len(parts) == 6 and not parts[2][0].isdigit()):
        raise ValueError(
            f"{name!r} is not the name of a wheel (name-version-python-abi-platform.whl), by which pip would install it"
        )
    build = parts[2] if len(parts) == 6 else "0"
    return "-".join([*parts[:2], f"{build}_{digits}", *parts[-3:]]) + ".whl"


def read(entry: Entry) -> Iterator[bytes]:
    """
    Read a file in pieces, and see to it that it is, and stays, the one that was selected.

    :raises RayPackageError: for a file that cannot be read, or that changed since.
    """
    if entry.data is not None:
        yield entry.data
        return
    try:
        # without Python's file objects: most files of a tree are small, and opening them is what takes the time
        file = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that has taken its place must not hold us
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or FileStamp.of(status) != entry.stamp:
                raise changed(entry.path, "it is not the file that it was")
            left = entry.size
            while left and (chunk := os.read(file, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
            if left or FileStamp.of(os.fstat(file)) != entry.stamp:
                raise changed(entry.path, "it was written to")
        finally:
            os.close(file)
    except (FileNotFoundError, IsADirectoryError):
        raise changed(entry.path, "it is gone") from None
    except OSError as error:
        raise unreadable(entry.path, error) from error


def _digests_of_large(tree: Tree, watch: Watch) -> dict[str, bytes]:
    """Read large files a few at a time: hashing them is what takes the time, and needs no lock of Python's."""
    large = [entry for entry in tree.entries if entry.size >= _LARGE]
    if len(large) < 2:
        return {}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda entry: _digest(entry, watch), large)
        return dict(zip([entry.name for entry in large], found, strict=True))


def _digest(entry: Entry, watch: Watch) -> bytes:
    digest = hashlib.sha256()
    for chunk in read(entry):
        digest.update(chunk)
        watch(len(chunk))
    return digest.digest()
