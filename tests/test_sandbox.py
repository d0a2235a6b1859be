"""The sandbox on a developer's laptop, where Ray has generated a token."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_rayjobs.exceptions import RayApiAuthError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import RayJobsClient
from sandbox import processes
from sandbox.processes import free_port
from sandbox.ray_head import RayHead
from tests.matrix.ray_features import version_of_heads

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _home_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ray.init()`` generates this file for a local cluster. Then ``ray start --head`` requires the token in it."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("generated-by-ray")
    monkeypatch.setenv("HOME", str(tmp_path))


def test_sandbox_requires_no_token_on_any_machine():
    """A head of the sandbox accepts requests and jobs without a token, also where Ray has generated one."""
    with RayHead() as head, RayJobsClient(head.address) as client:
        job = client.submit_job("python -c 'import ray; ray.init()'")

        assert client.follow_job(job, poll_interval=1).status == "SUCCEEDED"


def test_free_port_is_not_one_that_the_kernel_gives_to_other_sockets():
    """A Ray head binds the last of its ports seconds after they were chosen."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    assert not {free_port() for _ in range(200)} & set(range(first, last + 1))


def test_free_port_is_not_that_of_another_process():
    """Two processes of tests may choose a port at the same moment, long before a program binds it."""
    chosen = free_port()
    program = (
        "from sandbox import processes; ports = iter([{0}, {0} - 1, {0} + 1]);"
        "processes.secrets.choice = lambda _: next(ports); print(processes.free_port())"
    )

    other = subprocess.run(
        [sys.executable, "-c", program.format(chosen)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert int(other.stdout) in {chosen - 1, chosen + 1}


def test_free_port_is_not_in_use(monkeypatch: pytest.MonkeyPatch):
    """A port on which a program listens is passed over."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        taken = listener.getsockname()[1]
        ports = iter([taken, taken, *range(20_000, 20_100)])
        monkeypatch.setattr(processes.secrets, "choice", lambda _: next(ports))

        assert free_port() != taken


@pytest.mark.needs_ray("token authentication")
def test_head_that_requires_the_generated_token_is_reached(monkeypatch: pytest.MonkeyPatch):
    """Without a connection, ``RAY_API_SERVER_ADDRESS`` alone is enough for a head on this machine."""
    with RayHead(environment={"RAY_AUTH_MODE": "token"}) as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)

        assert RayJobsHook().get_version().ray_version == version_of_heads()
        with RayJobsClient(head.address) as client, pytest.raises(RayApiAuthError, match="token missing"):
            client.get_version()
