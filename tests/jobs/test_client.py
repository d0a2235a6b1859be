"""Both clients, over one set of cases: the requests that they send, and the results and errors that they return."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import pickle
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiUnreachableError,
    RayJobExistsError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import AsyncRayJobsClient, JobStatus, JobSubmission, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.requests import AnyRequest
from airflow_provider_rayjobs.jobs.steps import EmitRecord, ReadLog, Sleep
from airflow_provider_rayjobs.jobs.transport import check_address

SAMPLES = Path(__file__).parents[1] / "samples" / "2.60.0"
ADDRESS = "http://ray-head:8265"
SECRET = "s3cret-t0ken"
LOG = (SAMPLES / "log_file.txt").read_bytes()
JOB, FILE = "/api/jobs/a", "/api/v0/logs/file"

Respond = Callable[[httpx.Request], httpx.Response]
Call = Callable[..., Any]


def sample(name: str) -> httpx.Response:
    """Return a recorded answer. The name of a file without JSON holds the status code."""
    code = 200 if name.endswith(".json") or name == "log_file.txt" else int(name.split(".")[1])
    return httpx.Response(code, content=(SAMPLES / name).read_bytes(), headers={"content-type": "text/plain"})


class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a response whose connection is lost after the last chunk."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        raise httpx.ReadError("cut")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def as_requested_job(request: httpx.Request, content: bytes) -> bytes:
    """Return an answer about one job with the id of the requested job and one start time: each sample has its own."""
    if not re.match(rb'\{[^{]*"submission_id": ', content):
        return content
    name = json.loads(request.content)["submission_id"] if request.content else request.url.path.rpartition("jobs/")[2]
    own = {"job_id": name, "submission_id": name, "start_time": 1_795_406_831_854}
    return json.dumps({key: value and own.get(key, value) for key, value in json.loads(content).items()}).encode()


class Wire:
    """Answers requests from a script; an error in it is raised, and its last entry repeats. Records the requests."""

    def __init__(self, *answers: httpx.Response | Exception | Respond) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response) and not isinstance(answer.stream, Cut):
            # a response can be read once, and the cases share it
            content = as_requested_job(request, answer.content)
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)
        return answer(request) if callable(answer) else answer

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]


def blocking(name: str, wire: Respond | None, *arguments: Any, address: str = ADDRESS, **options: Any) -> Any:
    """Call a method of a new blocking client; options with the prefix ``client_`` go to its constructor."""
    settings = {key.removeprefix("client_"): options.pop(key) for key in list(options) if key.startswith("client_")}
    transport = None if wire is None else httpx.MockTransport(wire)
    with RayJobsClient(address, transport=transport, **settings) as client:
        return getattr(client, name)(*arguments, **options)


def on_a_loop(name: str, wire: Respond | None, *arguments: Any, address: str = ADDRESS, **options: Any) -> Any:
    """Do the same with the async client, on an event loop of its own."""
    settings = {key.removeprefix("client_"): options.pop(key) for key in list(options) if key.startswith("client_")}
    transport = None if wire is None else httpx.MockTransport(wire)

    async def call() -> Any:
        async with AsyncRayJobsClient(address, transport=transport, **settings) as client:
            return await getattr(client, name)(*arguments, **options)

    return asyncio.run(call())


@pytest.fixture(params=[blocking, on_a_loop])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param


def test_both_clients_have_the_same_methods() -> None:
    """The two clients have the same methods with the same signatures, except for closing."""

    def methods(client: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(method)).replace("Async", "").replace("Sync", "")
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") and name not in ("close", "aclose")
        }

    assert methods(RayJobsClient) == methods(AsyncRayJobsClient)
    assert {"submit_job", "follow_job", "get_job_logs"} <= methods(RayJobsClient).keys()
    blocking_init, async_init = (inspect.signature(client).parameters for client in (RayJobsClient, AsyncRayJobsClient))
    assert [*blocking_init] == [*async_init]
    assert all(blocking_init[name] == async_init[name] for name in blocking_init if name != "transport")


@pytest.mark.parametrize(
    ("name", "answer", "expected", "asked"),
    [
        pytest.param("get_version", "version.json", "2.60.0", "GET /api/version", id="version"),
        pytest.param("get_job", "job_failed.json", "FAILED", "GET /api/jobs/a%2Fb", id="get"),
        pytest.param("list_jobs", "jobs_list.json", 5, "GET /api/jobs/", id="list"),
        pytest.param("stop_job", "stopped.json", True, "POST /api/jobs/a%2Fb/stop", id="stop"),
    ],
)
@pytest.mark.parametrize("base", ["", "/team-a/ray"], ids=["root", "base path"])
def test_each_method_sends_one_request(
    call: Call, name: str, answer: str, expected: Any, asked: str, base: str
) -> None:
    """Each method sends one request with a timeout, below the base path of the address, and returns its result."""
    wire = Wire(sample(answer))
    arguments = () if name in ("get_version", "list_jobs") else ("a/b",)

    result = call(name, wire, *arguments, address=f"https://ray.example.com{base}/")

    if isinstance(result, list):
        result = len(result)
    assert getattr(result, "ray_version", getattr(result, "status", result)) == expected
    method, path = asked.split()
    assert wire.asked == [f"{method} {base}{path}"]
    (request,) = wire.requests
    assert request.url.host == "ray.example.com"
    assert all(0 < seconds <= 120 for seconds in request.extensions["timeout"].values())
    assert request.extensions["timeout"].keys() == {"connect", "read", "write", "pool"}
    assert request.headers["user-agent"].startswith("airflow-provider-rayjobs/")
    assert "Mozilla" not in request.headers["user-agent"]
    assert "origin" not in request.headers
    assert "authorization" not in request.headers


def test_submission_is_one_post(call: Call) -> None:
    """A submission is one POST with the given options and the nonce, and returns its id."""
    wire = Wire(sample("submitted.json"))

    submission_id = call("submit_job", wire, ["echo", "a b"], submission_id="mine", entrypoint_num_cpus=1)

    body = json.loads(wire.requests[0].content)
    assert submission_id == "mine"
    assert wire.asked == ["POST /api/jobs/"]
    assert body.pop("metadata").keys() == {"submission_nonce"}
    assert body == {"submission_id": "mine", "entrypoint": "echo 'a b'", "entrypoint_num_cpus": 1}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"submission_id": "a/b"}, id="id"),
        pytest.param({"runtime_env": {"working_dir": "./nowhere"}}, id="local path"),
        pytest.param({"metadata": {"a": "\udc80"}}, id="lone surrogate"),
        pytest.param({"runtime_env": {"config": {"a": float("nan")}}}, id="not a number"),
    ],
)
def test_invalid_submission_is_not_sent(call: Call, options: dict[str, Any]) -> None:
    """A submission that can never work raises an error that names the field, and nothing is sent."""
    wire = Wire(sample("submitted.json"))

    with pytest.raises(ValueError, match=f"^{next(iter(options))}"):
        call("submit_job", wire, "true", **options)
    assert wire.requests == []


@pytest.mark.parametrize("is_own", [True, False], ids=["own job", "another job"])
def test_lost_answer_to_a_submission_is_recovered_by_the_nonce(call: Call, is_own: bool) -> None:
    """After a lost answer the client recognises its own job by the nonce, and rejects any other job."""
    sent: list[dict[str, Any]] = []

    def accept(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        raise httpx.ReadTimeout("late")

    def describe(request: httpx.Request) -> httpx.Response:
        metadata = sent[0]["metadata"] if is_own else {"submission_nonce": "theirs"}
        return httpx.Response(
            200, json={"type": "SUBMISSION", "submission_id": "mine", "status": "PENDING", "metadata": metadata}
        )

    wire = Wire(accept, sample("duplicate_id.500.txt"), describe)

    if is_own:
        assert call("submit_job", wire, "true", submission_id="mine") == "mine"
    else:
        with pytest.raises(
            RayJobExistsError,
            match="HTTP 500, the submission id is taken: could not submit job mine at http://ray-head:8265",
        ):
            call("submit_job", wire, "true", submission_id="mine")
    assert wire.asked == ["POST /api/jobs/", "POST /api/jobs/", "GET /api/jobs/mine"]
    assert wire.requests[0].content == wire.requests[1].content


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(httpx.Response(503, text="busy"), id="503"),
        pytest.param(httpx.ConnectError("refused"), id="refused"),
        pytest.param(httpx.ReadTimeout("late"), id="lost answer"),
        pytest.param(httpx.RemoteProtocolError("garbage"), id="garbage"),
    ],
)
def test_idempotent_request_is_retried(call: Call, failure: httpx.Response | httpx.HTTPError) -> None:
    """An idempotent request is retried after a temporary failure."""
    wire = Wire(failure, sample("job_running.json"))

    assert call("get_job", wire, "a", client_retry_timeout=5).status == JobStatus.RUNNING
    assert wire.asked == [f"GET {JOB}"] * 2


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_of_a_busy_server_is_respected(call: Call, code: int) -> None:
    """A request is retried no earlier than the server asks."""
    wire = Wire(httpx.Response(code, headers={"Retry-After": "1"}), sample("job_running.json"))
    began = time.monotonic()

    assert call("get_job", wire, "a", client_retry_timeout=5).status == JobStatus.RUNNING
    assert time.monotonic() - began >= 1


def test_deletion_looks_at_the_job_first(call: Call) -> None:
    """A deletion is two requests: when the job ended decides how soon its record may be deleted."""
    wire = Wire(sample("job_failed.json"), sample("deleted.json"))

    assert call("delete_job", wire, "a/b") is True
    assert wire.asked == ["GET /api/jobs/a%2Fb", "DELETE /api/jobs/a%2Fb"]


@pytest.mark.parametrize(
    ("failure", "tries"),
    [
        pytest.param(httpx.ReadTimeout("late"), 1, id="lost answer"),
        pytest.param(httpx.Response(503, text="busy"), 1, id="503"),
        pytest.param(httpx.ConnectError("refused"), 2, id="never sent"),
    ],
)
def test_deletion_is_retried_only_if_it_was_never_sent(
    call: Call, failure: httpx.Response | httpx.HTTPError, tries: int
) -> None:
    """A deletion that may have reached the head is not sent again."""
    wire = Wire(sample("job_failed.json"), failure, sample("deleted.json"))

    if tries == 1:
        with pytest.raises((RayApiConnectionError, RayApiBusyError)):
            call("delete_job", wire, "a", client_retry_timeout=5)
    else:
        assert call("delete_job", wire, "a", client_retry_timeout=5) is True
    assert wire.asked[1:] == ["DELETE /api/jobs/a"] * tries


@pytest.mark.parametrize(
    ("failure", "sent", "fact"),
    [
        pytest.param(httpx.ConnectError("no route"), False, "Connection failed", id="not connected"),
        pytest.param(httpx.ConnectTimeout("late"), False, "Connection timeout after 10 s", id="connection timeout"),
        pytest.param(
            httpx.PoolTimeout("late"), False, "Timeout after 30 s without a free connection", id="pool timeout"
        ),
        pytest.param(httpx.ReadTimeout("late"), True, "Timeout after 30 s", id="read timeout"),
        pytest.param(httpx.WriteTimeout("late"), True, "Timeout after 30 s while sending", id="write timeout"),
        pytest.param(httpx.WriteError("cut"), True, "Connection lost", id="cut while sending"),
        pytest.param(httpx.RemoteProtocolError("garbage"), True, "Answer is not HTTP", id="garbage"),
        pytest.param(httpx.TooManyRedirects("round"), True, "Request failed", id="another error of httpx"),
        pytest.param(LookupError("malformed reply"), True, "Request failed", id="error of another package"),
        pytest.param(RuntimeError("can't start new thread"), True, "Request failed", id="error of Python"),
    ],
)
def test_connection_error_leads_with_the_fact(call: Call, failure: Exception, sent: bool, fact: str) -> None:
    """Each error without an answer becomes one: the fact, the request, the address, the cause, whether it was sent."""
    with pytest.raises(RayApiConnectionError) as caught:
        call("get_job", Wire(failure), "a", client_retry_timeout=0)

    assert caught.value.delivery is (Delivery.MAY_HAVE_ARRIVED if sent else Delivery.NOT_SENT)
    assert caught.value.__cause__ is failure
    assert str(caught.value).startswith(f"{fact}: could not get job a at {ADDRESS}. ")
    assert str(caught.value).endswith(f" Cause: {type(failure).__name__}: {failure}.")


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(httpx.ConnectError("refused"), id="no answer"),
        pytest.param(httpx.Response(404, text="Job a does not exist"), id="answer"),
        pytest.param(httpx.Response(200, text="?"), id="answer of something else"),
    ],
)
def test_errors_name_the_label_of_the_address(call: Call, failure: httpx.Response | httpx.HTTPError) -> None:
    """Errors add the caller's name for the address, so that a reader knows which configuration is meant."""
    with pytest.raises(RayJobsError) as caught:
        call("get_job", Wire(failure), "a", client_label="connection mine", client_retry_timeout=0)

    assert f"{ADDRESS} (connection mine)" in str(caught.value)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(call: Call, code: int) -> None:
    """A redirect is an error, so the token goes to no other address."""
    wire = Wire(httpx.Response(code, headers={"location": "https://elsewhere.example.com/"}))

    with pytest.raises(RayApiAddressError, match=f"HTTP {code}"):
        call("get_job", wire, "a", client_token=SECRET)
    assert len(wire.requests) == 1


