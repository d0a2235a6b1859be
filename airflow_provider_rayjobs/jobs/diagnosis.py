"""
Find the cause and the fix of a failed request: a connection error, or an answer that denies access.

A reverse proxy (or ingress) in front of Ray may require a login of its own. Ray's refusals are recognised by their
wording. Every other refusal comes from the proxy.
"""

from __future__ import annotations

import html
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import TypeVar
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiConnectionError,
    RayApiResponseError,
    RayApiTLSError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs.access import AUTHORIZATION, RAY_AUTHORIZATION, SYSTEM, Access
from airflow_provider_rayjobs.jobs.requests import Answer, is_html

E = TypeVar("E", bound=RayJobsError)
# The class of the error, the fact in searchable words, and the fix in terms of the fields of ``Access``.
Diagnosis = tuple[type[E], str, str]

CHECK_ADDRESS = "Check host, port, schema and base path of the address: it must be that of a Ray dashboard."
_ASK_FOR_LOGIN = "If a reverse proxy requires a login, ask its administrator for one; set login, headers or auth."
_SET_PROXY_LOGIN = "set proxy with a user and a password (http://user:password@host:port)."

# OpenSSL's codes for a rejected certificate. Source: ``openssl/x509_vfy.h``.
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_REJECTIONS = {
    9: ("is not valid yet", "Check the clocks of both machines."),
    10: ("has expired", "It must be renewed on the server."),
    **dict.fromkeys((62, 64), ("is for another name", "Use a host in the address that the certificate names.")),
}
# OpenSSL's reasons if the server rejects or misses the client's certificate. The server sends these alerts before it
# reads a request. Any other end of a TLS connection is an outage.
_CLIENT_CERTIFICATE_ALERT = re.compile(
    "ALERT_(CERTIFICATE|BAD_CERTIFICATE|NO_CERTIFICATE|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED)"
)
# OpenSSL's reasons if the server speaks another protocol.
_NO_TLS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST|UNKNOWN_PROTOCOL|ALERT_PROTOCOL_VERSION")
# How TLS servers answer plain HTTP: nginx, then Go's net/http (Traefik, Caddy).
_TLS_REQUIRED = ("plain HTTP request was sent to HTTPS port", "HTTP request to an HTTPS server")
# httpx's message about the target of a redirect. For some targets it raises InvalidURL instead.
_INVALID_REDIRECT = "Invalid URL in location header"
# httpx's messages if a server that speaks HTTP disconnects in the middle of an answer.
_CUT_OFF = re.compile("server disconnected|peer closed", re.IGNORECASE)
# The facts behind httpx's errors, by class name.
_FACTS = {
    "ConnectError": "Connection failed",
    "ConnectTimeout": "Connection timeout after {connect:.12g} s",
    "PoolTimeout": "Timeout after {pool:.12g} s without a free connection",
    "DeadlineError": "Timeout after {total:.12g} s without the whole answer",
    "ReadTimeout": "Timeout after {read:.12g} s",
    "WriteTimeout": "Timeout after {write:.12g} s while sending",
    **dict.fromkeys(("ReadError", "WriteError", "CloseError", "RemoteProtocolError"), "Connection lost"),
}


def diagnose_failure(
    error: Exception, address: str, access: Access, timeouts: Mapping[str, float | None]
) -> Diagnosis[RayApiConnectionError]:
    """Diagnose an error without an answer, with the request's timeouts ``connect``, ``read``, ``write``, ``pool``."""
    name = type(error).__name__  # only transport.py and exchange.py import httpx
    fact = _FACTS.get(name, "Request failed").format_map(timeouts)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and (tls := _diagnose_tls(cause, name, address, access)):
            return RayApiTLSError, f"TLS handshake failed, {tls[0]}", tls[1]
        if isinstance(cause, socket.gaierror):
            return RayApiConnectionError, *_diagnose_lookup(address, access)
        if isinstance(cause, ConnectionRefusedError):
            fact = "Connection refused"
    advice = "Check that the Ray head runs, that this machine can reach it, and the address."
    if name == "ProxyError":
        fact = f"HTTP proxy {access.proxy_origin or 'of the environment'} refused the request"
        advice = f"If it requires a login (407), {_SET_PROXY_LOGIN}"
    elif name == "InvalidURL" or str(error).startswith(_INVALID_REDIRECT):
        fact, advice = "Redirect to an invalid address", CHECK_ADDRESS
    elif name == "RemoteProtocolError" and not _CUT_OFF.match(str(error)):
        fact = "Answer is not HTTP"
        advice = f"The port may be that of another service of Ray (6379, 10001), or speak TLS. {CHECK_ADDRESS}"
    elif name == "LocalProtocolError":
        fact, advice = "Request is not valid HTTP", "Check headers and auth."
    elif access.proxy:
        advice = f"{advice} The request went to the HTTP proxy {access.proxy_origin}."
    return RayApiConnectionError, fact, advice


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, without the errors that the caller was handling meanwhile."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen and not isinstance(cause, RayJobsError):
        seen.add(id(cause))
        yield cause
        # httpcore raises its errors "from None", so only their __context__ holds the cause. The __context__ of any
        # other error, such as the socket's, is an error that the caller was handling.
        is_of_transport = type(cause).__module__.partition(".")[0] in ("httpx", "httpcore", "anyio")
        cause = cause.__cause__ or (cause.__context__ if is_of_transport else None)


