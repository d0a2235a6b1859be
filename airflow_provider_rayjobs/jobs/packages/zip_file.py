"""
A tree as a zip: written piece by piece into a file, in as little memory for 90 MB as for 9.

Deflated at the fastest level, as what is saved in the upload is worth more than what the better levels save; what does
not shrink, such as images and most models, is stored. The bytes depend on the tree alone.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Mapping
from itertools import chain
from typing import IO

from airflow_provider_rayjobs.jobs.packages.naming import read_as_named
from airflow_provider_rayjobs.jobs.packages.news import Progress
from airflow_provider_rayjobs.jobs.packages.tree import Entry, Tree

_LEVEL = 1
# What a file's beginning must shrink to for deflating the rest of it to be worth its time, and how much of it is tried.
_WORTH_IT = 0.9
_SAMPLE = 32 * 1024
# Beyond this a zip needs its 64-bit form for one file; a little less than the true bound, as deflating may add a
# little.
_ZIP64_FROM = 2**31 - 2**20


def write_zip(tree: Tree, top: str, digests: Mapping[str, bytes], file: IO[bytes]) -> Progress[None]:
    """
    Write a tree as a zip; the file must still be open when this is closed.

    :param top: the name of a directory around all of it, "" for none.
    :param digests: of the contents when the package got its name.
    :raises RayPackageError: if a file changed or cannot be read.
    :raises OSError: if the zip cannot be written.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for entry in tree.entries:
            name = f"{top}/{entry.name}" if top else entry.name
            if entry.is_directory:
                directory = zipfile.ZipInfo(name)
                directory.external_attr = (stat.S_IFDIR | entry.mode) << 16 | 0x10
                archive.writestr(directory, b"")
            else:
                yield from _write_file(archive, name, entry, digests[entry.name])


def _write_file(archive: zipfile.ZipFile, name: str, entry: Entry, digest: bytes) -> Progress[None]:
    chunks = read_as_named(entry, digest)
    first = next(chunks, b"")
    archive.compression = zipfile.ZIP_DEFLATED if _shrinks(first) else zipfile.ZIP_STORED
    with archive.open(name, "w", force_zip64=entry.size > _ZIP64_FROM) as member:
        for chunk in chain((first,), chunks):
            member.write(chunk)
            yield len(chunk)
    # by name alone archive.open() deflates at the archive's level, for 1980 and with no mode; the directory at the
    # archive's end, where modes stand, is written when it is closed
    archive.getinfo(name).external_attr = (stat.S_IFREG | entry.mode) << 16


def _shrinks(data: bytes) -> bool:
    sample = data[:_SAMPLE]
    return len(zlib.compress(sample, _LEVEL)) < len(sample) * _WORTH_IT
