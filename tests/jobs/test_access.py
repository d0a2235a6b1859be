"""Credentials: which request carries which, and that no text shows them."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import pickle
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

from airflow_provider_rayjobs.exceptions import Delivery, RayApiAddressError, RayApiConnectionError, RayJobsError
from airflow_provider_rayjobs.jobs import AsyncRayJobsClient, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.access import Access, CredentialsError
from airflow_provider_rayjobs.jobs.redaction import redact
from airflow_provider_rayjobs.jobs.requests import Answer, Request
from airflow_provider_rayjobs.jobs.steps import send
from airflow_provider_rayjobs.jobs.tls import certificate_mtimes, check_certificates

ADDRESS = "http://ray-head:8265"
SECRET = "m4rked-s3cret"
VERSION = {"version": "4", "ray_version": "2.60.0"}

Respond = Callable[[httpx.Request], httpx.Response]


class Wire:
    """Gives every request the same answer. Records the requests."""

    def __init__(self, answer: Respond | None = None) -> None:
        self.answer = answer or (lambda _: httpx.Response(200, json=VERSION))
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        # a copy: an authentication class changes a request that it sends again
        self.requests.append(httpx.Request(request.method, request.url, headers=list(request.headers.raw)))
        return self.answer(request)


def blocking(access: Access, wire: Respond, times: int = 1, **options: Any) -> None:
    with RayJobsClient(
        ADDRESS, access=access, retry_timeout=0, transport=httpx.MockTransport(wire), **options
    ) as client:
        for _ in range(times):
            client.get_version()


def on_a_loop(access: Access, wire: Respond, times: int = 1, **options: Any) -> None:
    async def call() -> None:
        async with AsyncRayJobsClient(
            ADDRESS, access=access, retry_timeout=0, transport=httpx.MockTransport(wire), **options
        ) as client:
            for _ in range(times):
                await client.get_version()

    asyncio.run(call())


@pytest.fixture(params=[blocking, on_a_loop])
def ask(request: pytest.FixtureRequest) -> Callable[..., None]:
    return request.param


def basic(login: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{login}:{password}'.encode()).decode()}"


class Signature(httpx.Auth):
    """An authentication class such as IAP or SigV4, which sets Authorization."""

    def auth_flow(self, request: httpx.Request):
        request.headers["Authorization"] = "Signature made-by-the-user"
        yield request


class Broken(httpx.Auth):
    def auth_flow(self, request: httpx.Request):
        raise LookupError(SECRET)
        yield request


@pytest.mark.parametrize(
    ("access", "authorization", "ray"),
    [
        pytest.param({}, None, None, id="nothing"),
        pytest.param({"token": "t"}, "Bearer t", None, id="token"),
        pytest.param({"token": "t", "token_header": "X-Ray-Authorization"}, None, "Bearer t", id="token_header"),
        pytest.param({"login": "me", "password": "pw"}, basic("me", "pw"), None, id="basic"),
        pytest.param({"login": "me", "password": "pw", "token": "t"}, basic("me", "pw"), "Bearer t", id="both"),
        pytest.param({"headers": {"authorization": "Key k"}, "token": "t"}, "Key k", "Bearer t", id="header"),
        pytest.param({"auth": Signature(), "token": "t"}, "Signature made-by-the-user", "Bearer t", id="class"),
    ],
)
def test_token_goes_into_the_free_header(ask, access: dict[str, Any], authorization: str | None, ray: str | None):
    """Ray's token goes into Authorization, or into X-Ray-Authorization if another field sets that header."""
    wire = Wire()

    ask(Access(**access), wire)

    [request] = wire.requests
    assert request.headers.get("authorization") == authorization
    assert request.headers.get("x-ray-authorization") == ray


def test_token_file_is_read_for_each_request(ask, tmp_path: Path):
    """The next request carries a rotated token, without its final newline."""
    file = tmp_path / "token"
    file.write_text("first\n")

    def rotate(_: httpx.Request) -> httpx.Response:
        file.write_text("second\n")
        return httpx.Response(200, json=VERSION)

    wire = Wire(rotate)
    ask(Access(token_file=str(file)), wire, times=2)

    assert [request.headers["authorization"] for request in wire.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"), (b" \n", "is empty"), (b"a\nb", "newline"), (b"a" * 70_000, "more than 64 KiB"),
        (b"abc\0\0\0", "no HTTP header can hold"), (b"Bearer abc", "begins with 'Bearer '"),
    ],
)  # fmt: skip
def test_unusable_token_file_is_an_outage(ask, tmp_path: Path, content: bytes | None, said: str):
    """While a token file is missing or unusable nothing is sent, and the error names the file."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    wire = Wire()

    with pytest.raises(RayApiConnectionError, match=said) as caught:
        ask(Access(token_file=str(file)), wire)

    assert str(file) in str(caught.value)
    assert (caught.value.delivery, wire.requests) == (Delivery.NOT_SENT, [])
    with pytest.raises(CredentialsError, match=said):
        Access(token_file=str(file)).current_token()


def test_headers_are_sent_unchanged(ask):
    """The user's headers are sent unchanged."""
    wire = Wire()

    ask(Access(headers={"X-Tenant": "a"}), wire)

    assert wire.requests[0].headers["x-tenant"] == "a"


