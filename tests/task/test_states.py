"""The states of a try: every transition, and every way to abort a try, against a scripted head."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from stand_in_head import HttpHead
from test_execution import Store
from test_execution import context as context_of_try

from airflow_provider_rayjobs.exceptions import (
    RayApiRejectedError,
    RayApiUnreachableError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobNotTerminalError,
    RayJobsError,
    RayJobStoppedError,
    RayJobTimeoutError,
    RayPackageError,
)
from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task import kill_switch, states
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from airflow_provider_rayjobs.task.execution import Execution
from airflow_provider_rayjobs.task.states import State
from airflow_provider_rayjobs.testing import Reply
from airflow_provider_rayjobs.triggers import error_event, job_event

try:
    from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout
except ImportError:  # before Airflow 3.2
    from airflow.exceptions import TaskDeferralError, TaskDeferralTimeout

pytestmark = pytest.mark.skipif(not HAS_STORE, reason="Airflow 3.3 introduced the task state store")

STARTING, NO_JOB, EARLIER_JOB, SUBMITTING, FOLLOWING, RELEASED, DEFERRED, DONE = State
OWNS_JOB = [EARLIER_JOB, SUBMITTING, FOLLOWING]
ARMED = [*OWNS_JOB, RELEASED]
TRACEBACK = "Traceback (most recent call last):\nValueError: no"
TOKEN = "Unauthorized: Missing authentication token"


class Head(HttpHead):
    """A head whose jobs have the status that a test gives them. A stop ends a job at once, unless it is ignored."""

    def __init__(self, session: str = "session_1") -> None:
        super().__init__()
        self.session = session
        self.jobs: dict[str, dict[str, Any]] = {}
        self.stops: list[str] = []
        self.on_submit: Callable[[], object] = lambda: None
        self.on_stop: Callable[[], object] = lambda: None
        self.ignores_stops = False
        # the status and exit code of each new job
        self.status = "SUCCEEDED"
        self.exit_code: int | None = None
        # status and text of each refused submission; 0 creates the job and hangs up
        self.refusals: list[tuple[int, str]] = []
        # the same for each refused look at a job
        self.refused_looks: list[tuple[int, str]] = []

    def answer(self, method: str, path: str, body: bytes) -> Reply | None:
        if path.endswith("/stop"):
            self.stop(path.split("/")[-2])
            return Reply.json({"stopped": True})
        if method == "POST":
            return self._submit(json.loads(body))
        if path == "/api/version":
            return Reply.json({"version": "4", "ray_version": "2.60.0", "session_name": self.session})
        if self.refused_looks:
            code, text = self.refused_looks.pop(0)
            return Reply(code, text.encode())
        job = self.jobs.get(path.rpartition("/")[2])
        return Reply.json(job) if job else Reply(404, b"Job x does not exist")

    def _submit(self, body: dict[str, Any]) -> Reply | None:
        code, text = self.refusals.pop(0) if self.refusals else (200, "")
        self.on_submit()
        job = body["submission_id"]
        if code not in (0, 200):
            return Reply(code, text.encode())
        if job in self.jobs:
            return Reply(500, f"{TRACEBACK} Please use a different submission_id.".encode())
        self.add(job, self.status, **body["metadata"])
        return Reply.json({"submission_id": job, "job_id": job}) if code == 200 else None

    def add(self, job: str, status: str, **metadata: str) -> None:
        self.jobs[job] = {
            "type": "SUBMISSION",
            "status": status,
            "submission_id": job,
            "start_time": 1_767_312_000_000 + len(self.jobs),
            "driver_exit_code": self.exit_code,
            "metadata": metadata,
        }

    def stop(self, job: str) -> None:
        self.stops.append(job)
        self.on_stop()
        if self.jobs[job]["status"] == "RUNNING" and not self.ignores_stops:
            self.jobs[job]["status"] = "STOPPED"


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    with Head() as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        yield head


@pytest.fixture
def other_head() -> Iterator[Head]:
    """Another cluster."""
    with Head("session_of_another_cluster") as head:
        yield head


class Walk(Execution):
    """A try that records its states, and may be aborted in one of them."""

    abort_in: State | None = None
    abort: Callable[[], object]
    # how often the state is entered before
    times_before = 0

    def _enter(self, state: State) -> None:
        self.path = getattr(self, "path", [self.state])
        if state is not self.path[-1]:
            self.path.append(state)
        super()._enter(state)
        is_known = self._target is not None and (state is not EARLIER_JOB or self._record.job.nonce is not None)
        assert (self.kill_switch._connect is not None) is (state in ARMED and is_known)
        if state is self.abort_in:
            self.times_before -= 1
            if self.times_before < 0:
                self.abort_in = None
                self.abort()


class Failing(Store):
    """A store that fails for some time."""

    def __init__(self, *, gets: int = 0, sets: int = 0, error: BaseException | None = None) -> None:
        super().__init__()
        self.gets, self.sets = gets, sets
        self.error = error or OSError("the store is away")

    def get(self, key: str) -> Any:
        if self.gets:
            self.gets -= 1
            raise self.error
        return super().get(key)

    def set(self, key: str, value: Any, **options: Any) -> None:
        if self.sets:
            self.sets -= 1
            raise self.error
        super().set(key, value, **options)


# The tries of a test belong to one generation unless it says otherwise.
LAST, RETRY_LEFT = 0, 1
TRIES = pytest.mark.parametrize("max_tries", [LAST, RETRY_LEFT], ids=["last try", "retry left"])


def context(store: Store | None, max_tries: int = LAST, *, clears: int = 0, **ti: Any) -> dict[str, Any]:
    """Return the context of a try. A Clear raises ``max_tries`` and ``clear_number``."""
    given = context_of_try(store, max_tries=max_tries + clears, **{"try_number": 1} | ti.pop("of", {}))
    given["dag_run"].clear_number = clears
    vars(given["ti"]).update(ti)
    return given


def operator(**arguments: Any) -> RayJobSubmitOperator:
    """Return a task that does not read its job's log."""
    given = {"task_id": "train", "entrypoint": "true", "fetch_logs": "never", "poll_interval": 0.1, "stop_timeout": 5}
    return RayJobSubmitOperator(**given | arguments)


def walk(
    store: Store | None,
    *,
    is_resumed: bool = False,
    max_tries: int = LAST,
    clears: int = 0,
    ti: dict[str, Any] | None = None,
    **arguments: Any,
) -> Walk:
    """Return a try of a task."""
    task = operator(**arguments)
    given = context(store, max_tries, clears=clears, **ti or {})
    return Walk(task, given, task._kill_switch, is_resumed=is_resumed)


def stored(
    head: Head, status: str | None, *, max_tries: int = LAST, job: dict[str, Any] | None = None, **changes: Any
) -> Store:
    """
    Return the store of an earlier try, whose job has this status on the head, or is unknown to the head.

    :param job: changes of the reference to the job in the record.
    :param changes: changes of the record.
    """
    store = Store()
    with pytest.raises(TaskDeferred):
        walk(store, max_tries=max_tries, deferrable=True).submit_and_wait()
    if status is None:
        del head.jobs[store.job["submission_id"]]
    else:
        head.jobs[store.job["submission_id"]]["status"] = status
    store.change(job, **changes)
    return store


def event(head: Head, store: Store, status: str) -> dict[str, Any]:
    """Return the event of a trigger for a job with this status."""
    job = head.jobs[store.job["submission_id"]]
    job["status"] = status
    return {"submission_id": job["submission_id"]} | job_event(JobDetails.from_json(job))


# -- transitions --------------------------------------------------------------------------------------------------

