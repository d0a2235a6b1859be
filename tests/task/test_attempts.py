"""Which Ray job belongs to a try: every row of the table, and the note that it is decided by."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiUnreachableError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayVersion
from airflow_provider_rayjobs.jobs.steps import LogMessage, Send, Sleep
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.task.attempts import (
    Action,
    ClusterAnswer,
    Decision,
    JobRecord,
    JobRecordStore,
    RetryGeneration,
    decide,
    new_submission_id,
    numbered_id,
    query_job,
)

HERE, ELSEWHERE = "http://head:8265", "http://other-head:8265"
THIS = RetryGeneration(max_tries=3, run_start="2026-01-02T00:00:00+00:00")
CLEARED = [
    RetryGeneration(7, THIS.run_start),
    RetryGeneration(3, "2026-01-03T00:00:00+00:00"),
    RetryGeneration(2, THIS.run_start),
]
NOTE = JobRecord("job-1", "ours", THIS, HERE, session="session_1", accepted=True)
UNSEEN = replace(NOTE, accepted=False)
GIVEN_UP = replace(NOTE, abandoned=True)
DELIVERED = replace(NOTE, delivered=True)
UNKNOWN = ClusterAnswer(None, "session_1")
ANOTHER_CLUSTER = ClusterAnswer(None, "session_2")
ALIVE = ["PENDING", "RUNNING", "PAUSED"]  # the last is none of ours: a word of a newer Ray
ENDED = ["SUCCEEDED", "FAILED", "STOPPED"]


def found(status: str, nonce: str | None = "ours", session: str | None = "session_1") -> ClusterAnswer:
    metadata = {} if nonce is None else {NONCE: nonce}
    return ClusterAnswer(
        JobDetails(JobType.SUBMISSION, JobStatus(status), submission_id="job-1", metadata=metadata), session
    )


def action(
    note: JobRecord | None, what: ClusterAnswer | None, this: RetryGeneration = THIS, address: str = HERE
) -> Action:
    return decide(note, what, this, address).action


def test_nothing_remembered() -> None:
    """A try that remembers nothing submits, and has nothing to tell, whatever else is known."""
    assert decide(None, None, THIS, HERE) == Decision(Action.SUBMIT)
    assert decide(None, found("RUNNING"), THIS, HERE) == Decision(Action.SUBMIT)


@pytest.mark.parametrize("note", [NOTE, UNSEEN, GIVEN_UP, DELIVERED], ids=["seen", "unseen", "given up", "delivered"])
@pytest.mark.parametrize("what", [None, UNKNOWN, found("RUNNING"), found("SUCCEEDED")], ids=str)
def test_another_address(note: JobRecord, what: ClusterAnswer | None) -> None:
    """Where the connection leads elsewhere the old job is out of reach: it is said where it may live, and submitted."""
    decision = decide(note, what, THIS, ELSEWHERE)

    assert decision.action is Action.SUBMIT
    assert "job-1" in decision.reason
    assert f"was submitted to {HERE}" in decision.reason
    assert f"leads to {ELSEWHERE} now" in decision.reason
    assert "may live on there" in decision.reason


@pytest.mark.parametrize("note", [NOTE, UNSEEN, GIVEN_UP, DELIVERED], ids=["seen", "unseen", "given up", "delivered"])
@pytest.mark.parametrize("this", [THIS, *CLEARED], ids=str)
def test_nothing_heard_from_ray(note: JobRecord, this: RetryGeneration) -> None:
    """While nothing was heard from Ray a try with a note asks, and does nothing else."""
    assert decide(note, None, this, HERE) == Decision(Action.ASK)


@pytest.mark.parametrize("note", [NOTE, UNSEEN, GIVEN_UP, DELIVERED], ids=["seen", "unseen", "given up", "delivered"])
@pytest.mark.parametrize("this", [THIS, *CLEARED], ids=str)
@pytest.mark.parametrize(
    ("then", "now"), [("session_1", "session_2"), ("session_1", None), (None, "session_2")], ids=str
)
def test_lost_with_the_cluster(note: JobRecord, this: RetryGeneration, then: str | None, now: str | None) -> None:
    """A job that is unknown to another session died with its cluster: that is said, and a new one submitted."""
    decision = decide(replace(note, session=then), ClusterAnswer(None, now), this, HERE)

    assert decision.action is Action.SUBMIT
    assert f"lost with its cluster, which was started anew (session {then} then, {now} now)" in decision.reason


@pytest.mark.parametrize("session", ["session_1", None], ids=["session", "a head that has none"])
@pytest.mark.parametrize("this", [THIS, *CLEARED], ids=str)
def test_never_seen_to_arrive(session: str | None, this: RetryGeneration) -> None:
    """A submission that was never seen to arrive is sent again under its id, so that a late one makes no second job."""
    decision = decide(replace(UNSEEN, session=session), ClusterAnswer(None, session), this, HERE)

    assert decision == Decision(
        Action.RESUBMIT, "Ray job job-1 was never seen to arrive; it is submitted under the same id."
    )


@pytest.mark.parametrize("this", [THIS, *CLEARED], ids=str)
def test_deleted(this: RetryGeneration) -> None:
    """A job that Ray had, and does not know in the same session, was deleted: that is said, and a new one submitted."""
    decision = decide(NOTE, UNKNOWN, this, HERE)

    assert decision.action is Action.SUBMIT
    assert "deleted by somebody" in decision.reason


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("this", [THIS, *CLEARED], ids=str)
def test_given_up_and_gone(accepted: bool, this: RetryGeneration) -> None:
    """A job that was given up and is unknown is not submitted again under its id: its stop may still be on its way."""
    decision = decide(replace(GIVEN_UP, accepted=accepted), UNKNOWN, this, HERE)

    assert decision.action is Action.SUBMIT
    assert "given up by an earlier try and is gone" in decision.reason


@pytest.mark.parametrize("note", [NOTE, UNSEEN, GIVEN_UP, DELIVERED], ids=["seen", "unseen", "given up", "delivered"])
@pytest.mark.parametrize("status", [*ALIVE, *ENDED])
@pytest.mark.parametrize("nonce", ["theirs", None])
def test_not_ours(note: JobRecord, status: str, nonce: str | None) -> None:
    """A job whose metadata says that it is not ours is neither followed nor stopped, whatever it does."""
    decision = decide(note, found(status, nonce), THIS, HERE)

    assert decision.action is Action.SUBMIT
    assert "is not ours, as its metadata says; it is left alone" in decision.reason


@pytest.mark.parametrize("note", [NOTE, UNSEEN, GIVEN_UP, DELIVERED], ids=["seen", "unseen", "given up", "delivered"])
@pytest.mark.parametrize("this", [THIS, *CLEARED], ids=str)
@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_ended_badly(note: JobRecord, this: RetryGeneration, status: str) -> None:
    """A job that FAILED or was STOPPED is followed by a new one."""
    decision = decide(note, found(status), this, HERE)

    assert decision.action is Action.SUBMIT
    assert f"ended {status}" in decision.reason
    assert ("cleared" in decision.reason) is (note.delivered or this != THIS)


@pytest.mark.parametrize("note", [NOTE, UNSEEN, GIVEN_UP], ids=["seen", "unseen", "given up"])
def test_success_that_nobody_has(note: JobRecord) -> None:
    """A success that did not become the task's is the task's, and nothing is submitted."""
    decision = decide(note, found("SUCCEEDED"), THIS, HERE)

    assert decision == Decision(Action.FINISH, "Ray job job-1 of an earlier try SUCCEEDED; nothing is submitted.")


@pytest.mark.parametrize(
    ("note", "this"), [(DELIVERED, THIS), *((NOTE, this) for this in CLEARED), (DELIVERED, CLEARED[0])], ids=str
)
def test_success_of_a_cleared_task(note: JobRecord, this: RetryGeneration) -> None:
    """A success that was the task's, or another round's, is followed by a new job: a person cleared the task."""
    decision = decide(note, found("SUCCEEDED"), this, HERE)

    assert decision.action is Action.SUBMIT
    assert "SUCCEEDED, and the task was cleared" in decision.reason


@pytest.mark.parametrize("this", [THIS, *CLEARED], ids=str)
@pytest.mark.parametrize("status", ALIVE)
def test_given_up(this: RetryGeneration, status: str) -> None:
    """A job that was given up and has not ended is stopped for good, and never followed again."""
    decision = decide(GIVEN_UP, found(status), this, HERE)

    assert decision.action is Action.REPLACE
    assert f"given up by an earlier try and is {status}" in decision.reason


@pytest.mark.parametrize(
    ("note", "this"), [(DELIVERED, THIS), *((note, this) for note in (NOTE, UNSEEN) for this in CLEARED)], ids=str
)
@pytest.mark.parametrize("status", ALIVE)
def test_alive_in_a_cleared_task(note: JobRecord, this: RetryGeneration, status: str) -> None:
    """A job that still runs when a person cleared the task is stopped before a new one is submitted."""
    decision = decide(note, found(status), this, HERE)

    assert decision.action is Action.REPLACE
    assert f"is still {status}, and the task was cleared" in decision.reason


@pytest.mark.parametrize("note", [NOTE, UNSEEN], ids=["seen", "unseen"])
@pytest.mark.parametrize("status", ALIVE)
def test_alive(note: JobRecord, status: str) -> None:
    """A job of the same round that has not ended is followed, and its log is shown from the start."""
    decision = decide(note, found(status), THIS, HERE)

    assert decision.action is Action.REATTACH
    assert f"is {status}; this try follows it. Its log is shown from the start." in decision.reason


def test_every_combination_has_one_action_that_is_safe() -> None:
    """Whatever comes together, a living job of ours is never left to run beside a new one that the try submits."""
    flags = [
        dict(zip(("accepted", "abandoned", "delivered"), values, strict=True))
        for values in product([True, False], repeat=3)
    ]
    for fields, this, status in product(flags, [THIS, *CLEARED], [*ALIVE, *ENDED]):
        made = decide(replace(NOTE, **fields), found(status), this, HERE)

        assert (made.action in (Action.REATTACH, Action.REPLACE)) is (status in ALIVE)
        assert made.action not in (Action.ASK, Action.RESUBMIT)
        assert made.reason


def test_every_row_is_documented() -> None:
    """The table in the docstring leads to every action there is."""
    table = str(decide.__doc__).split("=\n")[2]

    assert set(re.findall(r"\b[A-Z]{3,}\b", table)) >= {kind.name for kind in Action}


# -- the note -----------------------------------------------------------------------------------------------------


class Store:
    """Airflow's accessor as far as it is used: what goes in comes out of a database, as JSON."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.retentions: list[timedelta | None] = []

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.rows[key]) if key in self.rows else default

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        assert value is not None
        self.rows[key] = json.dumps(value, allow_nan=False)
        self.retentions.append(retention)


