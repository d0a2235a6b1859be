"""The description of a cluster in an Airflow connection."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.sdk import Connection

from airflow_provider_rayjobs.connection import EXTRAS, Cluster, parse_connection
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import Access
from airflow_provider_rayjobs.jobs.access import CredentialsError
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let connections use the files and classes of these tests."""
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__ALLOWED_FILES", f"/a, /no/such/*, /dev/null, {__file__}")
    monkeypatch.setenv(
        "AIRFLOW__RAY_JOBS__ALLOWED_AUTH_CLASSES",
        f"{__name__}.Signature, auth_that_raises.Auth, nowhere.Auth, Auth, json.Auth, json.JSONDecoder",
    )


def connection(**fields: Any) -> Connection:
    extra = fields.pop("extra", None)
    return Connection(conn_id="mine", conn_type="ray_jobs", extra=json.dumps(extra) if extra else None, **fields)


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        pytest.param({"host": "head"}, "http://head:8265", id="host name"),
        pytest.param({"host": "head", "port": 80}, "http://head:80", id="port"),
        pytest.param({"host": "head", "schema": "https"}, "https://head", id="https has port 443"),
        pytest.param({"host": "head", "schema": "https", "port": 8443}, "https://head:8443", id="https and port"),
        pytest.param({"host": "https://ray.example.com/team-a/"}, "https://ray.example.com/team-a", id="URL"),
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
def test_fields_make_the_address(fields: dict[str, Any], address: str | None):
    """Host, port, schema and base path make the address. A URL in the host field is equivalent."""
    if address is None:
        with pytest.raises(ValueError, match="connection mine: "):
            parse_connection(connection(**fields))
    else:
        assert parse_connection(connection(**fields)) == Cluster(address, dashboard_url=address)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({}, "host is empty", id="no host"),
        pytest.param(
            {"host": "https://head", "schema": "http"},
            "schema is http, but host contains https",
            id="two schemas",
        ),
        pytest.param({"host": "head", "schema": "ray"}, "not the address of a Ray dashboard", id="Ray Client's schema"),
        pytest.param({"host": "ray://head:10001"}, "not the address of a Ray dashboard", id="Ray Client's address"),
        pytest.param({"host": "http://me:secret@head"}, "contains more than an address", id="credentials in the host"),
        pytest.param({"host": "head:1", "port": 2}, "port is 2, but host contains 1", id="two ports"),
        pytest.param(
            {"host": "head/a", "extra": {"base_path": "b"}}, "extra base_path is b, but host contains a", id="two paths"
        ),
        pytest.param({"host": "head..example.com"}, "is not a valid address", id="no host's name"),
        pytest.param({"host": "head", "extra": {"base_pth": "x"}}, "unknown extra base_pth", id="unknown"),
        pytest.param({"host": "head", "extra": {"base_path": 1}}, "extra base_path must be text, not int", id="text"),
        pytest.param(
            {"host": "head:nine"}, "host is not an address. Give a host name or a URL", id="port is no number"
        ),
        pytest.param({"host": "head", "extra": {"dashboard_url": "x"}}, "'x' is not the address", id="dashboard_url"),
        *(
            pytest.param({"host": "head", "extra": {"history_url": url}}, "extra history_url is not usable", id=url)
            for url in (
                "history/{submission_id}",
                "https://history/jobs",
                "https://history/{submission_id}/{job}",
                "https://[/{submission_id}",
                "https://me:secret@history/{submission_id}",
                "https://:secret@history/{submission_id}",
                "https://{submission_id}/jobs",
                "https://history{submission_id}/jobs",
                "https://history/{submission_id}\n",
            )
        ),
        pytest.param(
            {"host": "head", "password": "secret", "extra": {"token": "secret"}},
            "password and extra token both contain a token",
            id="two tokens",
        ),
        pytest.param(
            {"host": "head", "password": "secret", "extra": {"token_file": "/a"}},
            "password and extra token_file both contain a token",
            id="token and file",
        ),
        pytest.param({"host": "head", "login": "me"}, "login and password belong together", id="login alone"),
        pytest.param(
            {"host": "head", "extra": {"token_file": "/no/such/file"}},
            "token_file /no/such/file cannot be read: No such file",
            id="no such token file",
        ),
        pytest.param(
            {"host": "head", "extra": {"token_file": "/dev/null"}},
            "/dev/null cannot be read: Not a regular file",
            id="a device",
        ),
        pytest.param(
            {"host": "head", "extra": {"verify": "/no/such/ca"}}, "verify /no/such/ca cannot be read", id="no CA"
        ),
        pytest.param(
            {"host": "head", "extra": {"verify": __file__}}, "holds no certificates", id="CA file without certificates"
        ),
        pytest.param({"host": "head", "extra": {"verify": False}}, "verify must be text: system, off", id="verify"),
        pytest.param({"host": "head", "extra": {"verify": "false"}}, "verify must be 'system'", id="verify as text"),
        pytest.param(
            {"host": "head", "extra": {"client_cert": "/no/such/cert"}},
            "client_cert /no/such/cert cannot be read",
            id="no certificate",
        ),
        pytest.param(
            {"host": "head", "extra": {"client_cert": __file__}}, "are not a certificate and its key", id="cert"
        ),
        pytest.param(
            {"host": "head", "extra": {"client_key": "/a"}}, "without client_cert", id="client_key without client_cert"
        ),
        pytest.param({"host": "head", "extra": {"headers": '{"A": "secret"'}}, "not invalid JSON", id="headers"),
        pytest.param({"host": "head", "extra": {"headers": ["secret"]}}, "with text values, not list", id="a list"),
        pytest.param({"host": "head", "extra": {"headers": '["secret"]'}}, "not list", id="a list as text"),
        pytest.param({"host": "head", "extra": {"headers": {"A": 1}}}, "one in which 'A' is int", id="no text"),
        pytest.param({"host": "head", "extra": {"read_timeout": "soon"}}, "read_timeout must be a number", id="time"),
        pytest.param(
            {"host": "head", "extra": {"read_timeout": True}}, "read_timeout must be a number", id="time as bool"
        ),
        pytest.param({"host": "head", "extra": {"proxy": "me:secret@proxy"}}, "proxy must be an address", id="proxy"),
        pytest.param({"host": "head", "extra": {"auth": "nowhere.Auth"}}, "cannot be imported", id="no module"),
        pytest.param({"host": "head", "extra": {"auth": "json.Auth"}}, "cannot be imported", id="no class"),
        pytest.param({"host": "head", "extra": {"auth": "Auth"}}, "cannot be imported", id="class without a module"),
        pytest.param(
            {"host": "head", "extra": {"auth": "json.JSONDecoder"}}, "is not a subclass of httpx.Auth", id="no Auth"
        ),
        pytest.param(
            {"host": "head", "extra": {"auth_kwargs": {"a": "secret"}}}, "without auth", id="auth_kwargs without auth"
        ),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], message: str):
    """The error names the connection and the field, and shows no secret."""
    with pytest.raises(ValueError, match="connection mine: ") as caught:
        parse_connection(connection(**fields))

    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


ALLOWED_FILES = "AIRFLOW__RAY_JOBS__ALLOWED_FILES"
ALLOWED_CLASSES = "AIRFLOW__RAY_JOBS__ALLOWED_AUTH_CLASSES"


def forbidden_by(extra: dict[str, str]) -> str:
    """Return the option that a connection with this extra needs, or "" if it needs none."""
    message = ""
    try:
        parse_connection(connection(host="https://head", extra=extra), check_token_file=False)
    except ValueError as error:
        message = str(error)
    found = re.search(r"extra (\w+) names .* may not use\. An administrator of Airflow can add it to (\w+) in", message)
    assert bool(found) == bool(message), message
    assert found is None or (found[1] in extra and extra[found[1]] not in message)
    return found[2] if found else ""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The file of a certificate and its key."""
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            "/CN=a", "-keyout", tmp_path / "a.key", "-out", tmp_path / "a.pem",
        ],
        check=True, capture_output=True, timeout=20,
    )  # fmt: skip
    return tmp_path / "a.pem"


@pytest.mark.parametrize("option", [None, "", "/etc/other"])
def test_files_and_classes_are_forbidden_by_default(
    option: str | None, certificate: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nobody who may edit a connection can read a file of the worker or run a class there, unless Airflow allows it."""
    for name in (ALLOWED_FILES, ALLOWED_CLASSES):
        monkeypatch.delenv(name)
        if option is not None:
            monkeypatch.setenv(name, option)

    assert forbidden_by({"token_file": "/proc/self/environ"}) == "allowed_files"
    assert forbidden_by({"client_cert": str(certificate)}) == "allowed_files"
    assert forbidden_by({"auth": "this.Auth"}) == "allowed_auth_classes"
    assert forbidden_by({"auth": f"{__name__}.Signature"}) == "allowed_auth_classes"
    assert "this" not in sys.modules, "the module was run"
    with pytest.raises(ValueError, match=r"\[ray_jobs\] .*AIRFLOW__RAY_JOBS__ALLOWED_FILES\)"):
        parse_connection(connection(host="head", extra={"token_file": "/etc/hostname"}))


@pytest.mark.parametrize(
    ("patterns", "path", "is_allowed"),
    [
        ("/etc/ray/token", "/etc/ray/token", True),
        ("/etc/other, /etc/ray/token", "/etc/ray/token", True),
        ("/etc/ray/*", "/etc/ray/token", True),
        ("/etc/*/token", "/etc/ray/token", True),
        ("/etc/ray/*", "/etc/ray/a/token", False),
        ("/etc/ray/*", "/etc/ray/../token", False),
        ("/etc/*/token", "/etc/../token", False),
        ("/etc/ray", "/etc/ray/token", False),
        ("/etc/ray/token", "/etc/ray/token2", False),
        ("token", "/etc/ray/token", False),
        ("*", "/etc/ray/token", False),
        ("ray/token", "ray/token", False),
        ("/etc/ray[1]/*", "/etc/ray[1]/token", True),
        ("/etc/ray[1]/*", "/etc/ray1/token", False),
        ("/etc/ray/tok?n", "/etc/ray/tok?n", True),
        ("/etc/ray/tok?n", "/etc/ray/token", False),
    ],
)
def test_patterns_of_allowed_files(patterns: str, path: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch):
    """A pattern is an absolute path, in which an asterisk matches no slash and no step upwards."""
    monkeypatch.setenv(ALLOWED_FILES, patterns)

    assert forbidden_by({"token_file": path}) == ("" if is_allowed else "allowed_files")


