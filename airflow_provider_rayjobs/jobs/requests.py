"""What is sent to a head and what comes back, without transport: the requests and their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from airflow_provider_rayjobs.jobs.access import READ_TIMEOUT, Access

T = TypeVar("T")

# For each piece of an upload to be taken, and for the answer once all of it was: the head stores it first.
UPLOAD_TIMEOUT = 120.0


@dataclass(frozen=True)
class Request(Generic[T]):
    """
    One request to the head, and how to read its answer.

    :param about: what is asked, for messages: ``"get job nightly-1"``.
    :param path: below the cluster's address, with its leading slash.
    :param read: turns the JSON of a 200 into the answer.
    :param repeatable: whether sending it twice does what sending it once does.
    :param timeout: seconds to wait for the answer's next bytes; the usual 30 stand for the client's own.
    :param stamp: puts the time of the answer, Unix milliseconds by the head's clock, into what was read.
    :param has_content: whether a 200 holds JSON; without, ``read`` is given ``None``.
    """

    purpose: str
    method: str
    path: str
    read: Callable[[Any], T]
    params: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    idempotent: bool = True
    timeout: float = READ_TIMEOUT
    stamp: Callable[[T, int], T] | None = None
    has_content: bool = True


@dataclass(frozen=True)
class LogRequest:
    """
    A request whose answer is a log's bytes, to be read piece by piece and never held whole.

    :param is_json: whether the answer is JSON that holds the log's text.
    """

    purpose: str
    path: str
    params: Mapping[str, str] | None = None
    is_json: bool = False
    timeout: float = READ_TIMEOUT
    method: ClassVar[str] = "GET"
    body: ClassVar[None] = None
    idempotent: ClassVar[bool] = True


@dataclass(frozen=True)
class UploadRequest:
    """
    A request whose body is sent piece by piece and never held whole.

    :param size: of the body, in bytes.
    """

    purpose: str
    path: str
    size: int
    timeout: float = UPLOAD_TIMEOUT
    params: ClassVar[None] = None
    method: ClassVar[str] = "PUT"
    body: ClassVar[None] = None
    idempotent: ClassVar[bool] = True


def name_place(address: str, label: str) -> str:
    """Return what errors call a cluster: its address, and the caller's name for it."""
    return f"{address} ({label})" if label else address


AnyRequest = Request[Any] | LogRequest | UploadRequest


@dataclass(frozen=True)
class Answer:
    """
    What came back, stripped of its transport.

    :param address: the cluster's.
    :param time: when it was sent, Unix milliseconds by the head's clock.
    :param headers: ``location``, ``server`` and ``www-authenticate``.
    :param access: with which it was asked for.
    :param sent: what was secret in that request: a token's file may hold another token by now.
    :param label: what the caller calls the address.
    """

    status_code: int
    content: bytes = field(repr=False)
    address: str
    content_type: str = ""
    time: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    access: Access = field(default_factory=Access, repr=False)
    sent: tuple[str, ...] = field(default=(), repr=False)
    label: str = ""

    @property
    def place(self) -> str:
        return name_place(self.address, self.label)

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", errors="replace").strip()

    def redact(self, text: str) -> str:
        """Return words of this answer without what is secret in them; before anything is cut off."""
        return self.access.redact(text, self.sent)
