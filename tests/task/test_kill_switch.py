"""The kill switch over real sockets: a kill takes a few seconds at most, and logs nothing."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef
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


def job(status: str, nonce: str = "ours") -> Respond:
    details = {"type": "SUBMISSION", "status": status, "submission_id": "a/b", "metadata": {"submission_nonce": nonce}}
    return answer(200, json.dumps(details).encode())


RUNNING, SUCCEEDED = job("RUNNING"), job("SUCCEEDED")
STOPPED = answer(200, b'{"stopped": true}')
ENDED = answer(200, b'{"stopped": false}')
UNKNOWN = answer(404, b"Job a/b does not exist")
GET, STOP = "GET /api/jobs/a%2Fb", "POST /api/jobs/a%2Fb/stop"


class Head:
    """A server that records its requests. It answers those about the job and those to stop it each in their order."""

    def __init__(self, respond_to_stop: Respond, respond_to_get: Respond = RUNNING) -> None:
        self.requests: list[str] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.respond(respond_to_get)

            def do_POST(self) -> None:
                self.respond(respond_to_stop)

            def respond(self, respond: Respond) -> None:
                request = f"{self.command} {self.path}"
                head.requests.append(request)
                with suppress(OSError):  # the client did not wait
                    respond(self, head.requests.count(request) - 1)

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


def armed(address: str, submission_id: str = "a/b", *, may_be_superseded: bool = False) -> KillSwitch:
    switch = KillSwitch()
    job = JobRef(address, submission_id, nonce="ours")
    switch.arm(lambda: RayJobsClient(address), job, may_be_superseded=may_be_superseded)
    return switch


def killed(switch: KillSwitch) -> float:
    """Kill, and return the seconds that it took."""
    began = time.monotonic()
    switch.kill()
    return time.monotonic() - began


# If a request does not end with the time of the handler.
NO_ANSWER = r"The stop request for job a/b was not answered within 3 s\."
ACCEPTED, HAD_ENDED = "Ray accepted the stop of job a/b.", "Job a/b ended with status SUCCEEDED."


@pytest.mark.parametrize(
    ("to_get", "to_stop", "requests", "summary"),
    [
        pytest.param(RUNNING, STOPPED, [GET, STOP], ACCEPTED, id="running"),
        pytest.param(job("PENDING"), STOPPED, [GET, STOP], ACCEPTED, id="pending"),
        pytest.param(SUCCEEDED, STOPPED, [GET], HAD_ENDED, id="ended"),
        pytest.param(one_by_one(RUNNING, SUCCEEDED), ENDED, [GET, STOP, GET], HAD_ENDED, id="ends before the stop"),
        pytest.param(
            job("RUNNING", "theirs"), STOPPED, [GET], "Another job at ADDRESS has the id a/b now. It is left alone.",
            id="another job",
        ),
        pytest.param(one_by_one(UNKNOWN, RUNNING), STOPPED, [GET, GET, STOP], ACCEPTED, id="not yet known"),
        pytest.param(RUNNING, after(0.5, STOPPED), [GET, STOP], ACCEPTED, id="slow"),
        pytest.param(
            RUNNING, one_by_one(after(9, STOPPED), STOPPED), [GET, STOP] * 2, ACCEPTED, id="timeout, then accepted"
        ),
        pytest.param(
            one_by_one(after(9, RUNNING), RUNNING), STOPPED, [GET, GET, STOP], ACCEPTED, id="timeout, then running"
        ),
        pytest.param(RUNNING, one_by_one(hang_up, STOPPED), [GET, STOP] * 2, ACCEPTED, id="cut off, then accepted"),
        pytest.param(
            one_by_one(answer(503, b"busy"), SUCCEEDED), STOPPED, [GET, GET], HAD_ENDED, id="busy, then ended"
        ),
    ],
)  # fmt: skip
def test_stop(to_get: Respond, to_stop: Respond, requests: list[str], summary: str) -> None:
    """A kill stops this job and no other, and repeats what got no answer; the summary has the result."""
    with Head(to_stop, to_get) as head:
        switch = armed(head.address)
        took = killed(switch)

    assert head.requests == requests
    assert switch.summary == summary.replace("ADDRESS", head.address)
    assert switch.is_triggered
    assert took <= LIMIT


def test_stop_of_a_job_that_arrives_late() -> None:
    """A submission may still be on its way. The job is asked for again until the time is over, and stopped."""
    arrives_at = time.monotonic() + 1.6

    def arriving(handler: BaseHTTPRequestHandler, number: int) -> None:
        (UNKNOWN if time.monotonic() < arrives_at else RUNNING)(handler, number)

    with Head(STOPPED, arriving) as head:
        switch = armed(head.address)
        took = killed(switch)

    assert head.requests.count(GET) > 2
    assert head.requests[-1] == STOP
    assert switch.summary == ACCEPTED
    assert took <= LIMIT


@pytest.mark.parametrize(
    ("to_get", "to_stop", "words"),
    [
        pytest.param(after(9, RUNNING), STOPPED, f"Timeout after 1 s|{NO_ANSWER}", id="never answers"),
        pytest.param(RUNNING, after(9, STOPPED), f"Timeout after 1 s|{NO_ANSWER}", id="never answers a stop"),
        pytest.param(RUNNING, hang_up, "Connection lost", id="hangs up"),
        pytest.param(answer(502, b"proxy"), STOPPED, "HTTP 502", id="a proxy"),
        pytest.param(RUNNING, answer(400, b"proxy"), "HTTP 400", id="a proxy refuses a stop"),
        pytest.param(answer(401, b"token"), STOPPED, "HTTP 401", id="an expired token"),
        pytest.param(answer(200, b"<html>"), STOPPED, "Check host, port", id="a page"),
        pytest.param(UNKNOWN, STOPPED, "job not found", id="never arrives"),
    ],
)
def test_stop_without_a_usable_answer(to_get: Respond, to_stop: Respond, words: str) -> None:
    """Without a usable answer the stop is repeated until its time is over, and the summary has the last error."""
    with Head(to_stop, to_get) as head:
        switch = armed(head.address)
        took = killed(switch)

    assert len(head.requests) >= 2
    assert re.search(words, switch.summary)
    assert re.search(f"could not be confirmed within 3 s|{NO_ANSWER}", switch.summary)
    assert "a/b" in switch.summary
    assert "accepted" not in switch.summary
    assert switch.is_triggered
    assert took <= LIMIT


@pytest.mark.parametrize(
    ("port", "words"),
    [
        pytest.param(silent_port, f"Timeout after 1 s|{NO_ANSWER}", id="silent port"),
        pytest.param(full_port, f"Connection timeout after 1 s|{NO_ANSWER}", id="full port"),
        pytest.param(closed_port, "Connection refused", id="closed port"),
    ],
)
def test_unreachable_head(port: Callable[[], AbstractContextManager[str]], words: str) -> None:
    """If the head does not connect or answer, the kill ends in time and the summary has the error."""
    with port() as address:
        switch = armed(address)
        took = killed(switch)
        summary = switch.summary  # the thread goes on after its time

    assert re.search(words, summary)
    assert switch.is_triggered
    assert took <= LIMIT


def test_summary_of_a_refused_connection() -> None:
    """After a refused connection the summary does not claim that a stop was sent."""
    with closed_port() as address:
        switch = armed(address)
        killed(switch)

    assert "accepted" not in switch.summary


@pytest.mark.parametrize("error", [RayJobsError("no token file"), ValueError("extra auth cannot be created")], ids=repr)
def test_client_that_cannot_be_created(error: Exception) -> None:
    """An error of the client is in the summary, and does not disturb the interrupted code."""

    def connect() -> RayJobsClient:
        raise error

    switch = KillSwitch()
    switch.arm(connect, JobRef("http://head:8265", "a/b"))
    switch.kill()

    assert switch.summary == f"The stop request for job a/b may not have reached Ray. {error}"
    assert switch.is_triggered


def test_slow_answer() -> None:
    """An answer that arrives byte by byte does not delay the handler longer than no answer."""
    with Head(drip) as head:
        took = killed(armed(head.address))

    assert took <= LIMIT


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What any logger logs, all at DEBUG."""
    for thread in threading.enumerate():
        if "(_stop)" in thread.name:  # the stop of a test before goes on after its time
            thread.join(10)
    for name in (None, "httpx", "httpcore", "asyncio", "airflow_provider_rayjobs"):
        caplog.set_level(logging.DEBUG, name)
    return caplog