def test_auth_class_may_answer_a_challenge(ask):
    """An ``httpx.Auth`` may send a request twice, as digest authentication does."""

    def challenge(request: httpx.Request) -> httpx.Response:
        if "authorization" in request.headers:
            return httpx.Response(200, json=VERSION)
        return httpx.Response(401, headers={"www-authenticate": 'Digest realm="r", nonce="n", qop="auth"'})

    wire = Wire(challenge)
    ask(Access(auth=httpx.DigestAuth("me", SECRET), token="t"), wire)

    assert [request.headers.get("authorization", "")[:6] for request in wire.requests] == ["", "Digest"]
    assert [request.headers["x-ray-authorization"] for request in wire.requests] == ["Bearer t"] * 2


def test_error_of_the_auth_class_is_an_outage(ask):
    """Any error of the user's class becomes a connection error, without its text."""
    with pytest.raises(
        RayApiConnectionError, match="^auth Broken raised LookupError: could not connect to Ray"
    ) as caught:
        ask(Access(auth=Broken()), Wire())

    assert caught.value.delivery is Delivery.NOT_SENT
    assert SECRET not in str(caught.value)


class Refreshing(httpx.Auth):
    """Asks a token server for a new token after a 401, or before each request."""

    def __init__(self, token_server: str, *, is_first: bool = False) -> None:
        self.token_server = token_server
        self.is_first = is_first

    def auth_flow(self, request: httpx.Request):
        response = None if self.is_first else (yield request)
        if response is None or response.status_code == 401:
            yield httpx.Request("POST", self.token_server)
            yield request


