"""Local code of a task, against a real Ray head."""

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


def test_large_code_goes_by_way_of_a_storage(client: RayJobsClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Trees of 100 MiB and more are stored once, and the job finds them laid out as if they came by way of the "
    "cluster."""
    # each with one directory at its top, which Ray takes away from what it downloads
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
def test_a_retry_sends_nothing_again(client: RayJobsClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A second try of an unchanged directory finds the package on the cluster, whatever became of the first job."""
    (tmp_path / "main.py").write_text(f"raise SystemExit({3})  # {os.urandom(8).hex()}\n")
    store = Store()
    operator = task(entrypoint="python main.py", runtime_env={"working_dir": str(tmp_path)})

    for number in (1, 2):
        with pytest.raises(RayJobEntrypointError):
            operator.execute(context(store, try_number=number))

    lines = [message for message in capsys.readouterr().out.splitlines() if "package _ray_pkg_" in message]
    assert [", uploaded (" in line for line in lines] == [True, False]


@needs_store
def test_a_submission_that_never_arrived_is_the_same_again(client: RayJobsClient, tmp_path: Path):
    """Submitted again under the remembered id, it names the same package: one job, whichever request arrives."""
    (tmp_path / "main.py").write_text("print(1)\n")
    store = Store()
    operator = task(entrypoint="python main.py", runtime_env={"working_dir": str(tmp_path)})
    job = operator.execute(context(store))
    sent = client.get_job(job).runtime_env["working_dir"]
    time.sleep(6)  # Ray writes to the record of a job that has just ended, and would bring it back
    client.delete_job(job)
    store.set("ray_job", store.record | {"accepted": False, "delivered": False})

    assert operator.execute(context(store, try_number=2)) == job
    assert client.get_job(job).runtime_env["working_dir"] == sent


def test_a_tree_that_changes_while_it_is_packed_submits_nothing(client: RayJobsClient, tmp_path: Path):
    """A file that is written to while its tree is packed is an error; neither a job nor a note of one is left."""
    (tmp_path / "noise").write_bytes(os.urandom(60_000_000))
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
            RayPackageError, match=r"log\.txt changed while its directory was packed.*Nothing was submitted"
        ):
            task(entrypoint="true", runtime_env={"working_dir": str(tmp_path)}).execute(context(store))
    finally:
        stop.set()
        writer.join()

    assert store.values == {}
    assert {job.submission_id for job in client.list_jobs()} == before


def test_a_kill_while_packing_is_obeyed(client: RayJobsClient, tmp_path: Path):
    """A task that is killed while it packs ends at once, and no job of it was submitted."""
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