@pytest.mark.parametrize(
    "respond",
    [STOPPED, UNKNOWN, hang_up, answer(401, b"token")],
    ids=["accepted", "unknown", "hangs up", "not authorised"],
)
def test_nothing_is_logged(respond: Respond, logged: pytest.LogCaptureFixture) -> None:
    """Nothing is logged during a kill, not even by httpx at DEBUG."""
    with Head(respond, one_by_one(RUNNING, SUCCEEDED)) as head:
        with RayJobsClient(head.address, retry_timeout=0) as client, suppress(RayJobsError):
            client.stop_job("a/b")
        assert logged.records  # the same request outside of a kill is logged
        logged.clear()
        switch = armed(head.address)
        switch.kill()
        assert logged.records == []

    assert GET in head.requests
    assert switch.summary


@pytest.mark.parametrize("before", [logging.NOTSET, logging.DEBUG, logging.CRITICAL])
def test_logging_is_restored(before: int) -> None:
    """After a kill logging works as before."""
    logging.disable(before)
    try:
        with Head(STOPPED, one_by_one(hang_up, SUCCEEDED)) as head:
            armed(head.address).kill()
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


def test_disarmed() -> None:
    """A kill while the switch is disarmed sets the flag and sends nothing."""
    never_armed, disarmed = KillSwitch(), KillSwitch()
    with Head(STOPPED) as head:
        disarmed.arm(lambda: RayJobsClient(head.address), JobRef(head.address, "a/b"))
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
        switch.arm(lambda: RayJobsClient(head.address), JobRef(head.address, "a/b"))
        switch.kill()

    assert head.requests == [GET, STOP]


