"""Whoever is not let in is told why: against a real nginx, with real certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from nginx import Nginx, Server

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiConnectionError,
    RayApiTLSError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import Access, AsyncRayJobsClient, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.steps import may_retry
from airflow_provider_rayjobs.jobs.tls import check_certificates

VERSION = 'default_type application/json; return 200 \'{"version": "4", "ray_version": "2.60.0"}\';'
SECRET = "m4rked-s3cret"


def blocking(address: str, **access: Any) -> str:
    with RayJobsClient(address, access=Access(**access), retry_timeout=0) as client:
        return client.get_version().ray_version


def on_a_loop(address: str, **access: Any) -> str:
    async def ask() -> str:
        async with AsyncRayJobsClient(address, access=Access(**access), retry_timeout=0) as client:
            return (await client.get_version()).ray_version

    return asyncio.run(ask())


@pytest.fixture(params=[blocking, on_a_loop])
def ask(request: pytest.FixtureRequest) -> Callable[..., str]:
    return request.param


@pytest.fixture(scope="module")
def servers(needs_nginx: None, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One nginx with a server for each way not to be let in; each would answer as Ray does."""
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text("me:{PLAIN}right\n")

    def tls(hosts: tuple[str, ...] = ("127.0.0.1",), days: int = 30, name: str = "server") -> str:
        pair = authority.issue(name, hosts=hosts, days=days)
        return f"ssl_certificate {pair.cert};\nssl_certificate_key {pair.key};\n"

    everywhere = f"location / {{ {VERSION} }}"
    named = {
        "good": Server(tls() + everywhere),
        "expired": Server(tls(days=-1, name="expired") + everywhere),
        "other name": Server(tls(("ray.example.com",), name="other") + everywhere),
        "mtls": Server(
            tls(name="mtls") + f"ssl_client_certificate {authority.cert};\nssl_verify_client on;\n{everywhere}"
        ),
        "plain": Server(everywhere, tls=False),
        "basic": Server(f'auth_basic "team a";\nauth_basic_user_file {users};\nlocation = /api/version '
                        "{ try_files /none @ray; }\nlocation @ray { " + VERSION + " }", tls=False),
        "login page": Server(
            "location / { default_type text/html; return 200 '<html><title>Sign in</title><form>'; }", tls=False
        ),
        "login elsewhere": Server("location / { return 302 https://sso.example.com/start?state=x; }", tls=False),
        "forbidden": Server("location / { return 403; }", tls=False),
        "something else": Server("location / { return 404; }", tls=False),
        "away": Server("location / { return 502; }", tls=False),
    }  # fmt: skip
    named["to https"] = Server(f"location / {{ return 301 {named['good'].address}$request_uri; }}", tls=False)
    with Nginx([*named.values()]):
        yield named


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that talks to each connection as it is told, in a thread; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        has_ended = threading.Event()

        def serve() -> None:
            while not has_ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                connection.settimeout(5)
                with connection, suppress(OSError):
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            has_ended.set()
            thread.join()


def refused(kind: type[RayJobsError], words: str, ask: Callable[..., str], address: str, **access: Any) -> RayJobsError:
    with pytest.raises(RayJobsError) as caught:
        ask(address, **access)
    assert type(caught.value) is kind, caught.value
    assert words in str(caught.value)
    assert address in str(caught.value)
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("verify", ["file", "folder", "off"])
def test_a_private_authority_is_believed(ask, servers, authority: Authority, tmp_path: Path, verify: str):
    """The certificate of a private authority is believed by its file, by OpenSSL's folder, or unseen."""
    believed = {"file": str(authority.cert), "folder": str(tmp_path), "off": "off"}[verify]
    if verify == "folder":
        (tmp_path / "ca.pem").write_bytes(authority.cert.read_bytes())
        subprocess.run(["openssl", "rehash", str(tmp_path)], check=True, timeout=20)

    assert ask(servers["good"].address, verify=believed) == "2.60.0"


@pytest.mark.parametrize(
    ("server", "verify", "words"),
    [
        ("good", "system", "an authority that this machine does not trust"),
        ("good", "stranger", "an authority that verify ("),
        ("expired", "company", "TLS handshake failed, the server's certificate has expired: could not"),
        ("other name", "company", "TLS handshake failed, the server's certificate is for another name: could not"),
        ("plain", "company", "does not speak TLS, or only other versions of it: could not"),
    ],
)
def test_a_certificate_that_is_not_believed_is_named(
    ask, servers, authority: Authority, stranger: Authority, server: str, verify: str, words: str
):
    """Unknown authority, expired, another name, no TLS at all: which it is, and that nothing was sent."""
    believed = {"company": str(authority.cert), "stranger": str(stranger.cert)}.get(verify, verify)
    address = servers[server].address.replace("http:", "https:")

    error = refused(RayApiTLSError, words, ask, address, verify=believed, token=SECRET)
    assert error.sent is False
    assert not may_retry(endpoints.get_version(), error)


def test_tls_at_a_port_that_was_asked_without(ask, servers):
    """An http address of a TLS port is told which schema to use."""
    address = servers["good"].address.replace("https:", "http:")

    refused(RayApiAddressError, "HTTP 400, this port speaks TLS: could not", ask, address)


@pytest.mark.parametrize("password", [None, "of the key"])
def test_a_client_certificate_lets_us_in(ask, servers, authority: Authority, password: str | None):
    """Certificate and key, the key encrypted or not, satisfy an ingress that wants mTLS."""
    pair = authority.issue(f"client-{bool(password)}", key_password=password)

    assert (
        ask(
            servers["mtls"].address,
            verify=str(authority.cert),
            client_cert=str(pair.cert),
            client_key=str(pair.key),
            client_key_password=password,
        )
        == "2.60.0"
    )