def _diagnose_lookup(address: str, access: Access) -> tuple[str, str]:
    if access.proxy:
        return f"DNS lookup failed for the HTTP proxy {access.proxy_origin}", "Check the host of proxy."
    parts = urlsplit(address)
    is_proxied = not {parts.scheme, "all"}.isdisjoint(getproxies()) and not proxy_bypass(parts.netloc)
    proxy = " or the HTTP proxy of the environment" if is_proxied else ""
    return f"DNS lookup failed for {parts.hostname}{proxy}", "Check the host of the address."


def _diagnose_tls(error: ssl.SSLError, name: str, address: str, access: Access) -> tuple[str, str] | None:
    """Return the fact and the advice for an error about TLS; ``None`` for a lost connection."""
    reason = getattr(error, "reason", None) or ""  # missing in an error that OpenSSL did not make
    if isinstance(error, ssl.SSLCertVerificationError):
        return _diagnose_certificate(error, access)
    if _CLIENT_CERTIFICATE_ALERT.search(reason):
        if access.client_cert is None:
            return "the server ended it", "It may require a client certificate: set client_cert and client_key."
        return f"the server rejected client_cert ({access.client_cert})", "Use a certificate that the server trusts."
    if name == "ConnectError" and _NO_TLS.search(reason):
        fact = f"port {urlsplit(address).port or 443} does not speak TLS, or only other versions of it"
        return fact, "Change the schema of the address to http, or its port."
    return None


def _diagnose_certificate(error: ssl.SSLCertVerificationError, access: Access) -> tuple[str, str]:
    code = getattr(error, "verify_code", 0)
    reason = f"was rejected ({getattr(error, 'verify_message', error)})"
    fact, advice = _REJECTIONS.get(code, (reason, "Check that certificate."))
    if code in _UNKNOWN_AUTHORITY:
        trust = "this machine" if access.verify == SYSTEM else f"verify ({access.verify})"
        fact = f"comes from an authority that {trust} does not trust"
        advice = "Set verify to a file with the authority's certificate."
    return f"the server's certificate {fact}", advice


def diagnose_answer(answer: Answer) -> Diagnosis[RayApiResponseError] | None:
    """Diagnose an answer that denies access, or that no dashboard sends. Return ``None`` for any other answer."""
    text, proxy = answer.text, _name_proxy(answer)
    match answer.status_code:
        case 401 | 403 if text.startswith(("Unauthorized: ", "Forbidden: ")) and "authentication token" in text:
            return RayApiAuthError, *_diagnose_token(answer.status_code, answer.access)
        case 401:
            return RayApiAuthError, *_diagnose_login(answer, proxy)
        case 403:
            advice = f"The request carried {answer.access.describe()}. Ask the proxy's administrator what it requires."
            return RayApiAuthError, f"access denied by {proxy}, not by Ray", advice
        case 407:
            return RayApiAuthError, "the HTTP proxy requires a login", f"To log in, {_SET_PROXY_LOGIN}"
        case 400 if "No required SSL certificate was sent" in text:  # nginx, in a page
            return RayApiAuthError, f"client certificate required by {proxy}", "Set client_cert and client_key."
        case 400 if "The SSL certificate error" in text:  # nginx as well
            advice = "It has expired, or comes from an authority that the proxy does not trust."
            return RayApiAuthError, f"client_cert rejected by {proxy}", advice
        case 400 if any(words in text for words in _TLS_REQUIRED):
            return RayApiAddressError, "this port speaks TLS", "Change the schema of the address to https."
        case 301 | 302 | 303 | 307 | 308:
            return RayApiAddressError, *_diagnose_redirect(answer)
        case 200 if is_html(answer.content_type):
            fact = f"an HTML page{_quote_title(answer)} instead of Ray's answer"
            return RayApiAddressError, fact, f"It may be a login page. {_ASK_FOR_LOGIN} {CHECK_ADDRESS}"
        case _:
            return None