NEW = [NO_JOB, SUBMITTING, FOLLOWING]
FOUND = [STARTING, EARLIER_JOB]
PATHS = [
    # the status of the recorded job, changes of the record, arguments of the operator, the states of the try
    pytest.param(None, {}, [STARTING, *NEW, DONE], id="new job"),
    pytest.param(None, {"submission_id": "mine"}, [STARTING, *NEW, DONE], id="new job with an id of the user"),
    pytest.param(None, {"wait_for_completion": False}, [STARTING, *NEW, RELEASED], id="new job, not waited for"),
    pytest.param(None, {"deferrable": True}, [STARTING, *NEW, DEFERRED], id="new job, deferred"),
    pytest.param(("SUCCEEDED", {}), {}, [*FOUND, NO_JOB, DONE], id="finish"),
    pytest.param(("SUCCEEDED", {"delivered": True}), {}, [*FOUND, NO_JOB, DONE], id="finish, delivered before"),
    pytest.param(("SUCCEEDED", {}), {"deferrable": True}, [*FOUND, NO_JOB, DONE], id="finish, deferrable"),
    pytest.param(
        ("SUCCEEDED", {}), {"wait_for_completion": False}, [*FOUND, NO_JOB, DONE], id="finish, not waited for"
    ),
    pytest.param(("FAILED", {}), {}, [*FOUND, *NEW, DONE], id="submit"),
    pytest.param((None, {"job": {"session": "before"}}), {}, [*FOUND, *NEW, DONE], id="submit after a restart"),
    pytest.param((None, {"accepted": False}), {}, [*FOUND, SUBMITTING, FOLLOWING, DONE], id="resubmit"),
    pytest.param(("SUCCEEDED", {}), {"clears": 1}, [*FOUND, *NEW, DONE], id="cleared"),
    pytest.param(
        ("RUNNING", {}), {"clears": 1, "stop_on_kill": False}, [*FOUND, *NEW, DONE], id="cleared, not stopped"
    ),
    pytest.param(("RUNNING", {}), {"clears": 1}, [*FOUND, DONE, *NEW, DONE], id="cleared, replaced"),
    pytest.param(("RUNNING", {"abandoned": True}), {}, [*FOUND, DONE, *NEW, DONE], id="replace"),
    pytest.param(("RUNNING", {}), {"deferrable": True}, [*FOUND, FOLLOWING, DEFERRED], id="reattach, deferred"),
    pytest.param(
        ("RUNNING", {}),
        {"wait_for_completion": False},
        [*FOUND, FOLLOWING, RELEASED],
        id="reattach, not waited for",
    ),
]
UNREADABLE = [STARTING, DONE]
REFUSED = [STARTING, NO_JOB, SUBMITTING, NO_JOB, DONE]
REFUSED_AFTER_A_RETRY = [STARTING, NO_JOB, SUBMITTING, DONE]
NOT_STOPPED = [STARTING, EARLIER_JOB, DONE]
RESUMED = [DEFERRED, FOLLOWING, DONE]
RESUMED_TO_SHOW_THE_LOG = [DEFERRED, FOLLOWING, DEFERRED]
TRIGGER_FAILED = [DEFERRED, DONE]


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
    assert store.record["holder"] == "try-1"


def test_path_of_a_try_that_cannot_read_its_record(head: Head) -> None:
    """Without the record nothing is submitted."""
    run = walk(Failing(gets=9))

    with pytest.raises(OSError, match="the store is away"):
        run.submit_and_wait()
    assert run.path == UNREADABLE
    assert head.jobs == {}


def test_path_of_a_refused_submission(head: Head) -> None:
    """Ray's refusal leaves no job, and nothing to stop."""
    head.refusals = [(400, TRACEBACK)]
    run = walk(Store())

    with pytest.raises(RayApiRejectedError) as caught:
        run.submit_and_wait()
    assert isinstance(caught.value, AirflowFailException)
    assert run.path == REFUSED
    assert head.stops == []


@pytest.mark.parametrize(
    "refusals",
    [
        pytest.param([(503, "busy"), (400, TRACEBACK)], id="refused by Ray after a retry"),
        pytest.param([(400, "a page")], id="refused by another program"),
    ],
)
def test_path_of_a_refusal_that_proves_nothing(head: Head, refusals: list[tuple[int, str]]) -> None:
    """
    The try stops the job that it may have submitted.

    If the client has retried, Ray's refusal does not prove that no job exists. Another program's never does.
    """
    head.refusals = refusals
    run = walk(Store())
    run.abort_in, run.abort = SUBMITTING, lambda: arrive(head, run)

    with pytest.raises(RayApiRejectedError) as caught:
        run.submit_and_wait()
    assert not isinstance(caught.value, AirflowFailException)
    assert run.path == REFUSED_AFTER_A_RETRY
    assert head.stops == [run._record.submission_id]


def arrive(head: Head, run: Walk) -> None:
    """Let the submission arrive although its answer is lost."""
    head.add(run._record.submission_id, "RUNNING", submission_nonce=run._record.job.nonce or "")


def test_path_of_a_resumed_try(head: Head) -> None:
    """A resumed try begins in DEFERRED. It ends with the job, or defers again while the job runs."""
    store = stored(head, "RUNNING")
    ended, flushed = (walk(store, is_resumed=True) for _ in range(2))

    with pytest.raises(TaskDeferred):
        flushed.resume(event(head, store, "RUNNING"))
    ended.resume(event(head, store, "SUCCEEDED"))
    assert (flushed.path, ended.path) == (RESUMED_TO_SHOW_THE_LOG, RESUMED)


def test_pool_of_a_deferred_task(head: Head, capfd: pytest.CaptureFixture[str]) -> None:
    """A try that defers in a pool of its own says once what the pool counts. In the default pool it says nothing."""
    notice = "it takes a slot of the pool ray_cluster only if the pool includes deferred tasks"
    store = stored(head, "RUNNING")
    assert "pool" not in capfd.readouterr().out

    given = {"pool": "ray_cluster", "deferrable": True}
    with pytest.raises(TaskDeferred):
        walk(store, **given).submit_and_wait()
    assert capfd.readouterr().out.count(notice) == 1
    with pytest.raises(TaskDeferred):
        walk(store, is_resumed=True, **given).resume(event(head, store, "RUNNING"))
    assert "pool" not in capfd.readouterr().out


def test_path_of_a_try_whose_trigger_failed(head: Head) -> None:
    """A try that cannot resume stops the job on its last try."""
    run = walk(stored(head, "RUNNING"), is_resumed=True)

    with pytest.raises(TaskDeferralError):
        run.guard(throw(TaskDeferralError("no such class")))
    assert run.path == TRIGGER_FAILED


def test_event_of_another_try(head: Head) -> None:
    """A cleared try that gets the event of an earlier one starts from the beginning."""
    store = stored(head, "RUNNING")
    first = store.job["submission_id"]
    run = walk(store, is_resumed=True, clears=1)

    assert run.resume(event(head, store, "SUCCEEDED") | {"try_id": "try-0"}) != first
    assert run.path == [*FOUND, *NEW, DONE]


def test_every_documented_transition_is_walked() -> None:
    """The tests above walk exactly the transitions of the table in the module's docstring."""
    rows = re.findall(r"^([A-Z_]+) +([A-Z_]+)  ", str(states.__doc__), re.MULTILINE)
    documented = {(State[before], State[after]) for before, after in rows}
    paths = [
        *(case.values[2] for case in PATHS), UNREADABLE, REFUSED, REFUSED_AFTER_A_RETRY, NOT_STOPPED, RESUMED,
        RESUMED_TO_SHOW_THE_LOG, TRIGGER_FAILED,
    ]  # fmt: skip
    walked = {pair for path in paths for pair in pairwise(path)}

    assert {pair for pair in walked if pair[1] is not DONE} == {pair for pair in documented if pair[1] is not DONE}
    # A released job may run on; only an error leads on from there, which test_error walks.
    assert {before for before, after in walked if after is DONE} == set(State) - {DONE, RELEASED}


# -- ways to abort ------------------------------------------------------------------------------------------------


def aborted(head: Head, state: State, how: Callable[[], object], **arguments: Any) -> tuple[Walk, Store]:
    """Return a try that aborts as it enters a state, while its job runs, and its store."""
    earlier = {EARLIER_JOB: "RUNNING", NO_JOB: "FAILED"}.get(state)
    store = stored(head, earlier, max_tries=arguments.get("max_tries", LAST)) if earlier else Store()
    head.status = "RUNNING"
    run = walk(store, **{"wait_for_completion": state is not RELEASED} | arguments)

    def abort() -> None:
        if state is SUBMITTING:
            arrive(head, run)
        how()

    run.abort_in, run.abort = state, abort
    run.times_before = 1 if state is EARLIER_JOB else 0  # when the arguments and the cluster are known
    return run, store


def throw(error: BaseException) -> Callable[[], Any]:
    def raise_it() -> None:
        raise error

    return raise_it


def killed(head: Head, state: State, **arguments: Any) -> tuple[Walk, Store]:
    """Return a try that is killed as it enters a state, and its store."""

    def kill() -> None:
        run.kill_switch.kill()

    run, store = aborted(head, state, kill, **arguments)
    return run, store


@pytest.mark.parametrize("state", [NO_JOB, *OWNS_JOB, RELEASED])
@pytest.mark.parametrize(
    "error",
    [RayJobsError("odd"), OSError("odd"), SystemExit("odd"), asyncio.CancelledError("odd")],
    ids=["ours", "another", "exit", "no exception"],
)
@TRIES
def test_error(head: Head, state: State, error: BaseException, max_tries: int) -> None:
    """On the last try an error stops the job. Otherwise it is left to the next try. User code may raise anything."""
    run, store = aborted(head, state, throw(error), max_tries=max_tries)

    with pytest.raises(type(error), match="odd"):
        run.submit_and_wait()
    is_stopped = state in OWNS_JOB and max_tries == LAST
    assert head.stops == ([store.job["submission_id"]] if is_stopped else [])
    assert run.state is DONE
    if state in OWNS_JOB and max_tries == RETRY_LEFT:
        head.jobs[store.job["submission_id"]]["status"] = "SUCCEEDED"
        assert walk(store, max_tries=RETRY_LEFT).submit_and_wait() == store.job["submission_id"]


