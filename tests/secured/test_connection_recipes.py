"""The connections that the documentation shows, with the addresses, files and secrets of a real cluster."""

from __future__ import annotations

import asyncio
import configparser
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from airflow.secrets.local_filesystem import load_connections_dict
from certificates import CertificateAuthority
from nginx import Nginx, Server
from secret_values import BASIC_PASSWORD, HEADER_VALUE, PROXY_PASSWORD, SECRETS, TOKEN

from airflow_provider_rayjobs import config
from airflow_provider_rayjobs.hooks import RayJobsHook
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray

RECIPES = Path(__file__).parents[2] / "docs" / "examples" / "connections"
# The address in a recipe, and the route that it needs; the other recipes lead to the head itself.
INGRESS = "https://ray.example.com"
CLIENT_SECRET, ACCESS_TOKEN = "m4rked-client-9a", "m4rked-access-4c"


@dataclass
class Actual:
    """What stands in a recipe, and what the test uses in its place."""

    routes: dict[str, str]
    values: dict[str, str]

    def fill_in(self, text: str, route: str = "") -> str:
        for given, used in (self.values | {INGRESS: self.routes.get(route, "")}).items():
            text = text.replace(given, used)
        return text


@pytest.fixture(scope="module")
def actual(
    needs_nginx: None, token_head: RayHead, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Actual]:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "users").write_text(f"airflow:{{PLAIN}}{BASIC_PASSWORD}\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    server, client = authority.issue("recipes", hosts=("127.0.0.1",)), authority.issue("recipes-airflow")
    tls = f"ssl_certificate {server.cert};\nssl_certificate_key {server.key};\n"
    strip = 'proxy_set_header Authorization "";\n'

    def to_ray(directives: str = "") -> str:
        return f"{tls}location /team-a/ {{\n{directives}proxy_pass {token_head.address}/;\n}}\n"

    routes = {
        "basic": Server(to_ray(f'auth_basic "team a";\nauth_basic_user_file {folder}/users;\n{strip}')),
        "headers": Server(to_ray(f'if ($http_x_api_key != "{HEADER_VALUE}") {{ return 401; }}\n')),
        "oauth": Server(to_ray(f'if ($http_authorization != "Bearer {ACCESS_TOKEN}") {{ return 401; }}\n{strip}')),
        "mtls": Server(f"ssl_client_certificate {authority.cert};\nssl_verify_client on;\n{to_ray()}"),
        "private_ca": Server(to_ray()),
        "token_header": Server(to_ray(strip)),
    }
    answer = json.dumps({"access_token": ACCESS_TOKEN, "expires_in": 3600})
    login = Server(f"{tls}location /oauth/token {{\ndefault_type application/json;\nreturn 200 '{answer}';\n}}\n")
    proxy = Server(f"location / {{\nproxy_pass {token_head.address};\n}}\n", tls=False)
    values = {
        "http://ray-head:8265": token_head.address,
        "https://login.example.com": login.address,
        "proxy.example.com:3128": proxy.address.removeprefix("http://"),
        "the-token-of-ray": TOKEN,
        "the-password-at-the-ingress": BASIC_PASSWORD,
        "the-password-at-the-proxy": PROXY_PASSWORD,
        "the-key-1234567890ab": HEADER_VALUE,
        "the-secret-of-the-client": CLIENT_SECRET,
        "/var/run/secrets/ray/token": str(folder / "token"),
        "/etc/ssl/ray/company-ca.pem": str(authority.cert),
        "/etc/ssl/ray/airflow.pem": str(client.cert),
        "/etc/ssl/ray/airflow.key": str(client.key),
        "/etc/ssl/ray/*": f"{client.cert.parent}/*",
    }
    with Nginx([*routes.values(), login, proxy]):
        yield Actual({name: route.address for name, route in routes.items()}, values)


def hook_of(recipe: str, actual: Actual, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RayJobsHook:
    """Return a hook for the connection of a recipe, read as ``airflow connections import`` reads it."""
    file = tmp_path / f"{recipe}.json"
    file.write_text(actual.fill_in((RECIPES / file.name).read_text(), recipe))
    [connection] = load_connections_dict(str(file)).values()
    monkeypatch.setenv("AIRFLOW_CONN_UNDER_TEST", connection.as_json())
    monkeypatch.syspath_prepend(RECIPES)
    return RayJobsHook("under_test")


def permit(actual: Actual, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply the configuration that the documentation shows."""
    parser = configparser.ConfigParser()
    parser.read_string(actual.fill_in((RECIPES / "airflow.cfg").read_text()))
    for option, value in parser[config.SECTION].items():
        monkeypatch.setenv(config.variable(option), value)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.json")))
def test_recipe_reaches_ray(actual: Actual, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str):
    """Each recipe reaches Ray, from a worker and from the triggerer, and nothing that is shown has a secret."""
    hook = hook_of(recipe, actual, monkeypatch, tmp_path)
    permit(actual, monkeypatch)

    async def ask() -> str:
        async with await hook.aget_conn() as client:
            return (await client.get_version()).ray_version

    succeeded, message = hook.test_connection()
    assert succeeded, message
    assert message.startswith("Ray ")
    assert asyncio.run(ask()) in message
    shown = f"{message} {hook.get_cluster()!r}"
    assert [secret for secret in (*SECRETS, CLIENT_SECRET, ACCESS_TOKEN) if secret in shown] == []


@pytest.mark.parametrize(
    ("recipe", "extra", "option"),
    [
        ("token_file", "token_file names a file of the worker", "allowed_files"),
        ("mtls", "client_cert names a file of the worker", "allowed_files"),
        ("oauth", "auth names a class", "allowed_auth_classes"),
    ],
)
def test_recipe_needs_permission(
    actual: Actual, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str, extra: str, option: str
):
    """Without the configuration no file of the worker and no class is used, and the error names the setting."""
    succeeded, message = hook_of(recipe, actual, monkeypatch, tmp_path).test_connection()

    assert not succeeded
    assert f"extra {extra} that connections may not use" in message
    assert f"An administrator of Airflow can add it to {option}" in message