def _diagnose_token(status_code: int, access: Access) -> tuple[str, str]:
    sent, header = access.describe(), access.token_header_name
    if status_code == 401 and not access.has_token:
        return "token missing, Ray requires one", "Set token or token_file."
    if status_code == 401:
        other = RAY_AUTHORIZATION if header == AUTHORIZATION else AUTHORIZATION
        return "token missing, although it was sent", (
            f"A reverse proxy removed the header {header}. Let it pass that header on, or set token_header to {other}."
        )
    if not access.has_token:
        return "token rejected by Ray, although none was sent", (
            f"The request carried {sent}. Ray reads any {AUTHORIZATION} as its token, so the reverse proxy must remove "
            "that header. Ray needs token or token_file."
        )
    if header == RAY_AUTHORIZATION:
        return "token rejected by Ray", (
            f"It is wrong, or Ray did not read it: Ray ignores {RAY_AUTHORIZATION} in a request with {AUTHORIZATION}, "
            f"so the reverse proxy must remove that. The request carried {sent}."
        )
    return "token rejected by Ray", f"The token is wrong, expired, or of another cluster. The request carried {sent}."


def _diagnose_login(answer: Answer, proxy: str) -> tuple[str, str]:
    challenge = answer.redact(answer.headers.get("www-authenticate", ""))
    scheme = challenge.partition(" ")[0].lower()
    found = re.search(r'realm="?([^",]{1,80})', challenge)
    realm = f" for {found.group(1)!r}" if found else ""
    if scheme == "basic" and answer.access.login is not None:
        return f"login and password rejected by {proxy}, not by Ray", f"Check login and password{realm}."
    advice = f"It requires {scheme} authentication{realm}. " if scheme else ""
    if scheme == "basic":
        advice += "Set login and password; a token for Ray goes into token or token_file."
    else:
        advice += f"The request carried {answer.access.describe()}. {_ASK_FOR_LOGIN}"
    return f"login required by {proxy}, not by Ray", advice


def _diagnose_redirect(answer: Answer) -> tuple[str, str]:
    here = urlsplit(answer.address)
    try:
        there = urlsplit(urljoin(f"{answer.address}/", answer.redact(answer.headers.get("location", ""))))
    except ValueError:
        return "redirect to an invalid address", f"This is not a Ray dashboard. {CHECK_ADDRESS}"
    origin = f"{there.scheme}://{there.netloc.rpartition('@')[2]}"
    if there.hostname == here.hostname and there.scheme != here.scheme:
        return f"redirect to {origin}", "Use that as the address (schema and port)."
    if there.netloc == here.netloc:
        hint = "It may lead to a login page, or to another base path."
        return f"redirect to {there.path}", f"{hint} {_ASK_FOR_LOGIN} {CHECK_ADDRESS}"
    hint = "It may lead to a login page. It was not followed, so no credentials went there."
    return f"redirect to {origin}", f"{hint} {_ASK_FOR_LOGIN} {CHECK_ADDRESS}"


def _name_proxy(answer: Answer) -> str:
    server = re.sub(r"[^A-Za-z0-9 ._/-]", "", answer.redact(answer.headers.get("server", "")))[:40].strip()
    return f"a reverse proxy ({server})" if server else "a reverse proxy"


def _quote_title(answer: Answer) -> str:
    # Only a title that ends: half a secret would not be recognised. It is redacted before it is shortened.
    found = re.search(r"<title[^>]{0,200}>([^<]{1,2000})<", answer.text, re.IGNORECASE)
    title = " ".join(answer.redact(html.unescape(found.group(1))).split())[:80] if found else ""
    return f", titled {title!r}," if title else ""