@pytest.mark.parametrize(
    ("is_first", "down", "delivery"),
    [
        pytest.param(False, "tokens", Delivery.MAY_HAVE_ARRIVED, id="challenge, then no token"),
        pytest.param(True, "tokens", Delivery.NOT_SENT, id="no token"),
        pytest.param(True, "ray-head", Delivery.NOT_SENT, id="token, then no head"),
    ],
)
def test_request_that_the_auth_class_has_sent_may_have_an_effect(ask, is_first: bool, down: str, delivery: Delivery):
    """A proxy may answer 401 after it has passed a request on. A failure of the token server says nothing about it."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == down:
            raise httpx.ConnectError("refused")
        return httpx.Response(401 if request.url.host == "ray-head" else 200)

    with pytest.raises(RayApiConnectionError) as caught:
        ask(Access(auth=Refreshing("http://tokens/", is_first=is_first)), Wire(answer))

    assert caught.value.delivery is delivery


def test_each_request_of_the_auth_class_has_the_timeouts(ask):
    """A token server that does not answer does not block the client."""
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.extensions["timeout"]["read"], "trace" in request.extensions))
        return httpx.Response(200, json=VERSION)

    ask(Access(read_timeout=77, auth=Refreshing("http://tokens/", is_first=True)), answer)

    assert seen == [("tokens", 77, True), ("ray-head", 77, True)]


class Reader(Signature):
    requires_response_body = True


class Endless(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, most: int) -> None:
        self.sent = 0
        self.most = most

    def __iter__(self):
        while self.sent < self.most:
            self.sent += 2**20
            yield b" " * 2**20

    async def __aiter__(self):
        for chunk in self:
            yield chunk


@pytest.mark.parametrize(
    ("auth", "headers"),
    [
        pytest.param(Reader(), {}, id="class that reads answers"),
        pytest.param(Refreshing("http://tokens/"), {}, id="answer before the last one"),
        pytest.param(Reader(), {"content-encoding": "gzip"}, id="compressed"),
    ],
)
def test_answer_that_the_auth_class_reads_has_a_size_limit(ask, auth: httpx.Auth, headers: dict[str, str]):
    """Neither an authentication class nor httpx reads an endless answer into memory."""
    body = Endless(most=2**30)

    with pytest.raises(RayApiConnectionError, match="^Answer too large: could not connect to Ray") as caught:
        ask(Access(auth=auth), Wire(lambda _: httpx.Response(401, headers=headers, stream=body)))

    assert body.sent <= (2 if headers else 65) * 2**20
    assert caught.value.delivery is Delivery.MAY_HAVE_ARRIVED


def test_auth_class_may_read_answers(ask):
    """A class with ``requires_response_body`` gets the answers, and so does the client."""
    ask(Access(auth=Reader()), Wire())


def test_log_has_no_size_limit_with_an_auth_class():
    """The limit for what an authentication class reads does not end the read of a log."""
    job = {"type": "SUBMISSION", "status": "SUCCEEDED", "submission_id": "a", "driver_node_id": "n"}

    def answer(request: httpx.Request) -> httpx.Response:
        if "/logs/file" in request.url.path:
            return httpx.Response(200, stream=Endless(most=70 * 2**20))
        return httpx.Response(200, json=VERSION if "version" in request.url.path else job)

    with RayJobsClient(ADDRESS, access=Access(auth=Signature()), transport=httpx.MockTransport(answer)) as client:
        assert len(client.get_job_logs("a")) == 70 * 2**20


class Greedy(httpx.Auth):
    def auth_flow(self, request: httpx.Request):
        response = yield request
        response.headers["X-Next-Nonce"]


def test_error_of_the_auth_class_after_a_request_may_have_an_effect(ask):
    """A request that arrived before the authentication class failed is not reported as one that was never sent."""
    wire = Wire()
    with pytest.raises(RayApiConnectionError, match="^auth Greedy raised KeyError: could not connect") as caught:
        ask(Access(auth=Greedy()), wire)

    assert len(wire.requests) == 1
    assert caught.value.delivery is Delivery.MAY_HAVE_ARRIVED


def test_deletion_is_not_repeated_after_an_error_of_the_auth_class():
    """A deletion that arrived before the authentication class failed is not sent again."""
    wire = Wire(lambda _: httpx.Response(200, json={"deleted": True}))
    transport = httpx.MockTransport(wire)
    with (
        RayJobsClient(ADDRESS, access=Access(auth=Greedy()), retry_timeout=2, transport=transport) as client,
        pytest.raises(RayApiConnectionError),
    ):
        client.run(send(endpoints.delete_job("a"), client.retry_timeout))

    assert len(wire.requests) == 1


def test_timeouts_can_be_set(ask):
    """The client uses the connect and read timeouts of its access."""
    wire = Wire()
    seen: list[Any] = []
    wire.answer = lambda request: seen.append(request.extensions["timeout"]) or httpx.Response(200, json=VERSION)

    ask(Access(connect_timeout=3, read_timeout=77), wire)

    assert (seen[0]["connect"], seen[0]["read"]) == (3, 77)


def test_request_timeout_overrides_read_timeout():
    """A request with its own timeout does not use ``read_timeout``."""
    with RayJobsClient(ADDRESS, access=Access(read_timeout=77)) as client:
        hasty = client._codec.encode(Request("stop", "POST", "/", bool, timeout=1.0))
        submission = client._codec.encode(Request("submit", "POST", "/", bool, timeout=endpoints.SUBMIT_TIMEOUT))

    assert (hasty["timeout"].read, hasty["timeout"].connect) == (1.0, 1.0)
    assert submission["timeout"].read == endpoints.SUBMIT_TIMEOUT


@pytest.mark.parametrize("location", ["https://elsewhere.example.com/login?next=x", "/login", "https://ray-head:8265/"])
def test_redirect_carries_no_credentials(ask, location: str):
    """A redirect is not followed, so no credentials go to another address."""
    wire = Wire(lambda _: httpx.Response(302, headers={"location": location}))
    access = Access(login="me", password=SECRET, token="t", headers={"X-Key": SECRET})

    with pytest.raises(RayApiAddressError) as caught:
        ask(access, wire)

    assert [request.url.host for request in wire.requests] == ["ray-head"]
    assert "next=" not in str(caught.value)


EVERYTHING = {
    "token": SECRET, "login": "me", "password": SECRET, "headers": {"X-Key": SECRET},
    "proxy": f"http://me:{SECRET}@127.0.0.1:9", "client_key_password": SECRET, "client_cert": "/none",
}  # fmt: skip


def test_repr_hides_secrets():
    """No repr of an access or its clients shows a secret; an access can be compared and hashed."""
    access = Access(**EVERYTHING)

    assert SECRET not in repr(access) + str(access) + f"{access.describe()} {access.proxy_origin}"
    assert SECRET not in repr(RayJobsClient(ADDRESS, access=Access(token=SECRET)))
    assert {access: 1}[Access(**EVERYTHING)] == 1
    assert SECRET not in repr(Answer(302, b"", ADDRESS, headers={"location": f"/?state={SECRET}"}, access=access))
    assert {SECRET, basic("me", SECRET).split()[1]} == set(access.secrets())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda _: httpx.Response(401, text="Unauthorized: Missing authentication token"), id="401"),
        pytest.param(lambda request: httpx.Response(403, text=f"not for {dict(request.headers)}"), id="quoted"),
        pytest.param(lambda _: httpx.Response(200, html="<title>Log in</title>"), id="page"),
        pytest.param(lambda _: httpx.Response(302, headers={"location": "//["}), id="invalid location"),
    ],
)
def test_errors_and_debug_logs_hide_secrets(ask, answer: Respond, caplog: pytest.LogCaptureFixture):
    """No error shows a secret in text, traceback or pickle, nor do httpx's logs at level DEBUG."""
    caplog.set_level(logging.DEBUG)
    access = Access(token=SECRET, login="me", password=SECRET, headers={"X-Key": SECRET})

    with pytest.raises(RayJobsError) as caught:
        ask(access, Wire(answer))

    seen = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value)) + caplog.text
    assert "me:" not in seen
    assert SECRET not in seen
    assert SECRET.encode() not in pickle.dumps(caught.value)
    assert basic("me", SECRET) not in seen