FULL = JobRecord(
    "nightly-2",
    "nonce",
    THIS,
    HERE,
    session="session_1",
    given="nightly",
    number=2,
    demand={"CPU": 0.5, "special_chip": 2},
    accepted=True,
    abandoned=True,
    delivered=True,
)


@pytest.mark.parametrize(
    "note", [FULL, JobRecord("a", "b", RetryGeneration(0, ""), HERE)], ids=["all of it", "the least"]
)
def test_a_note_outlives_the_try(note: JobRecord) -> None:
    """What one try remembers the next one knows, exactly as it was, for longer than a run is kept."""
    store = Store()
    JobRecordStore(store).write(note)

    assert JobRecordStore(store).note == note
    assert JobRecord.from_json(json.loads(json.dumps(note.to_json()))) == note
    assert store.retentions == [timedelta(days=3650)]


def test_a_new_task_instance() -> None:
    """A task instance that never submitted remembers nothing."""
    memory = JobRecordStore(Store())

    assert memory.note is None
    assert memory.is_durable


def test_a_note_takes_the_place_of_the_last_one() -> None:
    """One job is remembered, the last."""
    store = Store()
    memory = JobRecordStore(store)

    memory.write(NOTE)
    memory.write(FULL)
    assert memory.note == JobRecordStore(store).note == FULL
    assert len(store.rows) == 1


