"""Errors of TLS, authentication and wrong addresses name their cause: with a real nginx and real certificates."""

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
from certificates import CertificateAuthority
from nginx import Nginx, Server

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiConnectionError,
    RayApiTLSError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import Access, AsyncRayJobsClient, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.steps import may_retry
from airflow_provider_rayjobs.jobs.tls import check_certificates

VERSION_RESPONSE = 'default_type application/json; return 200 \'{"version": "4", "ray_version": "2.60.0"}\';'
SECRET = "m4rked-s3cret"


def request_version(address: str, **access: Any) -> str:
    with RayJobsClient(address, access=Access(**access), retry_timeout=0) as client:
        return client.get_version().ray_version


def request_version_async(address: str, **access: Any) -> str:
    async def request() -> str:
        async with AsyncRayJobsClient(address, access=Access(**access), retry_timeout=0) as client:
            return (await client.get_version()).ray_version

    return asyncio.run(request())


@pytest.fixture(params=[pytest.param(request_version, id="blocking"), pytest.param(request_version_async, id="async")])
def get_version(request: pytest.FixtureRequest) -> Callable[..., str]:
    """A function that requests Ray's version with the blocking or the async client."""
    return request.param


@pytest.fixture(scope="module")
def servers(
    needs_nginx: None, authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """An nginx with one server for each error, and valid ones that respond to ``/api/version`` as Ray does."""
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text("me:{PLAIN}right\n")

    def tls(hosts: tuple[str, ...] = ("127.0.0.1",), days: int = 30, name: str = "server") -> str:
        files = authority.issue(name, hosts=hosts, days=days)
        return f"ssl_certificate {files.cert};\nssl_certificate_key {files.key};\n"

    version_location = f"location / {{ {VERSION_RESPONSE} }}"
    servers = {
        "valid": Server(tls() + version_location),
        "expired": Server(tls(days=-1, name="expired") + version_location),
        "other host name": Server(tls(("ray.example.com",), name="other") + version_location),
        "mtls": Server(
            tls(name="mtls") + f"ssl_client_certificate {authority.cert};\nssl_verify_client on;\n{version_location}"
        ),
        "no tls": Server(version_location, tls=False),
        "basic": Server(f'auth_basic "team a";\nauth_basic_user_file {users};\nlocation = /api/version '
                        "{ try_files /none @ray; }\nlocation @ray { " + VERSION_RESPONSE + " }", tls=False),
        "login page": Server(
            "location / { default_type text/html; return 200 '<html><title>Sign in</title><form>'; }", tls=False
        ),
        "redirect to login": Server("location / { return 302 https://sso.example.com/start?state=x; }", tls=False),
        "forbidden": Server("location / { return 403; }", tls=False),
        "not ray": Server("location / { return 404; }", tls=False),
    }  # fmt: skip
    servers["redirect to https"] = Server(
        f"location / {{ return 301 {servers['valid'].address}$request_uri; }}", tls=False
    )
    with Nginx([*servers.values()]):
        yield servers


@contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a server that calls ``handle`` with each connection, in a thread, and yield its port."""
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
                    handle(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            has_ended.set()
            thread.join()


def assert_error(
    error_class: type[RayJobsError], text: str, get_version: Callable[..., str], address: str, **access: Any
) -> RayJobsError:
    """Return the error of a request, after checking its class, its text and its address."""
    with pytest.raises(RayJobsError) as caught:
        get_version(address, **access)
    assert type(caught.value) is error_class, caught.value
    assert text in str(caught.value)
    assert address in str(caught.value)
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("verify", ["file", "folder", "off"])
def test_certificate_of_a_private_authority_is_accepted(
    get_version, servers, authority: CertificateAuthority, tmp_path: Path, verify: str
):
    """``verify`` is a file with the CA's certificate, an OpenSSL folder of certificates, or off."""
    setting = {"file": str(authority.cert), "folder": str(tmp_path), "off": "off"}[verify]
    if verify == "folder":
        (tmp_path / "ca.pem").write_bytes(authority.cert.read_bytes())
        subprocess.run(["openssl", "rehash", str(tmp_path)], check=True, timeout=20)

    assert get_version(servers["valid"].address, verify=setting) == "2.60.0"


@pytest.mark.parametrize(
    ("server", "verify", "text"),
    [
        ("valid", "system", "an authority that this machine does not trust"),
        ("valid", "other CA", "an authority that verify ("),
        ("expired", "private CA", "TLS handshake failed, the server's certificate has expired: could not"),
        (
            "other host name",
            "private CA",
            "TLS handshake failed, the server's certificate is for another name: could not",
        ),
        ("no tls", "private CA", "does not speak TLS, or only other versions of it: could not"),
    ],
    ids=["CA unknown to the system", "CA not in verify", "expired", "other host name", "no TLS"],
)
def test_error_names_what_is_wrong_with_the_server_certificate(
    get_version,
    servers,
    authority: CertificateAuthority,
    other_authority: CertificateAuthority,
    server: str,
    verify: str,
    text: str,
):
    """The client sends no request to a server whose certificate it does not accept, and does not retry."""
    setting = {"private CA": str(authority.cert), "other CA": str(other_authority.cert)}.get(verify, verify)
    address = servers[server].address.replace("http:", "https:")

    error = assert_error(RayApiTLSError, text, get_version, address, verify=setting, token=SECRET)
    assert error.delivery is Delivery.NOT_SENT
    assert not may_retry(endpoints.get_version(), error)


def test_error_for_http_address_of_a_tls_port_names_the_schema(get_version, servers):
    """The error says that the port speaks TLS and needs the schema https."""
    address = servers["valid"].address.replace("https:", "http:")

    assert_error(RayApiAddressError, "HTTP 400, this port speaks TLS: could not", get_version, address)


@pytest.mark.parametrize("password", [None, "key password"], ids=["plain key", "encrypted key"])
def test_ingress_accepts_the_client_certificate(
    get_version, servers, authority: CertificateAuthority, password: str | None
):
    """mTLS works with an encrypted key and with one that is not encrypted."""
    files = authority.issue(f"client-{bool(password)}", key_password=password)

    assert (
        get_version(
            servers["mtls"].address,
            verify=str(authority.cert),
            client_cert=str(files.cert),
            client_key=str(files.key),
            client_key_password=password,
        )
        == "2.60.0"
    )


def test_client_certificate_and_key_in_one_file(get_version, servers, authority: CertificateAuthority, tmp_path: Path):
    """A PEM file with both needs no ``client_key``."""
    files = authority.issue("both")
    both = tmp_path / "both.pem"
    both.write_bytes(files.cert.read_bytes() + files.key.read_bytes())

    assert get_version(servers["mtls"].address, verify=str(authority.cert), client_cert=str(both)) == "2.60.0"


def test_error_names_missing_or_rejected_client_certificate(
    get_version, servers, authority: CertificateAuthority, other_authority: CertificateAuthority
):
    """The error names the cause that nginx reports in an HTML page."""
    address, verify = servers["mtls"].address, str(authority.cert)
    files = other_authority.issue("foreign")

    assert_error(
        RayApiAuthError, "client certificate required by a reverse proxy (nginx", get_version, address, verify=verify
    )
    assert_error(
        RayApiAuthError, "client_cert rejected by a reverse proxy (nginx", get_version, address, verify=verify,
        client_cert=str(files.cert), client_key=str(files.key),
    )  # fmt: skip


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_error_names_missing_client_certificate_after_failed_handshake(
    get_version, authority: CertificateAuthority, version: Any
):
    """The error names the cause when the TLS handshake fails, as with Envoy or HAProxy, which send no HTML page."""
    files = authority.issue("strict", hosts=("127.0.0.1",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.cert)
    context.load_cert_chain(files.cert, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version

    def handle(connection: socket.socket) -> None:
        try:
            secured = context.wrap_socket(connection.dup(), server_side=True)
        except ssl.SSLError:
            # close in order, or the TLS alert may be lost with the connection
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        else:
            secured.close()

    with listening(handle) as port:
        assert_error(
            RayApiTLSError, "TLS handshake failed, the server ended it: could not", get_version,
            f"https://127.0.0.1:{port}", verify=str(authority.cert),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({"client_cert": "{cert}"}, "are not a certificate and its key", id="certificate without key"),
        pytest.param(
            {"client_cert": "{cert}", "client_key": "{other_key}"},
            "are not a certificate and",
            id="key of another certificate",
        ),
        pytest.param(
            {"client_cert": "{encrypted_cert}", "client_key": "{encrypted_key}"},
            "are not a certificate",
            id="no key password",
        ),
        pytest.param(
            {"client_cert": "{encrypted_cert}", "client_key": "{encrypted_key}", "client_key_password": SECRET},
            "are not a certificate",
            id="wrong key password",
        ),
        pytest.param(
            {"client_cert": "{cert}", "client_key": "/none"}, "client_key /none cannot be read", id="missing key file"
        ),
    ],
)
def test_unusable_client_key_is_an_error_before_the_first_request(
    authority: CertificateAuthority, fields: dict[str, str], text: str
):
    """The error comes from ``check_certificates``. OpenSSL does not ask for a password on the terminal."""
    plain, encrypted = authority.issue("a"), authority.issue("encrypted", key_password="right")
    paths = {
        "cert": plain.cert,
        "other_key": authority.issue("b").key,
        "encrypted_key": encrypted.key,
        "encrypted_cert": encrypted.cert,
    }

    with pytest.raises(ValueError, match=text) as caught:
        check_certificates(Access(**{name: value.format(**paths) for name, value in fields.items()}))

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("server", "error_class", "text"),
    [
        ("basic", RayApiAuthError, "(nginx/"),
        ("basic", RayApiAuthError, "It requires basic authentication for 'team a'"),
        ("forbidden", RayApiAuthError, "HTTP 403, access denied by a reverse proxy"),
        ("login page", RayApiAddressError, "an HTML page, titled 'Sign in', instead of Ray's answer"),
        ("redirect to login", RayApiAddressError, "HTTP 302, redirect to https://sso.example.com: could not"),
        ("redirect to https", RayApiAddressError, "HTTP 301, redirect to https://127.0.0.1:"),
        ("not ray", RayApiAddressError, "HTTP 404, this is not the Ray Jobs API"),
    ],
    ids=[
        "server software",
        "basic authentication",
        "HTTP 403",
        "login page",
        "redirect to login",
        "redirect to https",
        "HTTP 404",
    ],
)
def test_response_of_a_reverse_proxy_is_not_taken_for_a_response_of_ray(
    get_version, servers, server: str, error_class: type[RayJobsError], text: str
):
    """The error names the reverse proxy that rejected the request, or sent a page or a redirect."""
    assert_error(error_class, text, get_version, servers[server].address, token=SECRET)


def test_wrong_login_is_not_taken_for_a_wrong_token(get_version, servers):
    """The error says that the reverse proxy does not accept login and password."""
    address = servers["basic"].address

    assert get_version(address, login="me", password="right") == "2.60.0"
    assert_error(
        RayApiAuthError, "Check login and password for 'team a'", get_version, address,
        login="me", password=SECRET,
    )  # fmt: skip


def test_errors_for_wrong_protocol_port_and_host_name_differ(get_version):
    """Another protocol, a refused connection and an unknown host name lead to different messages."""

    def handle(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")  # the first bytes of gRPC

    with listening(handle) as port:
        assert_error(RayApiConnectionError, "Answer is not HTTP: could not", get_version, f"http://127.0.0.1:{port}")
    assert_error(RayApiConnectionError, "Connection refused: could not", get_version, "http://127.0.0.1:9")
    assert_error(
        RayApiConnectionError,
        "DNS lookup failed for unknown.invalid: could not",
        get_version,
        "http://unknown.invalid:8265",
    )


def test_http_proxy_gets_its_credentials_and_is_named_without_them(get_version, servers):
    """Requests for http and https go through the HTTP proxy. The error names the proxy without its password."""
    requests: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        requests.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with listening(handle) as port:
        proxy = f"http://me:{SECRET}@127.0.0.1:{port}"
        assert_error(
            RayApiAuthError, "HTTP 407, the HTTP proxy requires a login: could not", get_version,
            "http://ray.example.com:8265", proxy=proxy,
        )  # fmt: skip
        error = assert_error(
            RayApiConnectionError,
            " refused the request: could not",
            get_version,
            "https://ray.example.com",
            proxy=proxy,
        )

    assert [request.split(b" ", 2)[:2] for request in requests] == [
        [b"GET", b"http://ray.example.com:8265/api/version"],
        [b"CONNECT", b"ray.example.com:443"],
    ]
    assert all(b"proxy-authorization: basic" in request.lower() for request in requests)
    assert f"http://127.0.0.1:{port}" in str(error)