def test_proxy_is_named_without_its_password(caplog: pytest.LogCaptureFixture):
    """Errors and httpx's logs name an unreachable HTTP proxy without its password."""
    caplog.set_level(logging.DEBUG)
    access = Access(proxy=f"http://me:{SECRET}@127.0.0.1:9", token=SECRET)

    with (
        RayJobsClient(ADDRESS, access=access, retry_timeout=0) as client,
        pytest.raises(
            RayApiConnectionError, match=r"^Connection refused: .* HTTP proxy http://127\.0\.0\.1:9\."
        ) as caught,
    ):
        client.get_version()

    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"token": "a", "token_file": "b"}, "token and token_file are both given", id="two tokens"),
        pytest.param({"token": f"Bearer {SECRET}"}, "begins with 'Bearer '", id="Bearer"),
        pytest.param({"token": f"{SECRET}\n"}, "no HTTP header can hold", id="newline"),
        pytest.param({"login": "me"}, "One is missing", id="no password"),
        pytest.param({"login": "a:b", "password": SECRET}, "contains a colon", id="colon"),
        pytest.param({"headers": {"a b": SECRET}}, "'a b' is not a valid header name", id="header's name"),
        pytest.param({"headers": {"X-Key": f"{SECRET}\n"}}, "the value of X-Key contains", id="header's value"),
        pytest.param({"token": ""}, "the token is empty", id="empty token"),
        pytest.param({"token": " "}, "the token is empty", id="blank token"),
        pytest.param({"token": f"{SECRET} "}, "the token begins or ends with a space", id="space after a token"),
        pytest.param(
            {"headers": {"X-Key": f" {SECRET}"}}, "the value of X-Key begins or ends with", id="space in a header"
        ),
        pytest.param({"headers": {"X-Key": ""}}, "the value of X-Key is empty", id="empty header"),
        pytest.param(
            {"headers": {f"X-Key: {SECRET}": "a"}}, "a name with a colon is not a valid", id="value in a name"
        ),
        pytest.param({"token": "abc", "token_header": SECRET}, "token_header must be Auth", id="token in token_header"),
        pytest.param({"token_header": "X-Ray-Authorization"}, "without a token", id="header of no token"),
        pytest.param({"headers": {"X-Key": 1}}, "the value of X-Key must be text, not int", id="header's kind"),
        pytest.param({"headers": {"accept-encoding": "gzip"}}, "sets accept-encoding, which the client", id="encoding"),
        pytest.param({"headers": {"Content-Length": "5"}}, "sets Content-Length, which the client", id="length"),
        pytest.param(
            {"login": "me", "password": SECRET, "headers": {"Authorization": SECRET}},
            "login and headers both set the header Authorization",
            id="two owners",
        ),
        pytest.param(
            {"auth": Signature(), "login": "me", "password": SECRET}, "login and auth both set", id="class and login"
        ),
        pytest.param(
            {"token": SECRET, "token_header": "X-Ray-Authorization", "headers": {"x-ray-authorization": SECRET}},
            "headers sets X-Ray-Authorization, which carries the token",
            id="the token's header",
        ),
        pytest.param(
            {"token_header": "Cookie"}, "token_header must be Authorization or X-Ray-Authorization", id="cookie"
        ),
        pytest.param(
            {"token": SECRET, "token_header": "Authorization", "login": "me", "password": SECRET},
            "which login sets",
            id="taken",
        ),
        pytest.param({"verify": False}, "verify must be 'system'", id="a flag"),
        pytest.param({"verify": "True"}, "verify must be 'system'", id="a word for a flag"),
        pytest.param({"client_key": "/a"}, "client_key is given without client_cert", id="key alone"),
        pytest.param({"proxy": f"ftp://me:{SECRET}@proxy"}, "proxy must be an address such as", id="proxy's scheme"),
        pytest.param({"proxy": f"me:{SECRET}@proxy:3128"}, "proxy must be an address such as", id="no scheme"),
        pytest.param(
            {"proxy": f"http://me:{SECRET}@proxy:port"}, "proxy must be an address such as", id="proxy's port"
        ),
        pytest.param({"connect_timeout": 0}, "connect_timeout must be a number of seconds", id="no time"),
        pytest.param({"read_timeout": "1"}, "read_timeout must be a number of seconds", id="text for a time"),
        pytest.param({"read_timeout": float("inf")}, "read_timeout must be a number of seconds", id="no limit"),
    ],
)
def test_invalid_field_is_named(fields: dict[str, Any], said: str):
    """The error about an invalid field names it and quotes no secret."""
    with pytest.raises(ValueError, match=said) as caught:
        Access(**fields)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def read_files(access: Access) -> None:
    access.current_token()
    check_certificates(access)


