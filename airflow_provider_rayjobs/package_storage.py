"""
Object storage for packages that are too large for Ray's HTTP server.

A package appears complete or not at all: an object when its upload is committed, a file when it is renamed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.progress import Progress
from airflow_provider_rayjobs.jobs.redaction import raise_unchained, redact_urls

# Airflow's schemes to Ray's. In Ray ``gcs`` means the cluster's own store, not Google Cloud Storage.
# Source: Ray 2.60 ``_private/runtime_env/protocol.py``.
_SCHEMES = {"file": "file", "s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs", "abfss": "abfss"}
_CHUNK = 8 * 1024 * 1024


def open_storage(path: Any) -> Storage:
    """
    Return the storage at an :class:`~airflow.sdk.ObjectStoragePath` or a text.

    Expand environment variables in a text, and make a local path absolute.
    """
    try:
        root = path if isinstance(path, ObjectStoragePath) else ObjectStoragePath(_expanded(str(path)))
        scheme = _SCHEMES.get(root.protocol or "file")
    except (ValueError, ImportError) as error:
        message = redact_urls(f"package_storage {str(path)!r} is not supported by Airflow: {error}")
        raise_unchained(ValueError(message))
    if scheme is None:
        supported = ", ".join(f"{each}://" for each in _SCHEMES)
        raise ValueError(redact_urls(f"package_storage {str(path)!r} is not supported by Ray. Use {supported}."))
    return Storage(root, scheme)


def _expanded(path: str) -> str:
    text = os.path.expandvars(path)
    if "://" in text and not text.startswith("file://"):
        return text
    return "file://" + os.path.abspath(os.path.expanduser(text.removeprefix("file://")))  # noqa: PTH100, PTH111


@dataclass(frozen=True)
class Storage:
    """A storage at an object storage path of Airflow; ``scheme`` is that of its URIs in Ray."""

    root: ObjectStoragePath
    scheme: str

    def uri_of(self, name: str) -> str:
        """Return the URI of a package for Ray's workers, without the Airflow connection."""
        path = self._path_of(name)
        if self.scheme != "abfss":
            return f"{self.scheme}://{path}"
        with self._errors(f"find the Azure account of package {name}"):
            account = self.root.fs.account_name
        container, _, rest = path.lstrip("/").partition("/")
        return f"abfss://{container}@{account}.dfs.core.windows.net/{rest}"

    def has(self, name: str) -> bool:
        with self._errors(f"look for package {name}"):
            return bool(self.root.fs.exists(self._path_of(name)))

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file, but at most ``limit`` bytes and one."""
        with self._errors(f"read {name}", effect=""), self.root.fs.open(self._path_of(name), "rb") as file:
            content: bytes = file.read(limit + 1)
        return content

    def put(self, name: str, file: IO[bytes]) -> Progress[None]:
        with self._errors(f"store package {name}"):
            yield from self._put_file(name, file) if self.scheme == "file" else self._put_object(name, file)

    def _put_file(self, name: str, file: IO[bytes]) -> Progress[None]:
        fs = self.root.fs
        fs.makedirs(self._path_of("").rstrip("/"), exist_ok=True)
        # in the same directory, so that renaming is atomic
        part = self._path_of(f".{name}.{secrets.token_hex(4)}.part")
        try:
            with fs.open(part, "wb") as target:
                yield from _copy(file, target)
            os.replace(part, self._path_of(name))  # noqa: PTH105  (fsspec may copy instead of renaming)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)  # noqa: PTH108
            raise

    def _put_object(self, name: str, file: IO[bytes]) -> Progress[None]:
        target = self.root.fs.open(self._path_of(name), "wb", autocommit=False)
        try:
            yield from _copy(file, target)
            target.close()
            target.commit()
        except BaseException:
            with suppress(Exception):
                target.discard()
            with suppress(AttributeError):
                target.closed = True  # otherwise garbage collection uploads the rest
            raise

    def _path_of(self, name: str) -> str:
        return f"{self.root.path.rstrip('/')}/{name}"

    @contextmanager
    def _errors(self, action: str, effect: str = " Nothing was submitted.") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  (any error of the user's file system)
            # The text may quote a signed URL, and the path may hold a login.
            message = redact_urls(
                f"Could not {action} at {self.root}: {type(error).__name__}: {error}.{effect} Check package_storage "
                "and its connection."
            )
            raise_unchained(RayPackageError(message))


def _copy(source: IO[bytes], target: Any) -> Progress[None]:
    source.seek(0)
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        yield len(chunk)
