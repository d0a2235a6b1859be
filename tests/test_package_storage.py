"""Object storage for packages that are too large for Ray's HTTP server."""

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


def test_file_is_stored_under_its_name(tmp_path: Path):
    """The directory is created, and no other file is left beside the package."""
    storage = open_storage(f"file://{tmp_path}/deep/below")
    assert storage.uri_of(NAME) == f"file://{tmp_path}/deep/below/{NAME}"
    assert not storage.has(NAME)

    list(storage.put(NAME, io.BytesIO(b"content")))

    assert storage.has(NAME)
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep" / "below").iterdir()} == {NAME: b"content"}


class Breaks(io.BytesIO):
    """A file that fails while it is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError("the disk broke")
        return super().read(3)


def test_failed_storing_leaves_no_file(tmp_path: Path):
    """A package that was not stored completely does not exist, and the error shows the path."""
    storage = open_storage(str(tmp_path))

    with pytest.raises(RayPackageError, match=f"Could not store package {NAME} at .*the disk broke.*package_storage"):
        list(storage.put(NAME, Breaks(b"content")))

    assert list(tmp_path.iterdir()) == []
    assert not storage.has(NAME)


def test_storage_path_that_is_a_file_is_an_error(tmp_path: Path):
    """The error shows the path."""
    (tmp_path / "file").touch()
    with pytest.raises(RayPackageError, match=f"{tmp_path}/file"):
        list(open_storage(str(tmp_path / "file")).put(NAME, io.BytesIO(b"a")))


@pytest.mark.parametrize("scheme", ["ftp", "unknown", "http"])
def test_error_about_a_path_shows_no_password(scheme: str):
    """A login in an unsupported path is redacted, and no error that shows it is chained."""
    with pytest.raises(ValueError, match=rf"'{scheme}://me:\*\*\*@host/p' is not supported by") as caught:
        open_storage(f"{scheme}://me:s3cret@host/p")

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_stopped_storing_leaves_no_file(tmp_path: Path):
    """A package is stored in chunks; closing between two of them leaves nothing behind."""
    storing = open_storage(str(tmp_path)).put(NAME, io.BytesIO(bytes(20 * 2**20)))
    assert next(storing) == 8 * 2**20
    assert len(list(tmp_path.iterdir())) == 1

    storing.close()

    assert list(tmp_path.iterdir()) == []


class Upload(AbstractBufferedFile):
    """A multipart upload as in s3fs: it appears when it is committed, and closing sends the rest."""

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
    """An object store with the methods that packages need."""

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


def test_object_appears_only_when_it_is_complete():
    """A failed upload leaves no object; a successful one does."""
    root = ObjectsPath()
    storage = Storage(root, "s3")  # type: ignore[arg-type]

    with pytest.raises(RayPackageError, match="the disk broke"):
        list(storage.put(NAME, Breaks(b"content that takes several parts")))
    gc.collect()
    assert root.fs.objects == {}

    list(storage.put(NAME, io.BytesIO(b"content that takes several parts")))
    assert storage.has(NAME)
    assert root.fs.objects == {f"bucket/prefix/{NAME}": b"content that takes several parts"}


@pytest.mark.parametrize("call", [lambda storage: storage.has(NAME), lambda storage: storage.read(NAME, 1)])
def test_error_of_the_storage_shows_no_signature(call: Any):
    """A signed URL in the storage's error is redacted, and that error is not chained."""

    class Signing(Objects):
        def exists(self, path: str, *_: Any, **__: Any) -> bool:
            raise OSError(f"403 for https://account.example.com/{path}?sig=s1gnature&sv=1")

        open = exists

    root = ObjectsPath()
    root.fs = Signing()

    with pytest.raises(RayPackageError, match=r"OSError: 403 for .*sig=\*\*\*&sv=1") as caught:
        call(Storage(root, "s3"))  # type: ignore[arg-type]

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize("path", ["memory://x", "nonsense://x"])
def test_storage_that_ray_does_not_support_is_an_error(path: str):
    """The error shows the path and the supported schemes."""
    with pytest.raises(ValueError, match=f"package_storage .*{path[:6]}"):
        open_storage(path)


def test_local_storage_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative paths and ``~`` become absolute ``file://`` URIs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    uris = {open_storage(path).uri_of(NAME) for path in ("packages", "./packages/", "~/packages", "file://~/packages")}
    assert uris == {f"file://{tmp_path}/packages/{NAME}"}


def test_storage_path_may_be_an_object_or_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ObjectStoragePath and text are accepted; environment variables in a text are expanded."""
    monkeypatch.setenv("HERE", str(tmp_path))
    uris = {
        open_storage(path).uri_of(NAME)
        for path in (ObjectStoragePath(f"file://{tmp_path}"), "file://$HERE/", f"{tmp_path}")
    }
    assert uris == {f"file://{tmp_path}/{NAME}"}
