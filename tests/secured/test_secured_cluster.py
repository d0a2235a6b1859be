"""A real head in token mode, behind a real nginx with TLS, client certificates and a base path."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from ingress import Ingress
from packaging.version import Version
from secret_values import (
    BASIC_PASSWORD,
    CONNECTION_PASSWORD,
    HEADER_VALUE,
    NAMED_SECRET,
    NUMBER,
    PROXY_PASSWORD,
    SECRETS,
    TOKEN,
    UNPRINTED,
    URL_PASSWORD,
    WRONG_TOKEN,
)

from airflow_provider_rayjobs.exceptions import RayApiAuthError, RayJobNotFoundError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import Access, AsyncRayJobsClient, RayJobsClient
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray


# The fields of a connection, by the route of the ingress.
Routes = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def routes(ingress: Ingress) -> Routes:
    values = ingress.values
    common = {"base_path": "/team-a", "verify": values["/etc/ssl/ray/company-ca.pem"]}
    credentials = {
        "token_file": values["/var/run/secrets/ray/token"],
        "client_cert": values["/etc/ssl/ray/airflow.pem"],
        "client_key": values["/etc/ssl/ray/airflow.key"],
    }
    login = {"login": "airflow", "password": BASIC_PASSWORD}
    proxy = ingress.addresses["http_proxy"].replace("://", f"://me:{PROXY_PASSWORD}@")
    fields: Routes = {
        "mtls": {"extra": common | credentials},
        "basic": login
        | {"extra": common | {"token": TOKEN, "headers": {"X-Tenant": HEADER_VALUE, "X-Env": "production"}}},
        "basic_forwarded": login | {"extra": common | {"token": TOKEN}},
        "strips_authorization": {"password": TOKEN},
        "http_proxy": {"host": values["http://ray-head:8265"], "password": TOKEN, "extra": {"proxy": proxy}},
    }
    return {route: {"host": ingress.addresses[route]} | each for route, each in fields.items()}


def allowed_files(fields: dict[str, Any]) -> str:
    """Return the files that a connection with these fields uses, for the option of Airflow that allows them."""
    extra = fields.get("extra", {})
    return ",".join(filter(None, (extra.get(name) for name in ("token_file", "client_cert", "client_key"))))


def create_hook(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> RayJobsHook:
    """Return a hook for a connection with these fields, defined by an environment variable."""
    monkeypatch.setenv("AIRFLOW_CONN_UNDER_TEST", json.dumps({"conn_type": "ray_jobs", **fields}))
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__ALLOWED_FILES", allowed_files(fields))
    return RayJobsHook("under_test")


@pytest.mark.parametrize("route", ["mtls", "basic", "http_proxy"])
def test_hook_submits_follows_reads_logs_and_stops(
    routes: Routes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, route: str
):
    """Every request of the hook sends the credentials that the route wants."""
    hook = create_hook(monkeypatch, routes[route])
    lines: list[str] = []
    job = hook.submit_job("echo through the ingress; sleep 2; echo done")
    details = hook.follow_job(job, poll_interval=1, on_log=lines.append)
    endless_job = hook.submit_job("sleep 600")

    assert details.status == "SUCCEEDED"
    assert [line for line in "\n".join(lines).splitlines() if line in ("through the ingress", "done")] == [
        "through the ingress",
        "done",
    ]
    assert "done" in hook.get_job_logs(job).splitlines()
    assert hook.save_job_logs(job, tmp_path / "log") > 0
    assert {job, endless_job} <= {listed.submission_id for listed in hook.list_jobs()}
    assert hook.stop_job(endless_job) is True
    assert hook.follow_job(endless_job, poll_interval=1).status == "STOPPED"
    assert hook.test_connection()[0]
    assert hook.test_connection()[1].startswith(f"Ray {version('ray')} at ")


def test_async_hook_submits_follows_reads_log_and_stops(routes: Routes, monkeypatch: pytest.MonkeyPatch):
    """The hook's async methods use the client certificate, the token file and the base path as well."""
    hook = create_hook(monkeypatch, routes["mtls"])

    async def run_job() -> None:
        async with await hook.aget_conn() as client:
            job = await client.submit_job("echo awaited")
            assert (await client.follow_job(job, poll_interval=1)).status == "SUCCEEDED"
            assert "awaited" in (await client.get_job_logs(job)).splitlines()
            assert not await client.stop_job(job)

    asyncio.run(run_job())


