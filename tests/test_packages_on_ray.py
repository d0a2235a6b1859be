"""Local code on a real Ray head: packed, uploaded, imported and run."""

from __future__ import annotations

import json
import logging
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import RayApiRejectedError
from airflow_provider_rayjobs.jobs import AsyncRayJobsClient, JobStatus, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.packages.local_code import LIMIT
from airflow_provider_rayjobs.jobs.packages.upload import Body
from airflow_provider_rayjobs.jobs.steps import Upload
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray
MODULES = ("shapes", "single.py", "zipped.zip", "tarred_gz.tgz", "tarred_xz.tar.xz")


@pytest.fixture(scope="module")
def client(ray_head: RayHead) -> Iterator[RayJobsClient]:
    with RayJobsClient(ray_head.address) as client:
        yield client


def run(client: RayJobsClient, entrypoint: str | list[str], **options: Any) -> str:
    """Run a job to its success and return its log."""
    records: list[str] = []
    job = client.submit_job(entrypoint, **options)
    details = client.follow_job(job, poll_interval=1, on_log=records.append)
    log = "\n".join(records)
    assert details.status == JobStatus.SUCCEEDED, (details.message, log)
    return log


def wheel(folder: Path, says: str, name: str = "greeting", version: str = "1.0") -> Path:
    """Make a wheel with one module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"SAYS = {says!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def test_working_dir_keeps_files_links_and_names(client: RayJobsClient, tmp_path: Path):
    """A job runs in the files of a local working_dir, with their links and names."""
    code = tmp_path / "code"
    (code / "lib").mkdir(parents=True)
    (code / "empty").mkdir()
    (code / "lib" / "__init__.py").write_text("SAYS = 'from the package'\n")
    (code / "ünï.txt").write_text("ünï")
    (code / "link.txt").symlink_to("ünï.txt")
    (code / "debug.log").write_text("left out")
    (code / ".gitignore").write_text("*.log\n")
    (code / ".env").write_text("TOKEN=x")

    log = run(
        client,
        "python -c 'import lib; print(lib.SAYS)' && ls -1A && cat link.txt",
        runtime_env={"working_dir": str(code)},
    )

    assert "from the package" in log
    assert {"empty", "ünï.txt", "link.txt", "lib"} <= set(log.splitlines())
    assert not {".env", "debug.log"} & set(log.splitlines())
    assert log.endswith("ünï")


@pytest.mark.needs_ray("executable bits")
def test_working_dir_keeps_executable_bits(client: RayJobsClient, tmp_path: Path):
    """A program in a local working_dir is executable on the cluster, and other files are not."""
    (tmp_path / "data.txt").write_text("")
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho it ran\n")
    (tmp_path / "run.sh").chmod(0o755)

    log = run(client, "./run.sh && stat -c %a run.sh data.txt", runtime_env={"working_dir": str(tmp_path)})

    # Ray's own lines and those of the program are written by two processes.
    assert [line for line in log.splitlines() if line in {"it ran", "755", "644"}] == ["it ran", "755", "644"]


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(MODULES[:3], id="no tar archive"),
        pytest.param(MODULES[:4], id="no tar.xz", marks=pytest.mark.needs_ray("tar archives")),
        pytest.param(MODULES, id="all", marks=pytest.mark.needs_ray("xz archives")),
    ],
)
def test_py_modules_can_be_directories_files_and_archives(
    client: RayJobsClient, modules: tuple[str, ...], tmp_path: Path
):
    """A job imports from a directory, a single file, and zip and tar archives at once."""
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "__init__.py").write_text("SAYS = 'directory'\n")
    (tmp_path / "single.py").write_text("SAYS = 'module'\n")
    (tmp_path / "zipped.py").write_text("SAYS = 'zip'\n")
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.write(tmp_path / "zipped.py", "zipped/__init__.py")
    for kind, suffix in (("gz", "tgz"), ("xz", "tar.xz")):
        with tarfile.open(tmp_path / f"tarred_{kind}.{suffix}", f"w:{kind}") as tar:
            (tmp_path / f"tarred_{kind}.py").write_text(f"SAYS = 'tar.{kind}'\n")
            tar.add(tmp_path / f"tarred_{kind}.py", f"tarred_{kind}.py")
    names = [module.partition(".")[0] for module in modules]

    code = f"import {', '.join(names)}; print([it.SAYS for it in ({', '.join(names)})])"
    said = ["directory", "module", "zip", "tar.gz", "tar.xz"]
    log = run(
        client, ["python", "-c", code], runtime_env={"py_modules": [str(tmp_path / module) for module in modules]}
    )

    assert str(said[: len(modules)]) in log


@pytest.mark.parametrize("name", ["code.zip", pytest.param("code.tar.gz", marks=pytest.mark.needs_ray("tar archives"))])
def test_working_dir_can_be_an_archive(client: RayJobsClient, name: str, tmp_path: Path):
    """A local zip or tar archive is unpacked as the working directory."""
    (tmp_path / "main.py").write_text("print('it ran')\n")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "main.py", "main.py")
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.write(tmp_path / "main.py", "main.py")

    assert "it ran" in run(client, "python main.py", runtime_env={"working_dir": str(tmp_path / name)})


def test_wheel_with_new_contents_is_installed_again(client: RayJobsClient, tmp_path: Path):
    """A wheel with the same name and other contents is another package; Ray alone would use the old one."""
    print_it = ["python", "-c", "import greeting; print('says', greeting.SAYS)"]

    for says in ("first", "second"):
        built = wheel(tmp_path / says, says)
        assert f"says {says}" in run(client, print_it, runtime_env={"py_modules": [str(built)]})


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param("pip", marks=pytest.mark.needs_ray("constraints")),
        pytest.param("uv", marks=pytest.mark.needs_ray("uv")),
    ],
)
def test_requirements_and_constraints_files_are_installed(client: RayJobsClient, tmp_path: Path, tool: str):
    """Included files and constraints count, although no such file is on the cluster."""
    wheel(tmp_path / "wheels", "one", "limited", "1.0")
    wheel(tmp_path / "wheels", "two", "limited", "2.0")
    wheel(tmp_path / "wheels", "hello", "included", "1.0")
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text(
        f"--no-index\n--find-links {tmp_path}/wheels\n-r more/included.txt  # more of them\n-c "
        "constraints.txt\nlimited\n"
    )
    (tmp_path / "more" / "included.txt").write_text("included == \\\n  1.0\n")
    (tmp_path / "constraints.txt").write_text("limited<2\n")
    code = "import limited, included; print(limited.SAYS, included.SAYS)"

    log = run(client, ["python", "-c", code], runtime_env={tool: str(tmp_path / "requirements.txt")})

    assert "one hello" in log


def test_unchanged_directory_is_not_uploaded_again(
    client: RayJobsClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The first submission uploads, the second one does not; the log has one line for each."""
    (tmp_path / "main.py").write_text(f"print({os.urandom(8).hex()!r})\n")
    caplog.set_level(logging.INFO)

    for _ in range(2):
        client.submit_job("true", runtime_env={"working_dir": str(tmp_path)})

    lines = [record.getMessage() for record in caplog.records if "package _ray_pkg_" in record.getMessage()]
    assert ["uploaded" in line for line in lines] == [True, False]
    assert "already on the cluster" in lines[1]
    assert f"working_dir {tmp_path}: package _ray_pkg_" in lines[0]
    assert "1 files, " in lines[0]