PASTED = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("name", ["token_file", "verify", "client_cert", "client_key"])
@pytest.mark.parametrize("content", [PASTED, PASTED.replace("\n", " "), f"{SECRET}\n", SECRET * 100])
def test_file_content_in_place_of_a_path_is_rejected(name: str, content: str):
    """A key or a token in the field of a path is rejected by the field's name and not quoted."""
    certificate = {"client_cert": "/none"} if name == "client_key" else {}

    with pytest.raises(ValueError, match=f"{name} must be the path of a file, not its content") as caught:
        Access(**certificate | {name: content})

    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["token_file", "verify", "client_cert"])
@pytest.mark.parametrize("value", [SECRET, SECRET * 40])
def test_name_without_a_folder_is_not_quoted(name: str, value: str):
    """A file name without a folder may be a token in the wrong field, so no error quotes it."""
    with pytest.raises(ValueError, match=f"{name}.* cannot be read") as caught:
        read_files(Access(**{name: value}))

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_folder_without_certificates_is_an_error(tmp_path: Path):
    """A folder without certificates is an error, although OpenSSL accepts it and then trusts no certificate."""
    with pytest.raises(ValueError, match="holds no hashed certificates"):
        check_certificates(Access(verify=str(tmp_path)))


@pytest.mark.parametrize("name", ["token_file", "verify", "client_cert", "client_key"])
def test_file_that_blocks_is_an_error(tmp_path: Path, name: str):
    """A FIFO is not opened, because that waits for a writer."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fields = {"client_cert": certifi.where()} if name == "client_key" else {}
    # A FIFO that is read ends when its last writer closes it. So a fault fails the test and does not block it.
    writer = threading.Timer(2, os.close, [os.open(fifo, os.O_RDWR)])
    writer.start()
    with pytest.raises(ValueError, match=f"{name} {fifo} cannot be read: Not a regular file"):
        read_files(Access(**fields, **{name: str(fifo)}))
    writer.join()


@pytest.fixture
def unprivileged_user() -> Iterator[None]:
    """Become a user without privileges: file permissions do not restrict root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("unprivileged_user")