def test_token_rotation_is_tolerated_while_a_job_is_followed(token_head: RayHead, tmp_path: Path):
    """The client retries while the token file holds a wrong token, and follows the job to its end with a new token."""
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    messages: list[str] = []

    class Logger:
        def log(self, level: int, message: Any, /, *arguments: Any) -> None:
            messages.append(message % arguments)

    with RayJobsClient(token_head.address, access=Access(token_file=str(token_file)), logger=Logger()) as client:
        job = client.submit_job("sleep 6; echo done")
        threading.Timer(1.0, token_file.write_text, [WRONG_TOKEN]).start()
        threading.Timer(4.0, token_file.write_text, [f"{TOKEN}\n"]).start()
        details = client.follow_job(job, poll_interval=0.5)

    assert details.status == "SUCCEEDED"
    assert "HTTP 403, token rejected by Ray: could not " in messages[0]
    assert "Ray answers about job" in messages[-1]
    assert not any(secret in "".join(messages) for secret in SECRETS)


@pytest.mark.parametrize("client_class", [RayJobsClient, AsyncRayJobsClient])
def test_error_distinguishes_missing_token_from_wrong_token(token_head: RayHead, client_class: type):
    """Ray's HTTP 401 for a missing token and for a wrong token become different messages."""

    def request_version(**access: Any) -> None:
        if client_class is RayJobsClient:
            with RayJobsClient(token_head.address, access=Access(**access), retry_timeout=0) as client:
                client.get_version()
        else:
            asyncio.run(request_version_async(access))

    async def request_version_async(access: dict[str, Any]) -> None:
        async with AsyncRayJobsClient(token_head.address, access=Access(**access), retry_timeout=0) as client:
            await client.get_version()

    with pytest.raises(RayApiAuthError, match="HTTP 401, token missing, Ray requires one: could not "):
        request_version()
    with pytest.raises(RayApiAuthError, match="HTTP 403, token rejected by Ray: could not ") as caught:
        request_version(token=WRONG_TOKEN)
    assert WRONG_TOKEN not in str(caught.value)
    request_version(token=TOKEN, token_header="X-Ray-Authorization")


@pytest.mark.parametrize(
    ("route", "change", "message"),
    [
        pytest.param(
            "strips_authorization",
            {},
            "token missing, although it was sent: could not",
            id="proxy removes authorization header",
        ),
        pytest.param(
            "basic_forwarded", {}, "Ray ignores X-Ray-Authorization in a request with", id="proxy forwards login to Ray"
        ),
        pytest.param(
            "basic",
            {"password": WRONG_TOKEN},
            "login and password rejected by a reverse proxy",
            id="wrong password",
        ),
        pytest.param(
            "basic",
            {"extra": {"token": WRONG_TOKEN}},
            "token rejected by Ray: could not",
            id="wrong token after correct login",
        ),
        pytest.param(
            "mtls",
            {"extra": {"client_cert": ""}},
            "client_key is given without client_cert",
            id="client key without certificate",
        ),
        pytest.param(
            "mtls",
            {"extra": {"client_cert": "", "client_key": ""}},
            "client certificate required by a reverse proxy",
            id="no client certificate",
        ),
        pytest.param(
            "mtls",
            {"extra": {"verify": ""}},
            "an authority that this machine does not trust",
            id="unknown certificate authority",
        ),
        pytest.param(
            "mtls",
            {"extra": {"base_path": "/team-b"}},
            "HTTP 404, this is not the Ray Jobs API: could not",
            id="wrong base path",
        ),
    ],
)
def test_test_connection_names_the_mistake(
    routes: Routes, monkeypatch: pytest.MonkeyPatch, route: str, change: dict[str, Any], message: str
):
    """``test_connection`` describes each mistake in a message without secrets."""
    fields = routes[route]
    changed = fields | change | {"extra": fields.get("extra", {}) | change.get("extra", {})}
    succeeded, actual = create_hook(monkeypatch, changed).test_connection()

    assert not succeeded
    assert message in actual
    assert not any(secret in actual for secret in SECRETS)


