"""The quickstart, as a new user follows it: its commands on free ports, up to the log of the job."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_files import EXAMPLES, ROOT

from sandbox.processes import Program, clean_environment, free_port
from sandbox.ray_head import RayHead

pytestmark = [pytest.mark.airflow, pytest.mark.ray]

COMMANDS = EXAMPLES / "quickstart"
# The fixed port of the quickstart, which another program on this machine may have.
_RAY_PORT = "8265"


class Terminals:
    """
    A user's terminals: one directory, one environment, and a program that runs in each.

    Programs are those of this Python. Airflow gets free ports by its settings; the port of Ray in a command becomes
    that of ``head``.
    """

    def __init__(self, directory: Path, head: RayHead) -> None:
        self.directory = directory
        self.head = head
        ports = {"API__PORT": free_port(), "LOGGING__WORKER_LOG_SERVER_PORT": free_port()}
        ports |= {"LOGGING__TRIGGER_LOG_SERVER_PORT": free_port()}
        address = f"http://127.0.0.1:{ports['API__PORT']}"
        self.environment = clean_environment("AIRFLOW", "RAY_") | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
            "AIRFLOW__API__BASE_URL": address,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "RAY_API_SERVER_ADDRESS": head.address,  # for "ray job list"
            **{f"AIRFLOW__{name}": str(port) for name, port in ports.items()},
        }

    def script(self, name: str) -> str:
        text = (COMMANDS / name).read_text(encoding="utf-8")
        return text.replace(_RAY_PORT, str(self.head.port))

    def run(self, script: str) -> str:
        """Run commands to their end, and return what they print."""
        return subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=self.directory, env=self.environment, check=True, capture_output=True, text=True, timeout=120,
        ).stdout  # fmt: skip

    def airflow(self, *arguments: str) -> str:
        return self.run(f'export AIRFLOW_HOME="$PWD/airflow"; airflow {" ".join(arguments)}')

    def state_of_run(self, dag_id: str) -> str:
        """Return the state of the only run of a DAG."""
        output = self.airflow("dags", "list-runs", dag_id, "--output", "json")
        [run] = json.loads(output[output.index("[{") :])  # Airflow may print log lines first
        return str(run["state"])


@pytest.fixture
def terminals(docs_head: RayHead, tmp_path: Path) -> Iterator[Terminals]:
    terminals = Terminals(tmp_path, docs_head)
    script = f'cd "{tmp_path}"\n' + terminals.script("airflow.sh")
    program = Program(["sh", "-e", "-c", script], terminals.environment, tmp_path / "standalone.log")
    try:
        program.wait_until(lambda: "Airflow is ready" in program.tail(400), "Airflow", timeout=180)
        yield terminals
    finally:
        program.stop()


def test_first_job(terminals: Terminals):
    """Connection, program and DAG of the quickstart lead to a SUCCEEDED job, whose lines are in the task's log."""
    terminals.run(terminals.script("connection.sh"))
    dags = terminals.directory / "airflow" / "dags"
    shutil.copy(EXAMPLES / "training" / "train.py", dags / "training" / "train.py")
    shutil.copy(EXAMPLES / "first_ray_job.py", dags / "first_ray_job.py")
    # The DAG processor looks for new files every five minutes; a user waits, or does this.
    terminals.airflow("dags", "reserialize")
    terminals.airflow("dags", "unpause", "first_ray_job")
    terminals.airflow("dags", "trigger", "first_ray_job")
    # A command of Airflow at each poll would hold up its components: all of them share one SQLite file.
    give_up_at = time.monotonic() + 240
    logs = terminals.directory / "airflow" / "logs"
    while not any("SUCCEEDED after" in log.read_text() for log in logs.rglob("task_id=train/attempt=1.log")):
        assert time.monotonic() < give_up_at, terminals.airflow("dags", "list-runs", "first_ray_job")
        time.sleep(1)
    [log] = logs.rglob("task_id=train/attempt=1.log")
    while (state := terminals.state_of_run("first_ray_job")) in ("queued", "running"):
        assert time.monotonic() < give_up_at
        time.sleep(5)
    text = log.read_text()

    assert state == "success", text
    assert "epoch 1 of 3" in text  # Ray shows equal lines of its workers once
    assert "accuracy: 0.91" in text
    assert "SUCCEEDED" in terminals.run(terminals.script("check.sh"))


def test_installation(tmp_path: Path):
    """The installation of the quickstart gives ``airflow``, ``ray`` and this package, in an environment of its own."""
    dist = tmp_path / "dist"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, ROOT],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    # uv installs what pip would, in a fraction of its time.
    shims = tmp_path / "shims"
    shims.mkdir()
    uv = Path(sys.executable).with_name("uv")
    pip = shims / "pip"
    pip.write_text(f'#!/bin/sh\nexec {uv} pip "$@"\n')
    pip.chmod(0o755)
    script = (COMMANDS / "install.sh").read_text(encoding="utf-8")
    # Activation puts the new environment's pip first.
    script = script.replace("activate\n", f'activate\nPATH="{shims}:$PATH"\n')
    environment = clean_environment("AIRFLOW", "RAY_", "VIRTUAL_ENV") | {
        "UV_CONSTRAINT": str(ROOT / "constraints.txt"),
        "UV_FIND_LINKS": str(dist),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
    }
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=600)
    programs = {path.name for path in (tmp_path / "ray-airflow" / "bin").iterdir()}

    assert {"airflow", "ray"} <= programs
    assert list((tmp_path / "ray-airflow").glob("lib/python*/site-packages/airflow_provider_rayjobs/operators.py"))


def test_head(docs_head: RayHead):
    """The command of the quickstart starts a head. The other tests add free ports to it."""
    command = shlex.split((COMMANDS / "head.sh").read_text(encoding="utf-8"))

    assert Path(docs_head.command[0]).name == command[0]
    assert set(command[1:]) <= set(docs_head.command[1:])
