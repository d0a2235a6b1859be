"""Remove secrets from texts that an error quotes."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

# Length of the shortest secret that is redacted, in characters: shorter ones occur in ordinary words.
MIN_SECRET_LENGTH = 5
_SENSITIVE_NAME = re.compile("auth|key|token|secret|cookie|passw|credential|signature|assertion|jwt", re.IGNORECASE)


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return a text with ``***`` for each secret, in any of its encodings. Redact first, then shorten."""
    encoded = {form for secret in secrets if len(secret) >= MIN_SECRET_LENGTH for form in _encodings(secret)}
    # Longest first: if one secret begins with another, no part of either may remain.
    for form in sorted(encoded, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def header_secrets(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of headers with sensitive names, also without a scheme such as Bearer."""
    for name, value in headers.items():
        if _SENSITIVE_NAME.search(name):
            yield from filter(None, (value, value.partition(" ")[2].strip()))


def redact_address(address: str) -> str:
    """Quote an address without its query. An address with an @ is not quoted: it may contain a password."""
    return "an address with an @" if "@" in address else repr(re.split("[?#]", address, maxsplit=1)[0])


def describe_unreadable(field: str, path: str, error: OSError) -> str:
    """Describe an unreadable file. A name without a folder is not quoted: it may be a secret in the wrong field."""
    return f"{field} {f'{path} ' if '/' in path else ''}cannot be read: {error.strerror}."


def _encodings(secret: str) -> set[str]:
    """Return a secret as it appears in a log, in a URL, in HTML and in JSON."""
    return {secret, quote(secret, safe=""), html.escape(secret), json.dumps(secret)[1:-1]}
