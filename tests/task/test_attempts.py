"""Decide which Ray job belongs to a try: every row of the table, and the job record."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.exceptions import (
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiUnreachableError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayVersion
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.steps import LogMessage, Send, Sleep
from airflow_provider_rayjobs.jobs.submission import NONCE, build_submission
from airflow_provider_rayjobs.task.attempts import (
    Action,
    ClusterAnswer,
    Decision,
    JobRecord,
    JobRecordStore,
    RetryGeneration,
    ThisTry,
    decide,
    new_submission_id,
    numbered_id,
    query_job,
)

HERE = "http://head:8265"
START = "2026-01-02T00:00:00+00:00"
GENERATION = RetryGeneration(3, START, clear_number=1)
RETRIES = [
    pytest.param(GENERATION, id="retry"),
    pytest.param(RetryGeneration(3, START, 2), id="retry, another task was cleared"),
    pytest.param(RetryGeneration(3, START), id="retry, clear_number unknown"),
    pytest.param(RetryGeneration(3, "2026-01-03T00:00:00+00:00", 1), id="retry, new start of the run"),
]
CLEARS = [
    pytest.param(RetryGeneration(7, START, 2), id="cleared"),
    pytest.param(RetryGeneration(7, START, 1), id="cleared without reset_dag_runs"),
    pytest.param(RetryGeneration(2, START, 2), id="cleared, fewer retries"),
    pytest.param(RetryGeneration(3, "2026-01-03T00:00:00+00:00", 2), id="cleared, new start of the run"),
    pytest.param(RetryGeneration(7, START), id="cleared, clear_number unknown"),
]
ALL = [*RETRIES, *CLEARS]
OWNER = {"airflow_dag_id": "nightly", "airflow_run_id": "run-1", "airflow_task_id": "train", "airflow_map_index": "-1"}
RECORD = JobRecord(JobRef(HERE, "job-1", "session_1", "ours"), "ray_1", GENERATION, accepted=True)
UNCONFIRMED = replace(RECORD, accepted=False)
ABANDONED = replace(RECORD, abandoned=True)
DELIVERED = replace(RECORD, delivered=True)
# What remains of a record that cannot be read.
UNREADABLE = JobRecord(JobRef("", "job-1"), accepted=True)
READABLE = [
    pytest.param(RECORD, id="accepted"),
    pytest.param(UNCONFIRMED, id="unconfirmed"),
    pytest.param(ABANDONED, id="abandoned"),
    pytest.param(DELIVERED, id="delivered"),
]
RECORDS = [*READABLE, pytest.param(UNREADABLE, id="unreadable")]
KEPT = [READABLE[0], READABLE[1], READABLE[3], RECORDS[-1]]  # not abandoned
UNKNOWN = ClusterAnswer(None, "session_1")
ALIVE = ["PENDING", "RUNNING", "PAUSED"]  # PAUSED stands for a status of a newer Ray
ENDED = ["SUCCEEDED", "FAILED", "STOPPED"]


def found(status: str, nonce: str | None = "ours", **fields: Any) -> ClusterAnswer:
    """Return the answer about a job that the first generation of the task has submitted."""
    metadata = {} if nonce is None else {NONCE: nonce}
    details = JobDetails(
        JobType.SUBMISSION,
        JobStatus(status),
        submission_id="job-1",
        metadata=OWNER | GENERATION.metadata() | metadata | fields.pop("metadata", {}),
        **fields,
    )
    return ClusterAnswer(details, "session_1")


def a_try(generation: RetryGeneration = GENERATION, **fields: Any) -> ThisTry:
    return ThisTry(generation, **{"owner": OWNER} | fields)


def test_no_job_record() -> None:
    """Without a job record a try submits, and logs no reason."""
    assert decide(None, None, a_try()) == Decision(Action.SUBMIT)
    assert decide(None, found("RUNNING"), a_try()) == Decision(Action.SUBMIT)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", ALL)
def test_record_is_checked_with_ray_first(record: JobRecord, generation: RetryGeneration) -> None:
    """A try that finds a job record asks Ray before anything else, also a record that cannot be read."""
    assert decide(record, None, a_try(generation)) == Decision(Action.ASK)


@pytest.mark.parametrize("record", READABLE)
@pytest.mark.parametrize("generation", ALL)
@pytest.mark.parametrize("now", ["session_2", None])
def test_unknown_job_of_another_session(record: JobRecord, generation: RetryGeneration, now: str | None) -> None:
    """A job that is unknown after the head was restarted is lost: a new one is submitted."""
    decision = decide(record, ClusterAnswer(None, now), a_try(generation))

    assert decision.action is Action.SUBMIT
    assert f"lost when the head was restarted (Ray session then: session_1, now: {now})" in decision.reason


@pytest.mark.parametrize(
    ("then", "now"),
    [("session_1", "session_1"), (None, None), (None, "session_2")],
    ids=["same session", "a head without session names", "session unknown"],
)
@pytest.mark.parametrize("generation", ALL)
def test_unknown_job_that_was_never_confirmed(then: str | None, now: str | None, generation: RetryGeneration) -> None:
    """An unconfirmed submission is sent again under its id, so that a late request cannot make a second job."""
    decision = decide(
        replace(UNCONFIRMED, job=replace(RECORD.job, session=then)), ClusterAnswer(None, now), a_try(generation)
    )

    assert decision == Decision(
        Action.RESUBMIT,
        "Ray job job-1 of an earlier try is unknown to Ray, and its submission was never confirmed. Submitting it "
        "again under the same id.",
    )


@pytest.mark.parametrize("record", [RECORD, DELIVERED, UNREADABLE], ids=["accepted", "delivered", "unreadable"])
@pytest.mark.parametrize("generation", ALL)
def test_unknown_job_that_was_accepted(record: JobRecord, generation: RetryGeneration) -> None:
    """A job that Ray had accepted and no longer knows in the same session was deleted: a new one is submitted."""
    decision = decide(record, UNKNOWN, a_try(generation))

    assert decision.action is Action.SUBMIT
    assert "was deleted from the cluster" in decision.reason


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("generation", ALL)
def test_unknown_job_that_was_abandoned(accepted: bool, generation: RetryGeneration) -> None:
    """An abandoned job is never submitted again under its id: a late stop request would stop it."""
    decision = decide(replace(ABANDONED, accepted=accepted), UNKNOWN, a_try(generation))

    assert decision.action is Action.SUBMIT
    assert "exceeded a time limit and no longer exists" in decision.reason


@pytest.mark.parametrize("record", READABLE)
@pytest.mark.parametrize("status", [*ALIVE, *ENDED])
@pytest.mark.parametrize("nonce", ["theirs", None])
def test_job_of_another_submission_is_left_alone(record: JobRecord, status: str, nonce: str | None) -> None:
    """A job with another submission nonce is neither followed nor stopped, nor is its success taken."""
    decision = decide(record, found(status, nonce), a_try())

    assert decision.action is Action.SUBMIT
    assert "another job has its id now, which is left alone" in decision.reason


@pytest.mark.parametrize("status", [*ALIVE, *ENDED])
@pytest.mark.parametrize("key", OWNER)
@pytest.mark.parametrize("value", ["another", None])
def test_unreadable_record_of_a_job_of_another_task(status: str, key: str, value: str | None) -> None:
    """Without a nonce in the record, the job's metadata must name this task instance."""
    answer = found(status, metadata={key: value})
    if value is None:
        assert answer.job is not None
        answer = found(status)
        answer = replace(answer, job=replace(answer.job, metadata={NONCE: "ours"}))

    decision = decide(UNREADABLE, answer, a_try())
    assert decision.action is Action.SUBMIT
    assert "another job has its id now, which is left alone" in decision.reason


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", ALL)
@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
@pytest.mark.parametrize("exit_code", [None, 1, 4])
def test_failed_or_stopped_job(
    record: JobRecord, generation: RetryGeneration, status: str, exit_code: int | None
) -> None:
    """After a job that FAILED or was STOPPED a new one is submitted."""
    decision = decide(
        record, found(status, driver_exit_code=exit_code), a_try(generation, final_exit_codes=frozenset({3}))
    )

    assert decision.action is Action.SUBMIT
    assert f"ended {status}" in decision.reason
    assert ("cleared" in decision.reason) is (generation in [each.values[0] for each in CLEARS])


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", RETRIES)
def test_retry_takes_a_success(record: JobRecord, generation: RetryGeneration) -> None:
    """
    A retry takes the success of an earlier try, and submits nothing.

    Also if that try has returned the result: it may have failed afterwards, for instance while Airflow stored it.
    """
    decision = decide(record, found("SUCCEEDED"), a_try(generation))

    assert decision == Decision(Action.FINISH, "Ray job job-1 of an earlier try SUCCEEDED. This try takes its result.")


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", RETRIES)
def test_retry_replaces_a_success_without_a_usable_result(record: JobRecord, generation: RetryGeneration) -> None:
    """If the last try found that the job's result can never be read, the retry submits a new job."""
    decision = decide(replace(record, unusable=True), found("SUCCEEDED"), a_try(generation))

    assert decision.action is Action.SUBMIT
    assert "ended SUCCEEDED, but its result cannot be read" in decision.reason


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("generation", CLEARS)
@pytest.mark.parametrize("stop_on_kill", [True, False])
def test_cleared_task_submits_after_a_success(
    record: JobRecord, generation: RetryGeneration, stop_on_kill: bool
) -> None:
    """A cleared task submits a new job although the recorded one SUCCEEDED."""
    decision = decide(record, found("SUCCEEDED"), a_try(generation, stop_on_kill=stop_on_kill))

    assert decision.action is Action.SUBMIT
    assert "ended SUCCEEDED, and the task was cleared" in decision.reason