def test_second_error(head: Head, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """User code, such as an ``auth`` class, raises again when the job is to be stopped. The log says so."""
    run, _ = aborted(head, FOLLOWING, throw(asyncio.CancelledError("odd")))
    monkeypatch.setattr(run, "_stop", throw(asyncio.CancelledError("odd, too")))

    with pytest.raises(asyncio.CancelledError, match="odd$"):
        run.submit_and_wait()
    assert "was not stopped. odd, too" in "".join(capfd.readouterr())


@TRIES
def test_error_without_a_store(head: Head, max_tries: int) -> None:
    """Without a store no try would find the job, so it is stopped on each."""
    run, _ = aborted(head, FOLLOWING, throw(RayJobsError("odd")), max_tries=max_tries, durable=False)

    with pytest.raises(RayJobsError, match="odd"):
        run.submit_and_wait()
    assert head.stops == [*head.jobs]


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
    late = throw(AirflowTaskTimeout("late"))
    run, store = aborted(head, state, late, stop_on_kill=stop_on_kill, max_tries=RETRY_LEFT)
    abandoned: list[bool] = []
    head.on_stop = lambda: abandoned.append(store.record["abandoned"])

    with pytest.raises(AirflowTaskTimeout) as caught:
        run.submit_and_wait()
    assert isinstance(caught.value, RayJobTimeoutError) is (state in OWNS_JOB)
    is_stopped = state in OWNS_JOB and stop_on_kill
    assert head.stops == ([store.job["submission_id"]] if is_stopped else [])
    assert abandoned == ([True] if is_stopped else []), "a job is abandoned before its stop is sent"
    assert store.record["abandoned"] is is_stopped
    assert run.state is DONE


def test_retry_after_an_execution_timeout_without_stop_on_kill(head: Head) -> None:
    """The job that was left alone is followed by the next try, which has an ``execution_timeout`` of its own."""
    run, store = aborted(head, FOLLOWING, throw(AirflowTaskTimeout("late")), stop_on_kill=False, max_tries=RETRY_LEFT)
    with pytest.raises(AirflowTaskTimeout):
        run.submit_and_wait()
    [job] = head.jobs.values()
    retry = walk(store, stop_on_kill=False, max_tries=RETRY_LEFT)
    retry.abort_in, retry.abort = FOLLOWING, lambda: job.update(status="SUCCEEDED")

    assert retry.submit_and_wait() == job["submission_id"]
    assert retry.path == [*FOUND, FOLLOWING, DONE]


@pytest.mark.parametrize("stop_on_kill", [True, False])
def test_time_limit(head: Head, stop_on_kill: bool) -> None:
    """A time limit stops the job, with and without stop_on_kill."""
    late = RayJobTimeoutError("late", limit="job_timeout")
    run, store = aborted(head, FOLLOWING, throw(late), stop_on_kill=stop_on_kill, max_tries=RETRY_LEFT)
    abandoned: list[bool] = []
    head.on_stop = lambda: abandoned.append(store.record["abandoned"])

    with pytest.raises(RayJobTimeoutError, match="late"):
        run.submit_and_wait()
    assert head.stops == [store.job["submission_id"]]
    assert abandoned == [True]


def test_time_limit_of_a_job_that_has_just_ended(head: Head) -> None:
    """A job that succeeded before its stop is a success."""
    store = stored(head, "RUNNING")
    late = RayJobTimeoutError("late", limit="job_timeout", details=JobDetails.from_json(*head.jobs.values()))
    given = event(head, store, "SUCCEEDED") | error_event(late)
    del given["job"]

    assert walk(store, is_resumed=True).resume(given) == store.job["submission_id"]
    assert store.record["delivered"]


@pytest.mark.parametrize("state", [NO_JOB, *OWNS_JOB])
def test_kill(head: Head, state: State) -> None:
    """A kill stops the job: at once if the kill switch is armed, otherwise before the try ends."""
    run, store = killed(head, state, max_tries=RETRY_LEFT)

    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert head.stops == ([store.job["submission_id"]] if state in OWNS_JOB else [])
    assert (run.kill_switch.summary != "") is (state in OWNS_JOB)
    assert run.state is DONE


@pytest.mark.parametrize("state", [NO_JOB, *OWNS_JOB, RELEASED])
@pytest.mark.parametrize("stop_on_kill", [True, False])
def test_interrupt(head: Head, state: State, stop_on_kill: bool) -> None:
    """Ctrl-C on ``dag.test()`` stops the job that the task waits for, unless stop_on_kill is off."""
    run, store = aborted(head, state, throw(KeyboardInterrupt()), max_tries=RETRY_LEFT, stop_on_kill=stop_on_kill)

    with pytest.raises(KeyboardInterrupt):
        run.submit_and_wait()
    assert head.stops == ([store.job["submission_id"]] if state in OWNS_JOB and stop_on_kill else [])
    assert run.state is DONE


def test_kill_before_the_try(head: Head) -> None:
    """A kill before the first request stops the job of an earlier try."""
    store = stored(head, "RUNNING", max_tries=RETRY_LEFT)
    run = walk(store, max_tries=RETRY_LEFT)
    run.kill_switch.kill()

    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert head.stops == [store.job["submission_id"]]


def test_kill_without_stop_on_kill(head: Head) -> None:
    """With ``stop_on_kill=False`` a kill changes nothing."""
    run, store = killed(head, SUBMITTING, stop_on_kill=False)
    head.refusals = [(503, "busy")]  # until the job has arrived
    run.abort = lambda: (run.kill_switch.kill(), setattr(head, "status", "SUCCEEDED"))

    assert run.submit_and_wait() == store.job["submission_id"]
    assert head.stops == []


def test_kill_while_an_id_of_the_user_is_submitted(head: Head) -> None:
    """With an id of the user, only the job with the submission nonce of this try is stopped."""
    run, _ = killed(head, SUBMITTING, submission_id="mine")
    theirs = walk(Store(), submission_id="theirs")
    theirs.abort_in = SUBMITTING
    theirs.abort = lambda: (head.add("theirs", "RUNNING", submission_nonce="another"), theirs.kill_switch.kill())

    for each in (run, theirs):
        with pytest.raises(RayJobStoppedError):
            each.submit_and_wait()
    assert head.stops == ["mine"]
    assert head.jobs["theirs"]["status"] == "RUNNING"


def test_kill_while_the_submission_is_in_flight(head: Head) -> None:
    """A signal interrupts the submission, which takes longer than SIGKILL permits. The job is stopped meanwhile."""
    main = threading.main_thread().ident
    run = walk(Store(), max_tries=RETRY_LEFT)
    stops: list[str] = []

    def on_signal(*_: object) -> None:
        run.kill_switch.kill()

    def submit_slowly() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)
        arrive(head, run)
        time.sleep(4)
        stops.extend(head.stops)

    head.status, head.on_submit = "RUNNING", submit_slowly
    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        with pytest.raises(RayJobStoppedError):
            run.submit_and_wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stops == [*head.jobs]
    assert [job["status"] for job in head.jobs.values()] == ["STOPPED"]
    assert "Ray accepted the stop" in run.kill_switch.summary


def task_states(state: str | None) -> dict[str, Any]:
    """Return what Airflow says about the task instance; "deleted": nothing."""
    return {"get_task_states": lambda **_: {} if state == "deleted" else {"run-1": {"train": state}}}


def hide(store: Store) -> None:
    """Hide the record as Airflow does from a try whose task instance has another id: it also refuses writes."""
    vars(store).update(values={}, set=lambda *_, **__: throw(OSError("404"))())


@pytest.mark.parametrize("state", ["up_for_retry", "scheduled", "queued", "running", "deferred", None])
def test_kill_of_a_try_that_has_a_successor(head: Head, state: str | None) -> None:
    """Airflow fails a try whose process lives, and hides the job record from it. The next try follows the job."""
    run, store = aborted(head, FOLLOWING, lambda: None, ti=task_states(state))
    run.abort = lambda: (hide(store), run.kill_switch.kill())

    with pytest.raises(RayJobStoppedError, match="another try of this task may see to Ray job"):
        run.submit_and_wait()
    time.sleep(2)  # longer than the kill switch waits for a verdict
    assert head.stops == []