def test_killed_twice() -> None:
    """A second kill looks at the job again."""
    with Head(STOPPED, one_by_one(RUNNING, SUCCEEDED)) as head:
        switch = armed(head.address)
        switch.kill()
        switch.kill()

    assert head.requests == [GET, STOP, GET]
    assert switch.summary == HAD_ENDED


# -- another try may follow the job -------------------------------------------------------------------------------


def polled(address: str) -> KillSwitch:
    """Return the switch of a try that can be superseded and polls the switch."""
    switch = armed(address, may_be_superseded=True)
    switch.begin_try()
    switch.poll()
    return switch


@pytest.mark.parametrize("is_superseded", [True, False])
def test_verdict(is_superseded: bool) -> None:
    """The signal handler returns at once. The job is stopped when ``execute`` says that no other try follows it."""
    with Head(STOPPED) as head:
        switch = polled(head.address)
        took = killed(switch)
        time.sleep(0.5)
        before = [*head.requests]
        switch.settle(is_superseded=is_superseded)
        time.sleep(1.5)

    assert took < 0.5
    assert before == []
    assert head.requests == ([] if is_superseded else [GET, STOP])
    assert switch.summary == ("" if is_superseded else ACCEPTED)


def test_no_verdict() -> None:
    """If ``execute`` hangs, the job is stopped before Airflow sends SIGKILL."""
    with Head(one_by_one(after(9, STOPPED), STOPPED)) as head:
        switch = polled(head.address)
        switch.kill()
        time.sleep(1)
        before = [*head.requests]
        time.sleep(3.5)

    assert before == []
    assert head.requests == [GET, STOP] * 2
    assert switch.summary == ACCEPTED


def test_verdict_that_comes_late() -> None:
    """A verdict during the stop waits for its result."""
    with Head(after(0.8, STOPPED)) as head:
        switch = polled(head.address)
        switch.kill()
        time.sleep(2)
        switch.settle(is_superseded=False)

    assert switch.summary == ACCEPTED


