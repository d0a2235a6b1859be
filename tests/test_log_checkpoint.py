"""The checkpoint of a trigger's log offset, against a fake of the triggerer's supervisor."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.comms import SetXCom, XComResult

from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.log_budget import BURST, LogBudget
from airflow_provider_rayjobs.log_checkpoint import CheckpointedShare
from airflow_provider_rayjobs.task.attempts import HAS_STORE

needs_xcoms = pytest.mark.skipif(not HAS_STORE, reason="before Airflow 3.3 an event loop has no XComs")


class Supervisor:
    """A fake of a triggerer's supervisor that stores XComs."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}
        self.messages: list[str] = []

    async def asend(self, message: Any) -> Any:
        self.messages.append(type(message).__name__)
        if isinstance(message, SetXCom):
            self.xcoms[message.task_id] = json.loads(json.dumps(message.value))
            return None
        return XComResult(key=message.key, value=self.xcoms.get(message.task_id))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    supervisor = Supervisor()
    monkeypatch.setattr("airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


def instance(try_number: int = 1) -> SimpleNamespace:
    return SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=try_number)


def share_of(
    task_instance: Any, job: str = "job-1", deferred_at: float | None = None, warnings: list[Any] | None = None
) -> CheckpointedShare:
    return CheckpointedShare(
        LogBudget(), task_instance, job, deferred_at, lambda *words: [] if warnings is None else warnings.append(words)
    )


async def show(data: bytes, share: CheckpointedShare, *, polls: int = 8) -> tuple[list[str], LogReader]:
    """Poll a log as a trigger does; return the records that were shown."""
    shown: list[str] = []
    reader = LogReader(policy=share)
    async with share.following(reader):
        for poll in range(polls):
            if share.begin(poll * 10.0):
                reader.log.begin()
                shown += [*reader.log.feed(data), *reader.log.flush()]
                share.end(is_throttled=reader.log.is_throttled)
            await asyncio.sleep(0.3)
    return shown, reader


@needs_xcoms
def test_restarted_trigger_continues_at_the_checkpoint(supervisor: Supervisor):
    """The offset is stored after each turn, and a restarted trigger continues there: it repeats at most one turn."""
    warnings: list[Any] = []
    data = b"".join(b"line %d\n" % number for number in range(20_000))
    now = time.time()

    _, reader = asyncio.run(show(data, share_of(instance(), deferred_at=now, warnings=warnings), polls=4))
    kept = supervisor.xcoms["t"]["log"]["offset"]
    assert 0 < kept <= reader.log.offset <= kept + BURST
    assert "GetXCom" not in supervisor.messages, "a trigger that was deferred just now has nothing to look up"
    assert warnings == []

    again, _ = asyncio.run(show(data, share_of(instance(), deferred_at=now - 60, warnings=warnings), polls=4))
    assert data[kept:].decode().startswith("\n".join(again))
    assert len(again) > 0
    assert [words[1:] for words in warnings] == [("job-1", kept)]


@needs_xcoms
def test_no_turn_before_the_checkpoint_is_stored(supervisor: Supervisor):
    """The log is not shown before the first checkpoint, and not read between a turn and its checkpoint."""

    async def follow() -> None:
        share = share_of(instance(), deferred_at=time.time())
        async with share.following(LogReader(policy=share)):
            assert share.begin(1.0)
            assert not share.take(b"one\n"), "after a crash the next trigger would not know that anything was shown"
            share.end(is_throttled=True)
            assert not share.begin(2.0)
            await asyncio.sleep(0.5)
            assert share.begin(3.0)
            assert share.take(b"one\n")
            share.end(is_throttled=False)
            assert not share.begin(9.0)
            await asyncio.sleep(0.5)
            assert share.begin(10.0)
            share.end(is_throttled=False)
            assert share.begin(15.0), "nothing new was shown"

    asyncio.run(follow())
    assert supervisor.messages == ["SetXCom", "SetXCom"]


@needs_xcoms
@pytest.mark.parametrize(("try_number", "job"), [(2, "job-1"), (1, "job-2")])
def test_the_checkpoint_of_another_try_or_job_is_ignored(supervisor: Supervisor, try_number: int, job: str):
    """The old trigger of a cleared task may store its checkpoint late: the new one shows the log from its start."""
    asyncio.run(show(b"one\n", share_of(instance(), deferred_at=time.time())))
    shown, _ = asyncio.run(show(b"one\n", share_of(instance(try_number), job)))

    assert shown == ["one"]


@needs_xcoms
@pytest.mark.parametrize(
    ("change", "shown"),
    [({"colour": "red", "version": 9}, []), ({"log": None}, ["one"]), ({"job": None}, ["one"])],
    ids=["later version", "no offset", "no job"],
)
def test_checkpoint_of_another_version(supervisor: Supervisor, change: dict[str, Any], shown: list[str]):
    """Unknown keys are ignored. Without an offset the log is shown from its start."""
    asyncio.run(show(b"one\n", share_of(instance(), deferred_at=time.time())))
    supervisor.xcoms["t"] |= change
    again, _ = asyncio.run(show(b"one\n", share_of(instance())))

    assert again == shown


@needs_xcoms
def test_a_job_that_prints_nothing_stores_no_checkpoint(supervisor: Supervisor):
    """A trigger that shows nothing writes no XCom, as XComs pass through the triggerer's supervisor."""
    asyncio.run(show(b"", share_of(instance(), deferred_at=time.time())))

    assert supervisor.messages == []


@pytest.mark.parametrize("has_instance", [True, False])
@pytest.mark.parametrize("deferred_ago", [None, 0.0], ids=["later run", "first run"])
def test_failed_checkpoint_is_no_error(has_instance: bool, deferred_ago: float | None):
    """If Airflow cannot store an XCom for a trigger, its lines are still shown, after a warning."""
    warnings: list[Any] = []
    deferred_at = None if deferred_ago is None else time.time() - deferred_ago
    share = share_of(instance() if has_instance else None, deferred_at=deferred_at, warnings=warnings)

    shown, _ = asyncio.run(show(b"one\n", share))

    assert shown == ["one"]
    stored = [words[0] for words in warnings if "cannot be stored" in words[0]]
    assert len(stored) == (1 if has_instance and HAS_STORE else 0)
