"""From a connection to a cluster."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import Connection

from airflow_provider_rayjobs.exceptions import RayJobNotFoundError
from airflow_provider_rayjobs.hooks import Cluster, RayJobsHook, read_connection
from airflow_provider_rayjobs.jobs import JobStatus, RayJobsClient
from sandbox.ray_head import RayHead


def connection(**fields: Any) -> Connection:
    extra = fields.pop("extra", None)
    return Connection(conn_id="mine", conn_type="ray_jobs", extra=json.dumps(extra) if extra else None, **fields)


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        pytest.param({"host": "head"}, "http://head:8265", id="a name alone"),
        pytest.param({"host": "head", "port": 80}, "http://head:80", id="port"),
        pytest.param({"host": "head", "schema": "https"}, "https://head", id="https has the port that browsers know"),
        pytest.param({"host": "head", "schema": "https", "port": 8443}, "https://head:8443", id="https and port"),
        pytest.param({"host": "https://ray.example.com/team-a/"}, "https://ray.example.com/team-a", id="whole address"),
        pytest.param({"host": "http://head:1234"}, "http://head:1234", id="port in the host"),
        pytest.param({"host": "head", "extra": {"base_path": "/ray/"}}, "http://head:8265/ray", id="base path"),
        pytest.param({"host": "::1", "port": 8265}, None, id="an IPv6 address needs brackets"),
        pytest.param({"host": "head", "schema": "HTTPS"}, "https://head", id="schema in capitals"),
        pytest.param({"host": "[::1]"}, "http://[::1]:8265", id="IPv6"),
        pytest.param(
            {"host": "head", "extra": {"base_path": "", "dashboard_url": None}}, "http://head:8265", id="empty"
        ),
    ],
)
def test_a_connections_fields_make_an_address(fields: dict[str, Any], address: str | None):
    """Host, port, schema and base path make the address; a whole address in the host field does as well."""
    if address is None:
        with pytest.raises(ValueError, match="connection mine: "):
            read_connection(connection(**fields))
    else:
        assert read_connection(connection(**fields)) == Cluster(address, dashboard_url=address)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({}, "host is empty", id="no host"),
        pytest.param(
            {"host": "https://head", "schema": "http"},
            "host says schema https, the field for it says http",
            id="two schemas",
        ),
        pytest.param({"host": "head", "schema": "ray"}, "not the address of a Ray dashboard", id="Ray Client's schema"),
        pytest.param({"host": "ray://head:10001"}, "not the address of a Ray dashboard", id="Ray Client's address"),
        pytest.param({"host": "http://me:secret@head"}, "holds more than an address", id="credentials in the host"),
        pytest.param({"host": "head:1", "port": 2}, "host says port 1, the field for it says 2", id="two ports"),
        pytest.param({"host": "head/a", "extra": {"base_path": "b"}}, "host says base path a", id="two paths"),
        pytest.param({"host": "head..example.com"}, "is no address", id="no host's name"),
        pytest.param({"host": "head", "extra": {"base_pth": "x"}}, "nobody reads the extra base_pth", id="unknown"),
        pytest.param({"host": "head", "extra": {"base_path": 1}}, "extra base_path must be text, not int", id="text"),
        pytest.param({"host": "head:nine"}, "Port could not be cast", id="port is no number"),
        pytest.param({"host": "head", "extra": {"dashboard_url": "x"}}, "'x' is not the address", id="dashboard_url"),
        pytest.param(
            {"host": "head", "extra": {"agent_log_access": "si"}}, "agent_log_access is one of no", id="agent"
        ),
    ],
)
def test_a_connection_that_cannot_be_used_is_named(fields: dict[str, Any], message: str):
    """The error names the connection and the field, and never a secret."""
    with pytest.raises(ValueError, match="connection mine: ") as caught:
        read_connection(connection(**fields))

    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_password_is_the_token_and_in_no_repr():
    """The token travels in the cluster's settings, and shows nowhere."""
    cluster = read_connection(connection(host="head", password="marked-secret"))

    assert cluster.token == "marked-secret"
    assert "marked-secret" not in repr(cluster) + repr(RayJobsHook().client_of(cluster))


def test_the_dashboard_may_have_another_address_for_browsers():
    """The link to a job uses the address that browsers reach."""
    cluster = read_connection(connection(host="10.0.0.5", extra={"dashboard_url": "https://ray.example.com/a/"}))

    assert cluster.job_url("job-1") == "https://ray.example.com/a/#/jobs/job-1"


@pytest.mark.parametrize("run", [lambda hook: hook.get_cluster(), lambda hook: asyncio.run(hook.aget_cluster())])
def test_where_the_default_connection_is_missing_rays_variable_counts(run, monkeypatch: pytest.MonkeyPatch):
    """Undefined, the default connection leads to RAY_API_SERVER_ADDRESS, then to this machine."""
    without = run(RayJobsHook())
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265/")
    with_variable = run(RayJobsHook())

    assert without.address == "http://127.0.0.1:8265"
    assert with_variable.address == "http://elsewhere:8265"


