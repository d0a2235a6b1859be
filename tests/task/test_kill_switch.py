"""The kill switch over real sockets: a kill takes a few seconds at most, and logs nothing."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.task.kill_switch import KillSwitch

# Seconds that the handler may take. Airflow sends SIGKILL after 5 s.
LIMIT = 3.0 + 1.0

Respond = Callable[[BaseHTTPRequestHandler, int], None]


def answer(code: int, body: bytes) -> Respond:
    def respond(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", "application/json" if code == 200 else "text/plain")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def after(seconds: float, then: Respond) -> Respond:
    def respond(handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(seconds)
        then(handler, number)

    return respond


def one_by_one(*responses: Respond) -> Respond:
    return lambda handler, number: responses[min(number, len(responses) - 1)](handler, number)


def hang_up(handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler: BaseHTTPRequestHandler, number: int) -> None:
    """Answer byte by byte for 5 s, so that no read timeout expires."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n")
    for _ in range(25):
        time.sleep(0.2)
        handler.wfile.write(b" ")


STOPPED = answer(200, b'{"stopped": true}')
ENDED = answer(200, b'{"stopped": false}')
UNKNOWN = answer(404, b"Job a/b does not exist")


class Head:
    """A server that records its requests."""

    def __init__(self, respond: Respond) -> None:
        self.requests: list[str] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                head.requests.append(f"POST {self.path}")
                with suppress(OSError):  # the client did not wait
                    respond(self, len(head.requests) - 1)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Head:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def silent_port() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def full_port() -> Iterator[str]:
    """The address of a server whose queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


@contextmanager
def closed_port() -> Iterator[str]:
    """The address of a closed port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def armed(address: str, submission_id: str = "a/b") -> KillSwitch:
    switch = KillSwitch()
    switch.arm(lambda: RayJobsClient(address), submission_id)
    return switch


def killed(switch: KillSwitch) -> float:
    """Kill, and return the seconds that it took."""
    began = time.monotonic()
    switch.kill()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("respond", "count", "seconds", "summary"),
    [
        pytest.param(STOPPED, 1, 0.0, "Ray accepted the stop of job a/b.", id="accepted"),
        pytest.param(ENDED, 1, 0.0, "Job a/b had ended.", id="ended"),
        pytest.param(
            UNKNOWN, 1, 0.0, "The cluster does not know job a/b: it has not arrived yet, or was deleted.", id="unknown"
        ),
        pytest.param(after(0.5, STOPPED), 1, 0.5, "Ray accepted the stop of job a/b.", id="slow"),
        pytest.param(
            one_by_one(after(9, STOPPED), STOPPED),
            2,
            1.0,
            "Ray accepted the stop of job a/b.",
            id="timeout, then accepted",
        ),
        pytest.param(
            one_by_one(hang_up, STOPPED), 2, 0.0, "Ray accepted the stop of job a/b.", id="cut off, then accepted"
        ),
        pytest.param(one_by_one(answer(503, b"busy"), ENDED), 2, 0.0, "Job a/b had ended.", id="busy, then ended"),
    ],
)
def test_stop(respond: Respond, count: int, seconds: float, summary: str) -> None:
    """A kill sends one stop, and a second one if there is no answer; the summary has the result."""
    with Head(respond) as head:
        switch = armed(head.address)
        took = killed(switch)

    assert head.requests == ["POST /api/jobs/a%2Fb/stop"] * count
    assert switch.summary == summary
    assert switch.is_triggered
    assert seconds <= took <= LIMIT


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        pytest.param(after(9, STOPPED), "ReadTimeout", id="never answers"),
        pytest.param(hang_up, "Connection lost", id="hangs up"),
        pytest.param(answer(502, b"proxy"), "HTTP 502", id="a proxy"),
        pytest.param(answer(401, b"token"), "HTTP 401", id="an expired token"),
        pytest.param(answer(200, b"<html>"), "Check host, port", id="a page"),
    ],
)
def test_stop_without_a_usable_answer(respond: Respond, words: str) -> None:
    """Without a usable answer two requests are sent, and the summary has the last error."""
    with Head(respond) as head:
        switch = armed(head.address)
        took = killed(switch)

    assert len(head.requests) == 2
    assert words in switch.summary
    assert "a/b" in switch.summary
    assert "accepted" not in switch.summary
    assert switch.is_triggered
    assert took <= LIMIT