@pytest.mark.parametrize("arguments", [{"deferrable": True}, {"wait_for_completion": False}], ids=["defer", "release"])
def test_leaving_a_job_that_has_a_successor(head: Head, arguments: dict[str, Any]) -> None:
    """A try that Airflow has failed learns it before its first heartbeat, and leaves the job to the next try."""
    run, store = aborted(head, FOLLOWING, lambda: None, ti=task_states("up_for_retry"), **arguments)
    run.abort = lambda: hide(store)

    with pytest.raises(RayJobStoppedError, match="another try of this task may see to Ray job"):
        run.submit_and_wait()
    assert head.stops == []


def test_kill_of_a_try_whose_successor_has_released_the_job(head: Head) -> None:
    """A task that does not wait succeeds in its next try, and the job outlives both."""
    run, store = aborted(head, FOLLOWING, lambda: None, ti=task_states("success"), wait_for_completion=False)
    run.abort = lambda: (hide(store), run.kill_switch.kill())

    with pytest.raises(RayJobStoppedError, match="another try of this task may see to Ray job"):
        run.submit_and_wait()
    assert head.stops == []


@pytest.mark.parametrize("state", ["restarting", "failed", "success", "skipped", "removed", "deleted"])
def test_kill_of_a_try_that_has_no_successor(head: Head, state: str) -> None:
    """The record is hidden from a cleared try, too, and from one whose run was deleted. Its job is stopped."""
    run, store = aborted(head, FOLLOWING, lambda: None, ti=task_states(state))
    run.abort = lambda: (hide(store), run.kill_switch.kill())

    with pytest.raises(RayJobStoppedError, match="a stop was requested"):
        run.submit_and_wait()
    assert [job["status"] for job in head.jobs.values()] == ["STOPPED"]
    assert "Ray accepted the stop" in run.kill_switch.summary