def test_changes() -> None:
    """What becomes of the job is kept, and what is known already costs no request."""
    store = Store()
    memory = JobRecordStore(store)
    memory.write(UNSEEN)

    memory.change(accepted=True)
    memory.change(accepted=True)
    memory.change()
    memory.change(delivered=True, accepted=True)
    assert JobRecordStore(store).note == memory.note == replace(UNSEEN, accepted=True, delivered=True)
    assert len(store.retentions) == 3


def test_changes_of_nothing() -> None:
    """Where nothing is remembered there is nothing to change."""
    store = Store()
    JobRecordStore(store).change(accepted=True)

    assert store.rows == {}


def test_memory_without_a_store() -> None:
    """Without a store a try remembers its own job, and the next one knows nothing."""
    memory = JobRecordStore()
    memory.write(UNSEEN)
    memory.change(accepted=True)

    assert memory.note == NOTE
    assert not memory.is_durable
    assert JobRecordStore().note is None


# -- asking Ray ---------------------------------------------------------------------------------------------------

RUNNING = found("RUNNING").job
GONE = RayJobNotFoundError("gone", status_code=404)
LOST = RayApiConnectionError("cut off")
BUSY = RayApiBusyError("busy", status_code=503)
TOKEN = RayApiAuthError("token", status_code=401)


