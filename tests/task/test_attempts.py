"""Decide which Ray job belongs to a try: every row of the table, and the job record."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
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
GENERATION = RetryGeneration(max_tries=3, run_start="2026-01-02T00:00:00+00:00")
CLEARED = [
    RetryGeneration(7, GENERATION.run_start),
    RetryGeneration(3, "2026-01-03T00:00:00+00:00"),
    RetryGeneration(2, GENERATION.run_start),
]
RECORD = JobRecord("job-1", "ours", GENERATION, HERE, session="session_1", accepted=True)
UNCONFIRMED = replace(RECORD, accepted=False)
ABANDONED = replace(RECORD, abandoned=True)
DELIVERED = replace(RECORD, delivered=True)
RECORDS = [
    pytest.param(RECORD, id="accepted"),
    pytest.param(UNCONFIRMED, id="unconfirmed"),
    pytest.param(ABANDONED, id="abandoned"),
    pytest.param(DELIVERED, id="delivered"),
]
UNKNOWN = ClusterAnswer(None, "session_1")
ALIVE = ["PENDING", "RUNNING", "PAUSED"]  # PAUSED stands for a status of a newer Ray
ENDED = ["SUCCEEDED", "FAILED", "STOPPED"]


def found(status: str, nonce: str | None = "ours", session: str | None = "session_1") -> ClusterAnswer:
    metadata = {} if nonce is None else {NONCE: nonce}
    return ClusterAnswer(
        JobDetails(JobType.SUBMISSION, JobStatus(status), submission_id="job-1", metadata=metadata), session
    )


def action(
    record: JobRecord | None,
    answer: ClusterAnswer | None,
    generation: RetryGeneration = GENERATION,
    address: str = HERE,
) -> Action:
    return decide(record, answer, generation, address).action


def test_no_job_record() -> None:
    """Without a job record a try submits, and logs no reason."""
    assert decide(None, None, GENERATION, HERE) == Decision(Action.SUBMIT)
    assert decide(None, found("RUNNING"), GENERATION, HERE) == Decision(Action.SUBMIT)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("answer", [None, UNKNOWN, found("RUNNING"), found("SUCCEEDED")], ids=str)
def test_changed_address_submits_a_new_job(record: JobRecord, answer: ClusterAnswer | None) -> None:
    """If the connection has another address, a new job is submitted, and the reason names the old address."""
    decision = decide(record, answer, GENERATION, ELSEWHERE)

    assert decision.action is Action.SUBMIT
    assert "job-1" in decision.reason
    assert f"is at {HERE} and may still run there" in decision.reason
    assert f"now has the address {ELSEWHERE}" in decision.reason


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", [GENERATION, *CLEARED], ids=str)
def test_record_is_checked_with_ray_first(record: JobRecord, generation: RetryGeneration) -> None:
    """A try that finds a job record asks Ray before anything else."""
    assert decide(record, None, generation, HERE) == Decision(Action.ASK)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", [GENERATION, *CLEARED], ids=str)
@pytest.mark.parametrize(
    ("then", "now"), [("session_1", "session_2"), ("session_1", None), (None, "session_2")], ids=str
)
def test_unknown_job_of_another_session(
    record: JobRecord, generation: RetryGeneration, then: str | None, now: str | None
) -> None:
    """A job that is unknown after the head was restarted is lost: a new one is submitted."""
    decision = decide(replace(record, session=then), ClusterAnswer(None, now), generation, HERE)

    assert decision.action is Action.SUBMIT
    assert f"lost when the head was restarted (Ray session then: {then}, now: {now})" in decision.reason


@pytest.mark.parametrize("session", ["session_1", None], ids=["session", "a head that has none"])
@pytest.mark.parametrize("generation", [GENERATION, *CLEARED], ids=str)
def test_unknown_job_that_was_never_confirmed(session: str | None, generation: RetryGeneration) -> None:
    """An unconfirmed submission is sent again under its id, so that a late request cannot make a second job."""
    decision = decide(replace(UNCONFIRMED, session=session), ClusterAnswer(None, session), generation, HERE)

    assert decision == Decision(
        Action.RESUBMIT,
        "Ray job job-1 of an earlier try is unknown to Ray, and its submission was never confirmed. Submitting it "
        "again under the same id.",
    )


@pytest.mark.parametrize("generation", [GENERATION, *CLEARED], ids=str)
def test_unknown_job_that_was_accepted(generation: RetryGeneration) -> None:
    """A job that Ray had accepted and no longer knows in the same session was deleted: a new one is submitted."""
    decision = decide(RECORD, UNKNOWN, generation, HERE)

    assert decision.action is Action.SUBMIT
    assert "was deleted from the cluster" in decision.reason


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("generation", [GENERATION, *CLEARED], ids=str)
def test_unknown_job_that_was_abandoned(accepted: bool, generation: RetryGeneration) -> None:
    """An abandoned job is never submitted again under its id: a late stop request would stop it."""
    decision = decide(replace(ABANDONED, accepted=accepted), UNKNOWN, generation, HERE)

    assert decision.action is Action.SUBMIT
    assert "was abandoned and no longer exists" in decision.reason


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("status", [*ALIVE, *ENDED])
@pytest.mark.parametrize("nonce", ["theirs", None])
def test_job_of_another_submission_is_left_alone(record: JobRecord, status: str, nonce: str | None) -> None:
    """A job with another submission nonce is neither followed nor stopped."""
    decision = decide(record, found(status, nonce), GENERATION, HERE)

    assert decision.action is Action.SUBMIT
    assert "is left alone: its metadata has the submission_nonce of another submission" in decision.reason


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", [GENERATION, *CLEARED], ids=str)
@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_failed_or_stopped_job(record: JobRecord, generation: RetryGeneration, status: str) -> None:
    """After a job that FAILED or was STOPPED a new one is submitted."""
    decision = decide(record, found(status), generation, HERE)

    assert decision.action is Action.SUBMIT
    assert f"ended {status}" in decision.reason
    assert ("cleared" in decision.reason) is (record.delivered or generation != GENERATION)


@pytest.mark.parametrize("record", RECORDS[:3])
def test_retry_takes_an_undelivered_success(record: JobRecord) -> None:
    """A retry takes a success that was not delivered, and submits nothing."""
    decision = decide(record, found("SUCCEEDED"), GENERATION, HERE)

    assert decision == Decision(Action.FINISH, "Ray job job-1 of an earlier try SUCCEEDED. This try takes its result.")


@pytest.mark.parametrize(
    ("record", "generation"),
    [(DELIVERED, GENERATION), *((RECORD, generation) for generation in CLEARED), (DELIVERED, CLEARED[0])],
    ids=str,
)
def test_cleared_task_submits_after_a_success(record: JobRecord, generation: RetryGeneration) -> None:
    """A cleared task submits a new job although the recorded one SUCCEEDED."""
    decision = decide(record, found("SUCCEEDED"), generation, HERE)

    assert decision.action is Action.SUBMIT
    assert "SUCCEEDED, and the task was cleared" in decision.reason


@pytest.mark.parametrize("generation", [GENERATION, *CLEARED], ids=str)
@pytest.mark.parametrize("status", ALIVE)
def test_abandoned_job_is_replaced(generation: RetryGeneration, status: str) -> None:
    """An abandoned job that has not ended is stopped, and never followed again."""
    decision = decide(ABANDONED, found(status), generation, HERE)

    assert decision.action is Action.REPLACE
    assert f"was abandoned and is still {status}" in decision.reason


@pytest.mark.parametrize(
    ("record", "generation"),
    [(DELIVERED, GENERATION), *((record, generation) for record in (RECORD, UNCONFIRMED) for generation in CLEARED)],
    ids=str,
)
@pytest.mark.parametrize("status", ALIVE)
def test_cleared_task_replaces_a_running_job(record: JobRecord, generation: RetryGeneration, status: str) -> None:
    """A cleared task stops a job that has not ended before it submits a new one."""
    decision = decide(record, found(status), generation, HERE)

    assert decision.action is Action.REPLACE
    assert f"is still {status}, but the task was cleared" in decision.reason


@pytest.mark.parametrize("record", RECORDS[:2])
@pytest.mark.parametrize("status", ALIVE)
def test_retry_reattaches_to_a_running_job(record: JobRecord, status: str) -> None:
    """A retry follows a job that has not ended, and shows its log from the start."""
    decision = decide(record, found(status), GENERATION, HERE)

    assert decision.action is Action.REATTACH
    assert f"is {status}. This try follows it and shows its log from the start." in decision.reason


def test_no_combination_leaves_a_running_job_beside_a_new_one() -> None:
    """For every combination of fields, a running job is followed or replaced before a new one is submitted."""
    flags = [
        dict(zip(("accepted", "abandoned", "delivered"), values, strict=True))
        for values in product([True, False], repeat=3)
    ]
    for fields, generation, status in product(flags, [GENERATION, *CLEARED], [*ALIVE, *ENDED]):
        decision = decide(replace(RECORD, **fields), found(status), generation, HERE)

        assert (decision.action in (Action.REATTACH, Action.REPLACE)) is (status in ALIVE)
        assert decision.action not in (Action.ASK, Action.RESUBMIT)
        assert decision.reason


def test_every_action_is_documented() -> None:
    """The table in the docstring has every action."""
    table = str(decide.__doc__).split("=\n")[2]

    assert set(re.findall(r"\b[A-Z]{3,}\b", table)) >= {kind.name for kind in Action}


# -- the job record -----------------------------------------------------------------------------------------------


class Store:
    """The methods of Airflow's task state store that the package calls. Values are stored as JSON."""

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
    GENERATION,
    HERE,
    session="session_1",
    base_id="nightly",
    number=2,
    demand={"CPU": 0.5, "special_chip": 2},
    accepted=True,
    abandoned=True,
    delivered=True,
)