@pytest.mark.parametrize("record", [RECORD, DELIVERED, UNCONFIRMED, ABANDONED, UNREADABLE], ids=str)
@pytest.mark.parametrize("exit_code", [3, 0, -9])
def test_final_exit_code_is_taken(record: JobRecord, exit_code: int) -> None:
    """A retry takes a failure with a final exit code, whether or not the last try raised it, and submits nothing."""
    decision = decide(
        record, found("FAILED", driver_exit_code=exit_code), a_try(final_exit_codes=frozenset({3, 0, -9}))
    )

    assert decision.action is Action.FINISH
    assert f"FAILED with exit code {exit_code}, after which no job is submitted" in decision.reason


@pytest.mark.parametrize(
    ("record", "generation", "status"),
    [
        pytest.param(RECORD, CLEARS[0].values[0], "FAILED", id="cleared"),
        pytest.param(RECORD, GENERATION, "STOPPED", id="stopped"),
    ],
)
def test_final_exit_code_that_does_not_apply(record: JobRecord, generation: RetryGeneration, status: str) -> None:
    """A final exit code counts for the failure of a job, and not after a Clear."""
    decision = decide(record, found(status, driver_exit_code=3), a_try(generation, final_exit_codes=frozenset({3})))

    assert decision.action is Action.SUBMIT


