"""The configuration, connections, messages and programs that the reference shows work as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_files import EXAMPLES

from airflow_provider_rayjobs import config
from airflow_provider_rayjobs.connection import Cluster, parse_environment
from airflow_provider_rayjobs.get_provider_info import get_provider_info
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.messages import MessageFilter
from sandbox.ray_head import RayHead

_CONNECTION = "AIRFLOW_CONN_RAY_JOBS_DEFAULT"
_PRINT_SETTINGS = """
import json
from airflow_provider_rayjobs import config
print(json.dumps({
    "poll_interval": config.seconds("poll_interval", 0.0),
    "unreachable_timeout": config.seconds("unreachable_timeout", 0.0),
    "first_contact_timeout": config.seconds("first_contact_timeout", 0.0),
    "stop_on_kill": config.flag("stop_on_kill", default=False),
    "log_budget": config.count("log_budget", 1),
    "deployment_name": config.text("deployment_name"),
    "allowed_files": config.names("allowed_files"),
    "allowed_auth_classes": config.names("allowed_auth_classes"),
}))
"""
_SETTINGS = {
    "poll_interval": 30.0,
    "unreachable_timeout": 1800.0,
    "first_contact_timeout": 300.0,
    "stop_on_kill": True,
    "log_budget": 65536,
    "deployment_name": "production",
    "allowed_files": ["/var/run/secrets/ray/token", "/etc/ssl/ray/*"],
    "allowed_auth_classes": ["my_company.iap.IapAuth"],
}


def sourced(script: Path) -> dict[str, str]:
    """Return the environment after a shell has read a script."""
    command = ["sh", "-e", "-c", '. "$1"; env -0', "sh", script]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env={"PATH": os.defpath})
    return dict(line.split("=", 1) for line in answer.stdout.split("\0") if line)


def cluster_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Return the cluster of the connection that a script defines, as the hook reads it."""
    monkeypatch.setenv(_CONNECTION, sourced(EXAMPLES / "connection" / name)[_CONNECTION])
    return RayJobsHook().get_cluster()


def test_connection_as_json_and_as_uri(monkeypatch: pytest.MonkeyPatch):
    """Both forms of the connection describe the same cluster."""
    cluster = cluster_of("as_json.sh", monkeypatch)

    assert cluster == cluster_of("as_uri.sh", monkeypatch)
    assert cluster.address == "https://ray.example.com:8443/team-a"
    assert (cluster.access.login, cluster.access.password) == ("me", "its password")
    assert (cluster.access.token, cluster.access.read_timeout) == ("the token of Ray", 60.0)
    assert cluster.access.headers == {"X-Tenant": "a"}


def test_connection_with_a_token(monkeypatch: pytest.MonkeyPatch):
    """Without a login, the password is Ray's token."""
    cluster = cluster_of("token_uri.sh", monkeypatch)

    assert (cluster.address, cluster.access.token) == ("http://ray-head:8265", "the-token")


def test_connection_with_a_history_url(monkeypatch: pytest.MonkeyPatch):
    """The page of an ended job is that of the history server."""
    cluster = cluster_of("history_url.sh", monkeypatch)

    assert cluster.job_history_url("nightly", None) == "https://history.example.com/#/jobs/nightly"


def test_environment_in_place_of_a_connection(monkeypatch: pytest.MonkeyPatch):
    """Without a connection the environment names the cluster."""
    for name, value in sourced(EXAMPLES / "connection" / "no_connection.sh").items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)

    assert parse_environment(check_token_file=False).address == "http://127.0.0.1:8265"


@pytest.mark.parametrize("source", ["airflow.cfg", "environment.sh"])
def test_configuration(source: str, tmp_path: Path):
    """The configuration file and the environment variables have all settings of the package, and the same values."""
    path = EXAMPLES / "configuration" / source
    environment = {"AIRFLOW_HOME": str(tmp_path), "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= sourced(path) if path.suffix == ".sh" else {"AIRFLOW_CONFIG": str(path)}
    shown = subprocess.run(
        [sys.executable, "-c", _PRINT_SETTINGS],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert json.loads(shown.stdout.splitlines()[-1]) == _SETTINGS
    assert _SETTINGS.keys() == get_provider_info()["config"][config.SECTION]["options"].keys()


def test_messages_of_a_shell():
    """The task understands the lines that the shell script writes."""
    command = ["sh", "-e", EXAMPLES / "messages" / "messages.sh"]
    log = subprocess.run(
        command, env={"RAY_JOB_NONCE": "5f0c9a1b7d3e2468"}, check=True, capture_output=True, timeout=60
    ).stdout
    log_filter = MessageFilter(LogCursor())
    log_filter.nonce = "5f0c9a1b7d3e2468"
    log_filter.begin()
    records = [*log_filter.feed(log), *log_filter.finish()]

    assert records == []
    assert str(log_filter.progress) == "3 of 10 (30%): epoch 3"
    assert log_filter.messages.result.value == {"loss": 0.12}
    assert log_filter.messages.extra == {"rows": 1000}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("run_a_job", ["hello", "SUCCEEDED 0"]),
        ("run_many_jobs", ["0: SUCCEEDED", "1: SUCCEEDED", "2: SUCCEEDED"]),
        ("secured_cluster", ["2."]),
    ],
)
def test_client_program(docs_head: RayHead, name: str, lines: list[str]):
    """The program runs without Airflow, and prints what it says."""
    environment = os.environ | {
        "RAY_API_SERVER_ADDRESS": docs_head.address, "RAY_TOKEN": "the-token", "PROXY_PASSWORD": "its password",
    }  # fmt: skip
    program = EXAMPLES / "client" / f"{name}.py"
    shown = subprocess.run(
        [sys.executable, program], env=environment, check=True, capture_output=True, text=True, timeout=120
    )

    assert all(line in shown.stdout for line in lines), shown.stdout
