"""How a client gets in: what it shows to whom, and what it never shows."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

from airflow_provider_rayjobs.exceptions import RayApiAddressError, RayApiConnectionError, RayJobsError
from airflow_provider_rayjobs.jobs import AsyncRayJobsClient, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.redaction import redact
from airflow_provider_rayjobs.jobs.requests import Request
from airflow_provider_rayjobs.jobs.tls import certificate_mtimes, check_certificates

ADDRESS = "http://ray-head:8265"
SECRET = "m4rked-s3cret"
VERSION = {"version": "4", "ray_version": "2.60.0"}

Respond = Callable[[httpx.Request], httpx.Response]


class Wire:
    """Answers every request alike, and remembers them."""

    def __init__(self, answer: Respond | None = None) -> None:
        self.answer = answer or (lambda _: httpx.Response(200, json=VERSION))
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        # as they were sent: an authentication changes a request that it sends again
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
    """Stands for IAP, SigV4 and the like: claims Authorization."""

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
        pytest.param({"token": "t", "token_header": "X-Ray-Authorization"}, None, "Bearer t", id="told where"),
        pytest.param({"login": "me", "password": "pw"}, basic("me", "pw"), None, id="basic"),
        pytest.param({"login": "me", "password": "pw", "token": "t"}, basic("me", "pw"), "Bearer t", id="both"),
        pytest.param({"headers": {"authorization": "Key k"}, "token": "t"}, "Key k", "Bearer t", id="header"),
        pytest.param({"auth": Signature(), "token": "t"}, "Signature made-by-the-user", "Bearer t", id="class"),
    ],
)
def test_who_owns_authorization(ask, access: dict[str, Any], authorization: str | None, ray: str | None):
    """Ray's token goes into Authorization, and into X-Ray-Authorization where somebody else owns that."""
    wire = Wire()

    ask(Access(**access), wire)

    [request] = wire.requests
    assert request.headers.get("authorization") == authorization
    assert request.headers.get("x-ray-authorization") == ray


def test_a_token_file_is_read_for_each_request(ask, tmp_path: Path):
    """A token that rotates is the new one in the next request, without its last newline."""
    file = tmp_path / "token"
    file.write_text("first\n")

    def rotate(_: httpx.Request) -> httpx.Response:
        file.write_text("second\n")
        return httpx.Response(200, json=VERSION)

    wire = Wire(rotate)
    ask(Access(token_file=str(file)), wire, times=2)

    assert [request.headers["authorization"] for request in wire.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), (b" \n", "is empty"), (b"a\nb", "newline")])
def test_a_token_file_that_holds_none_is_an_outage_that_may_pass(ask, tmp_path: Path, content: bytes | None, said: str):
    """While a file is replaced nothing is sent, and the error says which file it is."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    wire = Wire()

    with pytest.raises(RayApiConnectionError, match=said) as caught:
        ask(Access(token_file=str(file)), wire)

    assert str(file) in str(caught.value)
    assert (caught.value.sent, wire.requests) == (False, [])


def test_headers_go_with_each_request(ask):
    """Headers of the user's are sent as they are."""
    wire = Wire()

    ask(Access(headers={"X-Tenant": "a"}), wire)

    assert wire.requests[0].headers["x-tenant"] == "a"


def test_an_authentication_of_the_users_may_ask_twice(ask):
    """What httpx.Auth can do works here: a digest answers a challenge."""

    def challenge(request: httpx.Request) -> httpx.Response:
        if "authorization" in request.headers:
            return httpx.Response(200, json=VERSION)
        return httpx.Response(401, headers={"www-authenticate": 'Digest realm="r", nonce="n", qop="auth"'})

    wire = Wire(challenge)
    ask(Access(auth=httpx.DigestAuth("me", SECRET), token="t"), wire)

    assert [request.headers.get("authorization", "")[:6] for request in wire.requests] == ["", "Digest"]
    assert [request.headers["x-ray-authorization"] for request in wire.requests] == ["Bearer t"] * 2


def test_an_authentication_that_fails_is_an_outage_that_may_pass(ask):
    """Whatever a class of the user's raises is a failure of the connection; what it says may hold a secret."""
    with pytest.raises(
        RayApiConnectionError, match="^auth Broken raised LookupError: could not get the Ray version"
    ) as caught:
        ask(Access(auth=Broken()), Wire())

    assert caught.value.sent is False
    assert SECRET not in str(caught.value)


def test_time_outs_are_the_users(ask):
    """The time to connect and to answer can be chosen."""
    wire = Wire()
    seen: list[Any] = []
    wire.answer = lambda request: seen.append(request.extensions["timeout"]) or httpx.Response(200, json=VERSION)

    ask(Access(connect_timeout=3, read_timeout=77), wire)

    assert (seen[0]["connect"], seen[0]["read"]) == (3, 77)


