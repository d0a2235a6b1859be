"""Masking of secrets in this process; tests/secured tests it in a real Airflow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import redact
from airflow.sdk import DAG
from airflow.sdk._shared.secrets_masker import _secrets_masker
from airflow.serialization.helpers import serialize_template_field

from airflow_provider_rayjobs import masking
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import RayApiBusyError, RayApiConnectionError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import Access, JobDetails, RayJobsClient
from airflow_provider_rayjobs.jobs.endpoints import get_job, get_version
from airflow_provider_rayjobs.jobs.logs.cursor import LogEnding
from airflow_provider_rayjobs.jobs.steps import EmitRecord, Send
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.outcomes import error_for_outcome

SECRET = "m4rked-s3cret"


@pytest.fixture(autouse=True)
def masker() -> Iterator[None]:
    """Reset Airflow's masker for a test and restore it afterwards."""
    airflows = _secrets_masker()
    before = (airflows.patterns, airflows.replacer)
    airflows.reset_masker()
    yield
    airflows.patterns, airflows.replacer = before


def rendered_task(runtime_env: Any, **context: Any) -> RayJobSubmitOperator:
    with DAG("a"):
        # a list is already an error of the constructor
        given = None if isinstance(runtime_env, list) else runtime_env
        task = RayJobSubmitOperator(task_id="b", entrypoint="true", runtime_env=given)
    task.runtime_env = runtime_env
    task.render_template_fields(context)
    return task


def test_every_secret_of_a_connection_is_masked():
    """Token, password, header values, the proxy's password and ``auth_kwargs`` are masked in every log."""
    secrets = {name: f"{SECRET}-{name}" for name in ("token", "password", "header", "proxy", "argument")}
    access = Access(
        token=secrets["token"],
        login="me",
        password=secrets["password"],
        headers={"X-Api-Key": secrets["header"], "X-Env": "production"},
        proxy=f"http://u:{secrets['proxy']}@proxy:3128",
    )

    cluster = Cluster("http://a", "http://a", access=access, auth_kwargs={"a": secrets["argument"]})
    masking.mask_secret([*cluster.secrets()])

    shown = "me u proxy:3128 production"
    assert redact(f"{' '.join(secrets.values())} {shown}") == f"*** *** *** *** *** {shown}"


def test_env_vars_with_sensitive_names_are_masked():
    """A token is masked wherever it occurs; a date is not masked."""
    rendered_task({"env_vars": {"API_TOKEN": SECRET, "DAY": "20260102", "COUNT": "{{ 1 }}"}})

    assert redact(f"day 20260102 key {SECRET}") == "day 20260102 key ***"


def test_env_vars_of_a_file_are_masked(tmp_path):
    """The variables of a YAML file are masked too; a mistake in the file is reported by ``execute``."""
    (tmp_path / "env.yaml").write_text(f"env_vars: {{DB_PASSWORD: {SECRET}}}")
    rendered_task(str(tmp_path / "env.yaml"))
    wrong = rendered_task("no-such-file.yaml")

    assert redact(SECRET) == "***"
    assert wrong.runtime_env == "no-such-file.yaml"


def test_template_view_hides_values_of_env_vars():
    """Airflow stores and shows no value of ``env_vars``; the job gets them all."""
    task = rendered_task(
        {"env_vars": {"PLAIN": "{{ secret }}"}, "pip": ["{{ package }}"]}, secret=SECRET, package="torch"
    )
    shown = serialize_template_field(task.runtime_env, "runtime_env")

    assert shown == {"env_vars": {"PLAIN": "***"}, "pip": ["torch"]}
    assert SECRET not in f"{task.runtime_env!r} {task.runtime_env}"
    assert template_values.as_runtime_env(task.runtime_env, []) == {"env_vars": {"PLAIN": SECRET}, "pip": ["torch"]}
    assert json.dumps(shown)


