"""The states of a try: every transition, and every way to abort a try, against a scripted head."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred
from test_execution import Store, context

from airflow_provider_rayjobs.exceptions import (
    RayApiRejectedError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobStoppedError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task import states
from airflow_provider_rayjobs.task.attempts import JobRecordStore
from airflow_provider_rayjobs.task.execution import Execution
from airflow_provider_rayjobs.task.states import State
from airflow_provider_rayjobs.triggers import error_event, job_event

NO_JOB, EARLIER_JOB, SUBMITTING, FOLLOWING, RELEASED, DEFERRED, DONE = State
OWNS_JOB = [EARLIER_JOB, SUBMITTING, FOLLOWING]


class Head:
    """A head whose jobs have the status that a test gives them; a stop ends a job at once."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.stops: list[str] = []
        self.on_stop: Callable[[], object] = lambda: None
        # the status of each new job, and the HTTP status of each refused submission
        self.status = "SUCCEEDED"
        self.refusals: list[int] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/api/version":
                    self.answer({"version": "4", "ray_version": "2.60.0", "session_name": "session_1"})
                elif job := head.jobs.get(self.path.rpartition("/")[2]):
                    self.answer(job)
                else:
                    self.answer("Job does not exist", 404)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                if self.path.endswith("/stop"):
                    head.stop(self.path.split("/")[-2])
                    self.answer({"stopped": True})
                elif head.refusals:
                    self.answer("no", head.refusals.pop(0))
                else:
                    head.add(body["submission_id"], head.status, body["metadata"]["submission_nonce"])
                    self.answer({"submission_id": body["submission_id"]})

            def answer(self, content: Any, code: int = 200) -> None:
                is_text = isinstance(content, str)
                body = (content if is_text else json.dumps(content)).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if is_text else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, job: str, status: str, nonce: str) -> None:
        metadata = {"submission_nonce": nonce}
        self.jobs[job] = {"type": "SUBMISSION", "status": status, "submission_id": job, "metadata": metadata}

    def stop(self, job: str) -> None:
        self.stops.append(job)
        self.on_stop()
        if self.jobs[job]["status"] == "RUNNING":
            self.jobs[job]["status"] = "STOPPED"


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    head = Head()
    threading.Thread(target=head.server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
    yield head
    head.server.shutdown()
    head.server.server_close()


class Walk(Execution):
    """A try that records its states, and may be aborted in one of them."""

    abort_in: State | None = None
    abort: Callable[[], object]

    def _enter(self, state: State) -> None:
        self.path = getattr(self, "path", [self.state])
        if state is not self.path[-1]:
            self.path.append(state)
        super()._enter(state)
        is_armed = state in (FOLLOWING, RELEASED) or (state is SUBMITTING and self.settings.submission_id is None)
        assert (self.kill_switch._connect is not None) is is_armed
        if state is self.abort_in:
            self.abort_in = None
            self.abort()


def walk(store: Store, *, is_resumed: bool = False, max_tries: int = 0, **arguments: Any) -> Walk:
    """Return a try of a task that does not read its job's log."""
    given = {"task_id": "train", "entrypoint": "true", "fetch_logs": "never", "poll_interval": 0.1, "stop_timeout": 5}
    operator = RayJobSubmitOperator(**given | arguments)
    settings, records = operator._settings(), JobRecordStore(store)
    return Walk(operator, context(max_tries=max_tries), settings, records, operator._kill_switch, is_resumed=is_resumed)


def stored(head: Head, status: str | None, **changes: Any) -> Store:
    """Return the store of an earlier try, whose job has this status on the head, or is unknown to the head."""
    store = Store()
    with pytest.raises(TaskDeferred):
        walk(store, deferrable=True).submit_and_wait()
    store.set("ray_job", store.record | changes)
    job = store.record["submission_id"]
    if status is None:
        del head.jobs[job]
    else:
        head.jobs[job]["status"] = status
    return store


def event(head: Head, store: Store, status: str) -> dict[str, Any]:
    """Return the event of a trigger for a job with this status."""
    job = head.jobs[store.record["submission_id"]]
    job["status"] = status
    return {"submission_id": job["submission_id"]} | job_event(JobDetails.from_json(job))


# -- transitions --------------------------------------------------------------------------------------------------

NEW = [NO_JOB, SUBMITTING, FOLLOWING]
PATHS = [
    # the status of the recorded job and changes of the record, arguments of the operator, the states of the try
    pytest.param(None, {}, [*NEW, DONE], id="new job"),
    pytest.param(None, {"submission_id": "mine"}, [*NEW, DONE], id="new job with an id of the user"),
    pytest.param(None, {"wait_for_completion": False}, [*NEW, RELEASED, DONE], id="new job, not waited for"),
    pytest.param(None, {"deferrable": True}, [*NEW, DEFERRED], id="new job, deferred"),
    pytest.param(("SUCCEEDED", {}), {}, [NO_JOB, EARLIER_JOB, NO_JOB, DONE], id="finish"),
    pytest.param(
        ("SUCCEEDED", {}), {"wait_for_completion": False}, [NO_JOB, EARLIER_JOB, NO_JOB, DONE], id="finish, not waited"
    ),
    pytest.param(("FAILED", {}), {}, [NO_JOB, EARLIER_JOB, *NEW, DONE], id="submit"),
    pytest.param(("FAILED", {"address": "http://other:8265"}), {}, [*NEW, DONE], id="submit to another cluster"),
    pytest.param((None, {"accepted": False}), {}, [NO_JOB, EARLIER_JOB, *NEW, DONE], id="resubmit"),
    pytest.param(
        ("RUNNING", {}), {"deferrable": True}, [NO_JOB, EARLIER_JOB, FOLLOWING, DEFERRED], id="reattach, deferred"
    ),
    pytest.param(
        ("RUNNING", {"abandoned": True}), {}, [NO_JOB, EARLIER_JOB, DONE, SUBMITTING, FOLLOWING, DONE], id="replace"
    ),
]
REFUSED = [NO_JOB, SUBMITTING, NO_JOB, DONE]
REFUSED_AFTER_A_RETRY = [NO_JOB, SUBMITTING, DONE]
RESUMED = [DEFERRED, FOLLOWING, DONE]
RESUMED_TO_SHOW_THE_LOG = [DEFERRED, FOLLOWING, DEFERRED]


@pytest.mark.parametrize(("earlier", "arguments", "path"), PATHS)
def test_path(head: Head, earlier: Any, arguments: dict[str, Any], path: list[State]) -> None:
    """A try goes through the documented states. The kill switch is armed only in those of the table."""
    store = stored(head, earlier[0], **earlier[1]) if earlier else Store()
    run = walk(store, **arguments)
    try:
        run.submit_and_wait()
    except TaskDeferred:
        assert path[-1] is DEFERRED

    assert run.path == path


def test_path_of_a_refused_submission(head: Head) -> None:
    """Ray's refusal leaves no job, and nothing to stop."""
    head.refusals = [400]
    run = walk(Store())

    with pytest.raises(RayApiRejectedError):
        run.submit_and_wait()
    assert run.path == REFUSED
    assert head.stops == []


def test_path_of_a_submission_that_is_refused_after_a_retry(head: Head) -> None:
    """If the client has retried, Ray's refusal does not prove that no job exists. The try stops the job."""
    head.refusals = [503, 400]
    run = walk(Store())
    run.abort_in, run.abort = SUBMITTING, lambda: arrive(head, run)

    with pytest.raises(RayApiRejectedError):
        run.submit_and_wait()
    assert run.path == REFUSED_AFTER_A_RETRY
    assert head.stops == [run._record.submission_id]


def arrive(head: Head, run: Walk) -> None:
    """Let the submission arrive although its answer is lost."""
    head.add(run._record.submission_id, "RUNNING", run._record.nonce)


def test_path_of_a_resumed_try(head: Head) -> None:
    """A resumed try begins in DEFERRED. It ends with the job, or defers again while the job runs."""
    store = stored(head, "RUNNING")
    ended, flushed = (walk(store, is_resumed=True) for _ in range(2))

    with pytest.raises(TaskDeferred):
        flushed.resume(event(head, store, "RUNNING"))
    ended.resume(event(head, store, "SUCCEEDED"))
    assert (flushed.path, ended.path) == (RESUMED_TO_SHOW_THE_LOG, RESUMED)


def test_every_documented_transition_is_walked() -> None:
    """The tests above walk exactly the transitions of the table in the module's docstring."""
    rows = re.findall(r"^([A-Z_]+) +([A-Z_]+)  ", str(states.__doc__), re.MULTILINE)
    documented = {(State[before], State[after]) for before, after in rows}
    paths = [*(case.values[2] for case in PATHS), REFUSED, REFUSED_AFTER_A_RETRY, RESUMED, RESUMED_TO_SHOW_THE_LOG]
    walked = {pair for path in paths for pair in pairwise(path)}

    assert {pair for pair in walked if pair[1] is not DONE} == {pair for pair in documented if pair[1] is not DONE}
    assert {before for before, after in walked if after is DONE} == set(State) - {DEFERRED, DONE}


# -- ways to abort ------------------------------------------------------------------------------------------------


def aborted(head: Head, state: State, how: Callable[[Walk], object], **arguments: Any) -> tuple[Walk, Store]:
    """Return a try that aborts as it enters a state, while its job runs, and its store."""
    earlier = {EARLIER_JOB: "RUNNING", NO_JOB: "FAILED"}.get(state)
    store = stored(head, earlier) if earlier else Store()
    head.status = "RUNNING"
    run = walk(store, wait_for_completion=state is not RELEASED, **arguments)

    def abort() -> None:
        if state is SUBMITTING:
            arrive(head, run)
        how(run)

    run.abort_in, run.abort = state, abort
    return run, store


def throw(error: BaseException) -> Callable[[Walk], object]:
    def raise_it(run: Walk) -> None:
        raise error

    return raise_it


@pytest.mark.parametrize("state", [NO_JOB, *OWNS_JOB, RELEASED])
@pytest.mark.parametrize("max_tries", [0, 1], ids=["last try", "retry left"])
def test_error(head: Head, state: State, max_tries: int) -> None:
    """On the last try an error stops the job. Otherwise the job is left to the next try."""
    run, store = aborted(head, state, throw(RayJobsError("odd")), max_tries=max_tries)

    with pytest.raises(RayJobsError, match="odd"):
        run.submit_and_wait()
    is_stopped = state in OWNS_JOB and max_tries == 0
    assert head.stops == ([store.record["submission_id"]] if is_stopped else [])
    assert run.state is DONE


@pytest.mark.parametrize("error", [RayJobLostError("lost"), RayJobNotFoundError("gone")], ids=repr)
def test_error_of_a_job_that_is_gone(head: Head, error: RayJobsError) -> None:
    """A job that the cluster does not know is not stopped."""
    run, _ = aborted(head, FOLLOWING, throw(error))

    with pytest.raises(type(error)):
        run.submit_and_wait()
    assert head.stops == []


@pytest.mark.parametrize("state", [NO_JOB, *OWNS_JOB, RELEASED])
@pytest.mark.parametrize("stop_on_kill", [True, False])
def test_execution_timeout(head: Head, state: State, stop_on_kill: bool) -> None:
    """Airflow's timeout stops the job unless stop_on_kill is off. Without a job it is raised unchanged."""
    run, store = aborted(head, state, throw(AirflowTaskTimeout("late")), stop_on_kill=stop_on_kill, max_tries=1)
    abandoned: list[bool] = []
    head.on_stop = lambda: abandoned.append(store.record["abandoned"])

    with pytest.raises(AirflowTaskTimeout) as caught:
        run.submit_and_wait()
    assert isinstance(caught.value, RayJobTimeoutError) is (state in OWNS_JOB)
    is_stopped = state in OWNS_JOB and stop_on_kill
    assert head.stops == ([store.record["submission_id"]] if is_stopped else [])
    assert abandoned == ([True] if is_stopped else []), "a job is abandoned before its stop is sent"
    assert store.record["abandoned"] is is_stopped
    assert run.state is DONE


@pytest.mark.parametrize("stop_on_kill", [True, False])
def test_time_limit(head: Head, stop_on_kill: bool) -> None:
    """A time limit stops the job, with and without stop_on_kill."""
    late = RayJobTimeoutError("late", limit="job_timeout")
    run, store = aborted(head, FOLLOWING, throw(late), stop_on_kill=stop_on_kill, max_tries=1)
    abandoned: list[bool] = []
    head.on_stop = lambda: abandoned.append(store.record["abandoned"])

    with pytest.raises(RayJobTimeoutError, match="late"):
        run.submit_and_wait()
    assert head.stops == [store.record["submission_id"]]
    assert abandoned == [True]


def test_time_limit_of_a_job_that_has_just_ended(head: Head) -> None:
    """A job that succeeded before its stop is a success."""
    store = stored(head, "RUNNING")
    late = RayJobTimeoutError("late", limit="job_timeout", details=JobDetails.from_json(*head.jobs.values()))
    given = event(head, store, "SUCCEEDED") | error_event(late)
    del given["job"]

    assert walk(store, is_resumed=True).resume(given) == store.record["submission_id"]
    assert store.record["delivered"]


@pytest.mark.parametrize("state", [NO_JOB, *OWNS_JOB])
def test_kill(head: Head, state: State) -> None:
    """A kill stops the job: at once if the kill switch is armed, otherwise before the try ends."""
    run, store = aborted(head, state, lambda run: run.kill_switch.kill(), max_tries=1)

    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert head.stops == ([store.record["submission_id"]] if state in OWNS_JOB else [])
    assert (run.kill_switch.summary != "") is (state in (SUBMITTING, FOLLOWING))
    assert run.state is DONE


def test_kill_while_an_id_of_the_user_is_submitted(head: Head) -> None:
    """With an id of the user, only the try stops the job, after it has compared the submission nonce."""
    run, _ = aborted(head, SUBMITTING, lambda run: run.kill_switch.kill(), submission_id="mine")
    theirs, _ = aborted(head, SUBMITTING, lambda run: run.kill_switch.kill(), submission_id="theirs")
    theirs.abort = lambda: (head.add("theirs", "RUNNING", "another"), theirs.kill_switch.kill())

    for each in (run, theirs):
        with pytest.raises(RayJobStoppedError):
            each.submit_and_wait()
        assert each.kill_switch.summary == ""
    assert head.stops == ["mine"]


def test_kill_of_a_task_that_does_not_wait(head: Head) -> None:
    """A kill while the result is stored still stops the job."""
    run, store = aborted(head, RELEASED, lambda run: run.kill_switch.kill())

    run.submit_and_wait()
    assert head.stops == [store.record["submission_id"]]


def test_kill_of_a_task_that_has_just_been_deferred(head: Head) -> None:
    """After the deferral, the trigger stops the job, not the worker."""
    run = walk(Store(), deferrable=True)
    with pytest.raises(TaskDeferred):
        run.submit_and_wait()
    run.kill_switch.kill()

    assert head.stops == []


def test_kill_right_before_the_deferral(head: Head) -> None:
    """A killed task does not defer."""
    run, store = aborted(head, FOLLOWING, lambda run: run.kill_switch.kill(), deferrable=True)

    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert head.stops == [store.record["submission_id"]]
