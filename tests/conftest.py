"""Session fixtures: one real Ray head and one real Airflow for all tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from execnet.gateway_base import WorkerPool
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import NodeManager

ROOT = Path(__file__).parents[1]
# The sandbox is not an installed package. AIRFLOW_HOME must be set before the first import of Airflow.
sys.path.insert(0, str(ROOT))
# Seconds in which a process stops all programs that it has started.
_CLEANUP_TIME = 60
_UNIT_TEST_HOME = tempfile.mkdtemp(prefix="airflow-unit-")
os.environ["AIRFLOW_HOME"] = _UNIT_TEST_HOME
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
for name in (
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "AIRFLOW_CONN_RAY_JOBS_DEFAULT"
):  # fmt: skip
    os.environ.pop(name, None)

from airflow_provider_rayjobs.jobs import JobDetails, JobType, RayJobsClient  # noqa: E402
from sandbox.local_airflow import LocalAirflow  # noqa: E402
from sandbox.processes import clean_environment, interrupt_on_signals  # noqa: E402
from sandbox.production_airflow import IS_PRODUCTION  # noqa: E402
from sandbox.ray_head import RayHead, connection_to  # noqa: E402
from sandbox.services import missing_services  # noqa: E402
from tests.matrix.ray_features import lacks, version_of_heads  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_ray(feature): needs a Ray head with a feature of ray_features.py")
    interrupt_on_signals()
    if hasattr(config, "workerinput"):
        _wait_for_cleanup()


def _wait_for_cleanup() -> None:
    """
    Let a process of ``pytest -n 2`` stop its programs after Ctrl-C, which has reached it, too.

    When the controlling process ends, execnet would interrupt that cleanup after 5 s, and exit the process 10 s later.
    """
    wait = WorkerPool.waitall
    WorkerPool.waitall = lambda pool, timeout=None: wait(pool, timeout and _CLEANUP_TIME)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Distribute the files of tests to the processes of ``pytest -n 2``."""
    NodeManager.EXIT_TIMEOUT = 2 * _CLEANUP_TIME
    return _RealProgramsTogether(config, log)


class _RealProgramsTogether(LoadScopeScheduling):
    """
    One process runs all files with tests that meet a real Ray or Airflow; the other one runs the rest.

    The former mostly wait, and share heads and Airflows. ``--dist loadgroup`` of pytest-xdist 3.8 would do that by
    their marks, but does not work with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "real" if _has_real_programs(file) else file


@cache
def _has_real_programs(file: str) -> bool:
    return re.search(r"mark\.(ray|airflow)\b", (ROOT / file).read_text(encoding="utf-8")) is not None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs_ray"):
        if lacks(version_of_heads(), *mark.args):
            pytest.skip(f"Ray {version_of_heads()} has no {' '.join(mark.args)}")


def pytest_unconfigure() -> None:
    shutil.rmtree(_UNIT_TEST_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def needs_deployment() -> None:
    """Skip a test of the production deployment without its services, or fail it with ``REQUIRE_SERVICES``, as in CI."""
    if IS_PRODUCTION and (missing := missing_services()):
        message = f"not installed (Debian: apt-get install {' '.join(missing)})"
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A head on which many jobs run at the same time. A driver needs no CPU by default."""
    with RayHead(num_cpus=8) as head:
        yield head


@pytest.fixture(scope="session")
def airflow(ray_head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """An Airflow with the example DAGs and the DAGs of the tests."""
    dags = tmp_path_factory.mktemp("dags")
    shutil.copytree(ROOT / "example_dags", dags / "example_dags")
    shutil.copytree(ROOT / "tests" / "dags", dags / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("ray_jobs_functions", "ray_jobs_progress"):
        text = (ROOT / "example_dags" / f"{name}.py").read_text().replace(name, f"{name}_deferred")
        text = text.replace("@task.ray_job\n", "@task.ray_job(deferrable=True)\n")
        text = text.replace("@task.ray_job(\n", "@task.ray_job(deferrable=True,\n")
        text = text.replace("poll_interval=2", "poll_interval=2, deferrable=True")
        (dags / "example_dags" / f"{name}_deferred.py").write_text(text)
    connections = connection_to(ray_head) | {
        "ray_jobs_unreachable": {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9},
        "ray_jobs_dashboard_url": connection_to(ray_head)["ray_jobs_default"]
        | {"extra": {"dashboard_url": "https://ray.example.com/team-a/"}},
        "ray_jobs_history": connection_to(ray_head)["ray_jobs_default"]
        | {"extra": {"history_url": "https://history.example.com/{session}/#/jobs/{submission_id}"}},
    }
    with LocalAirflow(dags, connections) as running:
        yield running


@pytest.fixture
def driver(ray_head: RayHead) -> Iterator[JobDetails]:
    """A job of type DRIVER: a program that calls ``ray.init`` itself, without a submission."""
    client = RayJobsClient(ray_head.address)
    before = {job.job_id for job in client.list_jobs()}
    process = subprocess.Popen(
        [ray_head.python, "-c", "import ray; ray.init(log_to_driver=False); print('connected', flush=True); input()"],
        env=clean_environment("RAY_", "AIRFLOW") | {"RAY_ADDRESS": ray_head.gcs_address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with client, process:
        try:
            assert process.stdout.readline() == "connected\n"
            [job] = [job for job in client.list_jobs() if job.type == JobType.DRIVER and job.job_id not in before]
            yield job
        finally:
            process.kill()