@pytest.mark.parametrize("generation", ALL)
@pytest.mark.parametrize("status", ALIVE)
@pytest.mark.parametrize("stop_on_kill", [True, False])
def test_abandoned_job_is_replaced(generation: RetryGeneration, status: str, stop_on_kill: bool) -> None:
    """An abandoned job that has not ended is stopped, and never followed again."""
    decision = decide(ABANDONED, found(status), a_try(generation, stop_on_kill=stop_on_kill))

    assert decision.action is Action.REPLACE
    assert f"exceeded a time limit and is still {status}" in decision.reason


@pytest.mark.parametrize("record", KEPT)
@pytest.mark.parametrize("generation", CLEARS)
@pytest.mark.parametrize("status", ALIVE)
def test_cleared_task_replaces_a_running_job(record: JobRecord, generation: RetryGeneration, status: str) -> None:
    """A cleared task stops a job that has not ended before it submits a new one."""
    decision = decide(record, found(status), a_try(generation))

    assert decision.action is Action.REPLACE
    assert f"is still {status}, but the task was cleared" in decision.reason


@pytest.mark.parametrize("record", KEPT)
@pytest.mark.parametrize("generation", CLEARS)
@pytest.mark.parametrize("status", ALIVE)
def test_cleared_task_leaves_a_job_running_without_stop_on_kill(
    record: JobRecord, generation: RetryGeneration, status: str
) -> None:
    """With ``stop_on_kill=False`` a cleared task leaves the old job running, says so, and submits a new one."""
    decision = decide(record, found(status), a_try(generation, stop_on_kill=False))

    assert decision.action is Action.SUBMIT
    assert f"is still {status}, and the task was cleared. It runs on, as stop_on_kill is off." in decision.reason