@pytest.mark.parametrize(
    "record", [FULL, JobRecord("a", "b", RetryGeneration(0, ""), HERE)], ids=["all fields", "required fields"]
)
def test_record_outlives_the_try(record: JobRecord) -> None:
    """The next try reads exactly the record that a try saved; Airflow keeps it for ten years."""
    store = Store()
    JobRecordStore(store).save(record)

    assert JobRecordStore(store).record == record
    assert JobRecord.from_json(json.loads(json.dumps(asdict(record)))) == record
    assert store.retentions == [timedelta(days=3650)]


def test_new_task_instance_has_no_record() -> None:
    """A task instance that never submitted has no record."""
    records = JobRecordStore(Store())

    assert records.record is None
    assert records.is_durable


def test_saved_record_replaces_the_last_one() -> None:
    """Only the record of the last job is kept."""
    store = Store()
    records = JobRecordStore(store)

    records.save(RECORD)
    records.save(FULL)
    assert records.record == JobRecordStore(store).record == FULL
    assert len(store.rows) == 1


def test_update() -> None:
    """Changed fields are saved; an update without a change costs no request."""
    store = Store()
    records = JobRecordStore(store)
    records.save(UNCONFIRMED)

    records.update(accepted=True)
    records.update(accepted=True)
    records.update()
    records.update(delivered=True, accepted=True)
    assert JobRecordStore(store).record == records.record == replace(UNCONFIRMED, accepted=True, delivered=True)
    assert len(store.retentions) == 3


