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
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from airflow_provider_rayjobs.jobs.packages.news import Progress
from airflow_provider_rayjobs.jobs.packages.tree import Entry, Tree, changed, stamp_of, unreadable

# What Ray 2.60 unpacks; older heads may know .zip and .whl alone.
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.xz")
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
# How many of each file are read between two yields: few enough for a short turn, many enough for the threads.
_CHUNKS = 16


def digest_tree(tree: Tree) -> Progress[dict[str, bytes]]:
    """
    Read a tree's files, and return the digests of their contents by the entries' names.

    :raises RayPackageError: for a file that cannot be read, or that changes meanwhile.
    """
    digests = yield from _digest_large(entry for entry in tree.entries if entry.size >= _LARGE)
    for entry in tree.entries:
        if not entry.is_directory and entry.name not in digests:
            digests[entry.name] = hashlib.sha256(b"".join(read(entry))).digest()
            yield entry.size
    return digests


def name_tree(tree: Tree, digests: Mapping[str, bytes]) -> str:
    """
    Return the name of a tree's package.

    :param digests: those of :func:`digest_tree`.
    """
    whole = hashlib.sha256(_VERSION)
    for entry in tree.entries:
        name = entry.name.encode()
        content = b"" if entry.is_directory else digests[entry.name]
        whole.update(b"%o %d %s%s" % (entry.mode, len(name), name, content))
    return f"{_PREFIX}{whole.hexdigest()[:_DIGITS]}.zip"


def name_archive(filename: str, digest: bytes) -> str:
    """
    Return the name of an archive that goes to the cluster as it is.

    Ray installs a wheel by its file's name, and keeps what it has installed by that name. So a wheel keeps its own,
    with the digest in the one part that may be added: the build tag.
    """
    # by which Ray knows how to unpack it
    suffix = next(it for it in (*ARCHIVES, ".whl") if filename.endswith(it)).replace(".tgz", ".tar.gz")
    digits = hashlib.sha256(_VERSION + suffix.encode() + digest).hexdigest()[:_DIGITS]
    if suffix != ".whl":
        return f"{_PREFIX}{digits}{suffix}"
    parts = filename.removesuffix(suffix).split("-")
    if len(parts) not in (5, 6) or not all(parts) or (len(parts) == 6 and not parts[2][0].isdigit()):
        raise ValueError(
            f"{filename!r} is not the name of a wheel (name-version-python-abi-platform.whl), by which pip would "
            "install it"
        )
    build = parts[2] if len(parts) == 6 else "0"
    return "-".join([*parts[:2], f"{build}_{digits}", *parts[-3:]]) + suffix


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
            if not stat.S_ISREG(status.st_mode) or stamp_of(status) != entry.stamp:
                raise changed(entry.path, "it is not the file that it was")
            left = entry.size
            while left and (chunk := os.read(file, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
            if left or stamp_of(os.fstat(file)) != entry.stamp:
                raise changed(entry.path, "it was written to")
        finally:
            os.close(file)
    except (FileNotFoundError, IsADirectoryError):
        raise changed(entry.path, "it is gone") from None
    except OSError as error:
        raise unreadable(entry.path, error) from error


def read_as_named(entry: Entry, digest: bytes) -> Iterator[bytes]:
    """
    Read a file as :func:`read` does, and make sure that it holds what it held when its package got its name.

    :raises RayPackageError: as for :func:`read`, and for another digest.
    """
    actual = hashlib.sha256()
    for chunk in read(entry):
        actual.update(chunk)
        yield chunk
    if actual.digest() != digest:
        raise changed(entry.path, "its contents are others")


def _digest_large(entries: Iterable[Entry]) -> Progress[dict[str, bytes]]:
    """Read large files a few at a time: hashing them is what takes the time, and needs no lock of Python's."""
    digests: dict[str, bytes] = {}
    ahead = map(_Hashing, entries)
    count = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        hashings = list(islice(ahead, count))
        while hashings:
            # the threads work only between two yields: so nothing is left at work where this is closed
            yield sum(pool.map(_Hashing.advance, hashings))
            digests |= {each.name: each.digest.digest() for each in hashings if each.is_done}
            hashings = [each for each in hashings if not each.is_done]
            hashings += islice(ahead, count - len(hashings))
    return digests


class _Hashing:
    """The reading of one file for its digest."""

    def __init__(self, entry: Entry) -> None:
        self.name = entry.name
        self.digest = hashlib.sha256()
        self.is_done = False
        self._chunks = read(entry)

    def advance(self) -> int:
        """Read a few chunks more, and return how many bytes they are."""
        chunks = 0
        size = 0
        for chunk in islice(self._chunks, _CHUNKS):
            self.digest.update(chunk)
            chunks += 1
            size += len(chunk)
        self.is_done = chunks < _CHUNKS
        return size