@pytest.mark.parametrize("record", KEPT)
@pytest.mark.parametrize("generation", RETRIES)
@pytest.mark.parametrize("status", ALIVE)
@pytest.mark.parametrize("stop_on_kill", [True, False])
def test_retry_reattaches_to_a_running_job(
    record: JobRecord, generation: RetryGeneration, status: str, stop_on_kill: bool
) -> None:
    """A retry follows a job that has not ended, and shows its log from the start."""
    decision = decide(record, found(status), a_try(generation, stop_on_kill=stop_on_kill))

    assert decision.action is Action.REATTACH
    assert f"is {status}. This try follows it and shows its log from the start." in decision.reason


@pytest.mark.parametrize("status", ALIVE)
def test_unreadable_record_of_a_job_without_a_generation(status: str) -> None:
    """If neither record nor metadata tell a Clear, the try counts as a retry: no second job is submitted."""
    answer = found(status, metadata={"airflow_max_tries": "?", "airflow_clear_number": "?"})

    assert decide(UNREADABLE, answer, a_try(CLEARS[0].values[0])).action is Action.REATTACH


def test_no_combination_leaves_a_running_job_beside_a_new_one() -> None:
    """For every combination of fields, a running job is followed or replaced before a new one is submitted."""
    flags = [
        dict(zip(("accepted", "abandoned", "delivered", "unusable"), values, strict=True))
        for values in product([True, False], repeat=4)
    ]
    for record, flag, generation, status in product((RECORD, UNREADABLE), flags, ALL, [*ALIVE, *ENDED]):
        decision = decide(replace(record, **flag), found(status), a_try(generation.values[0]))

        assert (decision.action in (Action.REATTACH, Action.REPLACE)) is (status in ALIVE)
        assert decision.action not in (Action.ASK, Action.RESUBMIT)
        assert decision.reason


def test_every_action_is_documented() -> None:
    """The table in the docstring has every action."""
    table = str(decide.__doc__).split("=\n")[2]

    assert set(re.findall(r"\b[A-Z]{3,}\b", table)) >= {kind.name for kind in Action}


# -- retry or Clear -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", RETRIES)
def test_is_retry(generation: RetryGeneration) -> None:
    """The same ``max_tries``, with the same ``clear_number`` or run start, mean that the task was not cleared."""
    assert generation.is_retry_of(GENERATION)
    assert GENERATION.is_retry_of(generation)


@pytest.mark.parametrize("generation", CLEARS)
def test_is_clear(generation: RetryGeneration) -> None:
    """Another ``max_tries`` means a Clear, and so does another start of the run with another ``clear_number``."""
    assert not generation.is_retry_of(GENERATION)


def test_two_unknown_clear_numbers_are_not_the_same() -> None:
    """Before Airflow 3.3, only ``max_tries`` and the run start tell a Clear."""
    assert RetryGeneration(3, START).is_retry_of(RetryGeneration(3, START))
    assert not RetryGeneration(4, START).is_retry_of(RetryGeneration(3, START))


@pytest.mark.parametrize("generation", ALL)
def test_generation_in_metadata(generation: RetryGeneration) -> None:
    """A job's metadata tells the generation of the try that submitted it."""
    metadata = generation.metadata()

    assert RetryGeneration.from_metadata(metadata) == generation
    assert all(isinstance(value, str) for value in metadata.values())