def test_unreadable_folder_of_certificates_is_an_error():
    """The error names a folder that may not be listed."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        Path(folder).chmod(0)
        try:
            with pytest.raises(ValueError, match=f"^verify {folder} cannot be read: Permission denied"):
                check_certificates(Access(verify=folder))
        finally:
            Path(folder).chmod(0o700)


def test_unchanged_certificate_files_are_read_once(tmp_path: Path):
    """A second check does not read unchanged files again, but it reads replaced files."""
    file = tmp_path / "ca.pem"
    file.write_bytes(Path(certifi.where()).read_bytes())
    access = Access(verify=str(file))
    check_certificates(access)
    mtimes = certificate_mtimes(access)
    began = time.perf_counter()
    for _ in range(100):
        check_certificates(access)
    seconds = time.perf_counter() - began
    file.write_text("no certificate")
    os.utime(file, (1, 1))

    assert seconds < 0.1
    assert certificate_mtimes(access) != mtimes
    with pytest.raises(ValueError, match="holds no certificates"):
        check_certificates(access)


@pytest.mark.parametrize("modified", [0, 4e9], ids=["1970", "2096"])
def test_replaced_certificate_of_the_same_modification_time_is_noticed(tmp_path: Path, modified: float):
    """Files out of an image or an archive may all have the same modification time."""
    file, new = tmp_path / "client.pem", tmp_path / "new.pem"
    for each in (file, new):
        each.write_text("a certificate")
        os.utime(each, (modified, modified))
    access = Access(client_cert=str(file))
    times = certificate_mtimes(access)
    time.sleep(0.05)  # the clock of a file system may be coarse
    new.replace(file)

    assert certificate_mtimes(access) != times


@pytest.mark.parametrize(
    "quote",
    [
        pytest.param(lambda sent: httpx.Response(400, text=f"bad {sent.split()[1]}"), id="without its scheme"),
        pytest.param(lambda sent: httpx.Response(400, text="x" * 494 + sent.split()[1]), id="cut off"),
        pytest.param(lambda sent: httpx.Response(200, html=f"<title>bad {sent.split()[1]}</title>"), id="title"),
        pytest.param(
            lambda sent: httpx.Response(200, html="<title>" + "x" * 74 + f"{sent.split()[1]}</title>"),
            id="cut title",
        ),
        pytest.param(
            lambda sent: httpx.Response(401, headers={"www-authenticate": f'Bearer realm="no {sent.split()[1]}"'}),
            id="realm",
        ),
        pytest.param(
            lambda sent: httpx.Response(302, headers={"location": f"/login/{sent.split()[1]}"}), id="location"
        ),
    ],
)
@pytest.mark.parametrize("given", ["token", "token_file", "header", "auth"])
def test_credentials_quoted_by_an_answer_are_redacted(
    ask, tmp_path: Path, quote: Callable[[str], httpx.Response], given: str
):
    """Credentials are redacted before the quote is shortened, even if the token file has changed since the request."""
    file = tmp_path / "token"
    file.write_text(f"{SECRET}-of-old")

    class BearerAuth(httpx.Auth):
        def auth_flow(self, request: httpx.Request):
            request.headers["Authorization"] = f"Bearer {SECRET}-made"
            yield request

    def answer(request: httpx.Request) -> httpx.Response:
        file.write_text("another-one")
        return quote(request.headers["authorization"])

    access = {
        "token": {"token": SECRET}, "token_file": {"token_file": str(file)},
        "header": {"headers": {"Authorization": f"Bearer {SECRET}"}}, "auth": {"auth": BearerAuth()},
    }  # fmt: skip
    with pytest.raises(RayJobsError) as caught:
        ask(Access(**access[given]), Wire(answer))

    assert "m4rke" not in "".join(traceback.format_exception(caught.value))
    assert "***" in str(caught.value)


def test_secrets_of_the_auth_class_are_redacted(ask):
    """A gateway may decode what the authentication class sent. The secrets that the class was given are redacted."""
    access = Access(auth=httpx.BasicAuth("me", f"{SECRET}-of-auth"), auth_secrets=(f"{SECRET}-of-auth",))
    with pytest.raises(RayJobsError, match=r"bind failed for \*\*\*") as caught:
        ask(access, Wire(lambda _: httpx.Response(500, text=f"bind failed for {SECRET}-of-auth")))

    assert SECRET not in chained_text(caught.value)
    assert SECRET not in repr(access)


def test_half_of_a_secret_is_not_quoted(ask):
    """The client reads 64 KiB of an error. A secret at their end is cut in half, so the last line is not quoted."""
    text = "Traceback (most recent call last)\n"
    text += "x\n" * ((64 * 1024 - len(text) - 20) // 2) + f"LdapError: {SECRET}"
    assert 64 * 1024 - len(text) < 0

    with pytest.raises(RayJobsError, match="The answer says: x") as caught:
        ask(Access(token=SECRET), Wire(lambda _: httpx.Response(500, text=text)))

    assert SECRET[:4] not in str(caught.value)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(" " * (64 * 1024 - len("<title>") - 8) + f"<title>{SECRET}</title>", id="end of what is read"),
        pytest.param(f"<title>{' ' * 1992}{SECRET}</title>", id="long title"),
    ],
)
def test_half_of_a_title_is_not_quoted(ask, page: str):
    """A title of which the client sees only a part is not quoted, as its last word may be half a secret."""
    with pytest.raises(RayApiAddressError, match="an HTML page instead of Ray's answer"):
        ask(Access(token=SECRET), Wire(lambda _: httpx.Response(200, html=page)))


def test_longest_secret_is_redacted_first():
    """If one secret begins with another, no part of either remains."""
    access = Access(headers={"X-Key": "abcdef", "X-Secret": "abcdef-the-rest"})

    assert redact("said abcdef-the-rest", access.secrets()) == "said ***"


def test_header_is_secret_by_its_name_or_by_a_random_value():
    """A header's value is secret if the name suggests it, or if the value looks generated. Words are not secret."""
    readable = {
        "X-Forwarded-Proto": "https", "X-Env": "production", "Accept": "application/json", "X-Account": "123456789012",
        "X-Region": "production-eu-west-1", "X-Forwarded-Host": "dashboard.internal.example.com", "X-By": "python311",
    }  # fmt: skip
    secret = {"X-Api-Key": "k3y", "X-Session": "monday", "X-Tenant": "0d2b4e6f-8a1c-4f3e-9b7d-5c6e7f8a9b0c"}

    assert set(Access(headers=readable | secret).secrets()) == set(secret.values())