def test_client_certificate_needs_both_files_allowed(certificate: Path, monkeypatch: pytest.MonkeyPatch):
    """The files of a certificate and of its key are allowed one by one."""
    monkeypatch.setenv(ALLOWED_FILES, str(certificate))
    extra = {"client_cert": str(certificate), "client_key": str(certificate.with_suffix(".key"))}
    key_forbidden = forbidden_by(extra)
    monkeypatch.setenv(ALLOWED_FILES, f"{certificate.parent}/*")

    assert (key_forbidden, forbidden_by(extra)) == ("allowed_files", "")


def test_token_file_of_the_environment_is_always_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever sets the worker's environment has chosen its files."""
    (tmp_path / "token").write_text("a token")
    monkeypatch.setenv(ALLOWED_FILES, "")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))

    assert RayJobsHook().get_cluster().access == Access(token_file=str(tmp_path / "token"))


MARKED = "secret"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"host": f"https://me:{MARKED}/x@head"}, id="password with a slash"),
        pytest.param({"host": f"me:{MARKED}@head:80x"}, id="password and wrong port"),
        pytest.param({"host": f"[{MARKED}"}, id="incomplete IPv6 address"),
        pytest.param({"host": "head/a", "extra": {"base_path": f"b?token={MARKED}"}}, id="query in the base path"),
        pytest.param(
            {"host": "head", "extra": {"dashboard_url": f"ray.example.com/?token={MARKED}"}}, id="query without schema"
        ),
        pytest.param({"host": "head", "extra": {"dashboard_url": f"me:{MARKED}/@head"}}, id="password without schema"),
        pytest.param({"host": "head", "extra": {"headers": {f"X-Key: {MARKED}": "a"}}}, id="value in a header's name"),
        pytest.param({"host": "head", "password": "tok-tok", "extra": {"token_header": MARKED}}, id="token_header"),
        pytest.param({"host": "head", "extra": {"token_file": MARKED}}, id="token_file"),
    ],
)
def test_error_shows_no_possible_password(fields: dict[str, Any]):
    """An error shows no query of an address, and no address with an @."""
    with pytest.raises(ValueError, match="connection mine: ") as caught:
        parse_connection(connection(**fields))

    assert MARKED not in str(caught.value)
    assert MARKED not in str(chain_of(caught.value))


