"""Clients created from an Airflow connection."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException
from airflow.sdk.execution_time import supervisor

from airflow_provider_rayjobs import hooks
from airflow_provider_rayjobs.exceptions import RayJobNotFoundError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import Access, JobStatus, RayJobsClient
from sandbox.ray_head import RayHead
from tests.matrix.ray_features import version_of_heads

both_ways = pytest.mark.parametrize(
    "run", [lambda hook: hook.get_cluster(), lambda hook: asyncio.run(hook.aget_cluster())], ids=["blocking", "async"]
)


@both_ways
def test_undefined_default_connection_uses_rays_variable(
    run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without a default connection the address is ``RAY_API_SERVER_ADDRESS``. A process logs that once."""
    monkeypatch.setattr(hooks, "_logged_addresses", set())
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265/")
    hook = RayJobsHook()
    said: list[str] = []
    monkeypatch.setattr(hook.log, "info", lambda message, *args: said.append(message % args), raising=False)

    assert [run(hook).address for _ in range(2)] == ["http://elsewhere:8265"] * 2
    [message] = said
    assert message == (
        "Connection ray_jobs_default is not defined. Using the address http://elsewhere:8265 from the environment "
        "variable RAY_API_SERVER_ADDRESS. A secrets backend that cannot be read at the moment looks the same."
    )


class SealedVault:
    """A secrets backend that cannot be read at the moment. Airflow ignores its error."""

    def get_connection(self, conn_id: str) -> None:
        raise ConnectionError("sealed")


@both_ways
@pytest.mark.parametrize("value", [None, ""], ids=["no variable", "empty variable"])
@pytest.mark.parametrize("backends", [None, [SealedVault()]], ids=["undefined", "unreadable"])
def test_without_connection_and_variable_there_is_no_address(
    run, value: str | None, backends: list[SealedVault] | None, monkeypatch: pytest.MonkeyPatch
):
    """No address is assumed. The error, after which Airflow retries, names both ways to define one."""
    if value is not None:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", value)
    if backends is not None:
        monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda *_args, **_kwargs: backends)

    with pytest.raises(AirflowNotFoundException) as caught:
        run(RayJobsHook())

    assert not isinstance(caught.value, AirflowFailException)
    for part in (
        "ray_jobs_default is not defined",
        "A secrets backend that cannot be read at the moment looks the same",
        """AIRFLOW_CONN_RAY_JOBS_DEFAULT='{"conn_type": "ray_jobs", "host": "ray-head", "port": 8265}'""",
        "set RAY_API_SERVER_ADDRESS, for example to http://127.0.0.1:8265",
    ):
        assert part in str(caught.value)
    assert RayJobsHook().test_connection() == (False, str(caught.value))


@both_ways
def test_defined_connection_overrides_environment_variables(run, monkeypatch: pytest.MonkeyPatch):
    """A defined connection has precedence over every environment variable of the worker."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", '{"conn_type": "ray_jobs", "host": "given"}')
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")

    assert run(RayJobsHook()).address == "http://given:8265"


def test_undefined_default_connection_uses_rays_token_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Without a default connection the token comes from the variables of Ray's own tools."""
    file = tmp_path / "token"
    file.write_text("from a file\n")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    of_a_file = RayJobsHook().get_cluster().access
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from the environment")
    of_a_variable = RayJobsHook().get_cluster().access
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", '{"conn_type": "ray_jobs", "host": "given"}')

    assert (of_a_file.token_file, of_a_file.current_token()) == (str(file), "from a file")
    assert of_a_variable.token == "from the environment"
    assert RayJobsHook().get_cluster().access.has_token is False


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory in which Ray has generated a token for local clusters."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("generated-by-ray\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return tmp_path