def test_template_view_of_a_mapped_task_hides_env_vars():
    """A task made by ``.expand`` is redacted like any other."""
    with DAG("a"):
        mapped = RayJobSubmitOperator.partial(task_id="b", entrypoint="true").expand(
            runtime_env=[{"env_vars": {"PLAIN": SECRET}}]
        )
    task = mapped.unmap({"runtime_env": {"env_vars": {"PLAIN": SECRET}}})
    task._do_render_template_fields(task, mapped.template_fields, {}, task.get_template_env(), set())

    assert SECRET not in str(serialize_template_field(task.runtime_env, "runtime_env"))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        pytest.param({"env_vars": "{{ variables }}"}, {"env_vars": "***"}, id="variables as text"),
        pytest.param({"env_vars": ["A={{ secret }}"]}, {"env_vars": "***"}, id="variables as a list"),
        pytest.param(MappingProxyType({"env_vars": {"A": SECRET}}), {"env_vars": {"A": "***"}}, id="another mapping"),
        pytest.param("{{ {'env_vars': {'A': secret}} }}", "***", id="all as text"),
        pytest.param("env_vars:\n  A: {{ secret }}", "***", id="all as YAML"),
        pytest.param([{"env_vars": {"A": "{{ secret }}"}}], "***", id="a list"),
        pytest.param(({"env_vars": {"A": "{{ secret }}"}},), "***", id="a tuple"),
        pytest.param("env_vars.yaml", "env_vars.yaml", id="a path"),
    ],
)
def test_env_vars_of_a_wrong_type_are_hidden(given: Any, shown: Any):
    """The template view hides ``env_vars`` rendered as text or of a wrong type."""
    task = rendered_task(given, secret=SECRET, variables={"A": SECRET})

    assert serialize_template_field(task.runtime_env, "runtime_env") == shown
    assert SECRET not in f"{task.runtime_env!r} {task.runtime_env}"


def test_runtime_env_as_text_is_refused_without_its_text():
    """A runtime environment rendered as text is an error of the task, which does not show the text."""
    task = rendered_task("{{ {'env_vars': {'A': secret}} }}", secret=SECRET)

    with pytest.raises(ValueError, match="runtime_env is the text of a dictionary"):
        template_values.as_runtime_env(task.runtime_env, [])


def test_list_in_place_of_a_runtime_environment_is_refused():
    """A list is an error of the task, which names its type and shows no content."""
    task = rendered_task([{"env_vars": {"A": "{{ secret }}"}}], secret=SECRET)

    with pytest.raises(ValueError, match=r"^runtime_env must be a dictionary, not list\.$"):
        template_values.as_runtime_env(task.runtime_env, [])


URL = "https://me:m4rked%2Furl@host/simple"


def test_credentials_in_urls_are_masked_and_hidden():
    """A password in any URL of the environment is masked in logs, and hidden in the template view; the job gets it."""
    given = {
        "pip": ["--index-url {{ url }}", "torch"],
        "uv": {"packages": [f"a @ git+{URL}"]},
        "conda": {"channels": [URL], "dependencies": ["pip", {"pip": [f"--extra-index-url={URL}"]}]},
        "working_dir": "https://host/code.zip?sig=m4rked%2Furl&v=1",
        "py_modules": ["https://m4rked16C7e42F292c6@host/a.zip"],
        "env_vars": {"DATABASE": "postgres://app:m4rked-db@db/app"},
    }
    task = rendered_task(given, url=URL)
    hidden = URL.replace("m4rked%2Furl", "***")

    assert serialize_template_field(task.runtime_env, "runtime_env") == {
        "pip": [f"--index-url {hidden}", "torch"],
        "uv": {"packages": [f"a @ git+{hidden}"]},
        "conda": {"channels": [hidden], "dependencies": ["pip", {"pip": [f"--extra-index-url={hidden}"]}]},
        "working_dir": "https://host/code.zip?sig=***&v=1",
        "py_modules": ["https://***@host/a.zip"],
        "env_vars": {"DATABASE": "***"},
    }
    assert "m4rked" not in f"{task.runtime_env!r} {task.runtime_env}"
    assert redact("m4rked%2Furl m4rked/url m4rked16C7e42F292c6 m4rked-db me app host") == "*** *** *** *** me app host"
    assert template_values.as_runtime_env(task.runtime_env, [])["pip"][0] == f"--index-url {URL}"