def test_a_certificate_and_its_key_may_be_one_file(ask, servers, authority: Authority, tmp_path: Path):
    """A PEM file that holds both needs no second one."""
    pair = authority.issue("both")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())

    assert ask(servers["mtls"].address, verify=str(authority.cert), client_cert=str(both)) == "2.60.0"


def test_a_client_certificate_that_is_missing_or_wrong_is_named(
    ask, servers, authority: Authority, stranger: Authority
):
    """What nginx says in a page is said in words of ours."""
    address, verify = servers["mtls"].address, str(authority.cert)
    pair = stranger.issue("foreign")

    refused(RayApiAuthError, "client certificate required by a reverse proxy (nginx", ask, address, verify=verify)
    refused(
        RayApiAuthError, "client_cert rejected by a reverse proxy (nginx", ask, address, verify=verify,
        client_cert=str(pair.cert), client_key=str(pair.key),
    )  # fmt: skip


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_ends_the_handshake_for_want_of_a_certificate(ask, authority: Authority, version: Any):
    """Where no page says it, as with Envoy or HAProxy, the handshake's end does."""
    pair = authority.issue("strict", hosts=("127.0.0.1",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.cert)
    context.load_cert_chain(pair.cert, pair.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version

    def talk(connection: socket.socket) -> None:
        try:
            secured = context.wrap_socket(connection.dup(), server_side=True)
        except ssl.SSLError:
            # leave in order, or what was said of the certificate may be lost with the connection
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        else:
            secured.close()

    with listening(talk) as port:
        refused(
            RayApiTLSError, "TLS handshake failed, the server ended it: could not", ask,
            f"https://127.0.0.1:{port}", verify=str(authority.cert),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"client_cert": "{cert}"}, "are not a certificate and its key", id="no key"),
        pytest.param(
            {"client_cert": "{cert}", "client_key": "{other}"}, "are not a certificate and", id="another's key"
        ),
        pytest.param(
            {"client_cert": "{locked_cert}", "client_key": "{locked}"}, "are not a certificate", id="no password"
        ),
        pytest.param(
            {"client_cert": "{locked_cert}", "client_key": "{locked}", "client_key_password": SECRET},
            "are not a certificate",
            id="wrong password",
        ),
        pytest.param({"client_cert": "{cert}", "client_key": "/none"}, "client_key /none cannot be read", id="no file"),
    ],
)
def test_a_key_that_does_not_fit_is_named_before_anything_is_sent(
    authority: Authority, fields: dict[str, str], words: str
):
    """Nobody is asked for a password at a terminal."""
    pair, locked = authority.issue("a"), authority.issue("locked", key_password="right")
    files = {"cert": pair.cert, "other": authority.issue("b").key, "locked": locked.key, "locked_cert": locked.cert}

    with pytest.raises(ValueError, match=words) as caught:
        check_certificates(Access(**{name: value.format(**files) for name, value in fields.items()}))

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("server", "kind", "words"),
    [
        ("basic", RayApiAuthError, "(nginx/"),
        ("basic", RayApiAuthError, "It requires basic authentication for 'team a'"),
        ("forbidden", RayApiAuthError, "HTTP 403, access denied by a reverse proxy"),
        ("login page", RayApiAddressError, "an HTML page, titled 'Sign in', instead of Ray's answer"),
        ("login elsewhere", RayApiAddressError, "HTTP 302, redirect to https://sso.example.com: could not"),
        ("to https", RayApiAddressError, "HTTP 301, redirect to https://127.0.0.1:"),
        ("something else", RayApiAddressError, "HTTP 404, this is not the Ray Jobs API"),
    ],
)
def test_somebody_before_ray_is_told_from_ray(ask, servers, server: str, kind: type[RayJobsError], words: str):
    """Refusals, pages and redirects of a proxy are not taken for Ray's."""
    refused(kind, words, ask, servers[server].address, token=SECRET)


def test_a_login_that_is_wrong_is_named(ask, servers):
    """Login and password that the proxy does not know are not taken for a wrong token."""
    address = servers["basic"].address

    assert ask(address, login="me", password="right") == "2.60.0"
    refused(
        RayApiAuthError, "Check login and password for 'team a'", ask, address,
        login="me", password=SECRET,
    )  # fmt: skip


def test_a_port_of_another_service_is_told(ask):
    """What answers in another protocol is no Ray dashboard; a port where nobody listens is another matter."""

    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")  # as gRPC begins

    with listening(talk) as port:
        refused(RayApiConnectionError, "Answer is not HTTP: could not", ask, f"http://127.0.0.1:{port}")
    refused(RayApiConnectionError, "Connection refused: could not", ask, "http://127.0.0.1:9")
    refused(RayApiConnectionError, "DNS lookup failed for nobody.invalid: could not", ask, "http://nobody.invalid:8265")


def test_a_proxy_is_used_and_named_without_its_password(ask, servers):
    """All goes through the proxy, with its user and password; one that refuses is named."""
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with listening(serve) as port:
        proxy = f"http://me:{SECRET}@127.0.0.1:{port}"
        refused(
            RayApiAuthError, "HTTP 407, the HTTP proxy requires a login: could not", ask,
            "http://ray.example.com:8265", proxy=proxy,
        )  # fmt: skip
        error = refused(
            RayApiConnectionError, " refused the request: could not", ask, "https://ray.example.com", proxy=proxy
        )

    assert [head.split(b" ", 2)[:2] for head in heads] == [
        [b"GET", b"http://ray.example.com:8265/api/version"],
        [b"CONNECT", b"ray.example.com:443"],
    ]
    assert all(b"proxy-authorization: basic" in head.lower() for head in heads)
    assert f"http://127.0.0.1:{port}" in str(error)