def test_kill_that_stops_the_job_before_airflow_names_a_successor(
    head: Head, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log says that the job was stopped, and that another try may see to it."""
    monkeypatch.setattr(kill_switch, "VERDICT_TIMEOUT", 0.1)

    def states(**_: Any) -> dict[str, dict[str, str]]:
        time.sleep(1)
        return {"run-1": {"train": "running"}}

    run, store = aborted(head, FOLLOWING, lambda: None, ti={"get_task_states": states})
    run.abort = lambda: (hide(store), run.kill_switch.kill())
    with pytest.raises(RayJobStoppedError, match="another try of this task may see to Ray job"):
        run.submit_and_wait()
    assert [*head.jobs] == head.stops
    assert "Ray accepted the stop" in "".join(capfd.readouterr())


@pytest.mark.parametrize("is_late", [True, False], ids=["after the end of the try", "during the try"])
def test_next_try_with_the_same_kill_switch(head: Head, is_late: bool) -> None:
    """
    A SIGTERM of ``dag.test()`` ends the following tries, too, as all run in one process.

    After a try that has timed out, Airflow calls ``on_kill`` as well. The next try runs.
    """
    run, store = aborted(head, FOLLOWING, throw(AirflowTaskTimeout()), max_tries=RETRY_LEFT)
    if not is_late:
        run.abort = run.task.on_kill
    with pytest.raises(RayJobTimeoutError if is_late else RayJobStoppedError):
        run.submit_and_wait()
    run.task.on_kill()
    head.status = "SUCCEEDED"
    following = Walk(run.task, context(store, RETRY_LEFT, of={"try_number": 2}), run.kill_switch)

    if is_late:
        assert following.submit_and_wait() in head.jobs
    else:
        with pytest.raises(RayJobStoppedError):
            following.submit_and_wait()
    assert len(head.jobs) == 1 + is_late


def test_kill_after_a_failing_try_has_left_its_job(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """A try that Airflow has failed is killed while it logs that the next try follows the job."""
    warnings: list[str] = []

    def warn(message: str, *args: Any) -> None:
        warnings.append(message % args)
        run.kill_switch.kill()

    run, _ = aborted(head, FOLLOWING, throw(OSError("odd")), max_tries=RETRY_LEFT)
    monkeypatch.setattr(run, "_warn", warn)
    with pytest.raises(OSError, match="odd"):
        run.submit_and_wait()
    assert ("It is not stopped: the next try follows it." in warnings[-1], head.stops) == (True, [])


@pytest.mark.parametrize("is_hidden", [True, False])
def test_kill_during_an_outage_of_airflow(head: Head, is_hidden: bool) -> None:
    """If the record cannot be read, the job is stopped. A hidden record without a state belongs to a next try."""
    store = Failing()
    run = walk(store, ti={"get_task_states": lambda **_: throw(OSError("Airflow is away"))()})
    head.status = "RUNNING"

    def kill() -> None:
        if is_hidden:
            hide(store)
        else:
            store.gets = 9
        run.kill_switch.kill()

    run.abort_in, run.abort = FOLLOWING, kill
    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert [job["status"] for job in head.jobs.values()] == ["RUNNING" if is_hidden else "STOPPED"]


def test_kill_while_airflow_does_not_answer(head: Head) -> None:
    """The job is stopped before SIGKILL although the record is read for longer."""
    stops: list[str] = []

    class Slow(Store):
        is_slow = False

        def get(self, key: str) -> Any:
            if self.is_slow:
                time.sleep(4)
                stops.extend(head.stops)
            return super().get(key)

    run = walk(store := Slow())
    head.status = "RUNNING"
    run.abort_in, run.abort = FOLLOWING, lambda: (setattr(store, "is_slow", True), run.kill_switch.kill())
    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert stops == [*head.jobs]


def test_kill_of_a_submission_whose_answer_is_lost(head: Head) -> None:
    """The try looks for the job of an unanswered submission, and stops it when it appears."""
    run = walk(Store())
    timer = threading.Timer(1.5, lambda: arrive(head, run))

    def die() -> None:
        timer.start()
        raise RayApiUnreachableError("no answer")

    run.abort_in, run.abort = SUBMITTING, die
    with pytest.raises(RayApiUnreachableError):
        run.submit_and_wait()
    timer.join()
    assert [job["status"] for job in head.jobs.values()] == ["STOPPED"]


def test_kill_of_a_task_that_does_not_wait(head: Head) -> None:
    """A kill while the result is stored still stops the job."""
    run, store = killed(head, RELEASED)

    run.submit_and_wait()
    assert head.stops == [store.job["submission_id"]]


def test_kill_after_a_task_that_does_not_wait_has_returned(head: Head) -> None:
    """A hook of the user may still run then. The job is stopped with its task."""
    run = walk(store := Store(), wait_for_completion=False)
    run.submit_and_wait()
    head.jobs[job := store.job["submission_id"]]["status"] = "RUNNING"
    run.kill_switch.kill()

    assert head.stops == [job]


def test_kill_of_a_try_that_could_not_note_that_it_follows_the_job(head: Head) -> None:
    """After a failed write the record names the earlier try. That one has ended, and the kill stops the job."""
    store = stored(head, "RUNNING", max_tries=RETRY_LEFT)
    failing = Failing(sets=1)
    failing.values = store.values
    run = walk(failing, max_tries=RETRY_LEFT, ti={"of": {"try_number": 2}})
    timer = threading.Timer(1, run.kill_switch.kill)
    timer.start()

    with pytest.raises(RayJobStoppedError, match="ended with status STOPPED"):
        run.submit_and_wait()
    timer.join()
    assert failing.record["holder"] == "try-1"
    assert head.stops


@pytest.mark.parametrize("state", ["success", "up_for_retry"])
def test_kill_of_the_callbacks_of_a_task_that_does_not_wait(head: Head, state: str) -> None:
    """Airflow has the end of the try, and kills callbacks that take too long. The job runs on."""
    run = walk(store := Store(), wait_for_completion=False)
    run.submit_and_wait()
    head.jobs[store.job["submission_id"]]["status"] = "RUNNING"
    run.context["ti"].state = state  # as Airflow sets it after its report
    run.kill_switch.kill()

    assert head.stops == []


def test_killed_task_submits_nothing(head: Head) -> None:
    """A task that was killed before its submission submits nothing, also with ``stop_on_kill=False``."""
    run = walk(Store(), stop_on_kill=False)
    run.kill_switch.kill()

    with pytest.raises(RayJobStoppedError, match="no Ray job to stop"):
        run.submit_and_wait()
    assert head.jobs == {}


@pytest.mark.parametrize("state", [EARLIER_JOB, FOLLOWING])
def test_kill_that_meets_an_error(head: Head, state: State) -> None:
    """A killed task leaves no job to a next try, as none will come."""

    def killed_and_broken() -> None:
        run.kill_switch.kill()
        raise ValueError("broken")

    run, _ = aborted(head, state, killed_and_broken, max_tries=5)
    with pytest.raises(ValueError, match="broken"):
        run.submit_and_wait()
    assert "RUNNING" not in {job["status"] for job in head.jobs.values()}


def test_kill_of_a_task_that_has_just_been_deferred(head: Head) -> None:
    """After the deferral, the trigger stops the job, not the worker."""
    run = walk(Store(), deferrable=True)
    with pytest.raises(TaskDeferred):
        run.submit_and_wait()
    run.kill_switch.kill()

    assert head.stops == []


@pytest.mark.parametrize("arguments", [{"deferrable": True}, {"wait_for_completion": False}], ids=["defer", "release"])
def test_kill_right_before_the_task_leaves_its_job(head: Head, arguments: dict[str, Any]) -> None:
    """A killed task neither defers nor leaves its job running."""
    run, store = killed(head, FOLLOWING, **arguments)

    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert head.stops == [store.job["submission_id"]]


@pytest.mark.parametrize("moment", ["question", "write"])
@pytest.mark.parametrize("arguments", [{"deferrable": True}, {"wait_for_completion": False}], ids=["defer", "release"])
def test_kill_while_airflow_answers(head: Head, arguments: dict[str, Any], moment: str) -> None:
    """A worker is shut down while its last requests to Airflow wait. The try fails, as its job is stopped."""

    class Killing(Store):
        def set(self, key: str, value: Any, **options: Any) -> None:
            super().set(key, value, **options)
            if moment == "write" and value["accepted"] and (value["delivered"] or "deferrable" in arguments):
                run.kill_switch.kill()

    def states(**_: Any) -> dict[str, dict[str, str]]:
        if moment == "question":
            run.kill_switch.kill()
        return {"run-1": {"train": "running"}}

    head.status = "RUNNING"
    run = walk(store := Killing(), ti={"get_task_states": states}, **arguments)
    with pytest.raises(RayJobStoppedError, match="ended with status STOPPED"):
        run.submit_and_wait()
    assert head.jobs[store.job["submission_id"]]["status"] == "STOPPED"


@pytest.mark.parametrize("arguments", [{"deferrable": True}, {"wait_for_completion": False}], ids=["defer", "release"])
def test_kill_while_airflow_names_a_successor(head: Head, arguments: dict[str, Any]) -> None:
    """Airflow has failed a try that asks for the last time, and kills it. The job is left to the next try."""

    def states(**_: Any) -> dict[str, dict[str, str]]:
        hide(store)
        run.kill_switch.kill()
        return {"run-1": {"train": "running"}}

    head.status = "RUNNING"
    run = walk(store := Store(), ti={"get_task_states": states}, **arguments)
    with pytest.raises(RayJobStoppedError, match="another try of this task may see to Ray job"):
        run.submit_and_wait()
    assert head.stops == []


def test_kill_while_ray_is_slow_about_the_earlier_job(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that waits for Ray's first answer is killed. The job is stopped before the answer comes."""
    stops_before_answer: list[str] = []
    answer = head.answer

    def kill_and_wait(method: str, path: str, body: bytes) -> Reply | None:
        if method == "GET" and path.startswith("/api/jobs/"):
            monkeypatch.setattr(head, "answer", answer)
            run.kill_switch.kill()
            deadline = time.monotonic() + 4
            while not head.stops and time.monotonic() < deadline:
                time.sleep(0.05)
            stops_before_answer.extend(head.stops)
        return answer(method, path, body)

    run = walk(store := stored(head, "RUNNING"))
    monkeypatch.setattr(head, "answer", kill_and_wait)
    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert stops_before_answer == [store.job["submission_id"]]


def test_execution_timeout_at_the_end_of_a_failing_try(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit may expire before the handling of an error has ended it. The try ends as one that timed out."""
    run, store = aborted(head, FOLLOWING, throw(OSError("odd")), execution_timeout=timedelta(seconds=100))
    end = run._end_execution_timeout

    def expire() -> None:
        monkeypatch.setattr(run, "_end_execution_timeout", end)
        raise AirflowTaskTimeout

    monkeypatch.setattr(run, "_end_execution_timeout", expire)
    with pytest.raises(RayJobTimeoutError, match="did not end within the execution_timeout"):
        run.submit_and_wait()
    assert head.stops == [store.job["submission_id"]]


# -- before the first request -------------------------------------------------------------------------------------

CONNECTION = "AIRFLOW_CONN_RAY_JOBS_DEFAULT"


def with_broken_connection(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv(CONNECTION, '{"conn_type": "ray_jobs"}')  # without a host
    return {}


def with_undefined_connection(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.delenv("RAY_API_SERVER_ADDRESS")
    return {}


BROKEN = [
    # what breaks, the error
    pytest.param(with_broken_connection, ValueError, id="connection without a host"),
    pytest.param(with_undefined_connection, AirflowNotFoundException, id="connection not defined"),
    pytest.param(lambda patch: {"poll_interval": "often"}, ValueError, id="invalid duration"),
    pytest.param(lambda patch: {"fail_on_exit_code": "x"}, ValueError, id="invalid exit code"),
    pytest.param(lambda patch: {"ray_conn_id": "nowhere"}, AirflowNotFoundException, id="another connection"),
]


def render(run: Walk, arguments: dict[str, Any]) -> None:
    """Give a task the arguments to which its templates were rendered."""
    for field, value in arguments.items():
        setattr(run.task, field, value)


def with_setting(option: str, value: str) -> Callable[[pytest.MonkeyPatch], dict[str, Any]]:
    return lambda patch: patch.setenv(f"AIRFLOW__RAY_JOBS__{option.upper()}", value) or {}


def with_unknown_extra(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv(CONNECTION, '{"conn_type": "ray_jobs", "host": "127.0.0.1", "extra": {"tokn": "x"}}')
    return {}


def with_large_code(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    with open("code.zip", "wb") as file:  # noqa: PTH123  (in the working directory of the test)
        file.truncate(150 * 2**20)
    return {"runtime_env": {"working_dir": "code.zip"}}


MISTAKES = [
    pytest.param(with_broken_connection, "host is empty", id="connection without a host"),
    pytest.param(with_unknown_extra, "unknown extra tokn", id="unknown extra"),
    pytest.param(with_setting("unreachable_timeout", "long"), "unreachable_timeout must be", id="setting"),
    pytest.param(lambda _: {"runtime_env": {"pips": ["x"]}}, "did you mean 'pip'", id="misspelt key"),
    pytest.param(lambda _: {"runtime_env": {"working_dir": "nowhere"}}, "file not found: 'nowhere'", id="directory"),
    pytest.param(lambda _: {"runtime_env": "no.yaml"}, "file not found: no.yaml", id="YAML file"),
    pytest.param(with_large_code, "Package too large", id="150 MiB of code"),
    pytest.param(lambda _: {"entrypoint": ""}, "entrypoint is empty", id="empty entrypoint"),
    pytest.param(lambda _: {"entrypoint_num_gpus": "one"}, "must be a number", id="number"),
    pytest.param(lambda _: {"submission_id": "a/b"}, "submission_id 'a/b' is invalid", id="slash in the id"),
    pytest.param(lambda _: {"metadata": {"airflow_dag_id": "x"}}, "must not contain airflow_dag_id", id="metadata"),
]


@pytest.mark.parametrize(("breaks", "message"), MISTAKES)
@pytest.mark.parametrize("has_policy", [False, True], ids=["no policy", "policy"])
@pytest.mark.parametrize("is_deferrable", [False, True], ids=["worker", "deferrable"])
def test_mistake_fails_at_once(
    head: Head,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    breaks: Callable[[pytest.MonkeyPatch], dict[str, Any]],
    message: str,
    has_policy: bool,
    is_deferrable: bool,
) -> None:
    """What no retry can fix ends the retries, also if a policy would retry every error. Nothing is submitted."""
    from airflow.sdk import ExceptionRetryPolicy, RetryAction

    monkeypatch.chdir(tmp_path)
    policy = ExceptionRetryPolicy([], default=RetryAction.RETRY) if has_policy else None
    run = walk(Store(), max_tries=RETRY_LEFT, deferrable=is_deferrable, retry_policy=policy)
    render(run, breaks(monkeypatch))

    with pytest.raises(ValueError, match=message) as caught:
        run.submit_and_wait()
    assert isinstance(caught.value, AirflowFailException)
    assert type(caught.value).__name__ == "ValueError"
    assert caught.value.__suppress_context__
    assert head.jobs == {}


@TRIES
def test_mistake_while_a_submission_may_arrive(head: Head, max_tries: int) -> None:
    """A mistake leaves a submission that may still arrive to the next try. The last try waits for it, and stops it."""
    store = stored(head, "RUNNING", max_tries=max_tries, accepted=False)
    arrived = dict(head.jobs)
    head.jobs.clear()
    run = walk(store, max_tries=max_tries)
    render(run, {"runtime_env": {"working_dir": "nowhere"}})
    arrival = threading.Timer(1, head.jobs.update, (arrived,))
    arrival.start()

    with pytest.raises(ValueError, match="file not found") as caught:
        run.submit_and_wait()
    arrival.join()
    assert not isinstance(caught.value, AirflowFailException)
    assert head.stops == ([store.job["submission_id"]] if max_tries == LAST else [])


def test_mistake_after_a_replacement(head: Head) -> None:
    """A mistake after the job of a cleared task was stopped ends the retries, as no job is left."""
    run = walk(stored(head, "RUNNING"), max_tries=RETRY_LEFT, clears=1)
    render(run, {"runtime_env": {"working_dir": "nowhere"}})

    with pytest.raises(ValueError, match="file not found") as caught:
        run.submit_and_wait()
    assert isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize("content", [None, b"", b"abc\0\0", b"a" * 100_000], ids=["missing", "empty", "NUL", "large"])
def test_credentials_that_cannot_be_read_are_retried(
    head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
):
    """A token file that is missing or half written may be complete at the next try."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    if content is not None:
        (tmp_path / "token").write_bytes(content)

    with pytest.raises(ValueError, match="token_file ") as caught:
        walk(Store(), max_tries=RETRY_LEFT).submit_and_wait()
    assert not isinstance(caught.value, AirflowFailException)
    assert head.jobs == {}


@pytest.mark.parametrize("runtime_env", [{"working_dir": "code"}, "code"], ids=["directory", "YAML file"])
def test_local_code_on_a_failing_disk_is_retried(
    head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime_env: Any
):
    """A path that the system cannot follow, neither while templates are rendered nor later, is no mistake."""
    (tmp_path / "code").symlink_to("code")
    monkeypatch.chdir(tmp_path)
    run = walk(Store(), max_tries=RETRY_LEFT, runtime_env=runtime_env)
    run.task.render_template_fields(run.context)

    with pytest.raises(RayPackageError, match="Could not read '/.*/code': Too many levels of symbolic links") as caught:
        run.submit_and_wait()
    assert not isinstance(caught.value, AirflowFailException)
    assert head.jobs == {}


@pytest.mark.parametrize(("breaks", "error"), BROKEN)
@pytest.mark.parametrize("is_resumed", [False, True], ids=["first", "resumed"])
@TRIES
def test_error_before_the_first_request(
    head: Head,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch], dict[str, Any]],
    error: type[Exception],
    is_resumed: bool,
    max_tries: int,
) -> None:
    """On the last try, the job of an earlier one is stopped where it is, whatever this try cannot read."""
    store = stored(head, "RUNNING", max_tries=max_tries)
    arguments = breaks(monkeypatch)
    run = walk(store, max_tries=max_tries, is_resumed=is_resumed)
    render(run, arguments)

    with pytest.raises(error) as caught:
        run.resume(event(head, store, "RUNNING")) if is_resumed else run.submit_and_wait()
    assert not isinstance(caught.value, AirflowFailException)
    assert head.stops == ([store.job["submission_id"]] if max_tries == LAST else [])
    assert len(head.jobs) == 1
    if max_tries == LAST:
        assert run.path == (TRIGGER_FAILED if is_resumed else NOT_STOPPED)