def test_credentials_in_requirements_files_are_masked(tmp_path: Path):
    """A password in a file that the worker reads is masked before the packages are uploaded."""
    (tmp_path / "requirements.txt").write_text(f"--index-url {URL}\ntorch\n")
    task = rendered_task({"pip": str(tmp_path / "requirements.txt")})
    engine = task.resolve_local_code({})
    before = redact("m4rked/url")
    with RayJobsClient("http://127.0.0.1:9") as client:
        code = client.run(engine)

    assert code.runtime_env["pip"] == [f"--index-url {URL}", "torch"]
    assert (before, redact("m4rked/url")) == ("m4rked/url", "***")


def test_credentials_in_urls_of_a_followed_job_are_masked():
    """Ray's message about a failed installation quotes the URL, so it is masked for jobs of other tasks as well."""
    job = JobDetails.from_json({
        "type": "SUBMISSION", "status": "FAILED", "message": f"pip install --index-url {URL} failed",
        "runtime_env": {"pip": {"packages": [f"--index-url {URL}"]}},
    })  # fmt: skip

    def follow() -> Any:
        return (yield Send(get_job("a")))

    engine = masking.masking_env_vars(follow())
    next(engine)
    with pytest.raises(StopIteration) as end:
        engine.send(job)

    assert "m4rked" not in str(error_for_outcome(end.value.value, "http://a:8265"))


def test_copy_and_union_stay_redacted():
    """A copy and a union of a redacted environment show no value either."""
    redacted_env = masking.redact_env_vars({"env_vars": {"A": SECRET}})

    for made in (redacted_env.copy(), redacted_env | {"pip": ["torch"]}):
        assert made["env_vars"] == {"A": SECRET}
        assert SECRET not in repr(made)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(repr, id="Python"),
        pytest.param(json.dumps, id="JSON"),
        pytest.param(partial(json.dumps, ensure_ascii=False), id="JSON that keeps Unicode"),
        pytest.param(str.strip, id="without the newline at its end"),
    ],
)
def test_secret_is_masked_as_programs_print_it(write: Callable[[str], str]):
    """Ray quotes ``env_vars`` as Python writes them, and a file's last newline is in many variables."""
    secret = f'Jürgen"{SECRET}\n'
    masking.mask_env_vars({"env_vars": {"API_KEY": secret}})

    assert SECRET not in redact(f"env_vars: {write(secret)}")


def test_lines_of_a_secret_stay_readable():
    """Lines of a secret that is YAML or JSON occur in other texts, too."""
    masking.mask_env_vars({"env_vars": {"API_TOKEN": f"production\nlocalhost\n        \n{SECRET}\n"}})

    assert redact("production localhost         end") == "production localhost         end"


def test_everyday_values_are_not_masked():
    """A flag, a number and a short word stay readable, even if their variable has a sensitive name."""
    masking.mask_env_vars(
        {"env_vars": {"USE_TOKEN": "false", "MAX_TOKENS": "100000", "SECRET_NAME": "none", "API_KEY": "abcd"}}
    )

    assert redact("false 100000 none abcd") == "false 100000 none abcd"


@pytest.mark.parametrize("value", ["8473625190", 8473625190, "123456", "-8473625190", "8473.625190"])
@pytest.mark.parametrize("name", ["DB_PASSWORD", "API_TOKEN", "SECRET", "MAXIM_TOKEN"])
def test_numbers_may_be_secret(name: str, value: Any):
    """A number of six digits and more is masked if its variable has a sensitive name."""
    masking.mask_env_vars({"env_vars": {name: value}})

    assert redact(f"pw={value}") == "pw=***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASSWORD", "12345"), ("DB_PASSWORD", "0"), ("API_TOKEN", "1e9"), ("MAX_TOKENS", "1000000"),
        ("NUM_TOKENS", "1000000"), ("TRAIN_TOKENS", "1000000"), ("TOKEN_COUNT", "1000000"), ("TOKEN_LIMIT", "1000000"),
        ("max_token_size", "1000000"), ("TOKENIZER_ID", "128256"), ("SECRET_VERSION", "20260102"),
        ("TOKEN_TTL", "3600000"), ("TOKENS2", "1000000"), ("WORKERS", "8473625190"),
    ],
)  # fmt: skip
def test_quantities_stay_readable(name: str, value: str):
    """Short numbers, quantities, dates, and numbers in variables with other names are not masked."""
    masking.mask_env_vars({"env_vars": {name: value}})

    assert redact(f"n={value}") == f"n={value}"


