"""
The engine: packages are on the cluster, or in its storage, before the job is.

It asks first: a package that is there is not packed, let alone sent. The question pins what it asks for, for ten
minutes, and an upload does not; so it is asked again after an upload, and when other packages took long.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import IO, Self

from airflow_provider_rayjobs.exceptions import RayApiPackageNotFoundError, RayPackageError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.packages.digest import name_archive
from airflow_provider_rayjobs.jobs.packages.local_code import LIMIT, MIB, LocalCode, Package, PackageStorage, too_large
from airflow_provider_rayjobs.jobs.packages.tree import changed, printable, unwritable
from airflow_provider_rayjobs.jobs.packages.zip_file import Packing, check_unchanged
from airflow_provider_rayjobs.jobs.progress import Throttle
from airflow_provider_rayjobs.jobs.steps import (
    Engine,
    LogMessage,
    RunBlocking,
    Sleep,
    Upload,
    raising_unreachable,
    send,
    with_retries,
)

# Seconds of packing at once; between them the engine can be stopped.
_TURN = 0.25
# Ray keeps for 600 s what was asked for (``RAY_RUNTIME_ENV_URI_PIN_EXPIRATION_S``), and a cluster may be told less.
_ASK_AGAIN = 120.0
_CHUNK = 256 * 1024
# What is larger than this may keep a storage busy for a while.
_WORTH_A_WORD = 16 * MIB
_SECRETS_SHOWN = 10


def upload_packages(code: LocalCode, retry_timeout: float) -> Engine[None]:
    """
    See to it that all packages are where the job will look for them.

    :param retry_timeout: seconds for which failures that may pass are borne.
    :raises ValueError: for a package over the limit of Ray's HTTP server.
    :raises RayPackageError: for what cannot be packed or stored.
    :raises RayApiUnreachableError: the patience is over.
    """
    asked: dict[str, float] = {}
    for package in code.packages:
        yield from _tell(package)
        began = yield Sleep(0)
        if package.storage is not None:
            done = yield from _store(package, package.storage)
        else:
            done = yield from _reachable(_upload_if_missing(package, retry_timeout, asked), retry_timeout)
        now = yield Sleep(0)
        took = "" if done.startswith("already") else f" in {now - began:.1f} s"
        yield LogMessage(
            f"{package.owner} {package.source}: package {package.name}, {package.content}; named in "
            f"{package.seconds:.1f} s, {done}{took}."
        )
    for package in code.packages:
        now = yield Sleep(0)
        if package.name in asked and now - asked[package.name] > _ASK_AGAIN:
            yield from _reachable(_upload_if_missing(package, retry_timeout, asked), retry_timeout)


def _tell(package: Package) -> Engine[None]:
    if package.tree is None:
        return
    for warning in package.tree.warnings:
        yield LogMessage(f"{package.owner}: {warning}", logging.WARNING)
    if secrets := package.tree.secrets:
        shown = ", ".join(map(printable, secrets[:_SECRETS_SHOWN]))
        more = f" and {len(secrets) - _SECRETS_SHOWN} more" if len(secrets) > _SECRETS_SHOWN else ""
        yield LogMessage(
            f"{package.owner}: left out, as they look like secrets: {shown}{more}. "
            "package_secrets says which are packed all the same.",
            logging.WARNING,
        )


def _reachable(engine: Engine[str], retry_timeout: float) -> Engine[str]:
    with raising_unreachable(retry_timeout, "No job was submitted.", sent=False):
        return (yield from engine)


def _upload_if_missing(package: Package, retry_timeout: float, asked: dict[str, float]) -> Engine[str]:
    """Return what was done, in words."""
    if (yield from _is_held(package, retry_timeout, asked)):
        return "already on the cluster"
    with _Scratch() as scratch:
        file = yield RunBlocking(scratch.open)
        size = yield from _fill(package, file, LIMIT)
        for _ in range(2):
            body = Body(file, size, package.name)
            yield from with_retries(Upload(endpoints.put_package(package.name, size), body), retry_timeout)
            if (yield from _is_held(package, retry_timeout, asked)):
                return f"uploaded ({size / MIB:.1f} MiB)"
    raise RayPackageError(
        f"The cluster took package {package.name} ({size} bytes), and does not hold it when asked: it is short of "
        "memory, or several heads answer at its address. Nothing was submitted."
    )


def _is_held(package: Package, retry_timeout: float, asked: dict[str, float]) -> Engine[bool]:
    asked[package.name] = yield Sleep(0)
    try:
        yield from send(endpoints.get_package(package.name), retry_timeout)
    except RayApiPackageNotFoundError:
        return False
    return True


def _store(package: Package, storage: PackageStorage) -> Engine[str]:
    if (yield RunBlocking(lambda: storage.has(package.name))):
        return f"already at {package.uri}"
    with _Scratch() as scratch:
        file = yield RunBlocking(scratch.open)
        size = yield from _fill(package, file, None)
        if size > _WORTH_A_WORD:
            yield LogMessage(f"Storing {package.name} ({size / MIB:.1f} MiB) at {package.uri} ...")
        storing = storage.put(package.name, file)
        news = Throttle((yield Sleep(0)))
        with closing(storing):
            while (done := (yield RunBlocking(lambda: next(storing, None)))) is not None:
                if news.is_due((yield Sleep(0))):
                    yield LogMessage(f"Storing {package.name}: {done // MIB} of {size // MIB} MiB.")
    return f"stored at {package.uri} ({size / MIB:.1f} MiB)"


def _fill(package: Package, file: IO[bytes], limit: int | None) -> Engine[int]:
    """Write a package's bytes into a file, and return how many they are."""
    tree = package.tree
    if tree is None:
        size: int = yield RunBlocking(lambda: _copy(package, file))
        return size
    packing = Packing(tree, package.top, package.digests, file, limit)
    news = Throttle((yield Sleep(0)))
    with closing(packing):
        while (yield RunBlocking(lambda: packing.advance(_TURN))):
            if news.is_due((yield Sleep(0))):
                yield LogMessage(f"Packing {package.source}: {packing.done // MIB} of {packing.size // MIB} MiB read.")
        if packing.is_too_large:
            raise ValueError(too_large(package))
    if tree.root:
        yield RunBlocking(lambda: check_unchanged(tree, package.selection))
    return file.tell()


def _copy(package: Package, file: IO[bytes]) -> int:
    """Take an archive's bytes: a copy of its own, as the original may change before it is sent once more."""
    if name_archive(package.source, package.suffix, file) != package.name:
        raise changed(str(package.source), "its contents are others")
    return file.tell()


class _Scratch:
    """A file without a name: whatever kills this process, it leaves nothing on the disk."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def open(self) -> IO[bytes]:
        """Make it, and keep it: whoever asked for it may be interrupted before he has it."""
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError as error:
            raise unwritable(error) from error
        return self._file


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

    def chunks(self, clock: Callable[[], float], note: Callable[[LogMessage], object]) -> Iterator[bytes]:
        """Read the file, and say every few seconds how much of it was taken."""
        self._file.seek(0)
        sent = 0
        news = Throttle(clock())
        while chunk := self._file.read(_CHUNK):
            yield chunk
            sent += len(chunk)
            if sent < self._size and news.is_due(clock()):
                share = 100 * sent // self._size
                note(LogMessage(f"Uploading {self._name}: {sent // MIB} of {self._size // MIB} MiB ({share} %)."))
