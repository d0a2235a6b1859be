"""A real Ray head and an Airflow for the files that the documentation shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_files import EXAMPLES

from sandbox.processes import clean_environment
from sandbox.ray_head import RayHead, connection_to


@pytest.fixture(scope="session")
def docs_head() -> Iterator[RayHead]:
    """A head that advertises what the examples request: GPUs that this machine need not have."""
    with RayHead(num_cpus=8, num_gpus=4) as head:
        yield head


@pytest.fixture(scope="session")
def docs_environment(docs_head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an Airflow with the connection ``ray_jobs_default``, whose database exists."""
    home = tmp_path_factory.mktemp("docs-airflow")
    environment = clean_environment("AIRFLOW", "RAY_") | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_RAY_JOBS_DEFAULT": json.dumps(connection_to(docs_head)["ray_jobs_default"]),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    subprocess.run(["airflow", "db", "migrate"], env=environment, check=True, capture_output=True, timeout=300)
    return environment