def test_generation_in_metadata_of_other_jobs() -> None:
    """A job of another client has no generation. One of an older version may lack a part of it."""
    assert RetryGeneration.from_metadata({}) is None
    assert RetryGeneration.from_metadata({"airflow_max_tries": "-1"}) is None
    assert RetryGeneration.from_metadata({"airflow_max_tries": "3"}) == RetryGeneration(3, "")
    assert RetryGeneration.from_metadata(GENERATION.metadata() | {"airflow_clear_number": "?"}) == replace(
        GENERATION, clear_number=None
    )


def test_generation_of_a_try() -> None:
    """A generation is ``max_tries``, the run's start and, since Airflow 3.3, its ``clear_number``."""
    first = RetryGeneration.of(context(try_number=1))

    assert first == RetryGeneration.of(context(try_number=2)) == RetryGeneration(3, "2026-01-02T03:04:05+00:00")
    assert RetryGeneration.of(context(start_date=None)) == RetryGeneration(3, "")
    assert RetryGeneration.of(context(clear_number=4)).clear_number == 4


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
    JobRef(HERE, "nightly-2", "session_1", "nonce", 1_767_312_000_000),
    "ray_1",
    GENERATION,
    base_id="nightly",
    number=2,
    accepted=True,
    abandoned=True,
    delivered=True,
    holder="0190b0b0-0000-7000-8000-000000000000",
)
# The oldest form that can be read. Its text must not be changed.
VERSION_1 = """{
    "job": {"address": "http://head:8265", "submission_id": "nightly-2", "session": "session_1", "nonce": "nonce",
            "start_time": 1767312000000},
    "conn_id": "ray_1",
    "generation": {"max_tries": 3, "run_start": "2026-01-02T00:00:00+00:00", "clear_number": 1},
    "base_id": "nightly",
    "number": 2,
    "accepted": true,
    "abandoned": true,
    "delivered": true,
    "unusable": false,
    "holder": "0190b0b0-0000-7000-8000-000000000000",
    "version": 1
}"""


@pytest.mark.parametrize("record", [FULL, JobRecord(JobRef(HERE, "a")), UNREADABLE], ids=["all", "few", "unreadable"])
def test_record_outlives_the_try(record: JobRecord) -> None:
    """The next try reads exactly the record that a try saved; Airflow keeps it for ten years."""
    store = Store()
    JobRecordStore(store).save(record)

    assert JobRecordStore(store).record == record
    assert JobRecord.from_json(json.loads(json.dumps(asdict(record)))) == record
    assert store.retentions == [timedelta(days=3650)]


def test_stored_form() -> None:
    """Every version reads this form, and writes it with the fields that were added since."""
    assert JobRecord.from_json(json.loads(VERSION_1)) == FULL
    assert asdict(FULL) == json.loads(VERSION_1) | {"traceparent": ""}


def test_record_of_a_later_version() -> None:
    """Unknown keys are ignored at each level, and what is written again has this version."""
    later = json.loads(VERSION_1) | {"version": 2, "colour": "red"}
    later["job"] |= {"namespace": "prod"}
    later["generation"] |= {"epoch": 7}

    assert JobRecord.from_json(later) == FULL


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param({"submission_id": "job-1", "nonce": "n", "address": HERE, "accepted": False}, id="flat form"),
        pytest.param({"job": {"submission_id": "job-1"}, "generation": None}, id="address missing"),
        pytest.param({"job": "a text", "submission_id": "job-1", "generation": None}, id="job a text"),
        pytest.param({"job": ["a", "list"], "submission_id": "job-1", "generation": None}, id="job a list"),
        pytest.param(
            {"job": {"address": HERE, "submission_id": "job-1"}, "generation": None, "number": "two"},
            id="number a text",
        ),
    ],
)
def test_unreadable_record_keeps_its_id(stored: Any) -> None:
    """Of a record in an unknown form the submission id remains, which is enough to ask Ray."""
    assert JobRecord.from_json(stored) == UNREADABLE