def test_token_file_that_is_replaced(head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token file that is missing for a moment ends the try. The job is stopped when the file is there again."""
    store = stored(head, "RUNNING")
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    timer = threading.Timer(1, lambda: token.write_text("marked-secret"))
    timer.start()

    with pytest.raises(ValueError, match="token"):
        walk(store).submit_and_wait()
    timer.join()
    assert head.stops == [store.job["submission_id"]]
    assert head.authorizations[-1] == "Bearer marked-secret"


@pytest.mark.parametrize("error", [OSError("the store is away"), AirflowTaskTimeout("late")], ids=repr)
def test_error_while_the_record_is_read(head: Head, error: BaseException) -> None:
    """If the job record can be read after an error, the job of an earlier try is stopped."""
    store = Failing(gets=1, error=error)
    store.values = stored(head, "RUNNING").values

    with pytest.raises(type(error)):
        walk(store).submit_and_wait()
    assert head.stops == [store.job["submission_id"]]
    assert store.record["abandoned"] is isinstance(error, AirflowTaskTimeout)


def test_record_that_cannot_be_read(head: Head, capfd: pytest.CaptureFixture[str]) -> None:
    """If the job record cannot be read at all, the log says that a job may run. Nothing is submitted."""
    store = Failing(gets=9)
    store.values = stored(head, "RUNNING").values

    with pytest.raises(OSError, match="the store is away"):
        walk(store).submit_and_wait()
    assert len(head.jobs) == 1
    assert head.stops == []
    assert "The job record of this task cannot be read. An earlier try's job may still run." in capfd.readouterr().out


@TRIES
def test_record_that_a_resumed_try_cannot_read(head: Head, max_tries: int) -> None:
    """The event names the job. After an error it is stopped: a next try may not be able to read the record either."""
    store = Failing(gets=9)
    store.values = (given := stored(head, "RUNNING", max_tries=max_tries)).values
    away = RayApiUnreachableError("away")

    with pytest.raises(RayApiUnreachableError):
        walk(store, max_tries=max_tries, is_resumed=True).resume(
            {"submission_id": given.job["submission_id"], "job_ref": given.job} | error_event(away)
        )
    assert head.stops == [given.job["submission_id"]]


def test_success_of_a_resumed_try_that_cannot_read_its_record(head: Head) -> None:
    """The event has all that a success needs."""
    store = Failing(gets=9)
    store.values = (given := stored(head, "RUNNING")).values

    assert walk(store, is_resumed=True).resume(event(head, given, "SUCCEEDED")) == given.job["submission_id"]


def test_record_that_cannot_be_stored(head: Head) -> None:
    """Without a stored record nothing is submitted, as the next try could not find the job."""
    run = walk(Failing(sets=9))

    with pytest.raises(OSError, match="the store is away"):
        run.submit_and_wait()
    assert head.jobs == {}


def test_record_of_a_followed_job_that_cannot_be_stored(head: Head) -> None:
    """A job that is followed does not need the store: the next try asks Ray anyway."""
    store = Failing()
    store.values = stored(head, "RUNNING").values
    store.sets = 9
    run = walk(store)
    run.abort_in = FOLLOWING
    run.abort = lambda: head.jobs[store.job["submission_id"]].update(status="SUCCEEDED")

    assert run.submit_and_wait() == store.job["submission_id"]
    assert head.stops == []


def test_record_of_a_replaced_job_that_cannot_be_stored(head: Head) -> None:
    """The old job is stopped before the new record is stored, so no job runs."""
    store = Failing()
    store.values = stored(head, "RUNNING").values
    store.sets = 9

    with pytest.raises(OSError, match="the store is away"):
        walk(store, clears=1).submit_and_wait()
    assert [job["status"] for job in head.jobs.values()] == ["STOPPED"]


def test_unreadable_record(head: Head) -> None:
    """Of an unreadable record the id is enough: the job is found, followed, and not started twice."""
    store = stored(head, "RUNNING")
    job = store.job["submission_id"]
    store.set("ray_job", {"version": 9, "jobs": [{}], "job": {"submission_id": job}})
    run = walk(store)
    run.abort_in, run.abort = FOLLOWING, lambda: head.jobs[job].update(status="SUCCEEDED")

    assert run.submit_and_wait() == job
    assert run.path == [*FOUND, FOLLOWING, DONE]
    assert len(head.jobs) == 1


def test_unreadable_record_of_a_cleared_task(head: Head) -> None:
    """The job's metadata tell that the task was cleared since."""
    store = stored(head, "RUNNING")
    job = store.job["submission_id"]
    store.set("ray_job", {"submission_id": job})

    assert walk(store, clears=1).submit_and_wait() != job
    assert head.stops == [job]


# -- a trigger that failed ----------------------------------------------------------------------------------------

FAILED_TRIGGER = {"error": "Trigger failure", "traceback": ["ImportError: no such trigger"]}


def resume_after_failure(store: Store | None, max_tries: int, **arguments: Any) -> None:
    """Resume a task whose trigger could not be imported, as Airflow does."""
    ti = arguments.pop("ti", {})
    operator(**arguments).resume_execution("__fail__", FAILED_TRIGGER, context(store, max_tries, **ti))  # type: ignore[arg-type]


@TRIES
def test_trigger_failed(head: Head, max_tries: int) -> None:
    """On the last try the job is stopped. Otherwise the next try follows it."""
    store = stored(head, "RUNNING", max_tries=max_tries)

    with pytest.raises(TaskDeferralError):
        resume_after_failure(store, max_tries)
    assert head.stops == ([store.job["submission_id"]] if max_tries == LAST else [])
    if max_tries == RETRY_LEFT:
        retry = walk(store, max_tries=max_tries)
        retry.abort_in, retry.abort = FOLLOWING, lambda: next(iter(head.jobs.values())).update(status="SUCCEEDED")
        assert retry.submit_and_wait() == store.job["submission_id"]


def test_trigger_timed_out(head: Head) -> None:
    """A deferral that timed out is handled as a trigger that failed."""
    store = stored(head, "RUNNING")

    with pytest.raises(TaskDeferralTimeout):
        operator().resume_execution("__fail__", {"error": "Trigger timeout"}, context(store))  # type: ignore[arg-type]
    assert head.stops == [store.job["submission_id"]]


@TRIES
@pytest.mark.parametrize("map_index", [-1, 3])
def test_trigger_failed_without_a_store(head: Head, max_tries: int, map_index: int) -> None:
    """Without a store, the task's own XCom names the job. No other try would find it, so it is stopped."""
    store = stored(head, "RUNNING", max_tries=max_tries)
    job = store.job["submission_id"]
    asked: list[dict[str, Any]] = []

    def xcom_pull(**given: Any) -> dict[str, Any]:
        asked.append(given)
        return store.job

    with pytest.raises(TaskDeferralError):
        resume_after_failure(None, max_tries, ti={"xcom_pull": xcom_pull, "map_index": map_index}, durable=False)
    assert head.stops == [job]
    assert asked == [{"key": "ray_job_ref", "task_ids": "train", "map_indexes": map_index}]


def test_trigger_failed_and_the_record_cannot_be_read(head: Head) -> None:
    """The XCom names the job if the store does not."""
    store = Failing(gets=9)
    store.values = (given := stored(head, "RUNNING")).values

    with pytest.raises(TaskDeferralError):
        resume_after_failure(store, LAST, ti={"xcom_pull": lambda **_: given.job})
    assert head.stops == [given.job["submission_id"]]


def test_trigger_failed_before_a_submission(head: Head) -> None:
    """Without a trace of a job there is nothing to stop."""
    with pytest.raises(TaskDeferralError):
        resume_after_failure(Store(), LAST)
    assert head.stops == []


def test_trigger_failed_and_nothing_can_be_read(head: Head, capfd: pytest.CaptureFixture[str]) -> None:
    """The error of the trigger is raised. The log says that the job was not stopped, and why."""
    with pytest.MonkeyPatch.context() as patch:
        with_undefined_connection(patch)
        nowhere = {"address": "", "submission_id": "job-1"}
        with pytest.raises(TaskDeferralError):
            resume_after_failure(None, LAST, ti={"xcom_pull": lambda **_: nowhere}, durable=False)
    assert "Ray job job-1 was not stopped. The address of Ray job job-1 is unknown" in capfd.readouterr().out


def test_resumed_without_an_event(head: Head) -> None:
    """An event that is missing is an error of the trigger."""
    store = stored(head, "RUNNING")

    with pytest.raises(RayJobsError, match="ended without a message"):
        operator().execute_complete(context(store))  # type: ignore[arg-type]
    assert head.stops == [store.job["submission_id"]]


# -- a task that Airflow has ended --------------------------------------------------------------------------------


def in_state(state: str | None, name: str = "train") -> dict[str, Any]:
    """Return what a task instance in this state is asked for right before it defers."""

    def get_task_states(**given: Any) -> dict[str, Any]:
        assert given == {"dag_id": "nightly", "map_index": -1, "task_ids": ["train"], "run_ids": ["run-1"]}
        return {"run-1": {name: state}}

    return {"get_task_states": get_task_states}


def unreachable(**_: Any) -> Any:
    raise ConnectionError("the API server is away")


GOES_ON = [in_state("running"), in_state("deferred"), in_state(None), {"get_task_states": lambda **_: {}}]


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "removed", "restarting", "up_for_retry"])
@pytest.mark.parametrize("arguments", [{"deferrable": True}, {"wait_for_completion": False}], ids=["defer", "release"])
@TRIES
def test_deferral_that_airflow_would_reject(head: Head, state: str, arguments: dict[str, Any], max_tries: int) -> None:
    """A task that was marked or cleared meanwhile stops its job instead of leaving it."""
    head.status = "RUNNING"
    run = walk(Store(), max_tries=max_tries, ti=in_state(state), **arguments)

    with pytest.raises(RayJobStoppedError, match="Airflow ended this task"):
        run.submit_and_wait()
    assert head.stops == [*head.jobs]


