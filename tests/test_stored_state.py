"""
What is stored outside a process, against golden files of every released version.

Tasks wait for days, so a worker or a triggerer reads what another version of this package has stored. The files in
``golden/VERSION/`` are what that version writes. After a change of a stored form, write those of this version with::

    UPDATE_GOLDEN=1 python -m pytest tests/test_stored_state.py

The files of released versions never change.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from stand_in_head import START, StandInHead
from test_operators import Store, defer, deferrable, try_from
from test_sensors import context, sensor

from airflow_provider_rayjobs import __version__, triggers
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import RayJobsError, RayJobTimeoutError
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.sensors import _JobPoller
from airflow_provider_rayjobs.task.attempts import HAS_STORE, JobRecord, JobRecordStore, RetryGeneration
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(folder.name for folder in GOLDEN.iterdir())
ADDRESS = "http://ray-head:8265"
JOB = JobRef(ADDRESS, "nightly-2", "session_1", "0123456789abcdef", START)
TRY = "019b7c00-0000-7000-8000-000000000001"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LIMITS = Limits(pending_timeout=60.0, job_timeout=3600.0, is_confirmed=False)
LOGS = LogOptions("live", lines_limit=100, flush_interval=30.0)


def log_state() -> dict[str, Any]:
    reader = LogReader(
        {
            "source": "file", "notices": ["busy"], "lines_shown": 1, "rest": 2.5, "read_timeout": 60.0,
            "progress": 3, "progress_at": START,
        },
        lines_limit=100,
    )  # fmt: skip
    cursor = LogCursor()
    assert [*cursor.feed(b"first\n"), *cursor.flush()] == ["first"]
    reader.log.offset, reader.log.checksum = cursor.offset, cursor.checksum
    return reader.state


def trigger_arguments() -> dict[str, Any]:
    return RayJobTrigger(
        JOB.submission_id, "ray_nightly", 10.0, unreachable_timeout=300.0, missing_timeout=60.0, job_ref=JOB.to_json(),
        try_id=TRY, limits=LIMITS.to_json(), execution_deadline=1767312100.5, stop_on_kill=True, stop_timeout=20.0,
        logs=LOGS.to_json(), log_state=log_state(), deferred_at=1767312000.5, pending_for=12.5,
        demand=[["GPU", 1.0], ["special_chip", 2.0]], team="research",
    ).serialize()[1]  # fmt: skip


def read_trigger(stored: Any) -> dict[str, Any]:
    """Return all that the trigger reads from its arguments, but the version."""
    trigger = RayJobTrigger(**stored)
    options = asdict(trigger.options)
    return options | {
        "submission_id": trigger.submission_id,
        "ray_conn_id": trigger.ray_conn_id,
        "poll_interval": trigger.poll_interval,
        "job_ref": trigger._job.to_json(),
        "limits": read_limits(options["limits"]),
        "logs": asdict(LogOptions.from_json(options["logs"] or {})),
        "log_state": read_log_state(options["log_state"]),
        "version": None,
    }


def read_limits(stored: Any) -> dict[str, Any]:
    return asdict(Limits.from_json(stored))


def read_log_state(stored: Any) -> dict[str, Any]:
    return LogReader(stored, lines_limit=100).state | {"version": None}


RECORD = JobRecord(
    JOB, "ray_nightly", RetryGeneration(3, "2026-01-02T00:00:00+00:00", 1), "nightly", 2, accepted=True, abandoned=True,
    delivered=True, holder=TRY, traceparent=TRACEPARENT,
)  # fmt: skip


def job_record() -> Any:
    store = Store()
    JobRecordStore(store).save(RECORD)
    return store["ray_job"]


def read_record(stored: Any) -> dict[str, Any]:
    record = JobRecordStore(Store(ray_job=stored)).record
    assert record is not None
    return asdict(replace(record, version=0))


def new_poller() -> _JobPoller:
    cluster = Cluster(ADDRESS, dashboard_url=ADDRESS)
    job = JobRef(ADDRESS, JOB.submission_id)
    return _JobPoller(job, cluster, LogOptions("on_completion", lines_limit=100), 60.0, 600.0)


def sensor_state() -> Any:
    poller, store = new_poller(), Store()
    poller.job, poller.outage.since, poller.read_after = JOB, 1767312030.5, 1767312040.5
    poller.reader.restore(log_state())
    poller.is_missing_told = True
    poller.pending.restore({"is_found": True, "told": "busy", "told_at": 30.5, "rests_until": 90.5})
    poller.save(context(store))
    return store["ray_job_sensor"]


def read_sensor_state(stored: Any) -> dict[str, Any]:
    poller = new_poller()
    poller.restore(context(Store(ray_job_sensor=stored)), is_rescheduled=True, is_first_poke=False)
    return {
        "generation": asdict(RetryGeneration.from_json(stored["generation"])),
        "job_ref": poller.job.to_json(),
        "log": poller.reader.state | {"version": None},
        "outage_since": poller.outage.since,
        "read_after": poller.read_after,
        "is_missing_told": poller.is_missing_told,
        "pending": poller.pending.state,
    }


def event_of(head: StandInHead, **options: Any) -> Any:
    """Return the event of a trigger that follows a job of a stand-in head, with the address of the golden files."""

    async def run() -> list[Any]:
        job = replace(JOB, address=head.address, start_time=None).to_json()
        trigger = RayJobTrigger(JOB.submission_id, poll_interval=0.1, **{"job_ref": job} | options)
        return [event async for event in trigger.run()]

    [event] = asyncio.run(run())
    text = json.dumps(event.payload).replace(head.address, ADDRESS)
    assert head.address not in text
    return json.loads(text)


def job_fields(head: StandInHead, status: str, **fields: Any) -> None:
    given = {"metadata": {"submission_nonce": JOB.nonce}, "message": "Job's message.", "driver_node_id": "node-1"}
    head.add(JOB.submission_id, status, **given | fields)


def event_success(head: StandInHead) -> Any:
    job_fields(
        head, "SUCCEEDED", job_id="02000000", end_time=START + 5000, driver_exit_code=0,
        driver_agent_http_address="http://192.0.2.1:52365",
    )  # fmt: skip
    return event_of(head, log_state=log_state(), execution_deadline=1767312100.5, try_id=TRY, pending_for=12.5)


def event_error(head: StandInHead) -> Any:
    job_fields(head, "SUCCEEDED", metadata={"submission_nonce": "of another submission"})
    return event_of(head, log_state=log_state())


def event_time_limit(head: StandInHead) -> Any:
    job_fields(head, "RUNNING")
    return event_of(head, limits=Limits(job_timeout=30.0).to_json(), log_state=log_state())


def event_log_flush(head: StandInHead) -> Any:
    job_fields(head, "RUNNING")
    head.log = b"first\n"
    event = event_of(head, logs=LogOptions(flush_interval=0.0).to_json())
    assert event["log_state"]["rest"] > 0
    event["log_state"]["rest"] = 2.5  # the measured time of the read
    return event


def read_event(stored: Any) -> dict[str, Any]:
    """Return all that a resumed task reads from an event."""
    read = {
        "submission_id": stored.get("submission_id"),
        "job_ref": JobRef.from_json({"address": "", "submission_id": "", **(stored.get("job_ref") or {})}).to_json(),
        "log_state": read_log_state(stored.get("log_state")),
        "execution_deadline": stored.get("execution_deadline"),
        "try_id": stored.get("try_id"),
        "pending_for": stored.get("pending_for"),
    }
    try:
        return read | {"job": details_from_event(stored).to_event()}
    except RayJobsError as error:
        read |= {"error": type(error).__name__, "message": str(error), "delivery": str(error.delivery)}
        if isinstance(error, RayJobTimeoutError):
            read |= {"limit": error.limit, "seen": error.details and error.details.to_event()}
        return read


def paths_of(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the path of each key, e.g. ``job`` and ``job.nonce``."""
    for key, nested in value.items() if isinstance(value, dict) else ():
        yield prefix + key
        yield from paths_of(nested, f"{prefix}{key}.")