@pytest.mark.parametrize("generation", [None, 5, {}, []], ids=repr)
def test_record_without_a_generation(generation: Any) -> None:
    """Without a readable generation in the record, the job's metadata tell it."""
    stored = json.loads(VERSION_1) | {"generation": generation}

    assert JobRecord.from_json(stored) == replace(FULL, generation=None)


@pytest.mark.parametrize(
    "stored", [{}, [], "text", 5, True, {"job": {}}, {"job": None}, {"submission_id": 5}, {"job": {"submission_id": 5}}]
)
def test_record_without_an_id(stored: Any) -> None:
    """Without an id there is no job to ask for."""
    assert JobRecord.from_json(stored) is None


VALUES = st.sampled_from([None, True, 0, -1, 7, 1.5, "", "text", [], ["text"], {}, {"submission_id": "job-1"}])


def forms(*names: str, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return dictionaries in which each name has any value, or is missing."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, VALUES) | parts)


JOBS = forms(*(each.name for each in fields(JobRef)))
GENERATIONS = forms(*(each.name for each in fields(RetryGeneration)))
RECORD_FORMS = forms(
    "submission_id", *(each.name for each in fields(JobRecord)), job=JOBS | VALUES, generation=GENERATIONS | VALUES
)


@settings(max_examples=200, deadline=None)
@given(stored=RECORD_FORMS | VALUES)
@example(stored={"job": {"address": HERE, "submission_id": 5}, "generation": None})
@example(
    stored={"job": {"address": HERE, "submission_id": "job-1"}, "generation": None, "number": "two", "base_id": "a"}
)
@example(stored={"job": {"address": 5, "submission_id": "job-1"}, "generation": None})
@example(stored={"job": {"address": HERE, "submission_id": ".."}, "submission_id": ""})
def test_no_stored_value_is_an_error(stored: Any) -> None:
    """Whatever is stored with an id, a try can ask Ray, decide, and submit. Without an id it submits nothing."""
    store = Store()
    store.set("ray_job", stored or "nothing")
    if JobRecord.from_json(stored or "nothing") is None:
        with pytest.raises(ValueError, match="holds no submission id. Nothing was submitted"):
            JobRecordStore(store)
        return
    records = JobRecordStore(store)

    if records.record is not None:
        assert next(query_job(records.record, 600))
        for answer in (None, UNKNOWN, *map(found, [*ALIVE, *ENDED])):
            assert decide(records.record, answer, a_try())
        records.update(accepted=True, holder="me")
        assert JobRecordStore(store).record == records.record
    for base_id in (None, "a"):
        assert records.new_record(context(), base_id, HERE, "ray_1").submission_id


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


def test_update_of_a_record_that_cannot_be_stored() -> None:
    """A change counts for this try, even if the store fails."""

    class Failing(Store):
        def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
            raise OSError("the store is away")

    store = Failing()
    store.rows["ray_job"] = json.dumps(asdict(UNCONFIRMED))
    records = JobRecordStore(store)

    with pytest.raises(OSError, match="away"):
        records.update(accepted=True)
    assert records.record == RECORD


def test_read() -> None:
    """What another try has stored since can be read, and does not change the record of this try."""
    store = Store()
    records = JobRecordStore(store)
    records.save(RECORD)
    JobRecordStore(store).update(holder="another")

    assert records.read() == replace(RECORD, holder="another")
    assert records.record == RECORD
    assert JobRecordStore().read() is None


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
    """A query retries with growing pauses during an outage, and logs its start and its end."""
    result, requests, messages, seconds = query(600, trouble, trouble, RUNNING, trouble, GONE, SESSION)

    assert result == ClusterAnswer(None, "session_2")
    assert requests == [GET, GET, GET, VERSION, GET, VERSION]
    assert 1.5 + 3 + 1.5 <= seconds <= 3 + 6 + 12
    assert len(messages) == 2
    assert (
        f"No usable answer about Ray job job-1. The job may still be running. Retrying for 600 s. {trouble}"
        in messages[0]
    )
    assert f"Ray answers about job job-1 again, after {seconds:.0f} s" in messages[1]


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
    run = {"start_date": ti.pop("start_date", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))}
    if "clear_number" in ti:  # Airflow 3.3 and later
        run["clear_number"] = ti.pop("clear_number")
    return {"ti": SimpleNamespace(**ti), "dag_run": SimpleNamespace(**run)}