@pytest.mark.parametrize("answer", [*GOES_ON, {"get_task_states": unreachable}])
def test_deferral_that_airflow_would_accept(head: Head, answer: dict[str, Any]) -> None:
    """A task that runs defers, also if Airflow cannot tell its state."""
    head.status = "RUNNING"

    with pytest.raises(TaskDeferred):
        walk(Store(), deferrable=True, ti=answer).submit_and_wait()
    assert head.stops == []


def test_second_deferral_that_airflow_would_reject(head: Head) -> None:
    """The task looks again before each deferral."""
    store = stored(head, "RUNNING")

    with pytest.raises(RayJobStoppedError, match="Airflow ended this task"):
        walk(store, is_resumed=True, ti=in_state("failed")).resume(event(head, store, "RUNNING"))
    assert head.stops == [store.job["submission_id"]]


@pytest.mark.parametrize(("state", "is_stopped"), [("failed", True), ("success", True), ("running", False)])
def test_failure_that_airflow_would_reject(head: Head, state: str, is_stopped: bool) -> None:
    """A try that fails leaves its job to the next try only if Airflow will start one: the task was not marked."""
    store = stored(head, "RUNNING", max_tries=5)
    job = store.job["submission_id"]
    failed = {"submission_id": job, "error": "RayApiUnreachableError", "message": "away"}

    with pytest.raises(RayApiUnreachableError):
        walk(store, is_resumed=True, max_tries=5, ti=in_state(state)).resume(failed)
    assert head.stops == [job] * is_stopped


def test_rejected_deferral_without_stop_on_kill(head: Head) -> None:
    """With ``stop_on_kill=False`` the job of a marked task runs on."""
    head.status = "RUNNING"

    with pytest.raises(RayJobStoppedError, match="runs on, as stop_on_kill is off"):
        walk(Store(), deferrable=True, stop_on_kill=False, ti=in_state("failed")).submit_and_wait()
    assert head.stops == []


# -- a Clear ------------------------------------------------------------------------------------------------------


@TRIES
def test_clear_of_a_job_that_does_not_stop(head: Head, max_tries: int) -> None:
    """No second job is submitted while the old one may run. The try fails, and can be retried."""
    store = stored(head, "RUNNING", max_tries=max_tries)
    before = store.record
    head.ignores_stops = True
    run = walk(store, max_tries=max_tries, clears=1, stop_timeout=1)

    with pytest.raises(RayJobNotTerminalError, match="No other job was submitted") as caught:
        run.submit_and_wait()
    assert not isinstance(caught.value, AirflowFailException)
    assert len(head.jobs) == 1
    assert store.record == before
    assert run.path == NOT_STOPPED

    head.ignores_stops = False
    assert walk(store, max_tries=max_tries, clears=1).submit_and_wait() != before["job"]["submission_id"]
    assert [job["status"] for job in head.jobs.values()] == ["STOPPED", "SUCCEEDED"]


def test_clear_without_stop_on_kill(head: Head, capfd: pytest.CaptureFixture[str]) -> None:
    """With ``stop_on_kill=False`` the old job runs on, which the log says, beside the new one."""
    store = stored(head, "RUNNING")

    walk(store, clears=1, stop_on_kill=False).submit_and_wait()
    assert [job["status"] for job in head.jobs.values()] == ["RUNNING", "SUCCEEDED"]
    assert head.stops == []
    assert "It runs on, as stop_on_kill is off." in capfd.readouterr().out


# -- a final exit code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "kind"), [("fail_on_exit_code", AirflowFailException), ("skip_on_exit_code", AirflowSkipException)]
)
def test_final_exit_code_of_a_lost_try(head: Head, argument: str, kind: type[Exception]) -> None:
    """A retry obeys the exit code of a job whose worker was lost. Nothing is submitted."""
    head.exit_code = 3
    store = stored(head, "FAILED", max_tries=RETRY_LEFT)
    head.jobs[store.job["submission_id"]]["error_type"] = "JOB_ENTRYPOINT_COMMAND_ERROR"

    with pytest.raises(kind):
        walk(store, max_tries=RETRY_LEFT, **{argument: 3}).submit_and_wait()
    assert len(head.jobs) == 1
    assert store.record["delivered"]