def ask(unreachable_timeout: float, *answers: Any) -> tuple[Any, list[str], list[str], float]:
    """Give the engine these answers, one a request; return its end, what it asked and noted, and how long it took."""
    asked: list[str] = []
    notes: list[str] = []
    clock, script = 100.0, list(answers)
    engine = query_job(NOTE, unreachable_timeout)
    step: Any = next(engine)
    try:
        while True:
            match step:
                case Sleep(seconds):
                    clock += seconds
                    step = engine.send(clock)
                case LogMessage(message):
                    notes.append(message)
                    step = next(engine)
                case Send(request):
                    asked.append(f"{request.method} {request.path}")
                    answer = script.pop(0) if len(script) > 1 else script[0]
                    step = engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer)
    except StopIteration as end:
        return end.value, asked, notes, clock - 100
    except RayJobsError as error:
        return error, asked, notes, clock - 100


GET, VERSION = "GET /api/jobs/job-1", "GET /api/version"
SESSION = RayVersion("4", "2.60.0", "session_2")


def test_look_up_by_hand() -> None:
    """A look-up asks for the job, then for the session, and needs no pause where Ray answers."""
    engine = query_job(NOTE, 600)

    job = next(engine)
    assert isinstance(job, Send)
    assert job.request.path == "/api/jobs/job-1"
    version = engine.send(RUNNING)
    assert isinstance(version, Send)
    assert version.request.path == "/api/version"
    assert engine.send(SESSION) == Sleep(0)
    with pytest.raises(StopIteration) as end:
        engine.send(0.0)
    assert end.value.value == ClusterAnswer(RUNNING, "session_2")


def test_look_up_of_an_unknown_job() -> None:
    """A job that the cluster does not know is an answer, with the session of the cluster that gave it."""
    assert ask(600, GONE, SESSION) == (ClusterAnswer(None, "session_2"), [GET, VERSION], [], 0)
    assert ask(600, GONE, RayVersion("4", "2.9.3"))[0] == ClusterAnswer(None, None)


@pytest.mark.parametrize("trouble", [LOST, BUSY, TOKEN, RayJobsError("odd")], ids=repr)
def test_look_up_bears_an_outage(trouble: RayJobsError) -> None:
    """An outage while deciding is borne, in pauses of 3 s, and said when it begins and when it is over."""
    result, asked, notes, seconds = ask(600, trouble, trouble, RUNNING, trouble, GONE, SESSION)

    assert result == ClusterAnswer(None, "session_2")
    assert asked == [GET, GET, GET, VERSION, GET, VERSION]
    assert seconds == 9
    assert len(notes) == 2
    assert (
        f"No usable answer about Ray job job-1. The job may still be running. Retrying for 600 s. {trouble}" in notes[0]
    )
    assert "Ray answers about job job-1 again, after 9 s" in notes[1]