def test_token_is_sent_with_every_request(call: Call) -> None:
    """The token is sent as a bearer token with every request, that for the log included."""
    wire = Wire(sample("job_succeeded.json"), sample("version.json"), sample("log_file.txt"))

    assert call("get_job_logs", wire, "a", client_token=SECRET) == LOG.decode()
    assert [request.headers["authorization"] for request in wire.requests] == [f"Bearer {SECRET}"] * 3


@pytest.mark.parametrize("kind", [RayJobsClient, AsyncRayJobsClient])
def test_repr_hides_the_token(kind: type[RayJobsClient | AsyncRayJobsClient]) -> None:
    """A client's repr shows its address and not its token."""
    client = kind(ADDRESS + "/", token=SECRET)

    assert repr(client) == f"{kind.__name__}('{ADDRESS}')"
    assert SECRET not in str(client)


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(httpx.Response(403, text="Forbidden"), id="403"),
        pytest.param(httpx.Response(200, text="<html>"), id="page"),
        pytest.param(httpx.ConnectError("refused"), id="refused"),
    ],
)
def test_errors_hide_the_token(call: Call, failure: httpx.Response | httpx.HTTPError) -> None:
    """No error shows the token, neither in its text nor in its traceback nor in its pickle."""
    with pytest.raises(RayJobsError) as caught:
        call("get_version", Wire(failure), client_token=SECRET, client_retry_timeout=0)

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET.encode() not in pickle.dumps(caught.value)


