"""The sandbox on a developer's laptop, where Ray has generated a token."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_rayjobs.exceptions import RayApiAuthError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import RayJobsClient
from sandbox.ray_head import RayHead
from tests.matrix.ray_features import version_of_heads

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


@pytest.mark.needs_ray("token authentication")
def test_head_that_requires_the_generated_token_is_reached(monkeypatch: pytest.MonkeyPatch):
    """Without a connection, ``RAY_API_SERVER_ADDRESS`` alone is enough for a head on this machine."""
    with RayHead(environment={"RAY_AUTH_MODE": "token"}) as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)

        assert RayJobsHook().get_version().ray_version == version_of_heads()
        with RayJobsClient(head.address) as client, pytest.raises(RayApiAuthError, match="token missing"):
            client.get_version()
