"""A Ray head in token mode, and an authority that nobody knows but us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority
from nginx import BINARY
from secret_values import TOKEN

from sandbox.ray_head import RayHead


@pytest.fixture(scope="session")
def needs_nginx() -> None:
    """Skip for a developer without nginx; fail where ``REQUIRE_NGINX`` is set, as in the CI."""
    if BINARY is None:
        message = "nginx is not installed (Debian: apt-get install nginx-light)"
        if os.environ.get("REQUIRE_NGINX"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "company-ca")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "strange-ca")


@pytest.fixture(scope="session")
def token_head() -> Iterator[RayHead]:
    with RayHead(num_cpus=4, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}) as head:
        yield head


@pytest.fixture(autouse=True)
def _no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is tried here goes to this machine."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
