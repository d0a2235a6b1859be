"""Airflow's kill: over real sockets, in a few seconds, and without a word."""

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

# What Airflow leaves a handler before it sends SIGKILL is 5 s; ours promises about 3.
PROMISED = 3.0
SLACK = 1.0

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
    """Answer byte by byte, each soon enough after the last one, for 5 s."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n")
    for _ in range(25):
        time.sleep(0.2)
        handler.wfile.write(b" ")


STOPPED = answer(200, b'{"stopped": true}')
ENDED = answer(200, b'{"stopped": false}')
UNKNOWN = answer(404, b"Job a/b does not exist")


class Head:
    """A server that is asked to stop a job; notes what it was asked."""

    def __init__(self, respond: Respond) -> None:
        self.asked: list[str] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                head.asked.append(f"POST {self.path}")
                with suppress(OSError):  # the client did not wait
                    respond(self, len(head.asked) - 1)

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
    """An address where connections are taken by the system, and nobody ever reads from them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def full_port() -> Iterator[str]:
    """An address where even the connection is not taken: its queue is full."""
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
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def armed(address: str, submission_id: str = "a/b") -> KillSwitch:
    switch = KillSwitch()
    switch.arm(lambda: RayJobsClient(address), submission_id)
    return switch


def killed(switch: KillSwitch) -> float:
    """Kill, and return how long it took."""
    began = time.monotonic()
    switch.kill()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("respond", "requests", "seconds", "summary"),
    [
        pytest.param(STOPPED, 1, 0.0, "Job a/b was asked to stop.", id="taken"),
        pytest.param(ENDED, 1, 0.0, "Job a/b had ended already.", id="ended"),
        pytest.param(UNKNOWN, 1, 0.0, "The cluster does not know job a/b yet, or not any more.", id="unknown"),
        pytest.param(after(0.5, STOPPED), 1, 0.5, "Job a/b was asked to stop.", id="slow"),
        pytest.param(
            one_by_one(after(9, STOPPED), STOPPED), 2, 1.0, "Job a/b was asked to stop.", id="no answer, then one"
        ),
        pytest.param(one_by_one(hang_up, STOPPED), 2, 0.0, "Job a/b was asked to stop.", id="cut off, then taken"),
        pytest.param(
            one_by_one(answer(503, b"busy"), ENDED), 2, 0.0, "Job a/b had ended already.", id="busy, then ended"
        ),
    ],
)
def test_stop(respond: Respond, requests: int, seconds: float, summary: str) -> None:
    """A kill asks Ray once to stop the job, a second time where no answer came, and tells what came of it."""
    with Head(respond) as head:
        switch = armed(head.address)
        took = killed(switch)

    assert head.asked == ["POST /api/jobs/a%2Fb/stop"] * requests
    assert switch.summary == summary
    assert switch.is_triggered
    assert seconds <= took <= PROMISED + SLACK


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        pytest.param(after(9, STOPPED), "ReadTimeout", id="never answers"),
        pytest.param(hang_up, "no answer from", id="hangs up"),
        pytest.param(answer(502, b"proxy"), "HTTP 502", id="a proxy"),
        pytest.param(answer(401, b"token"), "HTTP 401", id="a token that became invalid"),
        pytest.param(answer(200, b"<html>"), "Check host, port", id="a page"),
    ],
)
def test_stop_without_an_answer(respond: Respond, words: str) -> None:
    """Two requests are made and no more; what could not be seen to be taken is told with the last error."""
    with Head(respond) as head:
        switch = armed(head.address)
        took = killed(switch)

    assert len(head.asked) == 2
    assert words in switch.summary
    assert "a/b" in switch.summary
    assert "was asked to stop." not in switch.summary
    assert switch.is_triggered
    assert took <= PROMISED + SLACK


@pytest.mark.parametrize(
    "respond",
    [answer(502, b"proxy"), answer(401, b"token"), answer(200, b"<html>")],
    ids=["a proxy", "a token that became invalid", "a page"],
)
def test_an_answer_is_not_denied(respond: Respond) -> None:
    """Where an answer was seen, if not the one that was asked for, the story does not say that there was none."""
    with Head(respond) as head:
        switch = armed(head.address)
        killed(switch)

    assert "no answer seen" not in switch.summary