def value_at(value: Any, path: str) -> Any:
    """Return the value of a path."""
    for key in path.split("."):
        value = value[key]
    return value


def without(value: Any, path: str) -> Any:
    """Return a copy of a nested dictionary without the key of a path."""
    key, _, rest = path.partition(".")
    if not isinstance(value, dict) or key not in value:
        return value
    kept = {name: nested for name, nested in value.items() if name != key}
    return kept | {key: without(value[key], rest)} if rest else kept


def with_later_keys(value: Any) -> Any:
    """Return a copy with an unknown key at every place, and with a higher version."""
    if not isinstance(value, dict):
        return value
    changed = {key: with_later_keys(nested) for key, nested in value.items()}
    return changed | {"colour": {"red": 1}} | ({"version": 9} if "version" in changed else {})


@dataclass
class Form:
    """
    One kind of stored state.

    :param write: returns its JSON, as today's code writes it.
    :param read: returns all that today's code reads from it.
    :param required: the paths of keys that every version writes; others may be missing.
    """

    write: Callable[..., Any]
    read: Callable[[Any], dict[str, Any]]
    required: tuple[str, ...] = ()


_EVENT = (
    "submission_id",
    "job_ref.submission_id",
    "error",
    "job",
    "job.type",
    "job.status",
    "seen.type",
    "seen.status",
)
FORMS = {
    "trigger_arguments": Form(trigger_arguments, read_trigger, ("submission_id",)),
    "limits": Form(LIMITS.to_json, read_limits),
    "log_state": Form(log_state, read_log_state),
    "job_record": Form(
        job_record, read_record,
        ("job", "job.address", "job.submission_id", "generation", "generation.max_tries", "generation.run_start"),
    ),
    "sensor_state": Form(
        sensor_state, read_sensor_state,
        ("try_number", "job_ref", "job_ref.submission_id", "log", "generation", "generation.max_tries",
         "generation.run_start"),
    ),
    "event_success": Form(event_success, read_event, _EVENT),
    "event_error": Form(event_error, read_event, _EVENT),
    "event_time_limit": Form(event_time_limit, read_event, _EVENT),
    "event_log_flush": Form(event_log_flush, read_event, _EVENT),
}  # fmt: skip
EACH_FILE = pytest.mark.parametrize(
    ("version", "name"), [(version, file.stem) for version in VERSIONS for file in sorted((GOLDEN / version).iterdir())]
)