@pytest.mark.parametrize("token", [f"{SECRET}\n", f"{SECRET}\x00", f"{SECRET}ü"], ids=["newline", "NUL", "not ASCII"])
def test_error_about_an_invalid_token_hides_it(call: Call, token: str) -> None:
    """The error about a token that no HTTP header can hold does not quote it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises((RayJobsError, ValueError)) as caught:
            call("get_version", None, address=address, client_token=token, client_retry_timeout=0)

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(vars(caught.value)) + repr(caught.value.args)


def test_log_continues_after_a_lost_connection(call: Call) -> None:
    """A log that is cut off is a connection error, and the next read continues at that byte."""
    text = "".join(f"line {number}\n" for number in range(20_000)).encode()
    cut = httpx.Response(200, stream=Cut(text[:20_000], text[20_000:150_001]))
    wire, log, shown = Wire(cut, httpx.Response(200, content=text)), LogCursor(), []
    step = ReadLog(endpoints.get_log_file("a", "node"), log)

    def engine() -> Any:
        try:
            yield step
        except RayApiConnectionError as error:
            caught = error
        before = len(shown)
        yield step
        return caught, before

    caught, before = call("run", wire, engine(), shown.append)

    assert str(caught).startswith(f"Connection lost: could not read the log of job a at {ADDRESS}. ")
    assert str(caught).endswith("Cause: ReadError: cut.")
    assert 0 < before < len(shown)
    assert "\n".join(shown).encode() + b"\n" == text
    assert [request.url.params["lines"] for request in wire.requests] == ["-1", "-1"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(httpx.Response(401, text="Unauthorized"), RayApiAuthError, id="error"),
        pytest.param(httpx.Response(200, html="<html>log in"), RayApiAddressError, id="login page"),
    ],
)
def test_error_page_is_not_shown_as_log(call: Call, answer: httpx.Response, error: type[Exception]) -> None:
    """An error or a login page in place of a log is raised, and no line of it is emitted."""
    shown: list[str] = []

    def engine() -> Any:
        yield ReadLog(endpoints.get_log_file("a", "node"), LogCursor())

    with pytest.raises(error, match="read the log of job a"):
        call("run", Wire(answer), engine(), shown.append)
    assert shown == []


def test_follow_job_emits_the_log_and_logs_outages(call: Call, caplog: pytest.LogCaptureFixture) -> None:
    """A job is followed to its end, its log is emitted as it arrives, and an outage is logged at its start and end."""
    caplog.set_level(logging.INFO, "airflow_provider_rayjobs")
    wire = Wire(
        sample("job_running.json"),
        sample("version.json"),
        httpx.Response(200, content=LOG[:100]),
        httpx.ConnectError("refused"),
        sample("job_failed.json"),
        sample("log_file.txt"),
    )
    shown: list[str] = []

    details = call("follow_job", wire, "a", poll_interval=0.01, on_log=shown.append)

    assert (details.status, details.driver_exit_code) == ("FAILED", 3)
    assert "\n".join(shown) + "\n" == LOG.decode()
    assert [record.levelname for record in caplog.records if "airflow_provider" in record.name] == ["WARNING", "INFO"]
    assert wire.requests[-1].url.params["filename"] == "job-driver-a.log"


def test_follow_job_without_on_log_reads_no_log(call: Call) -> None:
    """Without ``on_log`` the client polls the status alone."""
    wire = Wire(sample("job_pending.json"), sample("job_succeeded.json"))

    assert call("follow_job", wire, "a", poll_interval=0).status == "SUCCEEDED"
    assert wire.asked == [f"GET {JOB}"] * 2


def test_follow_job_ends_for_an_unknown_job_or_a_long_outage(call: Call) -> None:
    """Following ends with an error if the job is unknown or the outage exceeds ``unreachable_timeout``."""
    with pytest.raises(RayJobNotFoundError, match="Job unknown-1 does not exist"):
        call("follow_job", Wire(sample("unknown_job.404.txt")), "unknown-1")
    with pytest.raises(RayApiUnreachableError, match="unreachable_timeout is 0 s"):
        call("follow_job", Wire(httpx.ConnectError("refused")), "a", unreachable_timeout=0)
    wire = Wire(sample("unknown_job.404.txt"), sample("job_succeeded.json"))
    assert call("follow_job", wire, "a", poll_interval=0.01, missing_timeout=60).status == "SUCCEEDED"


def test_messages_go_to_the_given_logger(call: Call) -> None:
    """Messages go to the logger that the client was given."""
    messages: list[tuple[Any, ...]] = []

    class Logger:
        def log(self, level: int, message: Any, /, *arguments: Any) -> None:
            messages.append((level, message % arguments))

    wire = Wire(httpx.ConnectError("refused"), sample("job_succeeded.json"))
    call("follow_job", wire, "100%s", poll_interval=0.01, client_logger=Logger())

    assert [level for level, _ in messages] == [logging.WARNING, logging.INFO]
    assert messages[0][1].startswith("No usable answer about Ray job 100%s.")


def test_error_of_on_log_closes_the_engine(call: Call) -> None:
    """An error that ``on_log`` raises closes the engine and reaches the caller unchanged."""
    closed = []

    def engine() -> Any:
        try:
            yield EmitRecord("one")
        finally:
            closed.append(True)

    def fail(record: str) -> None:
        raise LookupError(record)

    with pytest.raises(LookupError, match="one"):
        call("run", Wire(sample("version.json")), engine(), fail)
    assert closed == [True]


def test_engine_runs_without_on_log(call: Call) -> None:
    """Without ``on_log`` records are dropped; ``Sleep(0)`` returns the time at once."""

    def engine() -> Any:
        before = yield Sleep(0)
        assert (yield EmitRecord("one")) is None
        after = yield Sleep(0.001)
        return after - before

    assert call("run", Wire(sample("version.json")), engine()) >= 0.001


def test_unknown_step_is_an_assertion_error(call: Call) -> None:
    """A step that the drivers do not know raises an AssertionError."""

    def engine() -> Any:
        yield "something"

    with pytest.raises(AssertionError):
        call("run", Wire(sample("version.json")), engine())


def test_send_does_not_retry(call: Call) -> None:
    """``send`` sends one request once, with its own timeout."""
    wire = Wire(httpx.Response(503))

    with pytest.raises(RayApiBusyError):
        call("send", wire, endpoints.submit_job(JobSubmission("a", "true")))
    assert wire.requests[0].extensions["timeout"]["read"] == endpoints.SUBMIT_TIMEOUT
    assert wire.requests[0].extensions["timeout"]["connect"] <= 10


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://ray-head:8265", "http://ray-head:8265"),
        ("https://ray.example.com/team-a/", "https://ray.example.com/team-a"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("http://[::1]:8265/", "http://[::1]:8265"),
    ],
)
def test_address_keeps_its_base_path(given: str, address: str) -> None:
    """An address is kept with its base path and without its last slash."""
    assert check_address(given) == address


@pytest.mark.parametrize(
    "address",
    [
        "", "ray-head:8265", "ray-head", "ray://ray-head:10001", "ftp://ray-head", "http://", "http:///jobs",
        "http://ray-head:port", "http://ray-head:99999", "http://[::1", "http://ray-head\n", f"http://me:{SECRET}@ray-head",
        f"http://{SECRET}@ray-head", f"http://ray-head?token={SECRET}", f"http://ray-head/#{SECRET}",
        f"ftp://me:{SECRET}@ray-head", f"http://me:{SECRET}@ray-head:port", f"me:{SECRET}@ray-head:8265",
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [check_address, RayJobsClient, AsyncRayJobsClient])
def test_invalid_address_is_rejected_without_quoting_a_secret(make: Callable[[str], Any], address: str) -> None:
    """An address that is not that of a dashboard is rejected by the constructor, and the error quotes no secret."""
    with pytest.raises(ValueError, match="address") as caught:
        make(address)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_client_imports_neither_airflow_nor_ray() -> None:
    """The client can be imported without Airflow and Ray."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['airflow', 'ray'])); "
        "import airflow_provider_rayjobs.jobs, airflow_provider_rayjobs.exceptions"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_log_text_is_decoded_from_json(call: Call) -> None:
    """The log of an old head is decoded from JSON as it arrives; incomplete or other JSON is an error."""

    def read(answer: httpx.Response) -> list[str]:
        log, shown = LogCursor(), []

        def engine() -> Any:
            yield ReadLog(endpoints.get_log_text("a"), log)

        call("run", Wire(answer), engine(), shown.append)
        return shown

    assert read(httpx.Response(200, json={"logs": "one\n zwei ü\n"})) == ["one\n zwei ü"]
    with pytest.raises(
        RayApiConnectionError, match="^Connection lost, the JSON of the answer is cut off: could not read the log of"
    ):
        read(httpx.Response(200, content=b'{"logs": "one\\n'))
    with pytest.raises(RayApiAddressError, match="does not begin with a text named logs"):
        read(httpx.Response(200, json={"something": "else", "that": "has nothing to do with it"}))


