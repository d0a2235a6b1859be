"""
The engine: packages are on the cluster, or in its storage, before the job is.

It asks first: a package that is there is not packed, let alone sent. The question pins what it asks for, for ten
minutes, and an upload does not; so it is asked again after an upload, and when other packages took long.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import IO

from airflow_provider_rayjobs.exceptions import (
    RayJobsConnectionError,
    RayJobsUnavailableError,
    RayJobsUnreachableError,
    RayPackageError,
    RayPackageNotFoundError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.packages.local_code import LIMIT, LocalCode, Package, PackageStorage, too_large
from airflow_provider_rayjobs.jobs.packages.naming import read_as_named
from airflow_provider_rayjobs.jobs.packages.news import MIB, News, Progress, in_turns
from airflow_provider_rayjobs.jobs.packages.tree import printable
from airflow_provider_rayjobs.jobs.packages.zip_file import write_zip
from airflow_provider_rayjobs.jobs.steps import Engine, Note, Sleep, Upload, Work, repeated, send

# Ray keeps for 600 s what was asked for (``RAY_RUNTIME_ENV_URI_PIN_EXPIRATION_S``), and a cluster may be told less.
_ASK_AGAIN = 120.0
_CHUNK = 256 * 1024
_SECRETS_SHOWN = 10


def provide(code: LocalCode, patience: float) -> Engine[None]:
    """
    See to it that all packages are where the job will look for them.

    :param patience: seconds for which failures that may pass are borne.
    :raises ValueError: for a package over the limit of Ray's HTTP server.
    :raises RayPackageError: for what cannot be packed or stored.
    :raises RayJobsUnreachableError: the patience is over.
    """
    try:
        yield from _provide(code, patience)
    except (RayJobsConnectionError, RayJobsUnavailableError) as error:
        raise RayJobsUnreachableError(
            f"{error} It was tried for {patience:.0f} s; no job was submitted.", sent=False
        ) from error


def _provide(code: LocalCode, patience: float) -> Engine[None]:
    asked: dict[str, float] = {}
    for package in code.packages:
        yield from _tell(package)
        began = yield Sleep(0)
        if package.storage is not None:
            done = yield from _store(package, package.storage)
        else:
            done = yield from _upload_if_missing(package, patience, asked)
        now = yield Sleep(0)
        took = "" if done.startswith("already") else f" in {now - began:.1f} s"
        yield Note(
            f"{package.owner} {package.source}: package {package.name}, {package.content}; named in "
            f"{package.seconds:.1f} s, {done}{took}."
        )
    for package in code.packages:
        now = yield Sleep(0)
        if package.name in asked and now - asked[package.name] > _ASK_AGAIN:
            yield from _upload_if_missing(package, patience, asked)


def _tell(package: Package) -> Engine[None]:
    for warning in package.tree.warnings:
        yield Note(f"{package.owner}: {warning}", logging.WARNING)
    if secrets := package.tree.secrets:
        shown = ", ".join(map(printable, secrets[:_SECRETS_SHOWN]))
        more = f" and {len(secrets) - _SECRETS_SHOWN} more" if len(secrets) > _SECRETS_SHOWN else ""
        yield Note(
            f"{package.owner}: left out as secrets, by their names: {shown}{more}. Set package_secrets to pack them.",
            logging.WARNING,
        )


def _upload_if_missing(package: Package, patience: float, asked: dict[str, float]) -> Engine[str]:
    """Return what was done, in words."""
    if (yield from _is_held(package, patience, asked)):
        return "already on the cluster"
    with ExitStack() as stack:
        file = yield from _packed(package, LIMIT, stack)
        size = file.tell()
        for _ in range(2):
            body = Body(file, size, package.name)
            yield from repeated(Upload(endpoints.put_package(package.name, size), body), patience)
            if (yield from _is_held(package, patience, asked)):
                return f"uploaded ({size / MIB:.1f} MiB)"
    raise RayPackageError(
        f"The cluster took package {package.name} ({size} bytes), and does not hold it when asked: it is short of "
        "memory, or several heads answer at its address. Nothing was submitted."
    )


def _is_held(package: Package, patience: float, asked: dict[str, float]) -> Engine[bool]:
    asked[package.name] = yield Sleep(0)
    try:
        yield from send(endpoints.get_package(package.name), patience)
    except RayPackageNotFoundError:
        return False
    return True


def _store(package: Package, storage: PackageStorage) -> Engine[str]:
    if (yield Work(lambda: storage.has(package.name))):
        return f"already at {package.uri}"
    with ExitStack() as stack:
        file = yield from _packed(package, None, stack)
        size = file.tell()
        yield Note(f"Storing {package.name} ({size / MIB:.1f} MiB) at {package.uri} ...")
        yield from in_turns(storage.put(package.name, file), f"Storing {package.name}", size)
    return f"stored at {package.uri} ({size / MIB:.1f} MiB)"


def _packed(package: Package, limit: int | None, stack: ExitStack) -> Engine[IO[bytes]]:
    return (yield from in_turns(pack(package, limit, stack), f"Packing {package.source}", package.tree.size))


def pack(package: Package, limit: int | None, stack: ExitStack) -> Progress[IO[bytes]]:
    """
    Write a package into a temporary file, and return it, at its end.

    It has no name, so that it leaves nothing on the disk, whatever kills this process. An archive is copied, as the
    original may change before it is sent once more.

    :param limit: bytes that it must be smaller than; ``None`` for no limit.
    :param stack: closes the file.
    :raises ValueError: for a package over the limit, as soon as it is.
    :raises RayPackageError: if a file changed or cannot be read, or the disk is full.
    """
    try:
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (the stack closes it)
        with closing(_write(package, file)) as writing:
            for count in writing:
                yield count
                if limit is not None and file.tell() >= limit:
                    raise ValueError(too_large(package))
    except OSError as error:
        raise RayPackageError(
            f"Could not write a package into a temporary file: {error.strerror or error}. Nothing was submitted. "
            "Make room there, or set TMPDIR to another place."
        ) from error
    return file


def _write(package: Package, file: IO[bytes]) -> Progress[None]:
    if package.is_archive:
        [entry] = package.tree.entries
        for chunk in read_as_named(entry, package.digests[entry.name]):
            file.write(chunk)
            yield len(chunk)
    else:
        yield from write_zip(package.tree, package.top, package.digests, file)
    # what is still held back finds out here whether the disk takes it, and not in the midst of the upload
    file.flush()
    yield 0


class Body:
    """
    The bytes of an upload, and the news of it.

    :param file: read from its start for each try.
    :param size: of the file, bytes.
    """

    def __init__(self, file: IO[bytes], size: int, name: str) -> None:
        self._file = file
        self._size = size
        self._name = name

    def chunks(self, clock: Callable[[], float], note: Callable[[Note], object]) -> Iterator[bytes]:
        """Read the file, and say every few seconds how much of it was taken."""
        self._file.seek(0)
        sent = 0
        news = News(f"Uploading {self._name}", self._size, clock())
        while chunk := self._file.read(_CHUNK):
            yield chunk
            sent += len(chunk)
            for each in news.after(sent, clock()):
                note(each)
