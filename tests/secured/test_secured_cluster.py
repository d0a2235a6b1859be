"""The whole flow on a real head in token mode, behind a real nginx with TLS, client certificates and a base path."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from certificates import Authority
from marked import BY_AIRFLOW, BY_NAME, HEADER, PASSWORD, PROXY, QUIET, SECRETS, TOKEN, WRONG
from nginx import Nginx, Server
from packaging.version import Version

from airflow_provider_rayjobs.exceptions import RayApiAuthError, RayJobNotFoundError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import Access, AsyncRayJobsClient, RayJobsClient
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray


@dataclass
class Ingress:
    """One nginx before the head, and the ways through it."""

    nginx: Nginx
    mtls: dict[str, Any]
    basic: dict[str, Any]
    passes_on: dict[str, Any]
    strips: dict[str, Any]
    proxied: dict[str, Any]


@pytest.fixture(scope="session")
def ingress(
    needs_nginx: None, token_head: RayHead, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ingress]:
    """Ways in, each as the fields of a connection."""
    folder = tmp_path_factory.mktemp("ingress")
    (folder / "users").write_text(f"me:{{PLAIN}}{PASSWORD}\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    server, client = authority.issue("ingress", hosts=("127.0.0.1",)), authority.issue("airflow")
    tls = f"ssl_certificate {server.cert};\nssl_certificate_key {server.key};\n"
    mtls = f"{tls}ssl_client_certificate {authority.cert};\nssl_verify_client on;\n"
    basic = f'auth_basic "team a";\nauth_basic_user_file {folder}/users;\n'
    strip = 'proxy_set_header Authorization "";\n'

    def to_ray(more: str = "", base: str = "/team-a/") -> str:
        return f"location {base} {{\n{more}proxy_pass {token_head.address}/;\n}}\n"

    servers = {
        "mtls": Server(mtls + to_ray()),
        "basic": Server(tls + to_ray(basic + strip)),
        "passes on": Server(tls + to_ray(basic)),
        "strips": Server(to_ray(strip, "/"), tls=False),
        "forward": Server(to_ray("", "/"), tls=False),
    }
    ca = {"verify": str(authority.cert), "base_path": "/team-a"}
    with Nginx([*servers.values()]) as nginx:
        yield Ingress(
            nginx,
            mtls={
                "host": servers["mtls"].address,
                "extra": ca
                | {"token_file": f"{folder}/token", "client_cert": str(client.cert), "client_key": str(client.key)},
            },
            basic={
                "host": servers["basic"].address,
                "login": "me",
                "password": PASSWORD,
                "extra": ca | {"token": TOKEN, "headers": {"X-Tenant": HEADER}},
            },
            passes_on={
                "host": servers["passes on"].address,
                "login": "me",
                "password": PASSWORD,
                "extra": ca | {"token": TOKEN},
            },
            strips={"host": servers["strips"].address, "password": TOKEN},
            proxied={
                "host": token_head.address,
                "password": TOKEN,
                "extra": {"proxy": servers["forward"].address.replace("://", f"://me:{PROXY}@")},
            },
        )


def hook_of(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> RayJobsHook:
    """A hook of a connection that the environment defines."""
    monkeypatch.setenv("AIRFLOW_CONN_TRIED", json.dumps({"conn_type": "ray_jobs", **fields}))
    return RayJobsHook("tried")


WAYS = ["mtls", "basic", "proxied"]


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_flow(ingress: Ingress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str):
    """Submit, follow, read, save, list, stop and delete: each request gets in, by each way."""
    hook = hook_of(monkeypatch, getattr(ingress, way))
    lines: list[str] = []
    job = hook.submit_job("echo through the ingress; sleep 2; echo done")
    details = hook.follow_job(job, poll_interval=1, on_log=lines.append)
    runs = hook.submit_job("sleep 600")

    assert details.status == "SUCCEEDED"
    assert [line for line in "\n".join(lines).splitlines() if line in ("through the ingress", "done")] == [
        "through the ingress",
        "done",
    ]
    assert "done" in hook.get_job_logs(job).splitlines()
    assert hook.save_job_logs(job, tmp_path / "log") > 0
    assert {job, runs} <= {known.submission_id for known in hook.list_jobs()}
    assert hook.stop_job(runs) is True
    assert hook.follow_job(runs, poll_interval=1).status == "STOPPED"
    assert hook.test_connection()[0]
    assert hook.test_connection()[1].startswith("Ray 2.60.0 at ")


def test_the_whole_flow_on_an_event_loop(ingress: Ingress, monkeypatch: pytest.MonkeyPatch):
    """The same, awaited, through mTLS and a base path."""
    hook = hook_of(monkeypatch, ingress.mtls)

    async def use() -> None:
        job = await hook.asubmit_job("echo awaited")
        assert (await hook.afollow_job(job, poll_interval=1)).status == "SUCCEEDED"
        assert "awaited" in (await hook.aget_job_logs(job)).splitlines()
        assert not await hook.astop_job(job)

    asyncio.run(use())


def test_a_token_that_rotates_is_borne_while_a_job_is_followed(token_head: RayHead, tmp_path: Path):
    """Between two tokens the job is out of sight for a moment; with the new one it is followed to its end."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    notes: list[str] = []

    class Logger:
        def log(self, level: int, message: Any, /, *arguments: Any) -> None:
            notes.append(message % arguments)

    with RayJobsClient(token_head.address, access=Access(token_file=str(file)), logger=Logger()) as client:
        job = client.submit_job("sleep 6; echo done")
        threading.Timer(1.0, file.write_text, [WRONG]).start()
        threading.Timer(4.0, file.write_text, [f"{TOKEN}\n"]).start()
        details = client.follow_job(job, poll_interval=0.5)

    assert details.status == "SUCCEEDED"
    assert "HTTP 403, token rejected by Ray: could not " in notes[0]
    assert "in sight again" in notes[-1]
    assert not any(secret in "".join(notes) for secret in SECRETS)


