"""The connections that the documentation shows, with the addresses, files and secrets of a real cluster."""

from __future__ import annotations

import asyncio
import configparser
import os
from pathlib import Path

import pytest
from airflow.secrets.local_filesystem import load_connections_dict
from ingress import ACCESS_TOKEN, CLIENT_SECRET, EXAMPLES, Ingress, shown_blocks
from secret_values import SECRETS

from airflow_provider_rayjobs import config
from airflow_provider_rayjobs.hooks import RayJobsHook

pytestmark = pytest.mark.ray

RECIPES = EXAMPLES / "connections"


def hook_of(recipe: str, ingress: Ingress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RayJobsHook:
    """Return a hook for the connection of a recipe, read as ``airflow connections import`` reads it."""
    file = tmp_path / f"{recipe}.json"
    file.write_text(ingress.fill_in((RECIPES / file.name).read_text(), recipe))
    [connection] = load_connections_dict(str(file)).values()
    monkeypatch.setenv("AIRFLOW_CONN_UNDER_TEST", connection.as_json())
    monkeypatch.syspath_prepend(RECIPES)
    return RayJobsHook("under_test")


def permit(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply the configuration that the documentation shows."""
    parser = configparser.ConfigParser()
    parser.read_string(ingress.fill_in((RECIPES / "airflow.cfg").read_text()))
    for option, value in parser[config.SECTION].items():
        monkeypatch.setenv(config.variable(option), value)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.json")))
def test_recipe_reaches_ray(ingress: Ingress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str):
    """Each recipe reaches Ray, from a worker and from the triggerer, and nothing that is shown has a secret."""
    hook = hook_of(recipe, ingress, monkeypatch, tmp_path)
    permit(ingress, monkeypatch)

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
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str, extra: str, option: str
):
    """Without the configuration no file of the worker and no class is used, and the error names the setting."""
    succeeded, message = hook_of(recipe, ingress, monkeypatch, tmp_path).test_connection()

    assert not succeeded
    assert f"extra {extra} that connections may not use" in message
    assert f"An administrator of Airflow can add it to {option}" in message


@pytest.mark.parametrize("recipe", sorted(shown_blocks()))
def test_ingress_takes_local_code(ingress: Ingress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str):
    """The server blocks of the documentation accept a package that is larger than nginx's own limit of 1 MiB."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "data").write_bytes(os.urandom(2 << 20))
    hook = hook_of(recipe, ingress, monkeypatch, tmp_path)
    permit(ingress, monkeypatch)
    job = hook.submit_job("wc -c data", runtime_env={"working_dir": str(code)})

    assert hook.follow_job(job, poll_interval=1).status == "SUCCEEDED"
    assert f"{2 << 20} data" in hook.get_job_logs(job)
