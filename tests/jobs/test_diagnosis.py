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
        pytest.param(answer(401, RAY_401), RayApiAuthError, "Ray wants one. Give token or token_file.", id="none"),
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
        pytest.param(answer(403, RAY_403, TOKEN), RayApiAuthError, "is wrong, of another", id="wrong"),
        pytest.param(
            answer(403, RAY_403, LOGIN),
            RayApiAuthError,
            "has to take its own Authorization out",
            id="stray",
        ),
        pytest.param(
            answer(403, RAY_403, TOKEN | LOGIN),
            RayApiAuthError,
            "Ray does not read X-Ray-Authorization",
            id="hidden",
        ),
        pytest.param(
            answer(401, "<html>", **BASIC),
            RayApiAuthError,
            "a proxy before it (nginx/1.22.1): it wants basic authentication for 'the ingress'",
            id="basic wanted",
        ),
        pytest.param(
            answer(401, "<html>", LOGIN, **BASIC),
            RayApiAuthError,
            "does not accept login and password for 'the ingress'",
            id="basic refused",
        ),
        pytest.param(
            answer(401, "no", TOKEN, www_authenticate="Bearer"),
            RayApiAuthError,
            "it wants a login (Bearer), and a token in Authorization was sent",
            id="another kind",
        ),
        pytest.param(answer(403, "<html>"), RayApiAuthError, "who shows no credentials", id="proxy's 403"),
        pytest.param(answer(407), RayApiAuthError, "wants a user and a password", id="forward proxy"),
        pytest.param(
            answer(200, "<html><title>\n Sign in &amp; go</title>"),
            RayApiAddressError,
            "titled 'Sign in & go'",
            id="page",
        ),
        pytest.param(
            answer(302, location=SEE),
            RayApiAddressError,
            "leads to https://sso.example.com, as to a login",
            id="login",
        ),
        pytest.param(
            answer(301, location="https://ray.example.com/"),
            RayApiAddressError,
            "It leads to https://ray.example.com: give that",
            id="to https",
        ),
        pytest.param(answer(302, location="/login?a=b"), RayApiAddressError, "It leads to /login here", id="here"),
        pytest.param(answer(302, location="//["), RayApiAddressError, "to no address", id="nowhere"),
        pytest.param(
            answer(400, "<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            RayApiAddressError,
            "the address's schema is https",
            id="TLS wanted by nginx",
        ),
        pytest.param(
            answer(400, "Client sent an HTTP request to an HTTPS server."),
            RayApiAddressError,
            "the address's schema is https",
            id="TLS wanted by Go",
        ),
        pytest.param(
            answer(400, "<title>400 No required SSL certificate was sent</title>"),
            RayApiAuthError,
            "wants a client's certificate: give client_cert",
            id="no certificate",
        ),
        pytest.param(
            answer(400, "<title>400 The SSL certificate error</title>"),
            RayApiAuthError,
            "does not accept our client certificate",
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
        pytest.param(httpx.ProxyError("407 Proxy Authentication Required"), "The proxy http://proxy:3128 does not let"),
        pytest.param(httpx.RemoteProtocolError("illegal status line"), "a port of another service of Ray's"),
        pytest.param(
            httpx.RemoteProtocolError("Server disconnected without sending a response."), "Check that the Ray"
        ),
        pytest.param(httpx.ConnectError("refused"), "It was tried through the proxy http://proxy:3128."),
    ],
)
def test_what_a_transport_says_becomes_advice(error: Exception, said: str):
    """A proxy is named without its password."""
    kind, advice = diagnose_failure(error, "http://ray:8265", Access(proxy="http://me:m4rked@proxy:3128"))

    assert kind is RayApiConnectionError
    assert said in advice
    assert "m4rked" not in advice


@pytest.mark.parametrize("handled", [ssl.SSLCertVerificationError("another's"), RayApiTLSError("another's")])
def test_what_the_caller_was_handling_is_no_cause(handled: Exception):
    """A port that refuses is that also where it is asked while an error about a certificate is handled."""

    def ask() -> None:
        try:
            raise handled
        except Exception:  # noqa: BLE001
            with RayJobsClient("http://127.0.0.1:9", retry_timeout=0) as client:
                client.get_version()

    with pytest.raises(RayApiConnectionError, match="Check that the Ray head runs") as caught:
        ask()

    assert type(caught.value) is RayApiConnectionError


def test_an_error_about_a_certificate_that_openssl_did_not_make_is_one():
    """It has no number; its words say what is wrong."""
    error = httpx.ConnectError("no")
    error.__cause__ = ssl.SSLCertVerificationError("some other check")

    kind, advice = diagnose_failure(error, "https://ray:8265", Access())

    assert kind is RayApiTLSError
    assert "is not believed: " in advice


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
