"""Both clients against real sockets: time limits, size limits, connections and certificates."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiResponseError,
    RayJobsError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.jobs import AsyncRayJobsClient, RayJobsClient, endpoints, exchange
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.follow import follow_job
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.requests import LogRequest, Request
from airflow_provider_rayjobs.jobs.steps import ReadLog, Send
from airflow_provider_rayjobs.jobs.transport import AsyncUploadBytes
from tests.secured.certificates import CertificateAuthority, CertificateFiles

VERSION = b'{"version": "4", "ray_version": "2.60.0"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ANSWER = OK + b"Content-Length: %d\r\n\r\n" % len(VERSION) + VERSION
ERROR = b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\n"
LOG = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
MIB = 2**20

Handler = Callable[[socket.socket], None]
Run = Callable[..., Any]


@contextmanager
def serving(handle: Handler, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Run a server that calls ``handle`` with each connection in a thread, and yield its address."""
    threads: list[threading.Thread] = []
    has_ended = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            if context is None:
                handle(connection)
            else:
                with context.wrap_socket(connection, server_side=True) as secured:
                    handle(secured)

    def accept() -> None:
        while not has_ended.is_set():
            with suppress(TimeoutError):
                threads.append(threading.Thread(target=talk, args=(server.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{server.getsockname()[1]}"
        finally:
            has_ended.set()
            accepting.join()
            for thread in threads:
                thread.join()


def receive(connection: socket.socket) -> bytes:
    """Receive the head of a request, and return its first line; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return b""
        data += more
    return data.partition(b"\r\n")[0]


def drip(connection: socket.socket, *first: bytes, piece: bytes = b" ") -> None:
    """Send a piece every tenth of a second until the client hangs up."""
    for data in first:
        connection.sendall(data)
    while True:
        connection.sendall(piece)
        time.sleep(0.1)


def blocking(address: str, engine: Any, on_log: Any = None, **access: Any) -> Any:
    with RayJobsClient(address, access=Access(**access), retry_timeout=0) as client:
        return client.run(engine, on_log)


def on_a_loop(address: str, engine: Any, on_log: Any = None, **access: Any) -> Any:
    async def run() -> Any:
        async with AsyncRayJobsClient(address, access=Access(**access), retry_timeout=0) as client:
            return await client.run(engine, on_log)

    return asyncio.run(run())


@pytest.fixture(params=[blocking, on_a_loop])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def do(*steps: Any) -> Any:
    """Yield these steps, and return the last result."""
    result = None
    for step in steps:
        result = yield step
    return result


def dripping_request(connection: socket.socket) -> None:
    """Take a byte every tenth of a second for five seconds, so that the client cannot send its request."""
    for _ in range(50):
        connection.recv(1)
        time.sleep(0.1)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param((), id="before the status"),
        pytest.param((b"HTTP/1.1 200 OK\r\nX-Padding: ",), id="in a header"),
        pytest.param((OK, b"Content-Length: 1000000\r\n\r\n"), id="in the body"),
        pytest.param((ERROR, b"Connection: close\r\n\r\n"), id="in an error"),
        pytest.param((b"HTTP/1.1 307 Go\r\nLocation: /\r\nContent-Length: 1000000\r\n\r\n",), id="in a redirect"),
    ],
)
def test_dripping_answer_ends_at_the_deadline(run: Run, first: tuple[bytes, ...]) -> None:
    """An answer that arrives byte by byte, each within ``read_timeout``, ends with an error after that time in all."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        drip(connection, *first, piece=b"H" if not first else b" ")

    with (
        serving(handle) as address,
        pytest.raises(RayApiConnectionError, match=r"^Timeout after \S+ s without the whole answer: could not") as info,
    ):
        run(address, do(Send(endpoints.get_job("a"))), read_timeout=0.5)

    assert info.value.delivery is Delivery.MAY_HAVE_ARRIVED


def test_deadline_holds_on_a_kept_connection(run: Run) -> None:
    """The second request on a connection has a deadline of its own."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(ANSWER)
        receive(connection)
        drip(connection, OK + b"Content-Length: 1000000\r\n\r\n")

    version = Send(endpoints.get_version())
    with serving(handle) as address, pytest.raises(RayApiConnectionError, match="without the whole answer"):
        run(address, do(version, version), read_timeout=0.5)


def test_request_that_is_taken_slowly_ends_at_the_deadline(run: Run) -> None:
    """A server that takes a request byte by byte does not block the client."""
    payload = {"a": "x" * 30 * MIB}
    request = Request("post", "POST", "/", bool, payload=payload, timeout=0.5)

    with serving(dripping_request) as address, pytest.raises(RayApiConnectionError, match="Timeout after"):
        run(address, do(Send(request)))


def test_read_of_a_log_ends_at_its_deadline(run: Run) -> None:
    """A read with a deadline ends then, and shows the whole lines that have arrived."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        drip(connection, LOG, piece=b"line\n")

    shown: list[str] = []
    request = LogRequest("read the log", "/", deadline=0.7)
    log = LogCursor()

    said = "without the whole answer: could not read the log"
    with serving(handle) as address, pytest.raises(RayApiConnectionError, match=said):
        run(address, do(ReadLog(request, log)), shown.append)

    assert shown[0].startswith("line\nline")
    assert log.offset == 5 * len(shown[0].split())


def test_deadline_includes_a_slow_callback(run: Run) -> None:
    """A read whose lines are shown slowly ends at its deadline too."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(LOG + b"line\n" * MIB)

    shown: list[str] = []

    def on_log(record: str) -> None:
        shown.append(record)
        time.sleep(0.1)

    with serving(handle) as address, pytest.raises(RayApiConnectionError, match="without the whole answer"):
        run(address, do(ReadLog(LogRequest("read the log", "/", deadline=0.3), LogCursor())), on_log)

    assert 0 < len(shown) < 1000


@pytest.mark.parametrize(
    ("request_", "least", "most"),
    [
        pytest.param(endpoints.get_job("a"), 29, 30, id="status"),
        pytest.param(endpoints.list_jobs(), 119, 120, id="list"),
        pytest.param(endpoints.put_package("a", 0), 119, 120, id="empty upload"),
        pytest.param(endpoints.put_package("a", 100 * MIB), 3300, 3400, id="100 MiB"),
        pytest.param(endpoints.get_log_file("a", "n"), 59, 60, id="log"),
        pytest.param(LogRequest("read", "/", deadline=5), 4, 5, id="log with a deadline"),
    ],
)
def test_deadline_depends_on_the_request(request_: Any, least: float, most: float) -> None:
    """A request has as long as its answer may take, and an upload longer in proportion to its size."""
    with RayJobsClient("http://ray-head:8265") as client:
        assert least < client._codec.deadline(request_).remaining <= most


def test_whole_log_has_time_in_proportion_to_its_size() -> None:
    """Each received byte postpones the end of a read of a whole log, so that a large log on a slow network is read."""
    with RayJobsClient("http://ray-head:8265") as client:
        deadline = client._codec.deadline(endpoints.get_log_file("a", "n"))
    deadline.extend(100 * MIB)

    assert 3250 < deadline.remaining < 3300


@pytest.mark.parametrize("step", [Send(endpoints.get_job("a")), ReadLog(endpoints.get_log_file("a", "n"), LogCursor())])
def test_most_of_a_huge_error_page_is_not_read(run: Run, step: Any) -> None:
    """The client reads the beginning of an endless error page, and hangs up."""
    sent = 0

    def handle(connection: socket.socket) -> None:
        nonlocal sent
        receive(connection)
        connection.sendall(ERROR + b"Connection: close\r\n\r\n")
        while sent < 300:
            connection.sendall(b"x" * MIB)
            sent += 1

    with (
        serving(handle) as address,
        pytest.raises(RayApiResponseError, match=r"The answer says: x{500} \.\.\.") as info,
    ):
        run(address, do(step))

    assert info.value.status_code == 500
    assert sent < 50


@pytest.mark.parametrize(
    ("content_type", "body"),
    [(b"Text/HTML; charset=utf-8", b"<html>"), (b"application/xhtml+xml", b"<html>"), (b"Application/JSON", b"{}")],
)
def test_page_of_a_gateway_is_no_log(run: Run, content_type: bytes, body: bytes) -> None:
    """A gateway's page, or its JSON, is not shown as the log file of a job."""
    shown: list[str] = []

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(LOG.replace(b"text/plain", content_type) + body)

    with serving(handle) as address, pytest.raises(RayApiAddressError, match="^HTTP 200, "):
        run(address, do(ReadLog(endpoints.get_log_file("a", "n"), LogCursor())), shown.append)

    assert not shown


def test_text_of_a_log_comes_as_json(run: Run) -> None:
    """The answer of the endpoint for the text of a log is JSON."""
    shown: list[str] = []

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(LOG.replace(b"text/plain", b"application/json") + b'{"logs": "hello\\n"}')

    with serving(handle) as address:
        run(address, do(ReadLog(endpoints.get_log_text("a"), LogCursor())), shown.append)

    assert shown == ["hello"]


@pytest.mark.parametrize(
    ("code", "kind"), [(200, RayApiAddressError), (500, RayApiAddressError), (503, RayApiBusyError)]
)
@pytest.mark.parametrize(
    "step",
    [
        Send(endpoints.get_job("a")),
        Send(endpoints.get_package("a.zip")),
        ReadLog(endpoints.get_log_file("a", "n"), LogCursor()),
    ],
)
def test_compressed_answer_is_refused(run: Run, step: Any, code: int, kind: type[RayApiResponseError]) -> None:
    """The client asks for no compression, and refuses a compressed answer without reading its body."""
    requests: list[bytes] = []
    shown: list[str] = []

    def handle(connection: socket.socket) -> None:
        requests.append(connection.recv(65536).lower())
        connection.sendall(b"HTTP/1.1 %d A\r\nContent-Type: text/plain\r\n" % code)
        # The body never comes: a client that reads it runs into its deadline.
        connection.sendall(b"Content-Encoding: GZip, gzip\r\nContent-Length: 1000\r\n\r\n")
        connection.recv(1)

    with (
        serving(handle) as address,
        pytest.raises(kind, match=rf"^HTTP {code}, not an answer of the Ray Jobs API \(compressed\): could") as info,
    ):
        run(address, do(step), shown.append, read_timeout=5)

    assert info.value.delivery is Delivery.FOREIGN
    assert b"\r\naccept-encoding: identity\r\n" in requests[0]
    assert not shown


@pytest.mark.parametrize("location", ["ray-head:8265/login", "https:login", "mailto:a@b", "http://ray-head:port/"])
@pytest.mark.parametrize("step", [Send(endpoints.get_job("a")), ReadLog(endpoints.get_log_file("a", "n"), LogCursor())])
def test_redirect_to_an_invalid_address_is_a_connection_error(run: Run, step: Any, location: str) -> None:
    """A redirect whose target httpx cannot parse is an error of this package, and the request may have had effect."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(b"HTTP/1.1 302 Go\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % location.encode())

    with (
        serving(handle) as address,
        pytest.raises(RayApiConnectionError, match="^Redirect to an invalid address: could not ") as info,
    ):
        run(address, do(step))

    assert info.value.delivery is Delivery.MAY_HAVE_ARRIVED


# httpcore leaves the blocking client's socket to the garbage collector, which the test runs.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_error_of_a_socks_proxy_is_a_connection_error(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A SOCKS proxy that drops the connection is an outage, and no log shows the proxy's password."""
    pytest.importorskip("socksio")
    caplog.set_level(logging.DEBUG)

    with serving(lambda connection: connection.recv(100)) as address:
        proxy = address.replace("http://", "socks5://me:Pr0xyPassw0rd@")
        with pytest.raises(RayApiConnectionError, match="ProtocolError: Malformed reply"):
            run("http://ray-head:8265", do(Send(endpoints.get_version())), proxy=proxy)

    gc.collect()
    assert "httpcore.socks" in {record.name for record in caplog.records}
    assert "Pr0xyPassw0rd" not in caplog.text


def test_no_cookie_is_kept(run: Run) -> None:
    """A proxy that sets another cookie with each answer does not make requests grow."""
    heads: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        for number in range(2):
            heads.append(connection.recv(65536))
            connection.sendall(ANSWER.replace(b"\r\n\r\n", b"\r\nSet-Cookie: c%d=1; Path=/\r\n\r\n" % number))

    version = Send(endpoints.get_version())
    with serving(handle) as address:
        run(address, do(version, version))

    assert heads[0] == heads[1]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        pytest.param(endpoints.list_jobs(), "64 MiB: could not list jobs", id="list"),
        pytest.param(endpoints.get_job("a"), "4 MiB: could not get job a", id="job"),
    ],
)
def test_huge_result_is_an_error(run: Run, request_: Request[Any], said: str) -> None:
    """A list in JSON of more than 64 MiB, or any other result of more than 4 MiB, is an error that says so."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(OK + b"Connection: close\r\n\r\n[")
        while True:
            connection.sendall(b" " * MIB)

    with (
        serving(handle) as address,
        pytest.raises(RayApiResponseError, match=f"^HTTP 200, answer larger than {said} at http"),
    ):
        run(address, do(Send(request_)))


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"MISSION", id="in a text"),
        pytest.param(b', "b"', id="after a brace"),
        pytest.param(b"\xa4", id="in a character"),
    ],
)
def test_cut_result_is_a_lost_connection(rest: bytes) -> None:
    """An answer without a length may end at any byte. One that is cut off is asked for again."""
    job = b'{"type": "SUBMISSION", "status": "RUNNING", "submission_id": "a", "metadata": {"a": {}, "b": "\xc3\xa4"}}'
    answers = [job.partition(rest)[0], job]

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(OK + b"Connection: close\r\n\r\n" + answers.pop(0))

    with serving(handle) as address, RayJobsClient(address, retry_timeout=5) as client:
        assert client.get_job("a").status == "RUNNING"

    assert answers == []


def test_large_result_is_read(run: Run) -> None:
    """A list of several MiB is read."""
    body = b"[%s]" % b", ".join(
        [b'{"type": "SUBMISSION", "status": "RUNNING", "message": "%s"}' % (b"x" * 1000)] * 5000
    )

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with serving(handle) as address:
        assert len(run(address, do(Send(endpoints.list_jobs())))) == 5000


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("collector"), ssl.SSLError("collector"), TimeoutError("x"), RayApiConnectionError("collector")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("size", [2500, 100_000], ids=["at the end", "in the middle"])
def test_error_of_on_log_is_raised_unchanged(run: Run, error: Exception, size: int) -> None:
    """An error of ``on_log`` reaches the caller unchanged, even if it is one that a request may raise."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(LOG + b"line\n" * size)

    def on_log(record: str) -> None:
        raise error

    def engine() -> Any:
        try:
            yield ReadLog(endpoints.get_log_file("a", "n"), LogCursor())
        except RayJobsError:
            return

    with serving(handle) as address, pytest.raises(type(error)) as caught:
        run(address, engine(), on_log)

    assert caught.value is error


def test_log_reads_leave_turns_for_requests() -> None:
    """While more logs are read than there are turns, a status request does not wait, and no request fails."""
    lines = b"".join(b"line %d\n" % number for number in range(3))
    has_answered, started = threading.Event(), threading.Semaphore(0)

    def handle(connection: socket.socket) -> None:
        while (line := receive(connection)) and b"/logs/file" not in line:
            connection.sendall(ANSWER)
        if line:
            started.release()
            has_answered.wait(30)
            connection.sendall(LOG + lines)

    async def read(client: AsyncRayJobsClient, shown: list[str]) -> None:
        await client.run(do(ReadLog(endpoints.get_log_file("a", "n"), LogCursor())), shown.append)

    async def watch(address: str) -> list[list[str]]:
        shown: list[list[str]] = [[] for _ in range(3 * exchange.LOG_READS_AT_ONCE)]
        async with AsyncRayJobsClient(address, retry_timeout=0) as client:
            reads = [asyncio.ensure_future(read(client, lines)) for lines in shown]
            for _ in range(exchange.LOG_READS_AT_ONCE):
                await asyncio.to_thread(started.acquire)
            polls = 2 * exchange.REQUESTS_AT_ONCE
            await asyncio.gather(*(client.send(endpoints.get_version()) for _ in range(polls)))
            assert not any(shown)
            has_answered.set()
            await asyncio.gather(*reads)
        return shown

    with serving(handle) as address:
        shown = asyncio.run(watch(address))

    assert all("\n".join(records).encode() + b"\n" == lines for records in shown)


def test_uploads_leave_turns_for_requests() -> None:
    """While more packages are sent than there are turns, a status request does not wait."""
    has_answered, started = threading.Event(), threading.Semaphore(0)

    def handle(connection: socket.socket) -> None:
        while line := receive(connection):
            if b"PUT" in line:  # maybe after the body of the last one
                started.release()
                has_answered.wait(30)
            connection.sendall(ANSWER)

    async def watch(address: str) -> None:
        upload = endpoints.put_package("a.zip", 1)
        async with AsyncRayJobsClient(address, retry_timeout=0) as client:
            sending = [
                asyncio.ensure_future(client._http.request(upload, AsyncUploadBytes(lambda: iter([b"x"]))))
                for _ in range(2 * exchange.LOG_READS_AT_ONCE)
            ]
            await asyncio.to_thread(started.acquire)
            await client.send(endpoints.get_version())
            has_answered.set()
            await asyncio.gather(*sending)

    with serving(handle) as address:
        asyncio.run(watch(address))


@pytest.mark.parametrize("moment", ["connect_tcp.complete", "response_closed.started"])
def test_cancelled_request_leaves_no_connection(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is cancelled as its connection opens, or as its answer ends, leaves nothing behind."""
    is_over, connections = threading.Semaphore(0), 0
    close_handshake = exchange._handshake_closer

    def handle(connection: socket.socket) -> None:
        nonlocal connections
        connections += 1
        while receive(connection):
            connection.sendall(ANSWER)
        is_over.release()

    def cancelling() -> Any:
        observe = close_handshake()

        async def cancel(event: str, info: Any) -> None:
            await observe(event, info)
            if event.endswith(moment):
                asyncio.current_task().cancel()

        return cancel

    async def request(address: str) -> None:
        async with AsyncRayJobsClient(address, retry_timeout=0) as client:
            with monkeypatch.context() as patch:
                patch.setattr(exchange, "_handshake_closer", cancelling)
                for _ in range(10):
                    sending = asyncio.ensure_future(client.send(endpoints.get_version()))
                    await asyncio.wait([sending])
                    assert sending.cancelled()
            await client.send(endpoints.get_version())
            for _ in range(connections - 1):
                assert await asyncio.to_thread(is_over.acquire, timeout=5)

    with serving(handle) as address:
        asyncio.run(request(address))


def test_number_of_requests_at_once_is_bounded() -> None:
    """An async client sends a bounded number of requests at the same time; the others wait and then succeed."""
    current, most = 0, 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal current, most
        current += 1
        most = max(most, current)
        await asyncio.sleep(0.001)
        current -= 1
        return httpx.Response(200, content=VERSION)

    async def poll() -> None:
        async with AsyncRayJobsClient("http://ray-head:8265", transport=httpx.MockTransport(answer)) as client:
            await asyncio.gather(*(client.send(endpoints.get_version()) for _ in range(500)))

    asyncio.run(poll())

    assert most == exchange.REQUESTS_AT_ONCE


def test_wait_for_a_turn_is_not_part_of_the_deadline() -> None:
    """A request that waits for its turn for longer than it may take still succeeds."""

    def handle(connection: socket.socket) -> None:
        if b"/logs/file" in receive(connection):
            connection.sendall(LOG + b"line\n")
        else:
            connection.sendall(ANSWER)

    async def watch(address: str) -> list[str]:
        shown: list[str] = []
        log = replace(endpoints.get_log_file("a", "n"), deadline=0.3)
        async with AsyncRayJobsClient(address) as client:
            turns = [client._http._log_turns] * exchange.LOG_READS_AT_ONCE
            turns += [client._http._turns] * exchange.REQUESTS_AT_ONCE
            for turn in turns:
                await turn.acquire()
            sending = asyncio.gather(
                client.run(do(ReadLog(log, LogCursor())), shown.append),
                client.send(replace(endpoints.get_version(), timeout=0.3)),
            )
            await asyncio.sleep(0.6)
            for turn in turns:
                turn.release()
            await sending
        return shown

    with serving(handle) as address:
        assert asyncio.run(watch(address)) == ["line"]


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "at the deadline"])
@pytest.mark.parametrize("scheme", ["https", "socks5"])
def test_cut_handshake_closes_its_connection(scheme: str, is_cancelled: bool) -> None:
    """A request that ends during a TLS or SOCKS handshake closes its connection, while its client stays open."""
    if scheme == "socks5":
        pytest.importorskip("socksio")
    has_begun, has_ended = threading.Event(), threading.Event()

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        has_begun.set()
        if connection.recv(1) == b"":
            has_ended.set()

    async def cut(server: str) -> None:
        host = server.removeprefix("http://")
        address = f"https://{host}" if scheme == "https" else "http://ray-head:8265"
        proxy = f"socks5://{host}" if scheme == "socks5" else None
        access = Access(verify="off", proxy=proxy, read_timeout=30 if is_cancelled else 1)
        async with AsyncRayJobsClient(address, access=access, retry_timeout=0) as client:
            sending = asyncio.ensure_future(client.send(endpoints.get_version()))
            assert await asyncio.to_thread(has_begun.wait, 5)
            if is_cancelled:
                sending.cancel()
            with pytest.raises(asyncio.CancelledError if is_cancelled else RayApiConnectionError):
                await sending
            assert await asyncio.to_thread(has_ended.wait, 5)

    with serving(handle) as address:
        asyncio.run(cut(address))


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path, "authority")


class Clients:
    """A TLS server that records the common name of the client's certificate for each request."""

    def __init__(self, authority: CertificateAuthority) -> None:
        server = authority.issue("server", hosts=("127.0.0.1",))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(server.cert, server.key)
        self.context.load_verify_locations(authority.cert)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.seen: list[str] = []

    def __call__(self, connection: ssl.SSLSocket) -> None:
        while receive(connection):
            certificate = connection.getpeercert()
            self.seen.append(dict(item[0] for item in certificate["subject"])["commonName"])
            connection.sendall(ANSWER)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file, and let its time differ on a file system with a coarse clock too."""
    path.write_bytes(content)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + len(content)))


def pem_of(files: CertificateFiles) -> bytes:
    return files.cert.read_bytes() + files.key.read_bytes()


def test_replaced_client_certificate_is_used_for_the_next_request(
    run: Run, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """A client uses a replaced client certificate from its next request on, and an unusable one is an error."""
    clients, file = Clients(authority), tmp_path / "client.pem"
    old, new = (pem_of(authority.issue(name)) for name in ("old", "new"))
    replace_file(file, old)
    version = Send(endpoints.get_version())

    def engine() -> Any:
        yield version
        yield version
        replace_file(file, b"half a certificate")
        with pytest.raises(RayApiConnectionError, match="^Certificate file is not usable: could not connect") as caught:
            yield version
        assert caught.value.delivery is Delivery.NOT_SENT
        replace_file(file, new)
        yield version
        yield version

    with serving(clients, clients.context) as address:
        run(address, engine(), verify=str(authority.cert), client_cert=str(file))

    assert clients.seen == ["old", "old", "new", "new"]


def test_replaced_authority_is_used_for_the_next_request(
    run: Run, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """A client trusts a replaced CA file from its next request on, and no longer the old one."""
    clients, file = Clients(authority), tmp_path / "ca.pem"
    (tmp_path / "other").mkdir()
    other = CertificateAuthority(tmp_path / "other", "other")
    mine = authority.issue("mine")
    replace_file(file, authority.cert.read_bytes())
    version = Send(endpoints.get_version())

    def engine() -> Any:
        yield version
        replace_file(file, other.cert.read_bytes())
        with pytest.raises(RayApiConnectionError, match="comes from an authority that verify"):
            yield version
        replace_file(file, authority.cert.read_bytes())
        yield version

    with serving(clients, clients.context) as address:
        run(address, engine(), verify=str(file), client_cert=str(mine.cert), client_key=str(mine.key))

    assert clients.seen == ["mine", "mine"]


def test_replaced_certificate_does_not_reopen_a_closed_client(authority: CertificateAuthority, tmp_path: Path) -> None:
    """A closed client sends nothing, also after a certificate file was replaced."""
    file = tmp_path / "ca.pem"
    replace_file(file, authority.cert.read_bytes())
    access = Access(verify=str(file))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=VERSION))

    async def on_loop() -> None:
        client = AsyncRayJobsClient("https://ray-head:8265", access=access, transport=transport)
        await client.aclose()
        replace_file(file, authority.cert.read_bytes() + b"\n\n")
        with pytest.raises(RuntimeError, match="closed"):
            await client.send(endpoints.get_version())
        assert client._http.is_closed

    client = RayJobsClient("https://ray-head:8265", access=access, transport=transport)
    client.close()
    replace_file(file, authority.cert.read_bytes() + b"\n")
    with pytest.raises(RuntimeError, match="closed"):
        client.send(endpoints.get_version())
    assert client._http.is_closed
    asyncio.run(on_loop())


def test_old_connections_are_closed_when_their_last_request_has_ended(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """A request that is being answered ends undisturbed when a certificate file is replaced; then its client closes."""
    file = tmp_path / "ca.pem"
    replace_file(file, authority.cert.read_bytes())
    may_answer, clients = asyncio.Event(), []

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("slow"):
            await may_answer.wait()
        return httpx.Response(200, content=VERSION)

    async def watch() -> None:
        access = Access(verify=str(file))
        transport = httpx.MockTransport(answer)
        async with AsyncRayJobsClient("https://ray-head:8265", access=access, transport=transport) as client:
            old = client._http._pool.http
            slow = asyncio.ensure_future(client.send(Request("wait", "GET", "/slow", lambda _: True)))
            await asyncio.sleep(0)
            replace_file(file, authority.cert.read_bytes() + b"\n")
            await client.send(endpoints.get_version())
            assert client._http._pool.http is not old
            assert not old.is_closed
            may_answer.set()
            assert await slow
            assert old.is_closed
            clients.append(client)
        assert client._http.is_closed

    asyncio.run(watch())


def test_time_limit_is_enforced_while_a_log_drips(run: Run) -> None:
    """A job is polled, and its time limit enforced, although the read of its log never ends."""
    polls = 0

    def handle(connection: socket.socket) -> None:
        nonlocal polls
        while line := receive(connection):
            if b"/logs/file" in line:
                drip(connection, LOG, piece=b"line\n")
            if b"/api/version" in line:
                connection.sendall(ANSWER)
            else:
                polls += 1
                job = (
                    b'{"submission_id": "a", "type": "SUBMISSION", "status": "RUNNING", "driver_node_id": "n", '
                    b'"start_time": %d}' % began
                )
                connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(job) + job)

    shown: list[str] = []
    began = int(time.time() * 1000)
    following = follow_job(
        JobRef("http://head:8265", "a"), reader=LogReader(), limits=Limits(job_timeout=2), poll_interval=1
    )
    with serving(handle) as address, pytest.raises(RayJobTimeoutError, match="job_timeout is 2 s"):
        run(address, following, shown.append)

    assert polls >= 2
    assert shown[0].startswith("line")