# -- a worker that was frozen -------------------------------------------------------------------------------------


@pytest.fixture
def short_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Airflow start another try after a second without a heartbeat, so that half a second is a freeze."""
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "1")


WAKES = [
    # how the try ends after the freeze, the error if another try follows the job
    pytest.param(lambda run: run.kill_switch.kill(), id="kill"),
    pytest.param(lambda run: throw(RayJobsError("odd"))(), id="error"),
    pytest.param(lambda run: throw(AirflowTaskTimeout("late"))(), id="execution_timeout"),
    pytest.param(lambda run: throw(RayJobTimeoutError("late", limit="job_timeout"))(), id="time limit"),
]


def frozen(head: Head, store: Store, wake: Callable[[Walk], object], meanwhile: Callable[[], object]) -> Walk:
    """Return a try that is frozen while it follows its job."""
    head.status = "RUNNING"
    run = walk(store)
    run.abort_in = FOLLOWING

    def freeze() -> None:
        meanwhile()
        time.sleep(0.7)
        run.kill_switch.poll()
        wake(run)

    run.abort = freeze
    return run


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("wake", WAKES)
def test_frozen_worker_whose_job_another_try_follows(head: Head, wake: Callable[[Walk], object]) -> None:
    """A worker that wakes after another try has taken over stops nothing, and leaves the record alone."""
    store = Store()
    run = frozen(head, store, wake, lambda: store.change(holder="try-2"))

    with pytest.raises(Exception, match="odd|another try of this task may see to Ray job"):
        run.submit_and_wait()
    assert head.stops == []
    assert (store.record["holder"], store.record["abandoned"]) == ("try-2", False)


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("is_superseded", [True, False])
@pytest.mark.parametrize("is_repeated", [False, True], ids=["first attempt", "second attempt"])
def test_worker_that_was_frozen_before_its_submission(head: Head, is_superseded: bool, is_repeated: bool) -> None:
    """A worker that wakes after another try has taken over submits nothing. The other try may have a job already."""
    store = Store()
    run = walk(store, max_tries=RETRY_LEFT)

    def freeze() -> None:
        if is_superseded:
            store.change(holder="try-2")
        time.sleep(0.7)

    if is_repeated:
        head.refusals = [(502, "<html>Bad Gateway</html>")]
        head.on_submit = freeze
    else:
        run.abort_in, run.abort = SUBMITTING, freeze

    if not is_superseded:
        assert run.submit_and_wait() in head.jobs
        return
    with pytest.raises(RayJobStoppedError, match="From now on, this try neither submits nor stops it"):
        run.submit_and_wait()
    assert head.jobs == {}
    assert store.record["holder"] == "try-2"


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("wake", WAKES)
@pytest.mark.parametrize(
    "changes", [{"gets": 99, "sets": 99}, {"values": {}, "sets": 99}], ids=["unreadable", "hidden"]
)
def test_frozen_worker_that_airflow_refuses(
    head: Head, wake: Callable[[Walk], object], changes: dict[str, Any]
) -> None:
    """
    Airflow refuses the record to a try that was replaced. Then nothing is stopped.

    Its API server answers 404, which the task SDK reads as "no such key".
    """
    store = Failing()
    run = frozen(head, store, wake, lambda: vars(store).update(changes))

    with pytest.raises(Exception, match="odd|another try of this task may see to Ray job"):
        run.submit_and_wait()
    assert head.stops == []


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("wake", WAKES)
@pytest.mark.parametrize("is_durable", [True, False])
def test_frozen_worker_that_still_follows_its_job(head: Head, wake: Callable[[Walk], object], is_durable: bool) -> None:
    """
    If no other try has taken over, the job is stopped as usual.

    The signal handler sends nothing, unless no other try can find the job.
    """
    store = Store()
    run = frozen(head, store, wake, lambda: None)
    run.task.durable = is_durable

    with pytest.raises((RayJobsError, AirflowTaskTimeout)):
        run.submit_and_wait()
    assert {*head.stops} == {*head.jobs}
    if is_durable:
        assert len(head.stops) == 1
        assert run.kill_switch.summary == ""


@pytest.mark.usefixtures("short_heartbeats")
def test_frozen_worker_asks_once_it_follows_its_job_again(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow says that no other try has taken over. A later kill stops the job without waiting for Ray's answer."""
    run = walk(Store())
    head.status = "RUNNING"
    seen: list[bool] = []
    answer = head.answer

    def look(method: str, path: str, body: bytes) -> Reply | None:
        if method == "GET" and path.startswith("/api/jobs/"):
            seen.append(run.kill_switch.was_frozen)
            time.sleep(0.7 if len(seen) == 1 else 0)
            if len(seen) == 4:
                head.jobs[path.rpartition("/")[2]]["status"] = "SUCCEEDED"
        return answer(method, path, body)

    monkeypatch.setattr(head, "answer", look)
    run.submit_and_wait()
    assert seen[-1] is False


# -- a connection that was edited ---------------------------------------------------------------------------------


def connect(patch: pytest.MonkeyPatch, address: str, **fields: Any) -> None:
    patch.setenv(CONNECTION, json.dumps({"conn_type": "ray_jobs", "host": address} | fields))


def test_connection_with_another_name_of_the_cluster(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same session at another address is the same cluster: the retry follows the job there."""
    store = stored(head, "RUNNING")
    other_name = head.address.replace("127.0.0.1", "localhost")
    connect(monkeypatch, other_name)
    run = walk(store)
    run.abort_in, run.abort = FOLLOWING, lambda: head.jobs[store.job["submission_id"]].update(status="SUCCEEDED")

    assert run.submit_and_wait() == store.job["submission_id"]
    assert store.job["address"] == other_name
    assert len(head.jobs) == 1


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED"])
def test_connection_of_another_cluster(
    head: Head, other_head: Head, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The job is followed where it is, with the credentials of the connection. The other cluster gets no job."""
    store = stored(head, status)
    connect(monkeypatch, other_head.address, password="marked-secret")
    run = walk(store)
    run.abort_in, run.abort = FOLLOWING, lambda: head.jobs[store.job["submission_id"]].update(status="SUCCEEDED")

    assert run.submit_and_wait() == store.job["submission_id"]
    assert store.job["address"] == head.address
    assert other_head.jobs == {}
    assert "Bearer marked-secret" in head.authorizations


def test_kill_after_the_connection_was_edited(head: Head, other_head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill stops the job where it is. That another cluster does not know it proves nothing."""
    store = stored(head, "RUNNING")
    connect(monkeypatch, other_head.address)
    run = walk(store)
    run.kill_switch.kill()

    with pytest.raises(RayJobStoppedError):
        run.submit_and_wait()
    assert head.stops == [store.job["submission_id"]]


def test_next_job_goes_to_the_edited_connection(head: Head, other_head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the end of the old job the new one is submitted to the cluster of the connection."""
    store = stored(head, "FAILED")
    connect(monkeypatch, other_head.address)

    assert walk(store).submit_and_wait() in other_head.jobs
    assert store.job["address"] == other_head.address
    assert store.job["session"] == other_head.session


def test_clear_after_the_connection_was_edited(head: Head, other_head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old job is stopped on the old cluster, the new one is submitted to the new cluster."""
    store = stored(head, "RUNNING")
    old = store.job["submission_id"]
    connect(monkeypatch, other_head.address)
    new = walk(store, clears=1).submit_and_wait()

    assert (head.stops, [*other_head.jobs]) == ([old], [new])


def test_timeout_while_the_cluster_of_the_job_is_looked_for(
    head: Head, other_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeout before the cluster of the recorded job is found stops the job there, not at the connection's."""
    store = stored(head, "RUNNING")
    connect(monkeypatch, other_head.address)
    run = walk(store)
    find_target = run._find_target

    def late() -> None:
        run._find_target = find_target  # type: ignore[method-assign]
        raise AirflowTaskTimeout("late")

    run._find_target = late  # type: ignore[method-assign]
    with pytest.raises(RayJobTimeoutError):
        run.submit_and_wait()
    assert head.stops == [store.job["submission_id"]]


# -- a submission whose answer is lost ----------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [(401, TOKEN), (401, "a page"), (502, "busy")], ids=["Ray", "proxy", "away"])
def test_lost_answer_and_a_refused_look(head: Head, refusal: tuple[int, str]) -> None:
    """An error of the look after a lost answer proves nothing about the submission: the job is stopped."""
    head.status = "RUNNING"
    head.refusals, head.refused_looks = [(0, "")], [refusal] * 3

    with pytest.raises(RayJobsError):
        walk(Store(), unreachable_timeout=1).submit_and_wait()  # three looks at most, whatever the jitter
    assert [job["status"] for job in head.jobs.values()] == ["STOPPED"]