def test_rotated_token_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A rotated token is masked when it is sent, on an event loop before the answer arrives."""
    file = tmp_path / "token"
    file.write_text("first-token")
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__ALLOWED_FILES", str(file))
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps(
        {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9, "extra": {"token_file": str(file)}}
    ))  # fmt: skip
    hook = RayJobsHook("mine")
    cluster = hook.get_cluster()
    file.write_text("second-token")
    with hook.client_of(cluster) as client, pytest.raises(RayApiConnectionError):
        client.send(get_version())
    blocking = redact("first-token second-token third-token")
    file.write_text("third-token")

    async def ask() -> None:
        async with hook.async_client_of(cluster) as client:
            with pytest.raises(RayApiConnectionError):
                await client.send(get_version())

    asyncio.run(ask())

    assert blocking == "*** *** third-token"
    assert redact("third-token") == "***"


def test_quiet_client_registers_no_token(tmp_path: Path):
    """A signal handler's client registers no token: it could deadlock with the code that it interrupted."""
    file = tmp_path / "token"
    file.write_text("unregistered-token")
    cluster = Cluster("http://127.0.0.1:9", "http://127.0.0.1:9", access=Access(token_file=str(file)))

    with RayJobsHook().client_of(cluster, is_quiet=True) as client, pytest.raises(RayApiConnectionError):
        client.send(get_version())

    assert redact("unregistered-token") == "unregistered-token"


def test_rendering_twice_changes_nothing():
    """Airflow may render an operator twice, as ``dag.test()`` does for a retry."""
    task = rendered_task({"env_vars": {"A": "{{ secret }}"}}, secret=SECRET)
    task.render_template_fields({})

    assert task.runtime_env["env_vars"] == {"A": SECRET}


def test_env_vars_of_a_followed_job_are_masked_before_its_log():
    """Ray returns a job's variables with it, so those of another task's job are masked too."""
    job = JobDetails.from_json(
        {"type": "SUBMISSION", "status": "RUNNING", "runtime_env": {"env_vars": {"API_TOKEN": SECRET}}}
    )

    def follow() -> Any:
        try:
            yield Send(get_job("a"))
        except RayApiBusyError:
            details = yield Send(get_job("a"))
        yield EmitRecord(f"key {SECRET}")
        return details

    engine = masking.masking_env_vars(follow())
    assert isinstance(next(engine), Send)
    assert isinstance(engine.throw(RayApiBusyError("busy")), Send)
    show = engine.send(job)
    masked = redact(show.record)
    with pytest.raises(StopIteration) as end:
        engine.send(None)

    assert masked == "key ***"
    assert end.value.value is job


@pytest.mark.parametrize(
    "runtime_env", [None, {}, {"env_vars": None}, {"env_vars": "{{ none }}"}, "a.yaml", Path("a.yaml")]
)
def test_other_values_are_left_unchanged(runtime_env: Any):
    """A value without ``env_vars`` is neither masked nor changed."""
    masking.mask_env_vars(runtime_env)

    assert masking.redact_env_vars(runtime_env) == runtime_env


def test_error_of_a_failed_job_is_masked():
    """The last log lines in the error are masked: Airflow does not mask errors in callbacks and consoles."""
    masking.mask_env_vars({"env_vars": {"API_TOKEN": SECRET}})
    job = JobDetails.from_json({"type": "SUBMISSION", "status": "FAILED", "message": f"it said {SECRET}"})

    error = error_for_outcome(job, "http://a:8265", LogEnding(last_lines=(f"key {SECRET}",)))

    assert "key ***" in str(error)
    assert error.last_lines == ("key ***",)
    assert SECRET not in str(error)
