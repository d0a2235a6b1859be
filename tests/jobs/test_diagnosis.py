"""Why access was denied, from recorded answers and errors; tests/secured does it with real proxies and certificates."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import httpx
import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiConnectionError,
    RayApiTLSError,
)
from airflow_provider_rayjobs.jobs import RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.diagnosis import diagnose_answer, diagnose_failure
from airflow_provider_rayjobs.jobs.requests import Answer
from airflow_provider_rayjobs.jobs.steps import may_retry

RAY_401, RAY_403 = "Unauthorized: Missing authentication token", "Forbidden: Invalid authentication token"
TOKEN = {"token": "t"}
LOGIN = {"login": "me", "password": "pw"}
BASIC = {"www-authenticate": 'Basic realm="the ingress"', "server": "nginx/1.22.1"}
SEE = "https://sso.example.com/start?state=m4rked"


def answer(code: int, text: str = "", access: dict[str, Any] | None = None, **headers: str) -> Answer:
    kind = "text/html; charset=utf-8" if text.startswith("<") else "text/plain"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(code, text.encode(), "http://ray.example.com:8265", kind, 0, named, Access(**(access or {})))


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        pytest.param(
            answer(401, RAY_401),
            RayApiAuthError,
            "HTTP 401, token missing, Ray requires one: could not connect to Ray at",
            id="missing",
        ),
        pytest.param(
            answer(401, RAY_401, TOKEN),
            RayApiAuthError,
            "token_header to X-Ray-Authorization",
            id="removed",
        ),
        pytest.param(
            answer(401, RAY_401, TOKEN | LOGIN),
            RayApiAuthError,
            "token_header to Authorization",
            id="other header removed",
        ),
        pytest.param(
            answer(403, RAY_403, TOKEN), RayApiAuthError, "HTTP 403, token rejected by Ray: could not", id="wrong"
        ),
        pytest.param(
            answer(403, RAY_403, LOGIN),
            RayApiAuthError,
            "Ray reads any Authorization as its token, so the reverse proxy must remove",
            id="no token",
        ),
        pytest.param(
            answer(403, RAY_403, TOKEN | LOGIN),
            RayApiAuthError,
            "Ray ignores X-Ray-Authorization in a request with Authorization",
            id="hidden",
        ),
        pytest.param(
            answer(401, "<html>", **BASIC),
            RayApiAuthError,
            "login required by a reverse proxy (nginx/1.22.1), not by Ray",
            id="basic required",
        ),
        pytest.param(
            answer(401, "<html>", LOGIN, **BASIC),
            RayApiAuthError,
            "login and password rejected by a reverse proxy (nginx/1.22.1), not by Ray",
            id="basic rejected",
        ),
        pytest.param(
            answer(401, "no", TOKEN, www_authenticate="Bearer"),
            RayApiAuthError,
            "It requires bearer authentication. The request carried a token in Authorization.",
            id="bearer required",
        ),
        pytest.param(
            answer(403, "<html>"), RayApiAuthError, "access denied by a reverse proxy, not by Ray", id="proxy's 403"
        ),
        pytest.param(answer(407), RayApiAuthError, "the HTTP proxy requires a login", id="HTTP proxy"),
        pytest.param(
            answer(200, "<html><title>\n Sign in &amp; go</title>"),
            RayApiAddressError,
            "an HTML page, titled 'Sign in & go', instead of Ray's answer",
            id="page",
        ),
        pytest.param(
            answer(302, location=SEE),
            RayApiAddressError,
            "HTTP 302, redirect to https://sso.example.com: could not",
            id="login",
        ),
        pytest.param(
            answer(301, location="https://ray.example.com/"),
            RayApiAddressError,
            "HTTP 301, redirect to https://ray.example.com: could not",
            id="to https",
        ),
        pytest.param(
            answer(302, location="/login?a=b"), RayApiAddressError, "redirect to /login: could not", id="same host"
        ),
        pytest.param(answer(302, location="//["), RayApiAddressError, "redirect to an invalid address", id="invalid"),
        pytest.param(
            answer(400, "<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            RayApiAddressError,
            "this port speaks TLS: could not",
            id="TLS required by nginx",
        ),
        pytest.param(
            answer(400, "Client sent an HTTP request to an HTTPS server."),
            RayApiAddressError,
            "this port speaks TLS: could not",
            id="TLS required by Go",
        ),
        pytest.param(
            answer(400, "<title>400 No required SSL certificate was sent</title>"),
            RayApiAuthError,
            "client certificate required by a reverse proxy: could not",
            id="no certificate",
        ),
        pytest.param(
            answer(400, "<title>400 The SSL certificate error</title>"),
            RayApiAuthError,
            "client_cert rejected by a reverse proxy: could not",
            id="wrong certificate",
        ),
    ],
)
def test_refusal_names_its_source_and_the_fix(given: Answer, kind: type[Exception], said: str):
    """The error says what refused and what to do; it quotes no part of an address that may hold a secret."""
    error = endpoints.error_for_answer(endpoints.get_version(), given)

    assert type(error) is kind
    assert said in str(error)
    assert "m4rked" not in str(error)
    assert "<" not in str(error)


@pytest.mark.parametrize("code", [200, 400, 404, 500, 502])
def test_other_answers_have_no_diagnosis(code: int):
    """Answers about jobs are left to the endpoints."""
    assert diagnose_answer(answer(code, "Job a does not exist")) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(httpx.ProxyError("407"), "HTTP proxy http://proxy:3128 refused the request", id="HTTP proxy"),
        pytest.param(httpx.RemoteProtocolError("illegal status line"), "Answer is not HTTP", id="another protocol"),
        pytest.param(httpx.RemoteProtocolError("Server disconnected without"), "Connection lost", id="cut off"),
        pytest.param(
            httpx.ConnectError("no route"), "The request went to the HTTP proxy http://proxy:3128.", id="hint"
        ),
        pytest.param(httpx.ConnectTimeout("late"), "Connection timeout after 3.5 s", id="timeout"),
    ],
)
def test_transport_error_has_a_diagnosis(error: Exception, said: str):
    """Each kind of transport error has its fact and advice; the HTTP proxy is named without its password."""
    access = Access(proxy="http://me:m4rked@proxy:3128")
    kind, fact, advice = diagnose_failure(error, "http://ray:8265", access, {"connect": 3.5})

    assert kind is RayApiConnectionError
    assert said in f"{fact} {advice}"
    assert "m4rked" not in f"{fact} {advice}"


@pytest.mark.parametrize("handled", [ssl.SSLCertVerificationError("another's"), RayApiTLSError("another's")])
def test_error_that_the_caller_handles_is_not_a_cause(handled: Exception):
    """A refused connection is diagnosed as that, even while the caller handles an error about a certificate."""

    def ask() -> None:
        try:
            raise handled
        except Exception:  # noqa: BLE001
            with RayJobsClient("http://127.0.0.1:9", retry_timeout=0) as client:
                client.get_version()

    with pytest.raises(
        RayApiConnectionError,
        match="^Connection refused: could not connect to Ray at .* Check that the Ray head runs",
    ) as caught:
        ask()

    assert type(caught.value) is RayApiConnectionError


def test_certificate_error_without_a_number_is_quoted():
    """A certificate error that OpenSSL did not make has no number, so its words are quoted."""
    error = httpx.ConnectError("no")
    error.__cause__ = ssl.SSLCertVerificationError("some other check")

    kind, fact, _ = diagnose_failure(error, "https://ray:8265", Access(), {})

    assert kind is RayApiTLSError
    assert fact.startswith("TLS handshake failed, the server's certificate was rejected (")


@pytest.mark.parametrize("kind", [ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLError])
def test_lost_tls_connection_is_an_outage(kind: type[ssl.SSLError]):
    """A lost TLS connection is a connection error that may be retried, and not one about certificates."""
    cause = kind(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol")
    cause.reason = "UNEXPECTED_EOF_WHILE_READING"
    error = httpx.ReadError(str(cause))
    error.__cause__ = cause

    def cut_off(_: httpx.Request) -> httpx.Response:
        raise error

    with (
        RayJobsClient("https://ray:8265", transport=httpx.MockTransport(cut_off), retry_timeout=0) as client,
        pytest.raises(RayApiConnectionError) as caught,
    ):
        client.get_version()

    assert type(caught.value) is RayApiConnectionError
    assert caught.value.delivery is Delivery.MAY_HAVE_ARRIVED
    assert may_retry(endpoints.get_version(), caught.value)


PROXY = "http://me:m4rked@proxy:3128"


@pytest.mark.parametrize(
    ("access", "environment", "host"),
    [
        pytest.param(Access(), {}, "ray", id="no proxy"),
        pytest.param(Access(), {"HTTPS_PROXY": PROXY}, "ray or the HTTP proxy of the environment", id="HTTPS_PROXY"),
        pytest.param(Access(), {"ALL_PROXY": PROXY}, "ray or the HTTP proxy of the environment", id="ALL_PROXY"),
        pytest.param(Access(), {"HTTP_PROXY": PROXY}, "ray", id="HTTP_PROXY of another schema"),
        pytest.param(Access(), {"NO_PROXY": "localhost"}, "ray", id="NO_PROXY alone"),
        pytest.param(Access(), {"HTTPS_PROXY": PROXY, "NO_PROXY": "ray"}, "ray", id="NO_PROXY of the host"),
        pytest.param(Access(proxy=PROXY), {}, "the HTTP proxy http://proxy:3128", id="proxy"),
    ],
)
def test_failed_dns_lookup_names_the_host(
    monkeypatch: pytest.MonkeyPatch, access: Access, environment: dict[str, str], host: str
):
    """The host is that of the address, or that of the HTTP proxy in between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = httpx.ConnectError("no name")
    error.__cause__ = socket.gaierror(-2, "Name or service not known")

    kind, said, _ = diagnose_failure(error, "https://ray:8265", access, {})

    assert kind is RayApiConnectionError
    assert said == f"DNS lookup failed for {host}"
    assert "m4rked" not in said