def chain_of(error: BaseException | None) -> list[BaseException]:
    """Return an error and the errors to which it is chained, also those that a traceback does not show."""
    return [] if error is None else [error, *chain_of(error.__cause__), *chain_of(error.__context__)]


@pytest.mark.parametrize("kind", ["RuntimeError", "ConnectionError", "ValueError", "AttributeError"])
def test_auth_module_that_fails_on_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """An exception in the module of ``auth`` is an error of the connection that a retry may fix."""
    (tmp_path / "auth_that_raises.py").write_text(f"raise {kind}('secret')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(
        CredentialsError, match=rf"auth_that_raises.Auth' cannot be imported: {kind} in its module"
    ) as caught:
        parse_connection(connection(host="head", extra={"auth": "auth_that_raises.Auth"}))

    assert "secret" not in str(chain_of(caught.value))


def test_password_is_the_token_and_in_no_repr():
    """The password is Ray's token, and no ``repr`` shows it."""
    cluster = parse_connection(connection(host="head", password="marked-secret"))

    assert cluster.access.token == "marked-secret"
    assert "marked-secret" not in repr(cluster) + repr(RayJobsHook().client_of(cluster))


def test_job_url_uses_the_dashboard_url():
    """The link to a job uses ``dashboard_url``, the address for browsers."""
    cluster = parse_connection(connection(host="10.0.0.5", extra={"dashboard_url": "https://ray.example.com/a/"}))

    assert cluster.job_url("job-1") == "https://ray.example.com/a/#/jobs/job-1"


