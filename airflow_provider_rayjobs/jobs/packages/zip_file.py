"""
A tree as a zip file, written in small pieces: memory does not grow with its size.

Files are deflated at the fastest level: better levels cost more time than their smaller uploads save. Files that do not
compress, such as images and most models, are stored. The bytes depend on the tree alone.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Mapping
from itertools import chain
from typing import IO

from airflow_provider_rayjobs.jobs.packages.digest import read_as_named
from airflow_provider_rayjobs.jobs.packages.tree import Entry, Tree
from airflow_provider_rayjobs.jobs.progress import Progress

_LEVEL = 1
# A file is deflated if its first bytes shrink to this ratio or less.
_WORTH_IT = 0.9
_SAMPLE = 32 * 1024
# Larger files need the 64-bit form of a zip entry. A little below the limit, as deflating may add some bytes.
_ZIP64_FROM = 2**31 - 2**20


def write_zip(tree: Tree, top: str, digests: Mapping[str, bytes], file: IO[bytes]) -> Progress[None]:
    """
    Write a tree as a zip file. Close this generator before the file.

    :param top: a directory around all files, "" for none.
    :param digests: those of :func:`~.digest.digest_tree`; a file with another one is an error.
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
    sample = first[:_SAMPLE]
    shrinks = len(zlib.compress(sample, _LEVEL)) < len(sample) * _WORTH_IT
    archive.compression = zipfile.ZIP_DEFLATED if shrinks else zipfile.ZIP_STORED
    # opened by name, an entry has a fixed date and no mode; closing the archive writes the modes
    with archive.open(name, "w", force_zip64=entry.size > _ZIP64_FROM) as member:
        for chunk in chain((first,), chunks):
            member.write(chunk)
            yield len(chunk)
    archive.getinfo(name).external_attr = (stat.S_IFREG | entry.mode) << 16
