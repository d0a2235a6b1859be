"""
Why a client was not let in, and what to do about it: from how a connection failed, or from what answered.

Between us and Ray there may be an ingress with a login of its own. Ray's refusals are known by their words; whatever
else refuses is somebody else, and says so here.
"""

from __future__ import annotations

import html
import re
import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiConnectionError,
    RayApiResponseError,
    RayApiTLSError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs.access import AUTHORIZATION, RAY_AUTHORIZATION, Access
from airflow_provider_rayjobs.jobs.tls import SYSTEM

if TYPE_CHECKING:
    from airflow_provider_rayjobs.jobs.requests import Answer

CHECK_ADDRESS = "Check host, port, schema and base path of the address: they must lead to a Ray dashboard."

# OpenSSL's numbers for why a certificate is not believed. Source: ``openssl/x509_vfy.h``.
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_OTHER_NAME = (62, 64)
# OpenSSL's words for how a server ends a handshake for our certificate, or for want of one. It does so before it reads
# a request. Whatever else ends a TLS connection, such as an end without a word, is an outage like others.
_ABOUT_OUR_CERTIFICATE = re.compile(
    "ALERT_(CERTIFICATE|BAD_CERTIFICATE|NO_CERTIFICATE|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED)"
)
# And for what is heard, in the handshake, from somebody who speaks another protocol.
_NO_TLS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST|UNKNOWN_PROTOCOL|ALERT_PROTOCOL_VERSION")
# What a server says that speaks TLS at a port that was asked without: nginx, then Go's net/http (Traefik, Caddy).
_WANTS_TLS = ("plain HTTP request was sent to HTTPS port", "HTTP request to an HTTPS server")
# What httpx says of a head that goes away in the middle of an answer: it is a head all the same.
_CUT_OFF = re.compile("server disconnected|peer closed", re.IGNORECASE)
_TRANSPORT = ("httpx", "httpcore", "anyio")
# What nginx says, in a page with status 400, of a client's certificate.
_NO_CERTIFICATE = "No required SSL certificate was sent"
_WRONG_CERTIFICATE = "The SSL certificate error"


def diagnose_failure(error: Exception, address: str, access: Access) -> tuple[type[RayApiConnectionError], str]:
    """
    Return the error class and the advice for a connection that did not come about, or broke.

    :param error: the transport's, with what it was raised from.
    :param address: that was asked.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RayApiTLSError, _about_certificate(cause, access)
        if isinstance(cause, ssl.SSLError) and _ABOUT_OUR_CERTIFICATE.search(cause.reason or ""):
            return RayApiTLSError, _about_our_certificate(access)
        if isinstance(cause, ssl.SSLError) and _NO_TLS.search(cause.reason or "") and _is(error, "ConnectError"):
            return RayApiTLSError, (
                f"Port {urlsplit(address).port or 443} speaks no TLS that we do: the address's schema is http, or "
                "the port is another one."
            )
        if isinstance(cause, socket.gaierror):
            return RayApiConnectionError, f"This machine knows no such name.{_by_proxy(access)} {CHECK_ADDRESS}"
    if _is(error, "ProxyError"):
        return RayApiConnectionError, (
            f"The proxy {access.proxy_origin or 'that the environment names'} does not let us through; 407 means that "
            "it wants a user and a password, in proxy (http://user:password@host:port)."
        )
    if _is(error, "RemoteProtocolError") and not _CUT_OFF.match(str(error)):
        return RayApiConnectionError, (
            "Something answers there, and not as a Ray dashboard does: it may be a port of another service of Ray's "
            f"(6379, 10001), or one that speaks TLS. {CHECK_ADDRESS}"
        )
    return RayApiConnectionError, (
        f"Check that the Ray head runs, that this machine may reach it, and the address.{_by_proxy(access)}"
    )


def _is(error: Exception, name: str) -> bool:
    """Tell whether an error is one of httpx's: by its name, as ``client.py`` alone imports httpx."""
    return type(error).__name__ == name


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        # The transport's own errors say by __context__ alone what they come from: httpcore raises them again "from
        # None". That of every other error, such as the socket's, is what the caller was handling at the time.
        is_transports = type(cause).__module__.partition(".")[0] in _TRANSPORT
        cause = cause.__cause__ or (cause.__context__ if is_transports else None)
        if isinstance(cause, RayJobsError):
            return


def _by_proxy(access: Access) -> str:
    return f" It was tried through the proxy {access.proxy_origin}." if access.proxy else ""


def _about_certificate(error: ssl.SSLCertVerificationError, access: Access) -> str:
    believed = "this machine" if access.verify == SYSTEM else f"verify ({access.verify})"
    code = getattr(error, "verify_code", 0)  # what OpenSSL did not make has none
    if code == _EXPIRED:
        return "The server's certificate has expired. Whoever runs it has to renew it."
    if code == _NOT_YET_VALID:
        return "The server's certificate is not valid yet. Look at the clocks of both machines."
    if code in _OTHER_NAME:
        return "The server's certificate is for another name. Use a host in the address that it was issued for."
    if code in _UNKNOWN_AUTHORITY:
        return (
            f"The server's certificate comes from an authority that {believed} does not know. Give the file with the "
            "authority's certificate as verify."
        )
    return f"The server's certificate is not believed: {getattr(error, 'verify_message', error)}."


def _about_our_certificate(access: Access) -> str:
    if access.client_cert is None:
        return (
            "The server ended the TLS handshake, as one does that wants a client's certificate: give client_cert and "
            "client_key."
        )
    return f"The server ended the TLS handshake: it does not accept our certificate ({access.client_cert})."