def golden(version: str, name: str) -> Any:
    return json.loads((GOLDEN / version / f"{name}.json").read_text())


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHead]:
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)
    with StandInHead() as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        yield head


@pytest.mark.parametrize("name", FORMS)
def test_this_version_writes_its_golden_files(name: str, head: StandInHead):
    """This version writes exactly its golden files, and each of them has the version of its form."""
    form = FORMS[name]
    written = json.loads(json.dumps(form.write(head) if name.startswith("event_") else form.write()))
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / __version__).mkdir(exist_ok=True)
        (GOLDEN / __version__ / f"{name}.json").write_text(json.dumps(written, indent=2) + "\n")

    assert written == golden(__version__, name)
    assert written["version"] == 1


@EACH_FILE
def test_every_version_is_read(version: str, name: str, head: StandInHead):
    """This version reads what every version has written, with the values that were stored."""
    stored = golden(version, name)
    read = FORMS[name].read(stored)

    for path in paths_of(stored):
        value = value_at(stored, path)
        if not (isinstance(value, dict) or path.endswith("version") or path == "try_number"):
            assert value_at(read, path) == value, path


@EACH_FILE
def test_keys_of_a_later_version_are_ignored(version: str, name: str):
    """A later version may add keys at any place, and raise the version."""
    stored = golden(version, name)

    assert FORMS[name].read(with_later_keys(stored)) == FORMS[name].read(stored)


@EACH_FILE
def test_keys_that_an_earlier_version_lacks_are_optional(version: str, name: str):
    """Each key that is not required may be missing. All other values are read."""
    form, stored = FORMS[name], golden(version, name)
    read = form.read(stored)

    for path in paths_of(stored):
        if path not in form.required:
            assert without(form.read(without(stored, path)), path) == without(read, path), path


@pytest.mark.parametrize("change", [lambda event: event, with_later_keys], ids=["same", "later"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.skipif(not HAS_STORE, reason="Airflow 3.3 introduced the task state store")
def test_task_resumes_with_the_state_of_another_version(head: StandInHead, version: str, change: Callable[[Any], Any]):
    """Operator and sensor resume with the job record and the events of every version, and of later ones."""
    job_fields(head, "RUNNING")
    job = change(golden(version, "job_record"))
    job["job"]["address"] = head.address
    store = Store(ray_job=job)
    success, flush = (change(golden(version, name)) for name in ("event_success", "event_log_flush"))
    for event in (success, flush):
        event["job_ref"]["address"] = head.address
        event.pop("try_id", None)

    for resume in (
        lambda event: deferrable().execute_complete(try_from(0, store), event),
        lambda event: sensor(submission_id=JOB.submission_id, fetch_logs="never").execute_complete(context(), event),
    ):
        assert resume(success) in (JOB.submission_id, None)
        with pytest.raises(TaskDeferred) as deferred:
            resume(flush)
        assert deferred.value.trigger.options.job_ref["nonce"] == JOB.nonce


def test_shortest_event_resumes_a_task(head: StandInHead):
    """Id and job are enough."""
    trigger = defer(deferrable(durable=None), try_from(0, Store()))
    job = {"type": "SUBMISSION", "status": "SUCCEEDED"}
    event = {"submission_id": trigger.submission_id, "job": job}

    assert deferrable().execute_complete(try_from(0, Store()), event) == trigger.submission_id
    assert sensor(submission_id="job-1", fetch_logs="never").execute_complete(context(), event) is None


@pytest.mark.parametrize(
    "change", [{"try_number": None}, {"job_ref": None}, {"job_ref": 3}, {"log": 7}, {"pending": 7}], ids=str
)
def test_unreadable_sensor_state_is_no_error(change: dict[str, Any]):
    """A sensor that cannot read a part of its stored state keeps the rest, or shows the log from its start."""
    poller = new_poller()
    poller.restore(context(Store(ray_job_sensor=sensor_state() | change)), is_rescheduled=True, is_first_poke=False)

    assert poller.job == (JobRef(ADDRESS, JOB.submission_id) if "job_ref" in change else JOB)
    assert poller.reader.log.offset == (6 if "pending" in change else 0)