def test_a_requests_own_time_out_stays():
    """What has to be quick, or has to be waited for, is so whatever the time-outs of the connection."""
    with RayJobsClient(ADDRESS, access=Access(read_timeout=77)) as client:
        hasty = client._codec.encode(Request("stop", "POST", "/", bool, timeout=1.0))
        submission = client._codec.encode(Request("submit", "POST", "/", bool, timeout=endpoints.SUBMIT_TIMEOUT))

    assert (hasty["timeout"].read, hasty["timeout"].connect) == (1.0, 1.0)
    assert submission["timeout"].read == endpoints.SUBMIT_TIMEOUT


@pytest.mark.parametrize("location", ["https://elsewhere.example.com/login?next=x", "/login", "https://ray-head:8265/"])
def test_a_redirect_is_not_followed(ask, location: str):
    """Whatever lets us in goes to the address of the connection and nowhere else."""
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


def test_nothing_secret_is_in_a_repr():
    """An access, and clients with it, can be printed; and they can be compared and kept as keys."""
    access = Access(**EVERYTHING)

    assert SECRET not in repr(access) + str(access) + f"{access.describe()} {access.proxy_origin}"
    assert SECRET not in repr(RayJobsClient(ADDRESS, access=Access(token=SECRET)))
    assert {access: 1}[Access(**EVERYTHING)] == 1
    assert {SECRET, basic("me", SECRET).split()[1]} == set(access.secrets())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda _: httpx.Response(401, text="Unauthorized: Missing authentication token"), id="401"),
        pytest.param(lambda request: httpx.Response(403, text=f"not for {dict(request.headers)}"), id="quoted"),
        pytest.param(lambda _: httpx.Response(200, html="<title>Log in</title>"), id="page"),
        pytest.param(lambda _: httpx.Response(302, headers={"location": "//["}), id="nowhere"),
    ],
)
def test_nothing_secret_is_in_an_error(ask, answer: Respond, caplog: pytest.LogCaptureFixture):
    """Neither in its text, its traceback and its pickle, nor in what httpx logs about it at level DEBUG."""
    caplog.set_level(logging.DEBUG)
    access = Access(token=SECRET, login="me", password=SECRET, headers={"X-Key": SECRET})

    with pytest.raises(RayJobsError) as caught:
        ask(access, Wire(answer))

    seen = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value)) + caplog.text
    assert "me:" not in seen
    assert SECRET not in seen
    assert SECRET.encode() not in pickle.dumps(caught.value)
    assert basic("me", SECRET) not in seen


def test_nothing_secret_is_in_what_is_logged_of_a_proxy(caplog: pytest.LogCaptureFixture):
    """A proxy that is not there is named without its password, in errors and in httpx's logs."""
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
        pytest.param({"login": "a:b", "password": SECRET}, "holds a colon", id="colon"),
        pytest.param({"headers": {"a b": SECRET}}, "'a b' is not a valid header name", id="header's name"),
        pytest.param({"headers": {"X-Key": f"{SECRET}\n"}}, "the value of X-Key holds", id="header's value"),
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
        pytest.param({"proxy": f"ftp://me:{SECRET}@proxy"}, "proxy must be an address such as", id="proxy's schema"),
        pytest.param({"proxy": f"me:{SECRET}@proxy:3128"}, "proxy must be an address such as", id="no schema"),
        pytest.param(
            {"proxy": f"http://me:{SECRET}@proxy:port"}, "proxy must be an address such as", id="proxy's port"
        ),
        pytest.param({"connect_timeout": 0}, "connect_timeout must be a number of seconds", id="no time"),
        pytest.param({"read_timeout": "1"}, "read_timeout must be a number of seconds", id="text for a time"),
        pytest.param({"read_timeout": float("inf")}, "read_timeout must be a number of seconds", id="for ever"),
    ],
)
def test_what_can_never_work_is_said_by_name(fields: dict[str, Any], said: str):
    """A mistake names its field, and shows nothing secret."""
    with pytest.raises(ValueError, match=said) as caught:
        Access(**fields)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def read_files(access: Access) -> None:
    access.current_token()
    check_certificates(access)


PASTED = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("name", ["token_file", "verify", "client_cert", "client_key"])
@pytest.mark.parametrize("content", [PASTED, PASTED.replace("\n", " "), f"{SECRET}\n", SECRET * 100])
def test_what_is_pasted_in_place_of_a_path_is_not_shown(name: str, content: str):
    """A key or a token in the field of a path is refused by the field's name before a file of that name is sought."""
    certificate = {"client_cert": "/none"} if name == "client_key" else {}

    with pytest.raises(ValueError, match=f"{name} must be the path of a file, not its content") as caught:
        Access(**certificate | {name: content})

    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["token_file", "verify", "client_cert"])
