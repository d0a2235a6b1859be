"""
A place for packages that are too large for Ray's HTTP server: any object storage that Airflow and Ray's workers know.

A package is stored under its name, which tells its contents, and only if it is not there. It appears whole or not at
all: an object appears when its upload ends, and a file is renamed into its place.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import IO, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.packages.news import Progress

# Airflow's word for a storage, and Ray's. Ray's ``gcs`` is the cluster's own store, and never Google's.
# Source: Ray 2.60 ``_private/runtime_env/protocol.py``.
_SCHEMES = {"file": "file", "s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs", "abfss": "abfss"}
_CHUNK = 8 * 1024 * 1024


def storage_at(path: Any) -> Storage:
    """
    Return the storage at an object storage path.

    :param path: text, or an :class:`~airflow.sdk.ObjectStoragePath`; in text, environment variables are filled in, and
        a path of this machine's file system is made absolute.
    :raises ValueError: for one that Ray's workers cannot read.
    """
    try:
        place = path if isinstance(path, ObjectStoragePath) else ObjectStoragePath(_whole(str(path)))
        scheme = _SCHEMES.get(place.protocol or "file")
    except (ValueError, ImportError) as error:
        raise ValueError(f"package_storage {str(path)!r} is no object storage that Airflow knows: {error}") from error
    if scheme is None:
        raise ValueError(
            f"package_storage is {str(path)!r}, and Ray's workers read no {place.protocol}://. Give one of "
            f"{', '.join(f'{each}://' for each in _SCHEMES)}."
        )
    return Storage(place, scheme)


def _whole(path: str) -> str:
    text = os.path.expandvars(path)
    if "://" in text and not text.startswith("file://"):
        return text
    # a relative one would lead Ray's workers nowhere
    return "file://" + os.path.abspath(os.path.expanduser(text.removeprefix("file://")))  # noqa: PTH100, PTH111


class Storage:
    """
    A :class:`~airflow_provider_rayjobs.jobs.packages.local_code.PackageStorage` at an Airflow object storage path.

    :param place: where packages lie.
    :param scheme: of the address that Ray's workers read.
    """

    def __init__(self, place: ObjectStoragePath, scheme: str) -> None:
        self._place = place
        self._scheme = scheme

    def uri_of(self, name: str) -> str:
        """Return the address by which Ray's workers read a package: without Airflow's connection, with Ray's scheme."""
        path = self._path_of(name)
        if self._scheme == "abfss":
            return self._azure_uri(path)
        return f"{self._scheme}://{path}"

    def has(self, name: str) -> bool:
        """Tell whether a package is there."""
        try:
            return bool(self._place.fs.exists(self._path_of(name)))
        except Exception as error:
            raise self._error("look for", name, error) from error

    def put(self, name: str, file: IO[bytes]) -> Progress[None]:
        """
        Store a package, whole or not at all.

        :raises RayPackageError: if the storage does not take it; what had arrived of it is taken away.
        """
        try:
            if self._scheme == "file":
                yield from self._put_file(name, file)
            else:
                yield from self._put_object(name, file)
        except Exception as error:
            raise self._error("store", name, error) from error

    def _put_file(self, name: str, file: IO[bytes]) -> Progress[None]:
        fs = self._place.fs
        fs.makedirs(self._path_of("").rstrip("/"), exist_ok=True)
        # beside its place, so that the renaming is one step of the same file system
        part = self._path_of(f".{name}.{secrets.token_hex(4)}.part")
        try:
            with fs.open(part, "wb") as target:
                yield from _copy(file, target)
            os.replace(part, self._path_of(name))  # noqa: PTH105  (fsspec copies where it could rename)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)  # noqa: PTH108
            raise

    def _put_object(self, name: str, file: IO[bytes]) -> Progress[None]:
        # what is not committed never appears, where the storage knows such a thing
        target = self._place.fs.open(self._path_of(name), "wb", autocommit=False)
        try:
            yield from _copy(file, target)
            target.close()
            target.commit()
        except BaseException:
            with suppress(Exception):
                target.discard()
            with suppress(AttributeError):
                target.closed = True  # or what is collected as garbage sends what it still holds
            raise

    def _path_of(self, name: str) -> str:
        return f"{self._place.path.rstrip('/')}/{name}"

    def _azure_uri(self, path: str) -> str:
        try:
            account = self._place.fs.account_name
        except Exception as error:
            raise self._error("find an address for", path.rpartition("/")[2], error) from error
        container, _, rest = path.lstrip("/").partition("/")
        return f"abfss://{container}@{account}.dfs.core.windows.net/{rest}"

    def _error(self, what: str, name: str, error: Exception) -> RayPackageError:
        return RayPackageError(
            f"Could not {what} package {name} at {self._place}: {type(error).__name__}: {error}. Nothing was "
            "submitted. Check package_storage and the connection that it names."
        )


def _copy(source: IO[bytes], target: Any) -> Progress[None]:
    source.seek(0)
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        yield len(chunk)
