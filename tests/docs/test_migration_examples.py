"""The migration guides: what they say about other ways to run a Ray job, and their files that are no DAGs of ours."""

from __future__ import annotations

import ast
import asyncio
import configparser
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk import Connection
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from doc_files import DOCS, EXAMPLES
from run_dags import run_dags

from airflow_provider_rayjobs import config
from airflow_provider_rayjobs.connection import Cluster, parse_connection
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs.client import RayJobsClient
from airflow_provider_rayjobs.jobs.models import JobStatus
from sandbox.ray_head import RayHead

FOLDER = EXAMPLES / "migration"
# Those whose packages are not installed for tests: ray_provider, and Airflow's providers google and cncf.kubernetes.
NOT_INSTALLED = ("before_astro", "before_google", "before_kubernetes")
# As `BashOperator` starts it: in a process group of its own.
SUBMIT = ["ray", "job", "submit", "--address", "http://ray-head:8265"]


def connection(name: str, conn_id: str = "ray_jobs_default", **replaced: Any) -> Connection:
    fields = json.loads((FOLDER / name).read_text()) | replaced
    return Connection(conn_id=conn_id, **fields | {"extra": json.dumps(fields.get("extra", {}))})


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("before_*.py")), ids=lambda path: path.name)
def test_old_code_is_python(path: Path):
    """The code before a migration compiles."""
    ast.parse(path.read_text())


def test_old_connection_leads_to_the_page():
    """A connection of astro-provider-ray is an error that leads to its migration page, and the new one is accepted."""
    with pytest.raises(ValueError, match="address is host here.+ See the page .From astro-provider-ray"):
        parse_connection(connection("astro_connection_before.json"))

    cluster = parse_connection(connection("astro_connection_after.json"))
    assert cluster.address == "https://ray.example.com"
    assert cluster.access.headers == {"X-Team": "forecasts"}


def test_address_of_a_kuberay_cluster():
    """The connection leads to the service that KubeRay creates for the head of the cluster."""
    cluster = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]

    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    parsed = parse_connection(connection("kubernetes_connection.json"))
    assert parsed.address == f"http://{name}-head-svc.{namespace}:8265"