@pytest.mark.parametrize(
    ("headers", "secrets"),
    [
        pytest.param(
            {"Cookie": "session=monday; theme=dark; id=abcdefghijkl"},
            {"theme=dark; id=abcdefghijkl", "monday", "abcdefghijkl"},
            id="cookies",
        ),
        pytest.param({"Authorization": 'Token token="monday"'}, {"monday", 'token="monday"'}, id="pairs"),
        pytest.param(
            {"Authorization": basic("me", "monday")}, {"monday", basic("me", "monday").split()[1]}, id="Basic"
        ),
        pytest.param({"Authorization": "Basic no Base64"}, {"no Base64"}, id="not Base64"),
    ],
)
def test_parts_of_a_secret_header_are_secret(headers: dict[str, str], secrets: set[str]):
    """A server may quote one cookie of several, or a decoded password. An ordinary part stays readable."""
    assert set(Access(headers=headers).secrets()) == secrets | set(headers.values())


@pytest.mark.parametrize("proxy", [f"http://me:{SECRET}@proxy:3128", f"me:{SECRET}@proxy:3128"])
def test_login_of_the_environments_proxy_is_secret(monkeypatch: pytest.MonkeyPatch, proxy: str):
    """The proxy of the environment gets a login too, and may quote it."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    assert {SECRET, basic("me", SECRET).split()[1]} <= set(Access().secrets())


def test_unusable_proxy_of_the_environment_has_no_secret(monkeypatch: pytest.MonkeyPatch):
    """A variable that is no address does not break an error message."""
    monkeypatch.setenv("HTTPS_PROXY", "http://[")

    assert list(Access().secrets()) == []


def test_token_in_the_place_of_a_proxys_user_is_secret():
    """A user of a proxy that looks generated is a token."""
    assert set(Access(proxy="http://Tok3nAsUser99@proxy:3128").secrets()) == {"Tok3nAsUser99"}


def quoting_server(answer: Callable[[bytes], bytes]) -> Callable[[socket.socket], None]:
    """Return a server for one connection that answers a request with a text that quotes its credentials."""

    def serve(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            request = connection.recv(65536)
            [line] = [line for line in request.split(b"\r\n") if line.lower().startswith(b"authorization")]
            connection.sendall(answer(line.partition(b": ")[2]))

    return serve


def send_blocking(address: str, access: Access) -> None:
    with RayJobsClient(address, access=access) as client:
        client.send(endpoints.get_version())


def send_on_a_loop(address: str, access: Access) -> None:
    async def send() -> None:
        async with AsyncRayJobsClient(address, access=access) as client:
            await client.send(endpoints.get_version())

    asyncio.run(send())


@pytest.mark.parametrize("given", ["token", "token_file", "login", "auth"])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda sent: b"HTTP/1.1 200 OK\r\nbad header " + sent + b"\r\n\r\n", id="header"),
        pytest.param(lambda sent: b"HTTP/1.1 " + sent + b"\r\n\r\n", id="status line"),
    ],
)
@pytest.mark.parametrize("send", [send_blocking, send_on_a_loop])
def test_no_chained_error_quotes_credentials(
    send: Callable[..., None], answer: Callable[[bytes], bytes], given: str, tmp_path: Path
):
    """The errors of httpx and below quote a malformed answer. None of them shows credentials that it repeats."""
    (tmp_path / "token").write_text(SECRET)

    class BearerAuth(httpx.Auth):
        def auth_flow(self, request: httpx.Request):
            request.headers["Authorization"] = f"Bearer {SECRET}"
            yield request

    access = {
        "token": Access(token=SECRET), "token_file": Access(token_file=str(tmp_path / "token")),
        "login": Access(login="me", password=SECRET), "auth": Access(auth=BearerAuth()),
    }[given]  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=quoting_server(answer), args=(server,))
        thread.start()
        with pytest.raises(RayApiConnectionError) as caught:
            send(f"http://127.0.0.1:{server.getsockname()[1]}", access)
        thread.join()

    assert "***" in chained_text(caught.value.__cause__)
    assert SECRET not in chained_text(caught.value)
    assert basic("me", SECRET).split()[1] not in chained_text(caught.value)


def chained_text(error: BaseException | None) -> str:
    """Return all texts of an error and of the errors to which it is chained, also of those that are not shown."""
    texts, links = [], [error]
    while links:
        link = links.pop()
        if link is not None:
            texts.append(f"{link} {link!r} {link.args} {vars(link)}")
            links += [link.__cause__, link.__context__]
    return "\n".join(texts)


class Unsendable(httpx.Auth):
    def auth_flow(self, request: httpx.Request):
        request.headers["Authorization"] = f"Bearer {SECRET} "
        yield request


def test_invalid_header_of_the_auth_class_is_not_quoted(caplog: pytest.LogCaptureFixture):
    """An invalid header of the user's class is not sent, and no traceback or log quotes it."""
    caplog.set_level(logging.DEBUG)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        RayJobsClient(f"http://127.0.0.1:{server.getsockname()[1]}", access=Access(auth=Unsendable())) as client,
        pytest.raises(RayApiConnectionError, match="^Request is not valid HTTP: could not connect to Ray") as caught,
    ):
        client.send(endpoints.get_version())

    assert caught.value.delivery is Delivery.NOT_SENT
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text
    assert SECRET not in chained_text(caught.value)