def test_kill_while_nothing_polls() -> None:
    """If ``execute`` does not poll any more, the signal handler stops the job."""
    with Head(STOPPED) as head:
        switch = polled(head.address)
        switch.end_polling()
        switch.kill()
        assert head.requests == [GET, STOP]


@pytest.mark.parametrize("is_superseded", [True, False])
def test_killed_twice_before_the_verdict(is_superseded: bool) -> None:
    """A second kill, while ``execute`` asks Airflow, waits for the same verdict."""
    with Head(STOPPED) as head:
        switch = polled(head.address)
        switch.kill()
        switch.end_polling()
        switch.kill()
        assert head.requests == []
        switch.settle(is_superseded=is_superseded)
        time.sleep(1.5)

    assert head.requests == ([] if is_superseded else [GET, STOP])


def test_kill_after_the_verdict() -> None:
    """A second kill leaves the job of another try alone."""
    with Head(STOPPED) as head:
        switch = polled(head.address)
        switch.kill()
        switch.settle(is_superseded=True)
        switch.end_polling()
        switch.kill()

    assert head.requests == []


# -- freezes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Airflow start another try after a second without a heartbeat, so that half a second is a freeze."""
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "1")


@pytest.mark.usefixtures("short_heartbeats")
def test_kill_after_a_freeze() -> None:
    """After a freeze another try may follow the job. The handler sends nothing, and ``execute`` has to end."""
    with Head(STOPPED) as head:
        switch = armed(head.address, may_be_superseded=True)
        switch.begin_try()
        time.sleep(0.7)
        switch.kill()

    assert head.requests == []
    assert switch.was_frozen
    assert switch.is_triggered
    assert switch.summary == ""


@pytest.mark.usefixtures("short_heartbeats")
def test_kill_after_a_freeze_of_a_job_that_no_other_try_finds() -> None:
    """A try without a stored record cannot be superseded: a kill stops its job."""
    with Head(STOPPED) as head:
        switch = armed(head.address)
        switch.begin_try()
        time.sleep(0.7)
        switch.kill()

    assert head.requests == [GET, STOP]


@pytest.mark.usefixtures("short_heartbeats")
def test_freeze_that_a_poll_notices() -> None:
    """A freeze ends no try. A kill at any later time sends nothing, until the next try begins."""
    with Head(STOPPED) as head:
        switch = armed(head.address, may_be_superseded=True)
        switch.begin_try()
        time.sleep(0.7)
        assert not switch.poll()
        assert switch.was_frozen
        switch.kill()
        assert switch.poll()
        assert head.requests == []

        switch.begin_try()
        assert not switch.was_frozen
        switch.kill()
        switch.settle(is_superseded=False)
        assert head.requests == [GET, STOP]


def test_no_freeze() -> None:
    """A pause of the process that is shorter than half of the heartbeat timeout is no freeze."""
    with Head(STOPPED) as head:
        switch = armed(head.address)
        switch.begin_try()
        time.sleep(0.7)
        assert not switch.poll()
        switch.kill()

    assert not switch.was_frozen
    assert head.requests == [GET, STOP]


@pytest.mark.usefixtures("short_heartbeats")
def test_no_freeze_before_the_try() -> None:
    """The time between the creation of the switch and the start of the try is no freeze."""
    switch = KillSwitch()
    time.sleep(0.7)
    switch.kill()
    switch.begin_try()

    assert not switch.was_frozen


def test_copies_are_new_switches() -> None:
    """A callback may copy or pickle the operator of a try that was killed."""
    kill_switch = KillSwitch()
    kill_switch.begin_try(threading.current_thread())
    kill_switch.arm(
        lambda: RayJobsClient("http://127.0.0.1:1"), JobRef("http://127.0.0.1:1", "a"), may_be_superseded=True
    )
    kill_switch.kill()
    kill_switch.settle(is_superseded=True)

    for copied in (copy.deepcopy(kill_switch), pickle.loads(pickle.dumps(kill_switch))):
        assert not copied.is_killed