async def _submit(address: str, directory: Path) -> str:
    async with AsyncRayJobsClient(address) as client:
        job = await client.submit_job("python main.py", runtime_env={"working_dir": str(directory)})
        return str((await client.follow_job(job, poll_interval=1)).status)


def test_concurrent_uploads_of_one_package_succeed(client: RayJobsClient, tmp_path: Path):
    """Eight simultaneous submissions of a new directory all succeed."""
    import asyncio

    (tmp_path / "main.py").write_text(f"print({os.urandom(8).hex()!r})\n")
    (tmp_path / "data").write_bytes(os.urandom(2_000_000))

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(_submit(client.address, tmp_path) for _ in range(8)))

    assert asyncio.run(all_of_them()) == ["SUCCEEDED"] * 8


@pytest.mark.parametrize(("size", "fits"), [(LIMIT - 1, True), (LIMIT + 1, False)])
def test_package_limit_is_that_of_rays_http_server(client: RayJobsClient, size: int, fits: bool, tmp_path: Path):
    """Ray accepts a package just below our limit and refuses one just above it."""
    with (tmp_path / "large").open("w+b") as file:
        file.truncate(size)
        name = f"_ray_pkg_{os.urandom(20).hex()}.zip"

        def engine() -> Any:
            yield Upload(endpoints.put_package(name, size), Body(file, size, name))

        if fits:
            client.run(engine())
            client.send(endpoints.get_package(name))
        else:
            with pytest.raises(RayApiRejectedError, match=r"HTTP (413|500), request too large"):
                client.run(engine())


def test_other_keys_of_the_runtime_env_are_unchanged(client: RayJobsClient, tmp_path: Path):
    """Keys without local code arrive as they were given."""
    (tmp_path / "main.py").touch()
    runtime_env = {"working_dir": str(tmp_path), "env_vars": {"A": "b"}, "excludes": ["x"]}
    job = client.submit_job("true", runtime_env=runtime_env)

    sent = dict(client.get_job(job).runtime_env)
    assert sent["working_dir"].startswith("gcs://_ray_pkg_")
    assert sent["env_vars"] == {"A": "b"}
    assert json.dumps(sent)