def test_update_without_a_record() -> None:
    """Without a record an update does nothing."""
    store = Store()
    JobRecordStore(store).update(accepted=True)

    assert store.rows == {}


def test_record_without_a_store() -> None:
    """Without a store a try keeps its own record, and the next try has none."""
    records = JobRecordStore()
    records.save(UNCONFIRMED)
    records.update(accepted=True)

    assert records.record == RECORD
    assert not records.is_durable
    assert JobRecordStore().record is None


# -- asking Ray ---------------------------------------------------------------------------------------------------

RUNNING = found("RUNNING").job
GONE = RayJobNotFoundError("gone", status_code=404)
LOST = RayApiConnectionError("cut off")
BUSY = RayApiBusyError("busy", status_code=503)
TOKEN = RayApiAuthError("token", status_code=401)


def query(unreachable_timeout: float, *answers: Any) -> tuple[Any, list[str], list[str], float]:
    """Answer the engine's requests; return its result or error, the requests, the log messages, and the seconds."""
    requests: list[str] = []
    messages: list[str] = []
    clock, script = 100.0, list(answers)
    engine = query_job(RECORD, unreachable_timeout)
    step: Any = next(engine)
    try:
        while True:
            match step:
                case Sleep(seconds):
                    clock += seconds
                    step = engine.send(clock)
                case LogMessage(message):
                    messages.append(message)
                    step = next(engine)
                case Send(request):
                    requests.append(f"{request.method} {request.path}")
                    answer = script.pop(0) if len(script) > 1 else script[0]
                    step = engine.throw(answer) if isinstance(answer, RayJobsError) else engine.send(answer)
    except StopIteration as end:
        return end.value, requests, messages, clock - 100
    except RayJobsError as error:
        return error, requests, messages, clock - 100