def test_token_header_works_behind_a_proxy_that_removes_authorization(routes: Routes, monkeypatch: pytest.MonkeyPatch):
    """``token_header`` solves the problem, as the error message says."""
    fields = routes["strips_authorization"] | {"extra": {"token_header": "X-Ray-Authorization"}}

    assert create_hook(monkeypatch, fields).test_connection()[0]


@pytest.fixture(scope="module")
def airflow(routes: Routes) -> Iterator[LocalAirflow]:
    """An Airflow with log level DEBUG and one connection for each route."""
    connections = {
        f"ray_jobs_{name}": {"conn_type": "ray_jobs", **fields}
        for name, fields in {
            "mtls": routes["mtls"],
            "basic": routes["basic"],
            "http_proxy": routes["http_proxy"],
            "wrong_token": routes["http_proxy"] | {"password": WRONG_TOKEN},
        }.items()
    } | {"other_service": {"conn_type": "generic", "password": CONNECTION_PASSWORD}}
    settings = {
        "AIRFLOW_VAR_MASKED_BY_ENV_NAME": NAMED_SECRET,
        "AIRFLOW_VAR_UNPRINTED": UNPRINTED,
        "AIRFLOW_VAR_NUMBER": NUMBER,
        "AIRFLOW_VAR_PACKAGE_INDEX": f"http://me:{URL_PASSWORD}@127.0.0.1:9/simple",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
        "AIRFLOW__RAY_JOBS__ALLOWED_FILES": allowed_files(routes["mtls"]),
    }
    with LocalAirflow(Path(__file__).parent / "dags", connections, settings) as running:
        yield running


@pytest.fixture(scope="module")
def run_id(airflow: LocalAirflow, routes: Routes) -> str:
    """The id of an ended run of all tasks. Two tasks were marked as failed while their jobs ran."""
    run_id = airflow.trigger("secured")
    for task_id, state in (("marked_failed_worker", "running"), ("marked_failed_deferred", "deferred")):
        airflow.wait_for_task("secured", run_id, task_id, states=(state,), timeout=300)
        deadline = time.monotonic() + 60
        while not (job := airflow.xcoms("secured", run_id, task_id).get("submission_id")) or not _runs(routes, job):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        # a trigger that the triggerer does not run yet would not get the kill
        while state == "deferred" and f"/{task_id}/-1/1 (ID " not in airflow.log_text("secured", run_id, task_id):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        airflow.api("PATCH", f"/dags/secured/dagRuns/{run_id}/taskInstances/{task_id}", json={"new_state": "failed"})
    airflow.wait_for_run("secured", run_id, timeout=400)
    return run_id


def _runs(routes: Routes, job: str) -> bool:
    with _direct_client(routes) as client:
        try:
            return client.get_job(job).status == "RUNNING"
        except RayJobNotFoundError:
            return False


def _direct_client(routes: Routes) -> RayJobsClient:
    return RayJobsClient(routes["http_proxy"]["host"], token=TOKEN)


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
@pytest.mark.parametrize("route", ["mtls", "basic"])
def test_task_succeeds_and_secrets_in_its_log_are_masked(airflow: LocalAirflow, run_id: str, route: str, mode: str):
    """A task on a secured cluster succeeds, and secrets that its job prints are masked in the task's log."""
    log = airflow.log_text("secured", run_id, f"{route}_{mode}")

    assert airflow.task_instance("secured", run_id, f"{route}_{mode}")["state"] == "success", log
    characters = len(UNPRINTED) + 1
    assert f"by name *** ***, from connection ***, and {characters} characters in production" in log.splitlines()