@pytest.mark.parametrize("timeout", [0, 1, 30, 600])
@pytest.mark.parametrize("answers", [(LOST,), (TOKEN,)], ids=["away", "token"])
def test_look_up_ends_in_an_error(timeout: float, answers: tuple[Any, ...]) -> None:
    """A cluster that cannot be reached for unreachable_timeout is an error, so that nothing is submitted blindly."""
    error, _, notes, seconds = ask(timeout, *answers)

    assert isinstance(error, RayApiUnreachableError)
    assert f"unreachable_timeout is {timeout} s" in str(error)
    assert error.__cause__ is answers[0]
    assert timeout <= seconds < timeout + 3
    assert len(notes) == 1


def test_a_session_that_nobody_tells() -> None:
    """A cluster that answers for the job and never for its session is as good as out of reach."""
    error, asked, _, _ = ask(5, RUNNING, LOST, RUNNING, LOST, RUNNING, LOST, GONE, LOST)

    assert isinstance(error, RayApiUnreachableError)
    assert asked[:4] == [GET, VERSION] * 2


# -- names --------------------------------------------------------------------------------------------------------


def context(**changes: Any) -> Any:
    ti = {"dag_id": "nightly", "task_id": "train", "map_index": -1, "try_number": 2, "max_tries": 3} | changes
    start = ti.pop("start_date", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return {"ti": SimpleNamespace(**ti), "dag_run": SimpleNamespace(start_date=start)}


def test_rounds() -> None:
    """A retry is of the same round; what a person clears has more tries, or a run that starts anew."""
    first = RetryGeneration.of(context(try_number=1))

    assert first == RetryGeneration.of(context(try_number=2)) == RetryGeneration(3, "2026-01-02T03:04:05+00:00")
    assert first != RetryGeneration.of(context(max_tries=5))
    assert first != RetryGeneration.of(context(start_date=datetime(2026, 1, 3, tzinfo=UTC)))
    assert RetryGeneration.of(context(start_date=None)) == RetryGeneration(3, "")


@pytest.mark.parametrize(
    ("number", "name"), [(1, "nightly"), (2, "nightly-2"), (10, "nightly-10")], ids=["first", "second", "tenth"]
)
def test_numbered_ids(number: int, name: str) -> None:
    """An id that the user gave is the first submission's; later ones are numbered."""
    assert numbered_id("nightly", number) == name


@pytest.mark.parametrize("number", [1, 2, 100])
@pytest.mark.parametrize("length", [199, 200])
def test_numbered_ids_fit(number: int, length: int) -> None:
    """An id that Ray can hold once can be held for every later submission."""
    assert len(numbered_id("x" * length, number)) <= 200


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        pytest.param({}, r"nightly\.train-try2-[0-9a-f]{16}", id="plain"),
        pytest.param({"map_index": 0}, r"nightly\.train-m0-try2-[0-9a-f]{16}", id="mapped"),
        pytest.param({"map_index": None}, r"nightly\.train-try2-[0-9a-f]{16}", id="no map index"),
        pytest.param({"task_id": "group.zäh/lt"}, r"nightly\.group\.z_h_lt-try2-[0-9a-f]{16}", id="odd characters"),
        pytest.param(
            {"dag_id": "d" * 250, "task_id": "t" * 250, "map_index": 123456, "try_number": 1000},
            r"d{80}\.t{70}-m123456-try1000-[0-9a-f]{16}",
            id="long",
        ),
    ],
)
def test_new_ids(changes: dict[str, Any], form: str) -> None:
    """An id of our own names its task and its try, fits into Ray's 200 characters, and is new each time."""
    one, other = (new_submission_id(context(**changes)) for _ in range(2))

    assert re.fullmatch(form, one)
    assert len(one) <= 200
    assert one != other
