"""A Ray head in token mode, and certificate authorities that the system does not trust."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from certificates import CertificateAuthority
from ingress import Ingress, running_ingress
from nginx import NGINX_BINARY
from secret_values import TOKEN

from sandbox.ray_head import RayHead


@pytest.fixture(scope="session")
def needs_nginx() -> None:
    """Skip the test without nginx, or fail it if ``REQUIRE_NGINX`` is set, as in the CI."""
    if NGINX_BINARY is None:
        message = "nginx is not installed (Debian: apt-get install nginx-light)"
        if os.environ.get("REQUIRE_NGINX"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"), "company-ca")


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("other-authority"), "other-ca")


@pytest.fixture(scope="session")
def token_head() -> Iterator[RayHead]:
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RUNTIME_ENV_RETRY_TIMES": "1"}
    with RayHead(num_cpus=4, environment=variables) as head:
        yield head


@pytest.fixture(scope="session")
def ingress(
    needs_nginx: None, token_head: RayHead, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ingress]:
    with running_ingress(token_head.address, authority, tmp_path_factory.mktemp("ingress")) as running:
        yield running


@pytest.fixture(autouse=True)
def _without_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove ``HTTP_PROXY`` and the like: all requests of these tests go to this machine."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