def test_job_history_url():
    """The link to an ended job is made of ``history_url``. A job that is at another address has none."""
    url = "https://history.example.com/{session}/?a=b#/jobs/{submission_id}"
    cluster = parse_connection(connection(host="head", extra={"history_url": url}))

    assert cluster.job_history_url("job-1", "session_1") == "https://history.example.com/session_1/?a=b#/jobs/job-1"
    assert cluster.job_history_url("job-1", "{submission_id}/#") == (
        "https://history.example.com/%7Bsubmission_id%7D%2F%23/?a=b#/jobs/job-1"
    )
    assert cluster.job_history_url("job-1", None) == ""
    assert cluster.at("http://head:8265").history_url == url
    assert cluster.at("http://other:8265").history_url == ""


def test_extra_that_is_not_a_json_object_is_refused():
    """An extra that is not a JSON object is an error that does not quote it. Airflow would ignore the extra."""
    with pytest.raises(ValueError, match="connection mine: extra is not a JSON object") as caught:
        parse_connection(Connection(conn_id="mine", conn_type="ray_jobs", host="head", extra="{secret"))

    assert "secret" not in str(caught.value)


class Signature(httpx.Auth):
    """A user's ``auth`` class."""

    def __init__(self, audience: str) -> None:
        if audience == "wrong":
            raise LookupError("secret")
        self.audience = audience