@pytest.mark.parametrize("kind", [RayJobsClient, AsyncRayJobsClient])
def test_rays_own_refusals_say_what_to_do(token_head: RayHead, kind: type):
    """No token and a wrong one are told apart, by the head itself."""

    def ask(**access: Any) -> None:
        if kind is RayJobsClient:
            with RayJobsClient(token_head.address, access=Access(**access), retry_timeout=0) as client:
                client.get_version()
        else:
            asyncio.run(ask_on_a_loop(access))

    async def ask_on_a_loop(access: dict[str, Any]) -> None:
        async with AsyncRayJobsClient(token_head.address, access=Access(**access), retry_timeout=0) as client:
            await client.get_version()

    with pytest.raises(RayApiAuthError, match="HTTP 401, token missing, Ray requires one: could not "):
        ask()
    with pytest.raises(RayApiAuthError, match="HTTP 403, token rejected by Ray: could not ") as caught:
        ask(token=WRONG)
    assert WRONG not in str(caught.value)
    ask(token=TOKEN, token_header="X-Ray-Authorization")


@pytest.mark.parametrize(
    ("way", "change", "said"),
    [
        pytest.param("strips", {}, "token missing, although it was sent: could not", id="removed by the proxy"),
        pytest.param("passes_on", {}, "Ray ignores X-Ray-Authorization in a request with", id="login passed on to Ray"),
        pytest.param("basic", {"password": WRONG}, "login and password rejected by a reverse proxy", id="password"),
        pytest.param(
            "basic", {"extra": {"token": WRONG}}, "token rejected by Ray: could not", id="token behind the login"
        ),
        pytest.param("mtls", {"extra": {"client_cert": ""}}, "client_key is given without client_cert", id="key alone"),
        pytest.param(
            "mtls",
            {"extra": {"client_cert": "", "client_key": ""}},
            "client certificate required by a reverse proxy",
            id="no certificate",
        ),
        pytest.param(
            "mtls", {"extra": {"verify": ""}}, "an authority that this machine does not trust", id="authority"
        ),
        pytest.param(
            "mtls",
            {"extra": {"base_path": "/team-b"}},
            "HTTP 404, this is not the Ray Jobs API: could not",
            id="base path",
        ),
    ],
)
def test_test_connection_says_what_is_wrong(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch, way: str, change: dict[str, Any], said: str
):
    """Behind the button: one sentence for each mistake, without a secret."""
    fields = getattr(ingress, way)
    changed = fields | change | {"extra": fields.get("extra", {}) | change.get("extra", {})}
    is_good, message = hook_of(monkeypatch, changed).test_connection()

    assert not is_good
    assert said in message
    assert not any(secret in message for secret in SECRETS)