@pytest.mark.parametrize("value", [SECRET, SECRET * 40])
def test_what_is_no_path_is_not_shown(name: str, value: str):
    """A name without a folder, of no file, may be a token in the wrong field; too long a name is no other error."""
    with pytest.raises(ValueError, match=f"{name}.* cannot be read") as caught:
        read_files(Access(**{name: value}))

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_folder_without_certificates_is_said(tmp_path: Path):
    """OpenSSL would say nothing of it, and believe nobody."""
    with pytest.raises(ValueError, match="holds no hashed certificates"):
        check_certificates(Access(verify=str(tmp_path)))


def test_certificates_are_looked_at_once_for_each_state_of_their_files(tmp_path: Path):
    """A second look at the same files costs nothing; files that were replaced are looked at again."""
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
def test_an_answer_that_quotes_what_was_sent_is_scrubbed(
    ask, tmp_path: Path, quote: Callable[[str], httpx.Response], given: str
):
    """Wherever it stands, before anything is cut off, and also where the token's file holds another one by now."""
    file = tmp_path / "token"
    file.write_text(f"{SECRET}-of-old")

    class Mine(httpx.Auth):
        def auth_flow(self, request: httpx.Request):
            request.headers["Authorization"] = f"Bearer {SECRET}-made"
            yield request

    def answer(request: httpx.Request) -> httpx.Response:
        file.write_text("another-one")
        return quote(request.headers["authorization"])

    access = {
        "token": {"token": SECRET}, "token_file": {"token_file": str(file)},
        "header": {"headers": {"Authorization": f"Bearer {SECRET}"}}, "auth": {"auth": Mine()},
    }  # fmt: skip
    with pytest.raises(RayJobsError) as caught:
        ask(Access(**access[given]), Wire(answer))

    assert "m4rke" not in "".join(traceback.format_exception(caught.value))
    assert "***" in str(caught.value)


def test_the_longest_secret_is_scrubbed_first():
    """Where one secret begins another nothing of either is left."""
    access = Access(headers={"X-Key": "abcdef", "X-Secret": "abcdef-the-rest"})

    assert redact("said abcdef-the-rest", access.secrets()) == "said ***"


def test_a_header_that_says_nothing_secret_is_no_secret():
    """A header's short value is left in logs, unless the header's name tells that it is secret."""
    access = Access(headers={"X-Forwarded-Proto": "https", "X-Api-Key": "k3y", "X-Tenant": "marked-tenant"})

    assert set(access.secrets()) == {"k3y", "marked-tenant"}


class Unsendable(httpx.Auth):
    def auth_flow(self, request: httpx.Request):
        request.headers["Authorization"] = f"Bearer {SECRET} "
        yield request


def test_a_header_that_cannot_be_sent_is_not_shown():
    """What a class of the user's adds may be no header: nothing was sent, and no traceback shows it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        RayJobsClient(f"http://127.0.0.1:{server.getsockname()[1]}", access=Access(auth=Unsendable())) as client,
        pytest.raises(
            RayApiConnectionError, match="^Request is not valid HTTP: could not get the Ray version"
        ) as caught,
    ):
        client.send(endpoints.get_version())

    assert caught.value.sent is False
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_authentication_that_fails_shows_nothing_in_its_traceback(ask):
    """What a class of the user's says of its failure may hold what it was given."""
    with pytest.raises(RayApiConnectionError) as caught:
        ask(Access(auth=Broken()), Wire())

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_whoever_masks_is_told_of_a_token_before_it_is_sent(ask, tmp_path: Path):
    """A token that its file holds since a moment ago is known before anybody can quote it."""
    file = tmp_path / "token"
    file.write_text("first\n")
    told: list[str] = []

    def rotate(_: httpx.Request) -> httpx.Response:
        assert told
        file.write_text("second\n")
        return httpx.Response(200, json=VERSION)

    ask(Access(token_file=str(file)), Wire(rotate), times=2, on_token=told.append)

    assert told == ["first", "second"]


def test_two_ways_to_give_a_token_are_one_too_many():
    """A client takes a token, or an access that has one."""
    with pytest.raises(ValueError, match="token and access are both given"):
        RayJobsClient(ADDRESS, token="a", access=Access())


def test_a_socks_proxy_needs_its_package():
    """What is missing for it is said by name, where it is missing."""
    with pytest.raises(ValueError, match="needs the package socksio"):
        RayJobsClient(ADDRESS, access=Access(proxy=f"socks5://me:{SECRET}@proxy:1080"))
