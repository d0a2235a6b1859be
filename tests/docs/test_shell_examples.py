"""The shell commands that the documentation shows run in an Airflow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from doc_files import EXAMPLES

pytestmark = [pytest.mark.airflow, pytest.mark.ray]


def run(script: Path, environment: dict[str, str]) -> None:
    subprocess.run(["sh", "-e", script.name], cwd=script.parent, env=environment, check=True, timeout=300)


def output(command: str, environment: dict[str, str]) -> str:
    return subprocess.run(
        command.split(), env=environment, check=True, capture_output=True, text=True, timeout=300
    ).stdout


def test_connection_can_be_imported(docs_environment: dict[str, str]):
    """Airflow imports the file of a connection."""
    environment = {name: value for name, value in docs_environment.items() if not name.startswith("AIRFLOW_CONN")}
    run(EXAMPLES / "connections" / "import.sh", environment)

    # Airflow 3.2 writes log lines first.
    *_, line = output("airflow connections get ray_jobs_default -o json", environment).splitlines()
    [connection] = json.loads(line)
    assert (connection["host"], connection["conn_type"]) == ("http://ray-head:8265", "ray_jobs")


def test_pool_includes_deferred_tasks(docs_environment: dict[str, str]):
    """The pool is created, and deferred tasks take its slots."""
    run(EXAMPLES / "create_pool.sh", docs_environment)

    [line] = [line for line in output("airflow pools list -o plain", docs_environment).splitlines() if "ray_" in line]
    assert line.split()[:2] == ["ray_cluster", "2"]
    assert line.split()[-1] == "True"