def test_a_proxy_that_takes_authorization_out_lets_the_other_header_pass(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
):
    """What the message advises works: ``token_header``."""
    fields = ingress.strips | {"extra": {"token_header": "X-Ray-Authorization"}}

    assert hook_of(monkeypatch, fields).test_connection()[0]


@pytest.fixture(scope="module")
def airflow(ingress: Ingress) -> Iterator[LocalAirflow]:
    """An Airflow whose every log is at level DEBUG, with a way in for each connection."""
    connections = {
        f"ray_jobs_{name}": {"conn_type": "ray_jobs", **fields}
        for name, fields in {
            "mtls": ingress.mtls,
            "basic": ingress.basic,
            "proxied": ingress.proxied,
            "wrong_token": ingress.proxied | {"password": WRONG},
        }.items()
    } | {"somewhere": {"conn_type": "generic", "password": BY_AIRFLOW}}
    settings = {
        "AIRFLOW_VAR_TOLD_BY_NAME": BY_NAME,
        "AIRFLOW_VAR_QUIET": QUIET,
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
    }
    with LocalAirflow(Path(__file__).parent / "dags", connections, settings) as running:
        yield running


@pytest.fixture(scope="module")
def run_id(airflow: LocalAirflow, ingress: Ingress) -> str:
    """A run of all tasks; those that are to be stopped are marked failed by hand while their jobs run."""
    run_id = airflow.trigger("secured")
    for task_id, waiting in (("is_stopped_worker", "running"), ("is_stopped_deferred", "deferred")):
        airflow.wait_for_task("secured", run_id, task_id, states=(waiting,), timeout=300)
        deadline = time.monotonic() + 60
        while not (job := airflow.xcoms("secured", run_id, task_id).get("submission_id")) or not _runs(ingress, job):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        # a kill of a task that the triggerer has not taken up yet reaches nobody
        while waiting == "deferred" and f"/{task_id}/-1/1 (ID " not in airflow.log_text("secured", run_id, task_id):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        airflow.api("PATCH", f"/dags/secured/dagRuns/{run_id}/taskInstances/{task_id}", json={"new_state": "failed"})
    airflow.wait_for_run("secured", run_id, timeout=400)
    return run_id


def _runs(ingress: Ingress, job: str) -> bool:
    with _client(ingress) as client:
        try:
            return client.get_job(job).status == "RUNNING"
        except RayJobNotFoundError:
            return False


def _client(ingress: Ingress) -> RayJobsClient:
    return RayJobsClient(ingress.proxied["host"], token=TOKEN)


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
@pytest.mark.parametrize("way", ["mtls", "basic"])
def test_a_task_runs_its_job_on_a_secured_cluster(airflow: LocalAirflow, run_id: str, way: str, mode: str):
    """On a worker and in the triggerer, with the job's log, in which what Airflow knows as secret is masked."""
    log = airflow.log_text("secured", run_id, f"{way}_{mode}")

    assert airflow.task_instance("secured", run_id, f"{way}_{mode}")["state"] == "success", log
    assert f"by name ***, by Airflow ***, and {len(QUIET) + 1} characters" in log.splitlines()


