"""Requests to a Ray head, and its answers, without HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Generic, TypeVar

from airflow_provider_rayjobs.jobs import redaction
from airflow_provider_rayjobs.jobs.access import READ_TIMEOUT, Access

T = TypeVar("T")

# Most seconds that a server may ask to wait. A proxy asks for an hour when it is maintained, and may be back earlier.
MAX_RETRY_AFTER = 60.0
# Seconds for the head to take the next bytes of an upload, and to answer after it has stored the upload.
UPLOAD_TIMEOUT = 120.0


@dataclass(frozen=True)
class Request(Generic[T]):
    """
    One request to the head, and how to read its answer.

    :param action: for errors: ``"get job nightly-1"`` becomes "could not get job nightly-1".
    :param read: turns the JSON of an answer into the result.
    :param idempotent: whether sending it twice has the same effect as once.
    :param timeout: seconds for the whole request; ``READ_TIMEOUT`` stands for the client's ``read_timeout``.
    :param with_time: adds the time of the answer, Unix milliseconds by the head's clock, to the result.
    :param max_bytes: of the JSON in the answer. Parsed, small values take 30 times their size in memory.
    :param expects_json: ``False`` for an answer without JSON; ``read`` then gets ``None``.
    :param decode: turns the content of an answer into JSON types.
    :param job: the id of the job whose state the answer is. ``read`` also reads the job's record in a list.
    :param endpoint: the name of the endpoint, the same for all jobs.
    """

    action: str
    method: str
    path: str
    read: Callable[[Any], T]
    params: Mapping[str, str] | None = None
    payload: Mapping[str, Any] | None = field(default=None, repr=False)
    idempotent: bool = True
    timeout: float = READ_TIMEOUT
    with_time: Callable[[T, int], T] | None = None
    max_bytes: int = 4 * 1024 * 1024
    expects_json: bool = True
    decode: Callable[[bytes], Any] = json.loads
    job: str | None = None
    endpoint: str = ""


@dataclass(frozen=True)
class LogRequest:
    """
    A request for a log, as bytes or (``is_json``) as a text in JSON. The client reads the answer in chunks.

    :param timeout: seconds for the next bytes of the answer; ``READ_TIMEOUT`` stands for the client's ``read_timeout``.
    :param deadline: seconds for the whole read; by default the time depends on the size of the log.
    """

    action: str
    path: str
    params: Mapping[str, str] | None = None
    is_json: bool = False
    timeout: float = READ_TIMEOUT
    deadline: float | None = None
    endpoint: ClassVar[str] = "get_log"
    method: ClassVar[str] = "GET"
    payload: ClassVar[None] = None
    idempotent: ClassVar[bool] = True


@dataclass(frozen=True)
class UploadRequest:
    """
    A request with ``size`` bytes of content, which the client sends in chunks.

    :param timeout: seconds for the head to take the next bytes, and to answer. The whole time depends on the size.
    """

    action: str
    path: str
    size: int
    timeout: float = UPLOAD_TIMEOUT
    endpoint: ClassVar[str] = "put_package"
    params: ClassVar[None] = None
    method: ClassVar[str] = "PUT"
    payload: ClassVar[None] = None
    idempotent: ClassVar[bool] = True


AnyRequest = Request[Any] | LogRequest | UploadRequest


@dataclass(frozen=True)
class Answer:
    """
    An answer with its whole content.

    :param address: the address of the cluster; ``label`` is the caller's name for it.
    :param time: Unix milliseconds by the head's clock.
    :param headers: ``location``, ``retry-after``, ``server`` and ``www-authenticate``.
    :param access: the credentials of the request.
    :param sent_secrets: the secrets in the request's headers. The token file of ``access`` may have changed since.
    """

    status_code: int
    content: bytes = field(repr=False)
    address: str
    content_type: str = ""
    time: int = 0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    access: Access = field(default_factory=Access, repr=False)
    sent_secrets: tuple[str, ...] = field(default=(), repr=False)
    label: str = ""

    @property
    def labelled_address(self) -> str:
        return f"{self.address} ({self.label})" if self.label else self.address

    @property
    def retry_after(self) -> float:
        """The seconds that a busy server asks to wait, 0 if it does not. A date counts from the server's own time."""
        value = self.headers.get("retry-after", "") if self.status_code in (429, 503) else ""
        try:
            seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - self.time / 1000
        except (ValueError, OverflowError):
            return 0.0
        return min(max(seconds, 0.0), MAX_RETRY_AFTER)

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", errors="replace").strip()

    def redact(self, text: str) -> str:
        """Return a text from this answer without secrets. Redact first, then shorten."""
        return redaction.redact(text, (*self.access.secrets(), *self.sent_secrets))


def is_html(content_type: str) -> bool:
    """Tell whether an answer is a page for browsers, which no Ray endpoint sends."""
    return content_type.lower().startswith(("text/html", "application/xhtml+xml"))


def error_message(fact: str, request: AnyRequest, address: str, advice: str) -> str:
    """Return the text of an error: the fact in searchable words, the action, the address, and the fix."""
    return f"{fact}: could not {request.action} at {address}. {advice}"