def test_failed_download_leaves_the_file_as_it_was(call: Call, tmp_path: Path) -> None:
    """A log is saved byte for byte after interruptions, and a failed download leaves the existing file."""
    data = b"\xff\x00" * 100_000
    path = tmp_path / "job.log"
    path.write_text("before")
    found = (sample("job_running.json"), sample("version.json"))

    with pytest.raises(RayApiAuthError):
        call("save_job_logs", Wire(*found, httpx.Response(401)), "a", path, client_retry_timeout=0)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("job.log", "before")]

    wire = Wire(*found, httpx.Response(200, stream=Cut(data[:5000])), httpx.Response(200, content=data))
    assert call("save_job_logs", wire, "a", str(path)) == len(data)
    assert [file.name for file in tmp_path.iterdir()] == ["job.log"]
    assert path.read_bytes() == data


def test_saved_log_is_never_the_text_of_a_busy_head(call: Call, tmp_path: Path) -> None:
    """The text of a log has other line ends than its file. It is no substitute while the head is busy."""
    wire = Wire(sample("job_running.json"), sample("version.json"), httpx.Response(429))

    with pytest.raises(RayApiBusyError):
        call("save_job_logs", wire, "a", tmp_path / "job.log", client_retry_timeout=0)

    assert wire.asked[-1].startswith(f"GET {FILE}")
    assert list(tmp_path.iterdir()) == []