@pytest.mark.parametrize("run", [lambda hook: hook.get_cluster(), lambda hook: asyncio.run(hook.aget_cluster())])
def test_an_address_that_was_given_is_never_overridden(run, monkeypatch: pytest.MonkeyPatch):
    """A defined connection wins over every variable of the worker's environment."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", '{"conn_type": "ray_jobs", "host": "given"}')
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")

    assert run(RayJobsHook()).address == "http://given:8265"


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    """What is wrong with the environment is said of the environment."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "head:8265")

    with pytest.raises(ValueError, match="environment variable RAY_API_SERVER_ADDRESS: 'head:8265' is not"):
        RayJobsHook().get_cluster()


@pytest.mark.parametrize("run", [lambda hook: hook.get_cluster(), lambda hook: asyncio.run(hook.aget_cluster())])
def test_another_connection_that_is_not_defined_is_an_error(run, monkeypatch: pytest.MonkeyPatch):
    """Only the default connection may be missing."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")

    with pytest.raises(AirflowNotFoundException, match="ray_jobs_other"):
        run(RayJobsHook("ray_jobs_other"))


def test_a_connection_may_be_given_as_a_uri(monkeypatch: pytest.MonkeyPatch):
    """Airflow's URI form does what its JSON form does."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_RAY_JOBS_DEFAULT", "ray-jobs://:tok%2Fen@ray.example.com:8443/https?base_path=team-a"
    )
    cluster = RayJobsHook().get_cluster()

    assert (cluster.address, cluster.token) == ("https://ray.example.com:8443/team-a", "tok/en")


def test_the_hook_offers_the_clients_methods_sync_and_async():
    """Each method of the client is one of the hook, and with an ``a`` before it one for event loops."""
    names = [
        "get_version",
        "submit_job",
        "get_job",
        "list_jobs",
        "stop_job",
        "delete_job",
        "get_job_logs",
        "save_job_logs",
        "follow_job",
    ]

    for name in names:
        wanted = inspect.signature(getattr(RayJobsClient, name))
        assert inspect.signature(getattr(RayJobsHook, name)) == wanted
        assert inspect.signature(getattr(RayJobsHook, f"a{name}")) == wanted
        assert inspect.iscoroutinefunction(getattr(RayJobsHook, f"a{name}"))


@pytest.mark.ray
def test_the_hooks_methods_reach_a_real_cluster(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Submit, follow, read, list, stop and delete through an Airflow connection."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    hook = RayJobsHook()
    lines: list[str] = []
    job = hook.submit_job(["echo", "through the hook"], metadata={"team": "a"})
    details = hook.follow_job(job, poll_interval=1, on_log=lines.append)

    assert hook.get_version().ray_version == "2.60.0"
    assert details.status == JobStatus.SUCCEEDED
    assert "through the hook" in "\n".join(lines).splitlines()
    assert "through the hook" in hook.get_job_logs(job).splitlines()
    assert hook.save_job_logs(job, tmp_path / "job.log") == len((tmp_path / "job.log").read_bytes()) > 0
    assert hook.get_job(job).metadata["team"] == "a"
    assert job in [known.submission_id for known in hook.list_jobs()]
    assert hook.stop_job(job) is False
    assert hook.delete_job(job) is True
    with pytest.raises(RayJobNotFoundError):
        hook.get_job(job)
    assert hook.test_connection()[0]


@pytest.mark.ray
def test_the_hooks_methods_work_on_an_event_loop(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The same, awaited."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)

    async def use() -> None:
        hook = RayJobsHook()
        job = await hook.asubmit_job("echo awaited")
        assert (await hook.afollow_job(job, poll_interval=1)).status == JobStatus.SUCCEEDED
        assert "awaited" in await hook.aget_job_logs(job)
        assert await hook.asave_job_logs(job, tmp_path / "job.log") > 0
        assert (await hook.aget_version()).session_name
        assert (await hook.aget_job(job)).submission_id == job
        assert job in [known.submission_id for known in await hook.alist_jobs()]
        assert not await hook.astop_job(job)
        assert await hook.adelete_job(job)

    asyncio.run(use())


def test_test_connection_says_why_not(monkeypatch: pytest.MonkeyPatch):
    """What is wrong with a connection is said in one sentence each: undefined, unusable, nobody there."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_NOBODY", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')
    monkeypatch.setenv("AIRFLOW_CONN_RAY_EMPTY", '{"conn_type": "ray_jobs"}')

    assert "isn't defined" in RayJobsHook("ray_undefined").test_connection()[1]
    assert "host is empty" in RayJobsHook("ray_empty").test_connection()[1]
    assert RayJobsHook("ray_nobody").test_connection()[0] is False
    assert "no answer from http://127.0.0.1:9" in RayJobsHook("ray_nobody").test_connection()[1]


@pytest.mark.parametrize(
    ("given", "may_ask"), [(None, False), ("no", False), ("yes", True), ("with_credentials", True)]
)
def test_agents_are_asked_only_where_the_connection_says_so(given: str | None, may_ask: bool):
    """Off by default; their addresses come from the cluster."""
    extra = {"agent_log_access": given} if given else None

    assert read_connection(connection(host="head", extra=extra)).may_ask_agents is may_ask