def test_wrong_content_length_of_the_auth_class_is_a_connection_error():
    """A request that the user's class makes invalid is an error of this package, whichever package notices it."""

    class Sized(httpx.Auth):
        def auth_flow(self, request: httpx.Request):
            request.headers["Content-Length"] = "7"
            yield request

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        RayJobsClient(f"http://127.0.0.1:{server.getsockname()[1]}", access=Access(auth=Sized())) as client,
        pytest.raises(RayApiConnectionError, match="^Request is not valid HTTP: could not connect to Ray"),
    ):
        client.send(endpoints.get_version())


def test_traceback_hides_the_error_of_the_auth_class(ask):
    """The error of the user's class may quote credentials, so no traceback shows it, and nothing is chained to it."""
    with pytest.raises(RayApiConnectionError) as caught:
        ask(Access(auth=Broken()), Wire())

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in chained_text(caught.value)


def test_no_error_is_chained_to_that_of_an_invalid_address():
    """The error of the URL's parser quotes a password in the place of a port, and is not kept."""
    with pytest.raises(ValueError, match="is not a valid address") as caught:
        RayJobsClient(f"http://me:{SECRET}@[head")

    assert SECRET not in chained_text(caught.value)


def test_on_token_is_called_before_the_token_is_sent(ask, tmp_path: Path):
    """``on_token`` gets a new token of the token file before the request that carries it."""
    file = tmp_path / "token"
    file.write_text("first\n")
    tokens: list[str] = []

    def rotate(_: httpx.Request) -> httpx.Response:
        assert tokens
        file.write_text("second\n")
        return httpx.Response(200, json=VERSION)

    ask(Access(token_file=str(file)), Wire(rotate), times=2, on_token=tokens.append)

    assert tokens == ["first", "second"]


def test_token_and_access_exclude_each_other():
    """A client accepts a token or an access, but not both."""
    with pytest.raises(ValueError, match="token and access are both given"):
        RayJobsClient(ADDRESS, token="a", access=Access())


@pytest.mark.parametrize("client", [RayJobsClient, AsyncRayJobsClient])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_proxy", "localhost,[::1]"),
        ("HTTP_PROXY", f"http://me:{SECRET}/x@proxy:3128"),
        ("all_proxy", f"socks4://me:{SECRET}@proxy:1080"),
    ],
)
def test_unusable_proxy_of_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, client: Any, name: str, value: str
):
    """The error names the environment variables that httpx cannot read, and quotes none."""
    for each in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(each, raising=False)
        monkeypatch.delenv(each.upper(), raising=False)
    monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match=rf"^the environment variables {name} hold ") as caught:
        client(ADDRESS)

    assert SECRET not in chained_text(caught.value)
    assert "[::1]" not in chained_text(caught.value)


def test_socks_proxy_requires_socksio():
    """The error about a SOCKS proxy names the missing package."""
    with pytest.raises(ValueError, match="needs the package socksio"):
        RayJobsClient(ADDRESS, access=Access(proxy=f"socks5://me:{SECRET}@proxy:1080"))


@pytest.mark.parametrize("client", [RayJobsClient, AsyncRayJobsClient])
def test_socks_proxy_of_the_environment_requires_socksio(monkeypatch: pytest.MonkeyPatch, client: Any):
    """The error is one of the configuration, as for ``proxy``. It names the variable and the missing package."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", f"socks5://me:{SECRET}@proxy:1080")

    with pytest.raises(ValueError, match="variables ALL_PROXY name a SOCKS proxy, which needs the package") as caught:
        client(ADDRESS)

    assert SECRET not in chained_text(caught.value)