@pytest.mark.parametrize(
    "respond",
    [answer(502, b"proxy"), answer(401, b"token"), answer(200, b"<html>")],
    ids=["a proxy", "an expired token", "a page"],
)
def test_summary_of_an_unexpected_answer(respond: Respond) -> None:
    """After an unexpected answer the summary does not claim that no answer was seen."""
    with Head(respond) as head:
        switch = armed(head.address)
        killed(switch)

    assert "no answer seen" not in switch.summary


@pytest.mark.parametrize(
    ("port", "words"),
    [
        pytest.param(silent_port, "ReadTimeout", id="silent port"),
        pytest.param(full_port, "ConnectTimeout", id="full port"),
        pytest.param(closed_port, "ConnectError", id="closed port"),
    ],
)
def test_unreachable_head(port: Callable[[], AbstractContextManager[str]], words: str) -> None:
    """If the head does not connect or answer, the kill ends in time and the summary has the error."""
    with port() as address:
        switch = armed(address)
        took = killed(switch)

    assert words in switch.summary
    assert switch.is_triggered
    assert took <= LIMIT


def test_summary_of_a_refused_connection() -> None:
    """After a refused connection the summary does not claim that a stop was sent."""
    with closed_port() as address:
        switch = armed(address)
        killed(switch)

    assert "was sent" not in switch.summary


def test_slow_answer() -> None:
    """An answer that arrives byte by byte does not delay the handler longer than no answer."""
    with Head(drip) as head:
        took = killed(armed(head.address))

    assert took <= LIMIT


class Raises(logging.Handler):
    """A log handler that fails the test when it is called."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise AssertionError(f"{record.name} logged {record.getMessage()!r}")


@pytest.fixture
def no_logging_allowed() -> Iterator[None]:
    """Set every logger to DEBUG, with a handler that fails the test."""
    loggers = [logging.getLogger(name) for name in (None, "httpx", "httpcore", "asyncio", "airflow_provider_rayjobs")]
    levels = [logger.level for logger in loggers]
    handler = Raises()
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize(
    "respond",
    [STOPPED, UNKNOWN, hang_up, answer(401, b"token")],
    ids=["accepted", "unknown", "hangs up", "not authorised"],
)
@pytest.mark.usefixtures("no_logging_allowed")
def test_nothing_is_logged(respond: Respond) -> None:
    """Nothing is logged during a kill, not even by httpx at DEBUG."""
    with Head(respond) as head:
        with RayJobsClient(head.address) as client, pytest.raises(AssertionError, match="logged"):
            client.stop_job("a")  # the same request outside of a kill is logged
        switch = armed(head.address)
        switch.kill()

    assert switch.summary


@pytest.mark.parametrize("before", [logging.NOTSET, logging.DEBUG, logging.CRITICAL])
def test_logging_is_restored(before: int) -> None:
    """After a kill logging works as before."""
    logging.disable(before)
    try:
        with Head(hang_up) as head:
            armed(head.address).kill()
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


def test_disarmed() -> None:
    """A kill while the switch is disarmed sets the flag and sends nothing."""
    never_armed, disarmed = KillSwitch(), KillSwitch()
    with Head(STOPPED) as head:
        disarmed.arm(lambda: RayJobsClient(head.address), "a")
        disarmed.disarm()
        for switch in (never_armed, disarmed):
            assert not switch.is_triggered
            switch.kill()
            assert switch.is_triggered
            assert switch.summary == ""

    assert head.requests == []


def test_disabled() -> None:
    """With stop_on_kill off a kill sends nothing and does not end the task."""
    with Head(STOPPED) as head:
        switch = armed(head.address)
        switch.is_enabled = False
        switch.kill()

    assert head.requests == []
    assert not switch.is_triggered
    assert switch.summary == ""


def test_disabled_after_the_kill() -> None:
    """stop_on_kill also applies to a kill before its template was rendered."""
    switch = KillSwitch()
    switch.kill()
    assert switch.is_triggered

    switch.is_enabled = False
    assert not switch.is_triggered


def test_armed_twice() -> None:
    """The switch stops the job that it was armed for last."""
    with Head(STOPPED) as head:
        switch = armed(head.address, "first")
        switch.arm(lambda: RayJobsClient(head.address), "second")
        switch.kill()

    assert head.requests == ["POST /api/jobs/second/stop"]


def test_killed_twice() -> None:
    """A second kill sends a second stop."""
    with Head(one_by_one(STOPPED, ENDED)) as head:
        switch = armed(head.address)
        switch.kill()
        switch.kill()

    assert len(head.requests) == 2
    assert switch.summary == "Job a/b had ended."