GET, VERSION = "GET /api/jobs/job-1", "GET /api/version"
SESSION = RayVersion("4", "2.60.0", "session_2")


def test_query_asks_for_job_and_session() -> None:
    """A query asks for the job, then for the session, and does not sleep if Ray answers."""
    engine = query_job(RECORD, 600)

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


def test_query_of_an_unknown_job() -> None:
    """An unknown job is a usable answer, and comes with the present session."""
    assert query(600, GONE, SESSION) == (ClusterAnswer(None, "session_2"), [GET, VERSION], [], 0)
    assert query(600, GONE, RayVersion("4", "2.9.3"))[0] == ClusterAnswer(None, None)


@pytest.mark.parametrize("trouble", [LOST, BUSY, TOKEN, RayJobsError("odd")], ids=repr)
def test_query_tolerates_an_outage(trouble: RayJobsError) -> None:
    """A query retries every 3 s during an outage, and logs its start and its end."""
    result, requests, messages, seconds = query(600, trouble, trouble, RUNNING, trouble, GONE, SESSION)

    assert result == ClusterAnswer(None, "session_2")
    assert requests == [GET, GET, GET, VERSION, GET, VERSION]
    assert seconds == 9
    assert len(messages) == 2
    assert (
        f"No usable answer about Ray job job-1. The job may still be running. Retrying for 600 s. {trouble}"
        in messages[0]
    )
    assert "Ray answers about job job-1 again, after 9 s" in messages[1]


@pytest.mark.parametrize("timeout", [0, 1, 30, 600])
@pytest.mark.parametrize("answers", [(LOST,), (TOKEN,)], ids=["away", "token"])
def test_query_fails_after_unreachable_timeout(timeout: float, answers: tuple[Any, ...]) -> None:
    """Without a usable answer for unreachable_timeout the query fails, so that the try submits nothing."""
    error, _, messages, seconds = query(timeout, *answers)

    assert isinstance(error, RayApiUnreachableError)
    assert f"unreachable_timeout is {timeout} s" in str(error)
    assert error.__cause__ is answers[0]
    assert timeout <= seconds < timeout + 3
    assert len(messages) == 1


def test_query_without_an_answer_about_the_session() -> None:
    """A cluster that answers about the job but never about its session counts as unreachable."""
    error, requests, _, _ = query(5, RUNNING, LOST, RUNNING, LOST, RUNNING, LOST, GONE, LOST)

    assert isinstance(error, RayApiUnreachableError)
    assert requests[:4] == [GET, VERSION] * 2


# -- names --------------------------------------------------------------------------------------------------------


def context(**changes: Any) -> Any:
    ti = {"dag_id": "nightly", "task_id": "train", "map_index": -1, "try_number": 2, "max_tries": 3} | changes
    start = ti.pop("start_date", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return {"ti": SimpleNamespace(**ti), "dag_run": SimpleNamespace(start_date=start)}


def test_retry_generation() -> None:
    """A retry has the same generation; a Clear changes max_tries or the start of the dag run."""
    first = RetryGeneration.of(context(try_number=1))

    assert first == RetryGeneration.of(context(try_number=2)) == RetryGeneration(3, "2026-01-02T03:04:05+00:00")
    assert first != RetryGeneration.of(context(max_tries=5))
    assert first != RetryGeneration.of(context(start_date=datetime(2026, 1, 3, tzinfo=UTC)))
    assert RetryGeneration.of(context(start_date=None)) == RetryGeneration(3, "")


@pytest.mark.parametrize(
    ("number", "name"), [(1, "nightly"), (2, "nightly-2"), (10, "nightly-10")], ids=["first", "second", "tenth"]
)
def test_numbered_ids(number: int, name: str) -> None:
    """The first submission has the id of the user; later ones have a number appended."""
    assert numbered_id("nightly", number) == name


@pytest.mark.parametrize("number", [1, 2, 100])
@pytest.mark.parametrize("length", [199, 200])
def test_numbered_ids_fit(number: int, length: int) -> None:
    """A numbered id is never longer than Ray allows."""
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
    """A generated id names the task and the try, has at most 200 characters, and is unique."""
    one, other = (new_submission_id(context(**changes)) for _ in range(2))

    assert re.fullmatch(form, one)
    assert len(one) <= 200
    assert one != other