@pytest.fixture(scope="module")
def old_runs(
    docs_head: RayHead, docs_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """One run of each DAG that needs an environment of its own: the address of the head, and a ``kubectl``."""
    folder = tmp_path_factory.mktemp("old-runs")
    kubectl = folder / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(f'#!/bin/sh\necho "$@" >> {folder}/kubectl.log\n')
    kubectl.chmod(0o755)
    unwanted = shutil.ignore_patterns(".airflowignore", "after_*", *(f"{prefix}*" for prefix in NOT_INSTALLED))
    dags = shutil.copytree(FOLDER, folder / "dags", ignore=unwanted)
    environment = docs_environment | {
        "PATH": f"{kubectl.parent}:{docs_environment['PATH']}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "RAY_API_SERVER_ADDRESS": docs_head.address,
    }
    results = run_dags(dags, folder, environment)
    return results | {"kubectl": (folder / "kubectl.log").read_text()}


@pytest.mark.ray
@pytest.mark.airflow
@pytest.mark.parametrize("name", ["before_python_operator", "before_bash_operator"])
def test_old_code_runs(old_runs: dict[str, Any], name: str):
    """The old code runs. It names the head ``ray-head``, but Ray's environment variable replaces that address."""
    assert "http://ray-head:8265" in (FOLDER / f"{name}.py").read_text()
    assert old_runs["import_errors"] == {}
    assert old_runs["ended"][f"{name}.py"][name] == {"train": "success"}, old_runs["log"][-8000:]


@pytest.mark.ray
@pytest.mark.airflow
def test_cluster_for_a_run(old_runs: dict[str, Any]):
    """The DAG with a cluster of its own creates the cluster, runs the job, and deletes the cluster."""
    states = old_runs["ended"]["cluster_for_a_run.py"]["cluster_for_a_run"]

    assert states == dict.fromkeys(("create_cluster", "train", "delete_cluster"), "success"), old_runs["log"][-8000:]
    assert [line.split()[0] for line in old_runs["kubectl"].splitlines()] == ["apply", "wait", "delete"]


@pytest.mark.ray
def test_ray_job_submit_and_the_end_of_a_job(docs_head: RayHead, docs_environment: dict[str, str], tmp_path: Path):
    """SIGTERM ends ``ray job submit`` and leaves its job running. Its exit code is 0 for a job that was stopped."""
    environment = docs_environment | {"RAY_API_SERVER_ADDRESS": docs_head.address}

    def submit(submission_id: str) -> subprocess.Popen[bytes]:
        command = [*SUBMIT, "--submission-id", submission_id, "--", "sleep", "300"]
        with (tmp_path / submission_id).open("w") as log:
            return subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    with RayJobsClient(docs_head.address) as client:
        killed, stopped = submit("migration-killed"), submit("migration-stopped")
        try:
            for submission_id in ("migration-killed", "migration-stopped"):
                log = tmp_path / submission_id
                wait_for(lambda log=log: "Tailing logs until the job exits" in log.read_text())
                wait_for(lambda job=submission_id: client.get_job(job).status is JobStatus.RUNNING)
            os.killpg(killed.pid, signal.SIGTERM)
            assert killed.wait(timeout=60) == -signal.SIGTERM
            client.stop_job("migration-stopped")
            assert stopped.wait(timeout=120) == 0
            assert client.get_job("migration-stopped").status is JobStatus.STOPPED
            assert client.get_job("migration-killed").status is JobStatus.RUNNING
        finally:
            for process in (killed, stopped):
                process.kill()
                process.wait()
            client.stop_job("migration-killed")


@pytest.mark.ray
def test_page_has_every_option_of_ray_job_submit():
    """The migration guide has each option of the command of the installed Ray."""
    from ray.dashboard.modules.job.cli import submit

    page = (DOCS / "migration" / "bash-operator.md").read_text()
    options = [option for parameter in submit.params for option in parameter.opts if option.startswith("--")]

    assert "--no-wait" in options
    assert [option for option in options if f"`{option}`" not in page] == []


@pytest.mark.ray
def test_page_has_every_argument_of_ray_sdk():
    """The migration guide has each argument and method of the installed Ray's client."""
    from ray.job_submission import JobSubmissionClient

    page = (DOCS / "migration" / "python-operator.md").read_text()
    methods = [name for name in dir(JobSubmissionClient) if not name.startswith("_")]
    signatures = [inspect.signature(each) for each in (JobSubmissionClient, JobSubmissionClient.submit_job)]
    arguments = {name for each in signatures for name in each.parameters} - {"self", "kwargs"}

    assert "submit_job" in methods
    assert [name for name in [*methods, *sorted(arguments)] if not re.search(rf"`{name}`", page)] == []


class GoogleHandler(BaseHTTPRequestHandler):
    """Google's token server and a Ray dashboard behind it, which wants that token."""

    def do_POST(self) -> None:
        self.answer(200, {"access_token": "vertex-token", "expires_in": 3600, "token_type": "Bearer"})

    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == "Bearer vertex-token"
        self.answer(200 if is_known else 401, {"version": "4", "ray_version": "2.42.0", "ray_commit": "c0ffee"})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def vertex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The connection of the guide to a stand-in for Vertex AI, with the setting that allows its class."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), GoogleHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "client_email": "airflow@example.com", "token_uri": f"{address}/token"}
    (tmp_path / "account.json").write_text(json.dumps(account | {"private_key": key.decode()}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    monkeypatch.syspath_prepend(str(FOLDER))
    settings = configparser.ConfigParser()
    settings.read(FOLDER / "google_airflow.cfg")
    [(name, value)] = settings[config.SECTION].items()
    monkeypatch.setenv(config.variable(name), value)
    yield parse_connection(connection("google_connection.json", host=address))
    server.shutdown()
    server.server_close()


def test_google_authentication(vertex: Cluster):
    """The class of the guide gets a token of Application Default Credentials and sends it, also in the triggerer."""

    async def ask() -> str:
        async with RayJobsHook().async_client_of(vertex) as client:
            return (await client.get_version()).ray_version

    with RayJobsHook().client_of(vertex) as client:
        assert client.get_version().ray_version == "2.42.0"
    assert asyncio.run(ask()) == "2.42.0"