@pytest.mark.parametrize(
    ("port", "words"),
    [
        pytest.param(silent_port, "ReadTimeout", id="nobody reads"),
        pytest.param(full_port, "ConnectTimeout", id="nobody takes the connection"),
        pytest.param(closed_port, "ConnectError", id="nobody listens"),
    ],
)
def test_nobody_there(port: Callable[[], AbstractContextManager[str]], words: str) -> None:
    """Where nobody answers, or not even the connection is taken, a kill gives up in time and says so."""
    with port() as address:
        switch = armed(address)
        took = killed(switch)

    assert words in switch.summary
    assert switch.is_triggered
    assert took <= PROMISED + SLACK


def test_a_request_that_never_left_is_not_told_as_sent() -> None:
    """Where the connection is refused, the story does not say that a stop was sent."""
    with closed_port() as address:
        switch = armed(address)
        killed(switch)

    assert "was sent" not in switch.summary


def test_an_answer_that_drips_does_not_hold_the_handler() -> None:
    """An answer that comes byte by byte takes no more of the time than one that does not come."""
    with Head(drip) as head:
        took = killed(armed(head.address))

    assert took <= PROMISED + SLACK


class Raises(logging.Handler):
    """A handler that nobody may reach: to wait for its lock would be to wait for ever."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise AssertionError(f"{record.name} logged {record.getMessage()!r}")


@pytest.fixture
def nobody_may_log() -> Iterator[None]:
    """Every logger at DEBUG, over a handler that raises."""
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
    ids=["taken", "unknown", "hangs up", "not authorised"],
)
@pytest.mark.usefixtures("nobody_may_log")
def test_nothing_is_logged(respond: Respond) -> None:
    """Whatever comes of a kill, nobody logs meanwhile, not even httpx when all of its words are wanted."""
    with Head(respond) as head:
        with RayJobsClient(head.address) as client, pytest.raises(AssertionError, match="logged"):
            client.stop_job("a")  # so it would be
        switch = armed(head.address)
        switch.kill()

    assert switch.summary


@pytest.mark.parametrize("before", [logging.NOTSET, logging.DEBUG, logging.CRITICAL])
def test_logging_goes_on_afterwards(before: int) -> None:
    """After a kill everybody may log who might before."""
    logging.disable(before)
    try:
        with Head(hang_up) as head:
            armed(head.address).kill()
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


def test_not_armed() -> None:
    """A kill before there is a job, or after it is over, leaves the mark and sends nothing."""
    before, afterwards = KillSwitch(), KillSwitch()
    with Head(STOPPED) as head:
        afterwards.arm(lambda: RayJobsClient(head.address), "a")
        afterwards.disarm()
        for switch in (before, afterwards):
            assert not switch.is_triggered
            switch.kill()
            assert switch.is_triggered
            assert switch.summary == ""

    assert head.asked == []


def test_switched_off() -> None:
    """With stop_on_kill off a kill sends nothing, and the task does not end for it."""
    with Head(STOPPED) as head:
        switch = armed(head.address)
        switch.is_enabled = False
        switch.kill()

    assert head.asked == []
    assert not switch.is_triggered
    assert switch.summary == ""


def test_switched_off_afterwards() -> None:
    """A kill that comes before the task knows whether it obeys counts as the task then decides."""
    switch = KillSwitch()
    switch.kill()
    assert switch.is_triggered

    switch.is_enabled = False
    assert not switch.is_triggered


def test_armed_for_the_last_job() -> None:
    """The job that dies with the task is the one that the switch was armed for last."""
    with Head(STOPPED) as head:
        switch = armed(head.address, "first")
        switch.arm(lambda: RayJobsClient(head.address), "second")
        switch.kill()

    assert head.asked == ["POST /api/jobs/second/stop"]


def test_killed_twice() -> None:
    """A second kill asks again."""
    with Head(one_by_one(STOPPED, ENDED)) as head:
        switch = armed(head.address)
        switch.kill()
        switch.kill()

    assert len(head.asked) == 2
    assert switch.summary == "Job a/b had ended already."