@pytest.mark.airflow
@pytest.mark.parametrize("task_id", ["senses", "senses_deferred", "mapped"])
def test_other_tasks_mask_the_jobs_secrets(airflow: LocalAirflow, run_id: str, task_id: str):
    """A sensor knows the telling variables of somebody else's job; a mapped task's are rendered like any other's."""
    log = airflow.log_text("secured", run_id, task_id, map_index=0 if task_id == "mapped" else -1)

    assert "by name ***" in log
    assert BY_NAME not in log


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
def test_a_failed_jobs_error_is_masked(airflow: LocalAirflow, run_id: str, mode: str):
    """The error quotes the job's last lines, and nothing in them that is secret."""
    log = airflow.log_text("secured", run_id, f"fails_{mode}")

    assert airflow.task_instance("secured", run_id, f"fails_{mode}")["state"] == "failed"
    assert "by name ***, by Airflow ***" in log.rpartition("The log ends in:")[2]


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
def test_a_stopped_tasks_job_is_stopped(airflow: LocalAirflow, ingress: Ingress, run_id: str, mode: str):
    """The kill of a worker, and of a trigger, finds its way in as well."""
    if mode == "deferred" and Version(airflow_version) < Version("3.3"):
        pytest.skip("before Airflow 3.3 a trigger is not told")
    job = airflow.xcoms("secured", run_id, f"is_stopped_{mode}")["submission_id"]
    with _client(ingress) as client:
        deadline = time.monotonic() + 60
        while (status := client.get_job(job).status) != "STOPPED":
            assert time.monotonic() < deadline, status
            time.sleep(0.5)


@pytest.mark.airflow
@pytest.mark.parametrize("mode", ["worker", "deferred"])
def test_a_wrong_token_fails_a_task_at_once(airflow: LocalAirflow, run_id: str, mode: str):
    """The task's log says that it is Ray which refuses, and what to change."""
    log = airflow.log_text("secured", run_id, f"not_let_in_{mode}")

    assert airflow.task_instance("secured", run_id, f"not_let_in_{mode}")["state"] == "failed"
    assert "RayApiAuthError" in log
    assert "HTTP 403, token rejected by Ray: could not " in log


@pytest.mark.airflow
def test_the_template_view_shows_no_value_of_a_variable(airflow: LocalAirflow, run_id: str):
    """What Airflow's UI shows of a task has the names of its env_vars alone, also of a mapped one."""
    for task_id, map_index in (("mtls_worker", -1), ("basic_deferred", -1), ("mapped", 0)):
        instance = airflow.task_instance("secured", run_id, task_id, map_index)
        assert instance["rendered_fields"]["runtime_env"] == {
            "env_vars": {"API_TOKEN": "***", "SHOWN": "***", "QUIET": "***"}
        }


@pytest.mark.airflow
def test_nothing_that_airflow_keeps_holds_a_secret(airflow: LocalAirflow, run_id: str):
    """Database, task logs and the logs of all of Airflow's parts, at level DEBUG, are read byte by byte."""
    kept = {path: path.read_bytes() for path in airflow.home.rglob("*") if path.is_file()}
    found = [
        (path.name, content[max(0, place - 300) : place + 100])
        for path, content in kept.items()
        for secret in SECRETS
        if (place := content.find(secret.encode())) >= 0
    ]

    assert not found, found


@pytest.mark.airflow
def test_the_forms_test_button_uses_all_fields(airflow: LocalAirflow, ingress: Ingress):
    """ "Test" in the form gets in by whatever the form holds, and says what is wrong with it."""
    fields = {"connection_id": "tried", "conn_type": "ray_jobs"}
    way = ingress.mtls | {"extra": json.dumps(ingress.mtls["extra"])}
    good = airflow.api("POST", "/connections/test", json=fields | way)
    bad = airflow.api("POST", "/connections/test", json=fields | way | {"extra": json.dumps({"verfy": "off"})})

    assert good["status"], good
    assert good["message"].startswith("Ray 2.60.0 at https://127.0.0.1:")
    assert (bad["status"], "nobody reads the extra verfy" in bad["message"]) == (False, True)
