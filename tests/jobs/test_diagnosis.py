"""Why a client was not let in, told from what answered; with real proxies and certificates: tests/secured."""

from __future__ import annotations

import ssl
from typing import Any

import httpx
import pytest

from airflow_provider_rayjobs.exceptions import (
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
            "HTTP 401, token missing, Ray requires one: could not get the Ray version at",
            id="none",
        ),
        pytest.param(
            answer(401, RAY_401, TOKEN),
            RayApiAuthError,
            "token_header to X-Ray-Authorization",
            id="lost",
        ),
        pytest.param(
            answer(401, RAY_401, TOKEN | LOGIN),
            RayApiAuthError,
            "token_header to Authorization",
            id="the other taken out",
        ),
        pytest.param(
            answer(403, RAY_403, TOKEN), RayApiAuthError, "HTTP 403, token rejected by Ray: could not", id="wrong"
        ),
        pytest.param(
            answer(403, RAY_403, LOGIN),
            RayApiAuthError,
            "Ray reads any Authorization as its token, so the reverse proxy must remove",
            id="stray",
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
            id="basic wanted",
        ),
        pytest.param(
            answer(401, "<html>", LOGIN, **BASIC),
            RayApiAuthError,
            "login and password rejected by a reverse proxy (nginx/1.22.1), not by Ray",
            id="basic refused",
        ),
        pytest.param(
            answer(401, "no", TOKEN, www_authenticate="Bearer"),
            RayApiAuthError,
            "It requires bearer authentication. The request carried a token in Authorization.",
            id="another kind",
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
            answer(302, location="/login?a=b"), RayApiAddressError, "redirect to /login: could not", id="here"
        ),
        pytest.param(answer(302, location="//["), RayApiAddressError, "redirect to an invalid address", id="nowhere"),
        pytest.param(
            answer(400, "<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            RayApiAddressError,
            "this port speaks TLS: could not",
            id="TLS wanted by nginx",
        ),
        pytest.param(
            answer(400, "Client sent an HTTP request to an HTTPS server."),
            RayApiAddressError,
            "this port speaks TLS: could not",
            id="TLS wanted by Go",
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
def test_each_refusal_has_words_of_its_own(given: Answer, kind: type[Exception], said: str):
    """Who refuses, and what to do about it, is in the message; no part of an address that may hold a secret is."""
    error = endpoints.error_for_answer(endpoints.get_version(), given)

    assert type(error) is kind
    assert said in str(error)
    assert "m4rked" not in str(error)
    assert "<" not in str(error)


@pytest.mark.parametrize("code", [200, 400, 404, 500, 502])
def test_what_keeps_nobody_out_is_somebody_elses_subject(code: int):
    """Answers about jobs are read by their endpoints."""
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
def test_what_a_transport_says_becomes_advice(error: Exception, said: str):
    """A proxy is named without its password."""
    access = Access(proxy="http://me:m4rked@proxy:3128")
    kind, fact, advice = diagnose_failure(error, "http://ray:8265", access, {"connect": 3.5})

    assert kind is RayApiConnectionError
    assert said in f"{fact} {advice}"
    assert "m4rked" not in f"{fact} {advice}"


@pytest.mark.parametrize("handled", [ssl.SSLCertVerificationError("another's"), RayApiTLSError("another's")])
def test_what_the_caller_was_handling_is_no_cause(handled: Exception):
    """A port that refuses is that also where it is asked while an error about a certificate is handled."""

    def ask() -> None:
        try:
            raise handled
        except Exception:  # noqa: BLE001
            with RayJobsClient("http://127.0.0.1:9", retry_timeout=0) as client:
                client.get_version()

    with pytest.raises(
        RayApiConnectionError,
        match="^Connection refused: could not get the Ray version at .* Check that the Ray head runs",
    ) as caught:
        ask()

    assert type(caught.value) is RayApiConnectionError


def test_an_error_about_a_certificate_that_openssl_did_not_make_is_one():
    """It has no number; its words say what is wrong."""
    error = httpx.ConnectError("no")
    error.__cause__ = ssl.SSLCertVerificationError("some other check")

    kind, fact, _ = diagnose_failure(error, "https://ray:8265", Access(), {})

    assert kind is RayApiTLSError
    assert fact.startswith("TLS handshake failed, the server's certificate was rejected (")


@pytest.mark.parametrize("kind", [ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLError])
def test_a_tls_connection_that_breaks_is_an_outage_like_others(kind: type[ssl.SSLError]):
    """An end without a word says nothing of certificates, and nothing of whether the request has arrived."""
    cause = kind(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol")
    cause.reason = "UNEXPECTED_EOF_WHILE_READING"
    error = httpx.ReadError(str(cause))
    error.__cause__ = cause

    def cut(_: httpx.Request) -> httpx.Response:
        raise error

    with (
        RayJobsClient("https://ray:8265", transport=httpx.MockTransport(cut), retry_timeout=0) as client,
        pytest.raises(RayApiConnectionError) as caught,
    ):
        client.get_version()

    assert type(caught.value) is RayApiConnectionError
    assert caught.value.sent is True
    assert may_retry(endpoints.get_version(), caught.value)