def diagnose_answer(answer: Answer) -> tuple[type[RayApiResponseError], str] | None:
    """Return the error class and the advice for an answer that keeps us out; ``None`` for every other one."""
    text = answer.text
    match answer.status_code:
        case 401 | 403 if _is_from_ray(answer):
            return RayApiAuthError, _about_token(answer)
        case 401:
            return RayApiAuthError, _about_proxy_login(answer)
        case 403:
            return RayApiAuthError, (
                f"It is not Ray that refuses, but {_who(answer)}: it does not let in who shows "
                f"{answer.access.describe()}. Ask whoever runs it what it wants."
            )
        case 407:
            return RayApiAuthError, (
                "A proxy on the way wants a user and a password, in proxy (http://user:password@host:port)."
            )
        case 400 if _NO_CERTIFICATE in text:
            return RayApiAuthError, (
                f"{_capital(_who(answer))} wants a client's certificate: give client_cert and client_key."
            )
        case 400 if _WRONG_CERTIFICATE in text:
            return RayApiAuthError, (
                f"{_capital(_who(answer))} does not accept our client certificate: it has expired, or comes from "
                "another authority."
            )
        case 400 if any(words in text for words in _WANTS_TLS):
            return RayApiAddressError, "This port speaks TLS: the address's schema is https."
        case 301 | 302 | 303 | 307 | 308:
            return RayApiAddressError, _about_redirect(answer)
        case 200 if is_html_page(answer):
            return RayApiAddressError, (
                f"A page came instead of the answer{_title(answer)}, as from a login. {_LOGIN} {CHECK_ADDRESS}"
            )
        case _:
            return None


def is_html_page(answer: Answer) -> bool:
    """Tell whether an answer is made for people."""
    return answer.content_type.startswith("text/html")


_LOGIN = (
    "If a proxy before Ray wants a login, ask whoever runs it how programs get in; login and password, headers "
    "and auth are for that."
)


def _is_from_ray(answer: Answer) -> bool:
    return answer.text.startswith(("Unauthorized: ", "Forbidden: ")) and "authentication token" in answer.text


def _about_token(answer: Answer) -> str:
    access = answer.access
    shown = access.describe()
    if answer.status_code == 401:
        if access.has_token:
            header = access.token_header_name
            other = RAY_AUTHORIZATION if header == AUTHORIZATION else AUTHORIZATION
            return (
                f"The token is missing, as Ray sees it, although it was sent in {header}: a proxy on the "
                f"way takes it out. Let it pass that header on, or set token_header to {other}."
            )
        return "The token is missing: Ray wants one. Give token or token_file."
    if not access.has_token:
        return (
            f"The token is wrong: Ray takes for one what reaches it in {AUTHORIZATION} ({shown} was sent). The proxy "
            f"before Ray has to take its own {AUTHORIZATION} out, and Ray needs a token."
        )
    if access.token_header_name == RAY_AUTHORIZATION:
        return (
            f"The token is wrong ({shown} was sent), or hidden: Ray does not read {RAY_AUTHORIZATION} where "
            f"any {AUTHORIZATION} reaches it, so the proxy before Ray has to take that out."
        )
    return (
        f"The token is wrong, of another cluster, or not valid any more ({shown} was sent). Look at token or "
        "token_file."
    )


def _about_proxy_login(answer: Answer) -> str:
    wanted = answer.redact(answer.headers.get("www-authenticate", ""))
    scheme = wanted.partition(" ")[0]
    realm = re.search(r'realm="?([^",]{1,80})', wanted)
    place = f" for {realm.group(1)!r}" if realm else ""
    asks = f"It is not Ray that refuses, but {_who(answer)}"
    if scheme.lower() == "basic":
        if answer.access.login is not None:
            return f"{asks}: it does not accept login and password{place}."
        return (
            f"{asks}: it wants basic authentication{place}. Give login and password; a token of "
            "Ray's then goes into token or token_file."
        )
    kind = f" ({scheme}{place})" if scheme else ""
    return f"{asks}: it wants a login{kind}, and {answer.access.describe()} was sent. {_LOGIN}"


def _about_redirect(answer: Answer) -> str:
    try:
        here = urlsplit(answer.address)
        there = urlsplit(urljoin(f"{answer.address}/", answer.redact(answer.headers.get("location", ""))))
        origin = f"{there.scheme}://{there.netloc.rpartition('@')[2]}"
    except ValueError:
        return f"It leads elsewhere, to no address. This is not a Ray dashboard. {CHECK_ADDRESS}"
    if there.hostname == here.hostname and there.scheme != here.scheme:
        return f"It leads to {origin}: give that as the address (schema and port)."
    if there.netloc == here.netloc:
        return f"It leads to {there.path} here, as to a login or another base path. {_LOGIN} {CHECK_ADDRESS}"
    return (
        f"It leads to {origin}, as to a login; redirects are not followed, so no credentials go there. This is not a "
        f"Ray dashboard, or somebody stands before it. {_LOGIN} {CHECK_ADDRESS}"
    )


def _who(answer: Answer) -> str:
    server = re.sub(r"[^A-Za-z0-9 ._/-]", "", answer.redact(answer.headers.get("server", "")))[:40].strip()
    return f"a proxy before it ({server})" if server else "a proxy before it"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title(answer: Answer) -> str:
    found = re.search(r"<title[^>]*>([^<]{1,2000})", answer.text[:20_000], re.IGNORECASE)
    # without secrets before it is cut: of half a secret nobody would know that it is one
    title = " ".join(answer.redact(html.unescape(found.group(1))).split())[:80] if found else ""
    return f", titled {title!r}" if title else ""