def test_log_is_saved_under_any_name(call: Call, tmp_path: Path) -> None:
    """The longest name of a file is no error. A directory is one, and nothing is left beside it."""
    answers = (sample("job_running.json"), sample("version.json"), sample("log_file.txt"))
    longest = tmp_path / ("x" * 255)
    directory = tmp_path / "directory"
    directory.mkdir()

    assert call("save_job_logs", Wire(*answers), "a", longest) == len(LOG)
    with pytest.raises(OSError, match="directory"):
        call("save_job_logs", Wire(*answers), "a", directory)

    assert set(tmp_path.iterdir()) == {longest, directory}


@pytest.mark.parametrize("name", ["get_job", "stop_job", "delete_job", "get_job_logs"])
@pytest.mark.parametrize("submission_id", ["", ".", "..", "x\udcff"], ids=ascii)
def test_id_that_no_path_can_have_is_not_sent(call: Call, name: str, submission_id: str) -> None:
    """An id that is a step of the path, or that UTF-8 cannot encode, raises an error, and nothing is sent."""
    wire = Wire(sample("stopped.json"))

    with pytest.raises(ValueError, match=rf"^{re.escape(repr(submission_id))} is no id of a job\."):
        call(name, wire, submission_id)
    assert wire.requests == []


def test_observer_sees_each_request_and_its_error(call: Call):
    """The observer is entered around each request, retries and log reads included, and sees their errors."""
    seen = []

    @contextmanager
    def observer(request: AnyRequest) -> Iterator[None]:
        try:
            yield
        except RayJobsError as error:
            seen.append((request.endpoint, type(error).__name__))
            raise
        seen.append((request.endpoint, ""))

    wire = Wire(sample("job_succeeded.json"), sample("version.json"), httpx.ReadError("cut"), sample("log_file.txt"))

    assert call("get_job_logs", wire, "a", client_observer=observer) == LOG.decode()
    assert seen == [("get_job", ""), ("get_version", ""), ("get_log", "RayApiConnectionError"), ("get_log", "")]
