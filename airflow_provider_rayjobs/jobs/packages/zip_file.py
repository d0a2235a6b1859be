"""
A tree as a zip: written piece by piece into a file, in as little memory for 90 MB as for 9.

Deflated at the fastest level, as what is saved in the upload is worth more than what the better levels save; what does
not shrink, such as images and most models, is stored. The bytes depend on the tree alone.
"""

from __future__ import annotations

import hashlib
import stat
import time
import zipfile
import zlib
from collections.abc import Generator
from itertools import chain
from typing import IO

from airflow_provider_rayjobs.jobs.packages.naming import read
from airflow_provider_rayjobs.jobs.packages.tree import Entry, Tree, changed, unwritable

_LEVEL = 1
# What a file's beginning must shrink to for deflating the rest of it to be worth its time, and how much of it is tried.
_WORTH_IT = 0.9
_SAMPLE = 32 * 1024
# Beyond this a zip needs its 64-bit form for one file; a little less than the true bound, as deflating may add a
# little.
_ZIP64_FROM = 2**31 - 2**20


class Packing:
    """
    The making of a zip, in turns: so that whoever waits for it can say how far it is, and can be stopped.

    :param tree: what goes in.
    :param top: the top directory's name, "" for none.
    :param digests: of the contents when the package got its name; what differs now has changed.
    :param file: where it is written.
    :param limit: bytes after which there is no use in going on; ``None`` for no limit.
    """

    def __init__(self, tree: Tree, top: str, digests: dict[str, bytes], file: IO[bytes], limit: int | None) -> None:
        self.done = 0
        self.is_too_large = False
        self.size = tree.size
        self._steps = _write(tree, top, digests, file, limit)

    def advance(self, seconds: float) -> bool:
        """
        Go on for a while, and tell whether there is more to do. A zip over its limit is given up.

        :raises RayPackageError: if a file changed or cannot be read, or the disk is full.
        """
        end = time.monotonic() + seconds
        try:
            for count in self._steps:
                self.done += count
                if time.monotonic() > end:
                    return True
        except _TooLarge:
            self.is_too_large = True
        except OSError as error:
            raise unwritable(error) from error  # what cannot be read is said by who reads
        return False

    def close(self) -> None:
        """Leave the file as it is; it must still be open."""
        self._steps.close()


class _TooLarge(Exception):  # noqa: N818  (no error yet: whoever packs knows what to say)
    """A zip grew over its limit."""


def _write(
    tree: Tree, top: str, digests: dict[str, bytes], file: IO[bytes], limit: int | None
) -> Generator[int, None, None]:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for entry in tree.entries:
            # "./" is the root itself, when it is empty; a directory's own name may end in a dot
            shown = "" if entry.name == "./" else entry.name
            name = f"{top}/{shown}" if top else shown
            if entry.is_directory:
                directory = zipfile.ZipInfo(name)
                directory.external_attr = (stat.S_IFDIR | entry.mode) << 16 | 0x10
                if directory.filename:
                    archive.writestr(directory, b"")
                continue
            for count in _write_file(archive, name, entry, digests[entry.name]):
                if limit is not None and file.tell() >= limit:
                    raise _TooLarge
                yield count
    # what is still held back finds out here whether the disk takes it, and not in the midst of the upload
    file.flush()
    if limit is not None and file.tell() >= limit:
        raise _TooLarge


def _write_file(archive: zipfile.ZipFile, name: str, entry: Entry, expected: bytes) -> Generator[int, None, None]:
    chunks = read(entry)
    first = next(chunks, b"")
    digest = hashlib.sha256()
    archive.compression = zipfile.ZIP_DEFLATED if _shrinks(first) else zipfile.ZIP_STORED
    with archive.open(name, "w", force_zip64=entry.size > _ZIP64_FROM) as member:
        for chunk in chain((first,), chunks):
            digest.update(chunk)
            member.write(chunk)
            yield len(chunk)
    # by name alone archive.open() deflates at the archive's level, for 1980 and with no mode; the directory at the
    # archive's end, where modes stand, is written when it is closed
    archive.getinfo(name).external_attr = (stat.S_IFREG | entry.mode) << 16
    if digest.digest() != expected:
        raise changed(entry.path, "its contents are others")


def _shrinks(data: bytes) -> bool:
    sample = data[:_SAMPLE]
    return len(zlib.compress(sample, _LEVEL)) < len(sample) * _WORTH_IT