FIELDS = {
    "login": "me",
    "password": "its password",
    "extra": {
        "token": "rays token", "headers": {"X-Tenant": "tenant-a"}, "verify": "off", "proxy": "http://u:p%40ss@proxy:3128",
        "connect_timeout": 5, "read_timeout": 60.5, "base_path": "/team-a",
        "dashboard_url": "https://public.example.com", "token_header": "X-Ray-Authorization",
        "history_url": "https://history/{submission_id}",
    },
}  # fmt: skip
URI = (
    "ray-jobs://me:its%20password@ray.example.com:8443/https?token=rays+token&headers=%7B%22X-Tenant%22%3A%22tenant-a%22%7D"
    "&verify=off&proxy=http%3A%2F%2Fu%3Ap%2540ss%40proxy%3A3128&connect_timeout=5&read_timeout=60.5"
    "&base_path=team-a&dashboard_url=https%3A%2F%2Fpublic.example.com"
    "&token_header=X-Ray-Authorization&history_url=https%3A%2F%2Fhistory%2F%7Bsubmission_id%7D"
)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(connection(host="ray.example.com", port=8443, schema="https", **FIELDS), id="fields"),
        pytest.param(
            Connection.from_json(
                json.dumps({"conn_type": "ray_jobs", "host": "https://ray.example.com:8443", **FIELDS}), conn_id="mine"
            ),
            id="JSON",
        ),
        pytest.param(Connection.from_uri(URI, conn_id="mine"), id="URI"),
    ],
)
def test_fields_json_and_uri_are_equivalent(given: Connection):
    """Fields, JSON and URI can each describe a complete connection."""
    cluster = parse_connection(given)

    assert cluster == Cluster(
        "https://ray.example.com:8443/team-a",
        dashboard_url="https://public.example.com",
        history_url="https://history/{submission_id}",
        access=Access(
            token="rays token",
            token_header="X-Ray-Authorization",
            login="me",
            password="its password",
            headers={"X-Tenant": "tenant-a"},
            verify="off",
            proxy="http://u:p%40ss@proxy:3128",
            connect_timeout=5.0,
            read_timeout=60.5,
        ),
    )
    assert {"rays token", "its password", "p%40ss", "p@ss"} <= set(cluster.secrets())
    assert "tenant-a" not in set(cluster.secrets())
    assert not any(secret in repr(cluster) for secret in cluster.secrets())


def test_auth_is_created_with_auth_kwargs():
    """``auth`` names a class and ``auth_kwargs`` its arguments, which are secret."""
    cluster = parse_connection(
        connection(host="head", extra={"auth": f"{__name__}.Signature", "auth_kwargs": {"audience": "marked-secret"}})
    )

    auth = cluster.full_access().auth
    assert "marked-secret" in cluster.full_access().secrets()
    assert isinstance(auth, Signature)
    assert auth.audience == "marked-secret"
    assert "marked-secret" in [*cluster.secrets()]
    assert "marked-secret" not in repr(cluster)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"auth_kwargs": {"unknown": "secret"}}, "cannot be created with auth_kwargs"),
        ({"auth_kwargs": {"audience": "wrong"}}, "cannot be created: LookupError"),
        ({"auth_kwargs": {"audience": "a"}, "headers": {"Authorization": "secret"}}, "auth and headers both set"),
    ],
)
def test_auth_that_cannot_be_created_is_named(extra: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch):
    """``get_conn`` and "Test" name an ``auth`` that cannot be created, without its arguments or its error text."""
    given = connection(host="head", extra={"auth": f"{__name__}.Signature"} | extra)
    monkeypatch.setenv("AIRFLOW_CONN_MINE", given.as_json())

    with pytest.raises(ValueError, match=f"connection mine: .*{message}") as caught:
        RayJobsHook("mine").get_conn()

    assert "secret" not in str(chain_of(caught.value))
    told = str(caught.value).replace("connection mine", "this connection")
    assert RayJobsHook("mine").test_connection() == (False, told)


def test_verify_off_is_logged_as_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Every use of a connection with ``verify`` off logs a warning."""
    monkeypatch.setenv("AIRFLOW_CONN_MINE", connection(host="https://head", extra={"verify": "off"}).as_json())
    hook = RayJobsHook("mine")
    said: list[str] = []
    monkeypatch.setattr(hook.log, "warning", lambda message, *args: said.append(message % args), raising=False)

    hook.get_cluster()
    asyncio.run(hook.aget_cluster())

    assert [message[:45] for message in said] == ["Connection mine does not check certificates ("] * 2


@pytest.mark.parametrize("name", ["password", "token", "extra"])
def test_operators_take_no_credentials(name: str):
    """Credentials come from the connection: no operator or sensor has an argument for them."""
    arguments = {*inspect.signature(RayJobSubmitOperator).parameters, *inspect.signature(RayJobSensor).parameters}

    assert not arguments & {*EXTRAS, name}
