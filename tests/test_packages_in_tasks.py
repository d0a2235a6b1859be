"""Local code of a task, with a real Ray head."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_execution import Store, context, needs_store

from airflow_provider_rayjobs.exceptions import RayJobEntrypointError, RayJobStoppedError, RayPackageError
from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray


@pytest.fixture
def client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    with RayJobsClient(ray_head.address) as client:
        yield client


def task(**arguments: Any) -> RayJobSubmitOperator:
    return RayJobSubmitOperator(**{"task_id": "train", "poll_interval": 0.5} | arguments)


def test_large_packages_are_stored_once_in_package_storage(
    client: RayJobsClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Packages of 100 MiB and more are stored once, and the job finds the same layout as from the cluster."""
    # each with a single top directory, which Ray removes from packages that it downloads
    for folder in ("code/src", "modules/shapes"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text(f"SAYS = {folder!r}\n")
        with (tmp_path / folder / "large").open("wb") as file:
            file.truncate(101 * 2**20)
    arguments = {
        "entrypoint": [
            "python",
            "-c",
            "import src, shapes; assert (src.SAYS, shapes.SAYS) == ('code/src', 'modules/shapes')",
        ],
        "runtime_env": {"working_dir": str(tmp_path / "code"), "py_modules": [str(tmp_path / "modules" / "shapes")]},
        "package_storage": f"file://{tmp_path}/storage",
    }

    task(**arguments).execute(context())
    task(**arguments).execute(context())

    lines = [
        message
        for message in capsys.readouterr().out.splitlines()
        if "package _ray_pkg_" in message and "MiB;" in message
    ]
    assert [(", stored at" in line, ", already at" in line) for line in lines] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    assert len(list((tmp_path / "storage").iterdir())) == 2


@needs_store
def test_retry_does_not_upload_an_unchanged_directory_again(
    client: RayJobsClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The second try finds the package on the cluster after the first job failed."""
    (tmp_path / "main.py").write_text(f"raise SystemExit({3})  # {os.urandom(8).hex()}\n")
    store = Store()
    operator = task(entrypoint="python main.py", runtime_env={"working_dir": str(tmp_path)})

    for number in (1, 2):
        with pytest.raises(RayJobEntrypointError):
            operator.execute(context(store, try_number=number))

    lines = [message for message in capsys.readouterr().out.splitlines() if "package _ray_pkg_" in message]
    assert [", uploaded (" in line for line in lines] == [True, False]


@needs_store
def test_repeated_submission_has_the_same_package(client: RayJobsClient, tmp_path: Path):
    """A submission sent again under the remembered id names the same package."""
    (tmp_path / "main.py").write_text("print(1)\n")
    store = Store()
    operator = task(entrypoint="python main.py", runtime_env={"working_dir": str(tmp_path)})
    job = operator.execute(context(store))
    sent = client.get_job(job).runtime_env["working_dir"]
    client.delete_job(job)
    store.set("ray_job", store.record | {"accepted": False, "delivered": False})

    assert operator.execute(context(store, try_number=2)) == job
    assert client.get_job(job).runtime_env["working_dir"] == sent


def test_file_that_changes_during_packing_submits_nothing(client: RayJobsClient, tmp_path: Path):
    """The try fails without a job and without a remembered submission."""
    (tmp_path / "noise").write_bytes(os.urandom(60_000_000))
    (tmp_path / "log.txt").touch()
    store = Store()
    before = {job.submission_id for job in client.list_jobs()}
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.02):
            (tmp_path / "log.txt").write_text(str(time.time()))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(
            RayPackageError, match=r"File changed during packing: /.*/log\.txt .*package was not uploaded"
        ):
            task(entrypoint="true", runtime_env={"working_dir": str(tmp_path)}).execute(context(store))
    finally:
        stop.set()
        writer.join()

    assert store.values == {}
    assert {job.submission_id for job in client.list_jobs()} == before


def test_kill_during_packing_ends_the_task(client: RayJobsClient, tmp_path: Path):
    """A task killed during packing ends at once, and no job is submitted."""
    for number in range(4):
        (tmp_path / f"text{number}").write_text("some text that is worth deflating, but not at once\n" * 2_000_000)
    before = {job.submission_id for job in client.list_jobs()}
    operator = task(entrypoint="true", runtime_env={"working_dir": str(tmp_path)})
    _soon(0.4, operator.on_kill)

    began = time.monotonic()
    with pytest.raises(RayJobStoppedError, match="no Ray job"):
        operator.execute(context())

    assert time.monotonic() - began < 10
    assert {job.submission_id for job in client.list_jobs()} == before


def _soon(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
