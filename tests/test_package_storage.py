"""A place for what is too large for Ray's HTTP server, at an object storage path."""

from __future__ import annotations

import gc
import io
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.package_storage import Storage, open_storage

NAME = "_ray_pkg_0.zip"


def test_a_file_is_stored_whole(tmp_path: Path):
    """The directory is made, the package appears under its name, and nothing else is left beside it."""
    storage = open_storage(f"file://{tmp_path}/deep/below")
    assert storage.uri_of(NAME) == f"file://{tmp_path}/deep/below/{NAME}"
    assert not storage.has(NAME)

    list(storage.put(NAME, io.BytesIO(b"content")))

    assert storage.has(NAME)
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep" / "below").iterdir()} == {NAME: b"content"}


class Breaks(io.BytesIO):
    """A file that cannot be read to its end."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError("the disk broke")
        return super().read(3)


def test_what_breaks_off_is_not_there(tmp_path: Path):
    """A package whose storing breaks off is not there, nor is a part of it, and the error names the place."""
    storage = open_storage(str(tmp_path))

    with pytest.raises(RayPackageError, match=f"Could not store package {NAME} at .*the disk broke.*package_storage"):
        list(storage.put(NAME, Breaks(b"content")))

    assert list(tmp_path.iterdir()) == []
    assert not storage.has(NAME)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path):
    """A place that is a file is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(RayPackageError, match=f"{tmp_path}/file"):
        list(open_storage(str(tmp_path / "file")).put(NAME, io.BytesIO(b"a")))


def test_storing_can_be_stopped(tmp_path: Path):
    """A package is stored in turns, and one that is stopped between them leaves nothing behind."""
    storing = open_storage(str(tmp_path)).put(NAME, io.BytesIO(bytes(20 * 2**20)))
    assert next(storing) == 8 * 2**20
    assert len(list(tmp_path.iterdir())) == 1

    storing.close()

    assert list(tmp_path.iterdir()) == []


class Upload(AbstractBufferedFile):
    """An upload in parts, as of s3fs: what is written appears with the commit, and closing sends what is left."""

    def _initiate_upload(self) -> None:
        self.parts = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts += self.buffer.getvalue()
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        self.fs.objects[self.path] = self.parts

    def discard(self) -> None:
        self.parts = b""


class Objects(AbstractFileSystem):
    """An object store, as far as a place for packages uses it."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Upload:
        return Upload(self, path, mode, **options | {"block_size": 4})

    def exists(self, path: str, **_: Any) -> bool:
        return path in self.objects


class ObjectsPath:
    """An object storage path in that store."""

    protocol = "s3"
    path = "bucket/prefix/"

    def __init__(self) -> None:
        self.fs = Objects()


def test_objects_appear_when_they_are_whole():
    """In an object store nothing appears of what breaks off, and what was stored is there."""
    place = ObjectsPath()
    storage = Storage(place, "s3")  # type: ignore[arg-type]

    with pytest.raises(RayPackageError, match="the disk broke"):
        list(storage.put(NAME, Breaks(b"content that takes several parts")))
    gc.collect()
    assert place.fs.objects == {}

    list(storage.put(NAME, io.BytesIO(b"content that takes several parts")))
    assert storage.has(NAME)
    assert place.fs.objects == {f"bucket/prefix/{NAME}": b"content that takes several parts"}


@pytest.mark.parametrize("path", ["memory://x", "nonsense://x"])
def test_what_ray_cannot_read_is_refused(path: str):
    """A storage that Ray's workers do not know is an error that names those that they do."""
    with pytest.raises(ValueError, match=f"package_storage .*{path[:6]}"):
        open_storage(path)


def test_a_path_of_this_machine_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative path, and one that begins with ``~``, lead Ray's workers to a place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    uris = {open_storage(path).uri_of(NAME) for path in ("packages", "./packages/", "~/packages", "file://~/packages")}
    assert uris == {f"file://{tmp_path}/packages/{NAME}"}


def test_a_path_may_be_an_object_and_hold_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An ObjectStoragePath does as well as text; variables in text are filled in."""
    monkeypatch.setenv("HERE", str(tmp_path))
    uris = {
        open_storage(path).uri_of(NAME)
        for path in (ObjectStoragePath(f"file://{tmp_path}"), "file://$HERE/", f"{tmp_path}")
    }
    assert uris == {f"file://{tmp_path}/{NAME}"}
