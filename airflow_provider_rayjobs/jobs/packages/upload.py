"""
The engine that uploads packages to the cluster, or to a storage, before the job is submitted.

It first asks for each package, and packs and uploads only those that are missing. Ray keeps a package for 10 minutes
after such a request, but not after an upload, and a head that restarts may lose it. So the engine asks again after an
upload, and :meth:`UploadedPackages.ensure` asks again before an attempt to submit the job.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import IO

from airflow_provider_rayjobs.exceptions import Delivery, RayApiPackageNotFoundError, RayPackageError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.packages.digest import read_verified
from airflow_provider_rayjobs.jobs.packages.local_code import LIMIT, LocalCode, Package, PackageStorage, too_large
from airflow_provider_rayjobs.jobs.packages.tree import printable
from airflow_provider_rayjobs.jobs.packages.zip_file import write_zip
from airflow_provider_rayjobs.jobs.progress import Progress, ProgressLog, describe_size, run_in_slices
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

# Seconds between a request for a package and the submission. Ray keeps the package for 600 s by default, but a cluster
# may set less (``RAY_RUNTIME_ENV_URI_PIN_EXPIRATION_S``).
_ASK_AGAIN = 120.0
_CHUNK = 256 * 1024
_SECRETS_SHOWN = 10


@dataclass
class UploadedPackages:
    """
    The packages of a submission.

    :param seen_at: the time of the last request that found a package, by its name.
    :param sent: bytes that were sent.
    :param saved: bytes of the files that were not sent, as the cluster or the storage had them.
    """

    packages: tuple[Package, ...]
    seen_at: dict[str, float] = field(default_factory=dict)
    sent: int = 0
    saved: int = 0

    def ensure(self, is_repeated: bool) -> Engine[None]:
        """
        Ask for packages again before an attempt to submit the job, and upload those that the cluster has lost.

        Ask only for packages that were last seen more than two minutes ago. The caller retries after an error.

        :param is_repeated: whether an earlier attempt failed: the head may have restarted, so ask for all packages.
        :raises RayPackageError: for a package that is lost and cannot be packed again.
        """
        if is_repeated:
            self.seen_at.clear()
        for _ in range(2):  # the second time for packages that waited for the upload of another
            for package in self.packages:
                now = yield Sleep(0)
                if package.storage is None and now - self.seen_at.get(package.name, -math.inf) > _ASK_AGAIN:
                    yield from self._restore(package)

    def _restore(self, package: Package) -> Engine[None]:
        size = yield from _upload_if_missing(package, 0.0, self.seen_at)
        if size is not None:
            self.sent += size
            yield LogMessage(
                f"{package.owner} {package.source}: the cluster had lost package {package.name}. It was uploaded again "
                f"({describe_size(size)}).",
                logging.WARNING,
            )


def upload_packages(code: LocalCode, retry_timeout: float) -> Engine[UploadedPackages]:
    """
    Make all packages available to the job.

    :param retry_timeout: seconds for which temporary failures are retried.
    :return: the packages, for another look at them before each attempt to submit the job.
    :raises ValueError: for a package over the limit of Ray's HTTP server.
    :raises RayPackageError: for a package that cannot be packed or stored.
    :raises RayApiUnreachableError: if the cluster is unreachable for longer.
    """
    uploaded = UploadedPackages(code.packages)
    with raising_unreachable(retry_timeout, "No job was submitted.", delivery=Delivery.NOT_SENT):
        for package in code.packages:
            yield from _warn(package)
            size = yield from _provide(package, retry_timeout, uploaded.seen_at)
            uploaded.sent += size or 0
            uploaded.saved += package.tree.size if size is None else 0
    return uploaded


def _provide(package: Package, retry_timeout: float, seen_at: dict[str, float]) -> Engine[int | None]:
    """Provide a package. Return the number of bytes sent, or ``None``."""
    began = yield Sleep(0)
    if package.storage is not None:
        size = yield from _store_if_missing(package, package.storage)
        place, done = f"at {package.uri}", f"stored at {package.uri}"
    else:
        size = yield from _upload_if_missing(package, retry_timeout, seen_at)
        place, done = "on the cluster", "uploaded"
    now = yield Sleep(0)
    outcome = f"already {place}" if size is None else f"{done} ({describe_size(size)}) in {now - began:.1f} s"
    yield LogMessage(
        f"{package.owner} {package.source}: package {package.name}, {package.content}; named in "
        f"{package.seconds:.1f} s, {outcome}."
    )
    return size


def _warn(package: Package) -> Engine[None]:
    for warning in package.tree.warnings:
        yield LogMessage(f"{package.owner}: {warning}", logging.WARNING)
    if secrets := package.tree.secrets:
        names = ", ".join(map(printable, secrets[:_SECRETS_SHOWN]))
        more = f" and {len(secrets) - _SECRETS_SHOWN} more" if len(secrets) > _SECRETS_SHOWN else ""
        message = f"{package.owner}: left out as secrets, by name: {names}{more}. Set package_secrets to pack them."
        yield LogMessage(message, logging.WARNING)


def _upload_if_missing(package: Package, retry_timeout: float, seen_at: dict[str, float]) -> Engine[int | None]:
    """Upload a package if the cluster does not have it. Return the number of bytes sent, or ``None``."""
    if (yield from _exists(package, retry_timeout, seen_at)):
        return None
    with ExitStack() as stack:
        file = yield from run_in_slices(pack(package, LIMIT, stack), f"Packing {package.source}", package.tree.size)
        size = file.tell()
        upload = Upload(endpoints.put_package(package.name, size), Body(file, size, package.name))
        for _ in range(2):
            yield from with_retries(upload, retry_timeout)
            if (yield from _exists(package, retry_timeout, seen_at)):
                return size
    raise RayPackageError(
        f"Package lost: the cluster accepted {package.name} ({size} bytes) twice, but does not have it. The head may "
        "be short of memory, or several heads may share its address."
    )


def _exists(package: Package, retry_timeout: float, seen_at: dict[str, float]) -> Engine[bool]:
    asked_at = yield Sleep(0)
    try:
        yield from send(endpoints.get_package(package.name), retry_timeout)
    except RayApiPackageNotFoundError:
        return False
    seen_at[package.name] = asked_at
    return True


def _store_if_missing(package: Package, storage: PackageStorage) -> Engine[int | None]:
    """Store a package if the storage does not have it. Return the number of bytes sent, or ``None``."""
    if (yield RunBlocking(lambda: storage.has(package.name))):
        return None
    with ExitStack() as stack:
        file = yield from run_in_slices(pack(package, None, stack), f"Packing {package.source}", package.tree.size)
        size = file.tell()
        yield LogMessage(f"Storing {package.name} ({describe_size(size)}) at {package.uri} ...")
        yield from run_in_slices(storage.put(package.name, file), f"Storing {package.name}", size)
    return size


def pack(package: Package, limit: int | None, stack: ExitStack) -> Progress[IO[bytes]]:
    """
    Write a package into a temporary file and return the file, positioned at its end.

    The file has no name, so that nothing remains on the disk if this process is killed. Archives are copied, as the
    original may change between two uploads.

    :param limit: bytes; a package that reaches it is a :class:`ValueError`.
    :param stack: closes the file.
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
            f"Could not write a temporary file for a package: {error.strerror or error}. The package was not uploaded. "
            "Free disk space, or set TMPDIR to another directory."
        ) from error
    return file


def _write(package: Package, file: IO[bytes]) -> Progress[None]:
    if package.is_archive:
        [entry] = package.tree.entries
        for chunk in read_verified(entry, package.digests[entry.name]):
            file.write(chunk)
            yield len(chunk)
    else:
        yield from write_zip(package.tree, package.top, package.digests, file)
    file.flush()  # so that a full disk is an error here, not during the upload
    yield 0


@dataclass(frozen=True)
class Body:
    """The content of an upload: a file, which each attempt reads from its start."""

    file: IO[bytes]
    size: int
    name: str

    def chunks(self, clock: Callable[[], float], log: Callable[[LogMessage], object]) -> Iterator[bytes]:
        """Yield the file's bytes, and log the progress."""
        self.file.seek(0)
        sent = 0
        progress = ProgressLog(f"Uploading {self.name}", self.size, clock())
        while chunk := self.file.read(_CHUNK):
            yield chunk
            sent += len(chunk)
            for message in progress.messages(sent, clock()):
                log(message)