NAMES = [
    # the map index, the number of the submission, the id
    pytest.param(-1, 1, "nightly", id="first"),
    pytest.param(-1, 2, "nightly-2", id="second"),
    pytest.param(None, 10, "nightly-10", id="tenth"),
    pytest.param(0, 1, "nightly-m0", id="mapped, first"),
    pytest.param(12, 3, "nightly-m12-3", id="mapped, third"),
]


@pytest.mark.parametrize(("map_index", "number", "name"), NAMES)
def test_ids_of_the_user_are_numbered(map_index: int | None, number: int, name: str) -> None:
    """The first submission has the id of the user. A mapped task adds its map index, later submissions a number."""
    last = replace(RECORD, base_id="nightly", number=number - 1)
    records = JobRecordStore(Store())
    records.record = last if number > 1 else None
    record = records.new_record(context(map_index=map_index), "nightly", HERE, "ray_1")

    assert record.submission_id == name
    assert (record.base_id, record.number) == ("nightly", number)


@pytest.mark.parametrize(("map_index", "number", "name"), NAMES)
def test_ids_of_the_user_without_a_store(map_index: int | None, number: int, name: str) -> None:
    """Without a store the try number takes the place of the number of the submission."""
    given = context(map_index=map_index, try_number=number)

    assert JobRecordStore().new_record(given, "nightly", HERE, "ray_1").submission_id == name


def test_another_id_of_the_user() -> None:
    """Another ``submission_id`` than that of the last try appends the try number: it may have been used before."""
    records = JobRecordStore(Store())
    records.save(replace(RECORD, base_id="weekly", number=4))

    assert records.new_record(context(try_number=5), "nightly", HERE, "ray_1").submission_id == "nightly-5"


def test_id_of_the_user_after_an_unreadable_record() -> None:
    """After a record that does not tell how often the id was used, the try number tells an unused one."""
    records = JobRecordStore(Store())
    records.save(UNREADABLE)
    record = records.new_record(context(try_number=3), "nightly", HERE, "ray_1")
    records.save(record)

    assert record.submission_id == "nightly-3"
    assert records.new_record(context(try_number=4), "nightly", HERE, "ray_1").submission_id == "nightly-4"


def test_new_record() -> None:
    """A new record has the address, the connection, the generation and a new nonce, and is not accepted yet."""
    one, other = (JobRecordStore(Store()).new_record(context(clear_number=4), None, HERE, "ray_1") for _ in range(2))

    assert one.job.nonce
    assert one.job.nonce != other.job.nonce
    assert one == JobRecord(
        JobRef(HERE, one.submission_id, nonce=one.job.nonce), "ray_1", RetryGeneration.of(context(clear_number=4))
    )


@pytest.mark.parametrize("length", [1, 190, 199, 200])
def test_ids_of_the_user_fit_and_differ(length: int) -> None:
    """
    An id is never longer than Ray allows, and differs from those of other instances and submissions.

    Otherwise all instances of a mapped task but one would fail.
    """
    ids = {
        numbered_id("x" * length, suffix, number)
        for suffix in ("", "-m0", "-m1", "-m1000000")
        for number in (1, 2, 3, 100)
    }

    assert len(ids) == 16
    assert max(map(len, ids)) <= 200


@pytest.mark.parametrize("suffix", ["", "-m0"])
def test_id_of_the_user_that_is_too_long_is_refused(suffix: str) -> None:
    """A longer id is not cut, as two tasks may differ in its end alone: it is a mistake."""
    with pytest.raises(ValueError, match=r"^submission_id 'x+-monday' is invalid. Use 1 to 200"):
        build_submission("true", submission_id=numbered_id("x" * 200 + "-monday", suffix, 2))


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
