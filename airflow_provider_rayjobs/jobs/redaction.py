"""Remove secrets from texts that an error quotes."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn
from urllib.parse import quote, unquote

# Length of the shortest secret that is redacted, in characters: shorter ones occur in ordinary words.
MIN_SECRET_LENGTH = 5
_SENSITIVE_NAME = re.compile(
    "auth|key|token|secret|cookie|passw|passphrase|credential|signature|assertion|jwt|session|^sig$", re.IGNORECASE
)
_RUN = re.compile(r"[A-Za-z0-9]{12,}")
# Characters of the shortest value in a header, such as one cookie of several, that is secret whatever its name is.
_MIN_VALUE_LENGTH = 12
# The parts of a URL that may hold a credential: user and password, a parameter, and Anaconda's token. A URL that was
# taken for a path has one slash. A password that is not encoded may hold a slash; a port and a path are no password.
_URL_PART = re.compile(
    r"""(?<=:/)/?(?P<userinfo>[^\s/?\#"<>]+ | [^\s/?\#"<>:\[]{1,100}:(?!\d{1,5}[/?\#])[^\s"<>@']{1,200})(?=@)
    | (?<=[?&])(?P<name>[\w.%-]+)=(?P<value>[^\s&\#"'<>]+)
    | (?<=/t/)(?P<path>[\w-]{20,})(?=/)""",
    re.VERBOSE,
)


def redact(text: str, secrets: Iterable[str]) -> str:
    """
    Return a text with ``***`` for each secret, in any of its encodings, and for the credentials in its URLs.

    Redact first, then shorten.
    """
    # a program may have removed the spaces or the newline at the end
    texts = {text for secret in secrets for text in (secret, secret.strip()) if len(text) >= MIN_SECRET_LENGTH}
    encoded = {form for text in texts for form in _encodings(text)}
    # Longest first: if one secret begins with another, no part of either may remain.
    for form in sorted(encoded, key=len, reverse=True):
        text = text.replace(form, "***")
    return redact_urls(text)


def redact_urls(text: str) -> str:
    """Return a text with ``***`` for the credentials in its URLs."""
    for start, end in reversed([*_url_secrets(text)]):
        text = f"{text[:start]}***{text[end:]}"
    return text


def url_secrets(value: Any) -> Iterator[str]:
    """Yield the credentials in the URLs of a text, or of all texts in a collection, as written and decoded."""
    if isinstance(value, str):
        for start, end in _url_secrets(value):
            yield from dict.fromkeys((value[start:end], unquote(value[start:end])))
    elif isinstance(value, Mapping):
        yield from url_secrets([*value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from url_secrets(each)


def _url_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the credentials in the URLs of a text begin and end."""
    for found in _URL_PART.finditer(text):
        user, _, password = (found["userinfo"] or "").partition(":")
        # A token may take the place of the user. "git" and the names of buckets and accounts are no secrets.
        if _looks_random(user):
            yield found.start("userinfo"), found.start("userinfo") + len(user)
        # pip expands ${PASSWORD} on the node.
        if password and not password.startswith("$"):
            yield found.end("userinfo") - len(password), found.end("userinfo")
        if found["name"] and _SENSITIVE_NAME.search(found["name"]):
            yield found.span("value")
        if found["path"]:
            yield found.span("path")


def _looks_random(text: str) -> bool:
    """Tell whether a text has 12 letters and digits in a row, with both: a generated token or key, not words."""
    return any(not run.isalpha() and not run.isdigit() for run in _RUN.findall(text))


def header_secrets(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of headers that have a sensitive name or look random, and the secrets inside these values."""
    for name, value in headers.items():
        if _SENSITIVE_NAME.search(name) or _looks_random(value):
            yield from filter(None, (value, *_parts_of(value)))


def _parts_of(value: str) -> Iterator[str]:
    """Yield a header's value without a scheme such as Bearer, the password of Basic, and the values of its pairs."""
    scheme, _, rest = value.partition(" ")
    yield rest.strip()
    if scheme.lower() == "basic":
        with suppress(ValueError):
            yield base64.b64decode(rest).decode(errors="replace").partition(":")[2]
    for pair in re.split(r"[\s;,]+", value):
        name, _, each = pair.partition("=")
        if len(each) >= _MIN_VALUE_LENGTH or _SENSITIVE_NAME.search(name):
            yield each.strip('"')


def redact_chain(error: BaseException, secrets: Iterable[str]) -> None:
    """Redact the texts of an error and of all errors to which it is chained."""
    chain, seen, secrets = [error], set[int](), [*secrets]
    while chain:
        link = chain.pop()
        if id(link) not in seen:
            seen.add(id(link))
            redacted = tuple(redact(each, secrets) if isinstance(each, str) else each for each in link.args)
            if redacted != link.args:
                link.args = redacted
            chain.extend(filter(None, (link.__cause__, link.__context__)))


def raise_unchained(error: Exception) -> NoReturn:
    """Raise an error without the one that is being handled: the text of that one may hold a secret."""
    try:
        raise error
    except type(error):
        error.__cause__ = error.__context__ = None
        raise


def redact_address(address: str) -> str:
    """Quote an address without its query. An address with an @ is not quoted: it may contain a password."""
    return "an address with an @" if "@" in address else repr(re.split("[?#]", address, maxsplit=1)[0])


def describe_unreadable(field: str, path: str, error: OSError) -> str:
    """Describe an unreadable file. A name without a folder is not quoted: it may be a secret in the wrong field."""
    return f"{field} {f'{path} ' if '/' in path else ''}cannot be read: {error.strerror}."


def describe_yaml_error(error: Exception) -> str:
    """Describe an error of a YAML parser by kind and position: its text quotes the file, which may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    return type(error).__name__ + (f" in line {mark.line + 1}, column {mark.column + 1}" if mark else "")


def quoted_forms(text: str) -> tuple[str, str, str]:
    """Return a text as it appears between quotes in Python, in JSON, and in JSON that keeps Unicode."""
    return repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


def _encodings(secret: str) -> set[str]:
    """Return a secret as it appears in a log, a URL, HTML, JSON and Python, as various programs write and read them."""
    urls = {quote(secret, safe=""), quote(secret)}
    in_html = html.escape(secret)
    in_python, *in_json = quoted_forms(secret)
    return {
        secret, *urls, *(re.sub("%..", lambda found: found[0].lower(), url) for url in urls),
        in_html, in_html.replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
        *in_json, *(each.replace("/", r"\/") for each in in_json),
        # .NET and Go write these characters as code points, after their own kinds of quotes.
        re.sub("[<>&'\"+`]", lambda found: f"\\u{ord(found[0]):04X}", secret),
        *(re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", each) for each in in_json),
        in_python, in_python.replace("'", r"\'"), ascii(secret)[1:-1],
        # UTF-8 that was read as Latin-1, and UTF-16 that was read as UTF-8
        secret.encode(errors="replace").decode("latin-1"), "\0".join(secret),
    }  # fmt: skip