@pytest.mark.airflow
@pytest.mark.parametrize("task_id", ["sensor", "sensor_deferred", "mapped"])
def test_sensors_and_mapped_tasks_mask_secrets_in_the_log(airflow: LocalAirflow, run_id: str, task_id: str):
    """Sensors and mapped tasks mask the values of environment variables whose names are sensitive."""
    log = airflow.log_text("secured", run_id, task_id, map_index=0 if task_id == "mapped" else -1)

    assert "by name ***" in log
    assert NAMED_SECRET not in log


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
def test_secrets_in_the_error_of_a_failed_job_are_masked(airflow: LocalAirflow, run_id: str, mode: str):
    """The error quotes the job's last log lines with masked secrets."""
    log = airflow.log_text("secured", run_id, f"job_fails_{mode}")

    assert airflow.task_instance("secured", run_id, f"job_fails_{mode}")["state"] == "failed"
    assert "by name *** ***, from connection ***" in log.rpartition("The log ends with:")[2]


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
def test_job_of_a_task_marked_failed_is_stopped(airflow: LocalAirflow, routes: Routes, run_id: str, mode: str):
    """The stop request of a killed worker task or trigger has the right credentials."""
    if mode == "deferred" and Version(airflow_version) < Version("3.3"):
        pytest.skip("before Airflow 3.3 a trigger has no on_kill")
    job = airflow.xcoms("secured", run_id, f"marked_failed_{mode}")["submission_id"]
    with _direct_client(routes) as client:
        deadline = time.monotonic() + 60
        while (status := client.get_job(job).status) != "STOPPED":
            assert time.monotonic() < deadline, status
            time.sleep(0.5)


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
def test_wrong_token_fails_the_task_at_once(airflow: LocalAirflow, run_id: str, mode: str):
    """The error in the task's log says that Ray rejected the token."""
    log = airflow.log_text("secured", run_id, f"wrong_credentials_{mode}")

    assert airflow.task_instance("secured", run_id, f"wrong_credentials_{mode}")["state"] == "failed"
    assert "RayApiAuthError" in log
    assert "HTTP 403, token rejected by Ray: could not " in log


shows_templates = pytest.mark.skipif(
    Version(airflow_version).release < (3, 3), reason="the API returns rendered templates since Airflow 3.3"
)


@shows_templates
@pytest.mark.airflow
def test_rendered_template_view_masks_all_env_vars(airflow: LocalAirflow, run_id: str):
    """Airflow's UI shows the names of a task's ``env_vars`` and no values, for mapped tasks as well."""
    for task_id, map_index in (("mtls_worker", -1), ("basic_deferred", -1), ("mapped", 0)):
        instance = airflow.task_instance("secured", run_id, task_id, map_index)
        assert instance["rendered_fields"]["runtime_env"] == {
            "env_vars": {"API_TOKEN": "***", "DB_PASSWORD": "***", "FROM_CONNECTION": "***", "UNPRINTED": "***"}
        }


@shows_templates
@pytest.mark.airflow
def test_password_in_the_url_of_a_package_index_is_hidden(airflow: LocalAirflow, run_id: str):
    """Template view and error of a failed installation show the index without its password."""
    instance = airflow.task_instance("secured", run_id, "pip_fails")
    log = airflow.log_text("secured", run_id, "pip_fails")

    assert instance["state"] == "failed"
    assert instance["rendered_fields"]["runtime_env"]["pip"]["packages"] == [
        "--index-url http://me:***@127.0.0.1:9/simple",
        "no-such-package",
    ]
    assert "RayJobRuntimeEnvError" in log
    assert URL_PASSWORD not in log


@pytest.mark.airflow
def test_no_file_of_airflow_contains_a_secret(airflow: LocalAirflow, run_id: str):
    """Neither the database nor any log of a task or of Airflow's processes, at level DEBUG, contains a secret."""
    contents = {path: path.read_bytes() for path in airflow.home.rglob("*") if path.is_file()}
    found = [
        (path.name, content[max(0, position - 300) : position + 100])
        for path, content in contents.items()
        for secret in SECRETS
        if (position := content.find(secret.encode())) >= 0
    ]

    assert not found, found


@pytest.mark.airflow
def test_test_button_of_the_connection_form_uses_all_fields(airflow: LocalAirflow, routes: Routes):
    """The button "Test" connects with all fields of the form, and reports an unknown key of the extra."""
    fields = {"connection_id": "under_test", "conn_type": "ray_jobs"}
    connection = routes["mtls"] | {"extra": json.dumps(routes["mtls"]["extra"])}
    good = airflow.api("POST", "/connections/test", json=fields | connection)
    bad = airflow.api("POST", "/connections/test", json=fields | connection | {"extra": json.dumps({"verfy": "off"})})

    assert good["status"], good
    assert good["message"].startswith(f"Ray {version('ray')} at https://127.0.0.1:")
    # and not the id that Airflow makes up for the test
    assert (bad["status"], bad["message"].startswith("this connection: unknown extra verfy")) == (False, True), bad
