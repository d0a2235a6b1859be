"""
The name of a package: a digest of the names, contents and executable bits of its files.

Times, owners, umask and the directory's path do not count. So the same tree has the same name on every machine,
and a cluster needs it only once.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from airflow_provider_rayjobs.jobs.packages.paths import unreadable
from airflow_provider_rayjobs.jobs.packages.tree import Entry, Tree, changed, stamp_of
from airflow_provider_rayjobs.jobs.progress import Progress

# The archives that Ray 2.60 unpacks. Older heads may support .zip and .whl only.
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.xz")
# Change this whenever the digest is computed in another way.
_VERSION = b"rayjobs package 1\n"
# Ray's prefix of package names, and the number of hexadecimal digits after it.
_PREFIX = "_ray_pkg_"
_DIGITS = 40
# Small enough for a processor's cache.
CHUNK = 256 * 1024
# Files from this size on are hashed on several threads. Each thread hashes 16 chunks between two yields.
_LARGE = 512 * 1024
_THREADS, _CHUNKS = 4, 16


def digest_tree(tree: Tree) -> Progress[dict[str, bytes]]:
    """Read all files of a tree and return the digests of their contents, by name."""
    digests = yield from _digest_large(entry for entry in tree.entries if entry.size >= _LARGE)
    for entry in tree.entries:
        if not entry.is_directory and entry.name not in digests:
            digests[entry.name] = hashlib.sha256(b"".join(read(entry))).digest()
            yield entry.size
    return digests


def name_tree(tree: Tree, digests: Mapping[str, bytes]) -> str:
    """Return the name of a tree's package."""
    whole = hashlib.sha256(_VERSION)
    for entry in tree.entries:
        name = entry.name.encode()
        content = b"" if entry.is_directory else digests[entry.name]
        whole.update(b"%o %d %s%s" % (entry.mode, len(name), name, content))
    return f"{_PREFIX}{whole.hexdigest()[:_DIGITS]}.zip"


def name_archive(filename: str, digest: bytes) -> str:
    """
    Return the name of an archive's package.

    Ray installs a wheel by its file name and caches it by that name. So the digest goes into the build tag of a wheel.
    """
    suffix = next(it for it in (*ARCHIVES, ".whl") if filename.endswith(it)).replace(".tgz", ".tar.gz")
    digits = hashlib.sha256(_VERSION + suffix.encode() + digest).hexdigest()[:_DIGITS]
    if suffix != ".whl":
        return f"{_PREFIX}{digits}{suffix}"
    parts = filename.removesuffix(suffix).split("-")
    if len(parts) not in (5, 6) or not all(parts) or (len(parts) == 6 and not parts[2][0].isdigit()):
        raise ValueError(
            f"Invalid wheel name: {filename!r}. pip installs by the name: name-version-python-abi-platform.whl."
        )
    build = parts[2] if len(parts) == 6 else "0"
    return "-".join([*parts[:2], f"{build}_{digits}", *parts[-3:]]) + suffix


def read(entry: Entry) -> Iterator[bytes]:
    """Read a file in chunks. Raise an error if it has changed since its directory was listed."""
    if entry.data is not None:
        yield entry.data
        return
    try:
        # os.open, as Python's file objects take longer to open than a small file to read; O_NONBLOCK, as a pipe may
        # have replaced the file
        file = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or stamp_of(status) != entry.stamp:
                raise changed(entry.path, "it was replaced or written to")
            left = entry.size
            while left and (chunk := os.read(file, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
            if left or stamp_of(os.fstat(file)) != entry.stamp:
                raise changed(entry.path, "it was written to")
        finally:
            os.close(file)
    except (FileNotFoundError, IsADirectoryError):
        raise changed(entry.path, "it was deleted") from None
    except OSError as error:
        raise unreadable(entry.path, error) from error


def read_verified(entry: Entry, digest: bytes) -> Iterator[bytes]:
    """Read a file like :func:`read`. Raise an error at its end if its digest differs."""
    actual = hashlib.sha256()
    for chunk in read(entry):
        actual.update(chunk)
        yield chunk
    if actual.digest() != digest:
        raise changed(entry.path, "its contents differ")


def _digest_large(entries: Iterable[Entry]) -> Progress[dict[str, bytes]]:
    """Hash several files at once, as hashing and reading release the GIL."""
    digests: dict[str, bytes] = {}
    waiting = ((entry.name, _hash(entry, digests)) for entry in entries)
    count = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        files = list(islice(waiting, count))
        while files:
            # the threads are idle here, so that this generator can be closed
            yield sum(pool.map(next, [hashing for _, hashing in files]))
            files = [file for file in files if file[0] not in digests]
            files += islice(waiting, count - len(files))
    return digests


def _hash(entry: Entry, digests: dict[str, bytes]) -> Iterator[int]:
    """Add the digest of a file, and yield the size of each batch of chunks that was hashed."""
    digest = hashlib.sha256()
    size = 0
    for number, chunk in enumerate(read(entry), 1):
        digest.update(chunk)
        size += len(chunk)
        if number % _CHUNKS == 0:
            yield size
            size = 0
    digests[entry.name] = digest.digest()
    yield size