@both_ways
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST", "[::1]"])
def test_token_of_the_home_directory_is_for_heads_on_this_machine(
    run, host: str, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """For a loopback address from the environment, the token is in the file that Ray's own tools use."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://{host}:8265")

    assert run(RayJobsHook()).access == Access(token_file=str(home / ".ray" / "auth_token"))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"RAY_API_SERVER_ADDRESS": "http://ray-head:8265"}, id="another host"),
        pytest.param({"RAY_API_SERVER_ADDRESS": "http://10.0.0.5:8265"}, id="another IP address"),
        pytest.param({"RAY_API_SERVER_ADDRESS": "http://0.0.0.0:8265"}, id="not a loopback address"),
        pytest.param({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1.example.com"}, id="name like an address"),
        pytest.param({"RAY_API_SERVER_ADDRESS": "http://localhost.example.com"}, id="name like localhost"),
        pytest.param({"AIRFLOW_CONN_RAY_JOBS_DEFAULT": "ray-jobs://127.0.0.1:8265"}, id="a connection"),
        pytest.param(
            {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "HTTP_PROXY": "http://proxy:3128"}, id="HTTP proxy"
        ),
        pytest.param(
            {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "all_proxy": "http://proxy:3128", "NO_PROXY": "a"},
            id="HTTP proxy for all",
        ),
        pytest.param(
            {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "HOME": "/nonexistent"}, id="no generated token"
        ),
    ],
)
def test_token_of_the_home_directory_goes_to_no_other_host(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """Neither another host nor an HTTP proxy gets that token, and no connection uses it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert RayJobsHook().get_cluster().access == Access()


@pytest.mark.usefixtures("home")
def test_token_variables_override_the_token_of_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """``RAY_AUTH_TOKEN_PATH``, and before it ``RAY_AUTH_TOKEN``, have precedence over the generated token."""
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    generated = RayJobsHook().get_cluster().access
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    file = RayJobsHook().get_cluster().access
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from the environment")

    assert generated.current_token() == "generated-by-ray"
    assert file == Access(token_file=str(tmp_path / "mine"))
    assert RayJobsHook().get_cluster().access == Access(token="from the environment")


def test_wrong_token_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    """The error about a missing token file names the environment variable."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/file")

    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN_PATH: token_file /no/such/file cannot be read"):
        RayJobsHook().get_cluster()


def test_wrong_address_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    """The error about an invalid address names the environment variable."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "head:8265")

    with pytest.raises(ValueError, match="environment variable RAY_API_SERVER_ADDRESS: 'head:8265' is not"):
        RayJobsHook().get_cluster()


@both_ways
def test_undefined_connection_is_an_error(run, monkeypatch: pytest.MonkeyPatch):
    """Only the default connection may be undefined."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")

    with pytest.raises(AirflowNotFoundException, match="ray_jobs_other"):
        run(RayJobsHook("ray_jobs_other"))


def test_connection_as_a_uri(monkeypatch: pytest.MonkeyPatch):
    """Airflow's URI form is equivalent to its JSON form."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_RAY_JOBS_DEFAULT", "ray-jobs://:tok%2Fen@ray.example.com:8443/https?base_path=team-a"
    )
    cluster = RayJobsHook().get_cluster()

    assert (cluster.address, cluster.access.token) == ("https://ray.example.com:8443/team-a", "tok/en")


def test_hook_has_every_method_of_the_client():
    """Each method of the blocking client is a method of the hook, with the same signature."""
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
        assert inspect.signature(getattr(RayJobsHook, name)) == inspect.signature(getattr(RayJobsClient, name))


@pytest.mark.ray
def test_methods_of_the_hook_reach_a_real_cluster(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Submit, follow, read, list, stop and delete through an Airflow connection."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    hook = RayJobsHook()
    lines: list[str] = []
    job = hook.submit_job(["echo", "through the hook"], metadata={"team": "a"})
    details = hook.follow_job(job, poll_interval=1, on_log=lines.append)

    assert hook.get_version().ray_version == version_of_heads()
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
def test_async_client_of_the_hook_reaches_a_real_cluster(
    ray_head: RayHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """On an event loop ``aget_conn`` returns a client with the same methods, awaited."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)

    async def use() -> None:
        async with await RayJobsHook().aget_conn() as client:
            job = await client.submit_job("echo awaited")
            assert (await client.follow_job(job, poll_interval=1)).status == JobStatus.SUCCEEDED
            assert "awaited" in await client.get_job_logs(job)
            assert await client.save_job_logs(job, tmp_path / "job.log") > 0
            assert (await client.get_version()).ray_version == version_of_heads()
            assert (await client.get_job(job)).submission_id == job
            assert job in [known.submission_id for known in await client.list_jobs()]
            assert not await client.stop_job(job)
            assert await client.delete_job(job)

    asyncio.run(use())


def test_test_connection_explains_the_failure(monkeypatch: pytest.MonkeyPatch):
    """The button "Test" explains an undefined connection, a wrong field and a refused connection."""
    monkeypatch.setenv("AIRFLOW_CONN_RAY_NOBODY", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')
    monkeypatch.setenv("AIRFLOW_CONN_RAY_EMPTY", '{"conn_type": "ray_jobs"}')

    assert "isn't defined" in RayJobsHook("ray_undefined").test_connection()[1]
    assert RayJobsHook("ray_empty").test_connection()[1].startswith("this connection: host is empty. ")
    assert RayJobsHook("ray_nobody").test_connection()[0] is False
    assert (
        RayJobsHook("ray_nobody")
        .test_connection()[1]
        .startswith("Connection refused: could not connect to Ray at http://127.0.0.1:9 (this connection). ")
    )


@pytest.mark.parametrize("name", ["AIRFLOW_CONN_RAY_JOBS_DEFAULT", "RAY_AUTH_TOKEN_PATH"])
def test_missing_token_file_is_an_error_before_the_job(name: str, monkeypatch: pytest.MonkeyPatch):
    """A missing token file fails "Test" and a new task. While a job is followed it is tolerated."""
    given = {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9, "extra": {"token_file": "/no/such/file"}}
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__ALLOWED_FILES", "/no/such/file")
    monkeypatch.setenv(name, "/no/such/file" if name == "RAY_AUTH_TOKEN_PATH" else json.dumps(given))
    hook = RayJobsHook()

    with pytest.raises(ValueError, match="token_file /no/such/file cannot be read"):
        hook.get_cluster()
    with pytest.raises(ValueError, match="token_file /no/such/file cannot be read"):
        asyncio.run(hook.aget_cluster())
    tested, said = hook.test_connection()
    tolerated = hook.get_cluster(check_token_file=False)

    assert (tested, "token_file /no/such/file cannot be read" in said) == (False, True)
    assert tolerated == asyncio.run(hook.aget_cluster(check_token_file=False))


def test_blank_token_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    """A blank token is an error, as it would be sent as no token."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", " ")

    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN .*: the token is empty"):
        RayJobsHook().get_cluster()
