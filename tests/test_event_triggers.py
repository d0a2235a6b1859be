"""Events of Ray jobs that Airflow did not start: with Airflow's own shared streams, and in a real Airflow."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from stand_in_head import START, StandInHead

from airflow_provider_rayjobs import event_triggers
from airflow_provider_rayjobs.event_triggers import RayJobEventTrigger
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.ended import EndedJob
from airflow_provider_rayjobs.jobs.watch import ClusterWatch, Prices
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from airflow_provider_rayjobs.triggers import RayJobTrigger
from sandbox.local_airflow import LocalAirflow

needs_store = pytest.mark.skipif(
    not HAS_STORE, reason="Airflow 3.3 introduced shared streams and the asset state store"
)
CONN = "ray_jobs_default"


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHead]:
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__POLL_INTERVAL", "0.05")
    with StandInHead() as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        yield head


def end(head: StandInHead, name: str, status: str = "SUCCEEDED", **fields: Any) -> None:
    head.add(name, status, **{"end_time": START + 1000} | fields)


class Store(dict[str, Any]):
    """The state store of an asset. It can be away for some writes."""

    failures = 0

    async def aget(self, key: str) -> Any:
        return self.get(key)

    async def aset(self, key: str, value: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the API server is away")
        self[key] = json.loads(json.dumps(value))


class Stores:
    def __init__(self, *stores: Store) -> None:
        self._by_name = dict(enumerate(stores))


class Triggerer:
    """Runs triggers with Airflow's manager of shared streams, as Airflow's ``TriggerRunner.run_trigger`` does."""

    def __init__(self, *, persists: bool = True) -> None:
        from airflow.triggers.shared_stream import SharedStreamManager

        self.manager = SharedStreamManager()
        self.fired: dict[int, list[Any]] = {}
        self.persists = persists
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, trigger: RayJobEventTrigger, *stores: Store) -> list[Any]:
        """Start a trigger, and return the list of the payloads that it will fire."""
        number = len(self._tasks)
        trigger.asset_state_store = Stores(*stores)
        self.fired[number] = []
        self._tasks.append(asyncio.create_task(self._run(number, trigger)))
        return self.fired[number]

    async def _run(self, number: int, trigger: RayJobEventTrigger) -> None:
        key = trigger.shared_stream_key()
        stream = self.manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(stream):
                self.fired[number].append(event.payload)
                seq = self.manager.bind_pending_event(trigger_id=number, key=key)
                if self.persists:
                    self.manager.confirm_persisted([seq])
        finally:
            await self.manager.unsubscribe(number, key)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110  (a server's thread changes it)
            await asyncio.sleep(0.02)


async def after_polls(head: StandInHead, number: int = 3) -> None:
    last = len(head.requests) + number
    await until(lambda: len(head.requests) >= last)


def ids(payloads: list[Any]) -> list[str]:
    return [payload["submission_id"] for payload in payloads]


@needs_store
def test_watchers_share_a_poll(head: StandInHead):
    """Each watcher of a cluster gets its own jobs out of one poll, and the payload has no secrets."""

    async def run() -> None:
        triggerer = Triggerer()
        fired = [
            triggerer.start(trigger, Store())
            for trigger in (
                RayJobEventTrigger(name="train-*"),
                RayJobEventTrigger(status=("FAILED", "STOPPED")),
                RayJobEventTrigger(metadata={"team": "vision", "model": "v?"}),
                RayJobEventTrigger(metadata={"model": "*"}),
            )
        ]
        await after_polls(head)
        secret = {"runtime_env": {"env_vars": {"A": "secret"}}, "entrypoint": "secret", "message": "secret"}
        end(head, "train-1", metadata={"team": "nlp"}, **secret)
        end(head, "job-2", metadata={"job_name": "train-2"})
        end(head, "train-3", "FAILED")
        end(head, "train-4", metadata={"airflow_dag_id": "of Airflow"})
        end(head, "other", metadata={"team": "vision", "model": "v2"})
        head.add("train-5", "RUNNING")
        await until(lambda: list(map(len, fired)) == [2, 1, 1, 1])
        before, began = head.polls, time.monotonic()
        await after_polls(head, 8)

        assert [ids(payloads) for payloads in fired] == [["train-1", "job-2"], ["train-3"], ["other"], ["other"]]
        assert {name: fired[0][0][name] for name in ("ray_conn_id", "address", "status", "type", "end_time")} == {
            "ray_conn_id": CONN, "address": head.address, "status": "SUCCEEDED", "type": "SUBMISSION",
            "end_time": START + 1000,
        }  # fmt: skip
        assert "secret" not in json.dumps(fired)
        assert head.polls - before <= (time.monotonic() - began) / 0.05 + 2, "one poll for four watchers"
        await triggerer.stop()

    asyncio.run(run())


@needs_store
def test_restart(head: StandInHead):
    """A new triggerer fires for what has ended meanwhile, and not again. Jobs before the first start do not count."""
    store, second_asset = Store(), Store()
    end(head, "old")

    async def run(*expected: str) -> None:
        triggerer = Triggerer()
        fired = triggerer.start(RayJobEventTrigger(), store, second_asset)
        await after_polls(head)
        if not expected:
            end(head, "first")
            expected = ("first",)
        await until(lambda: len(fired) == len(expected))
        await until(lambda: expected[-1] in json.dumps(store))
        await after_polls(head)
        assert ids(fired) == [*expected]
        await triggerer.stop()

    asyncio.run(run())
    end(head, "second", end_time=START + 500)
    head.jobs["first"]["start_time"] += 1  # another job with the id of one that was fired
    asyncio.run(run("second", "first"))
    assert store == second_asset


@needs_store
def test_assets_that_come_and_go(head: StandInHead):
    """An asset that joins a watcher, or comes back to it, knows at once what the others know."""
    stale, second, third = Store(), Store(), Store()

    async def run(*stores: Store) -> list[str]:
        triggerer = Triggerer()
        fired = triggerer.start(RayJobEventTrigger(), *stores)
        await after_polls(head)
        if stores == (second,):
            end(head, "first")
            await until(lambda: "first" in json.dumps(second))
        await triggerer.stop()
        return ids(fired)

    assert asyncio.run(run(stale, second)) == []
    assert asyncio.run(run(second)) == ["first"]
    assert asyncio.run(run(stale, second, third)) == []
    assert stale == second == third


@needs_store
def test_watcher_beside_one_that_fails(head: StandInHead):
    """What a watcher has fired for is stored, even if another watcher of the cluster fails at the same list."""
    store = Store()

    class Failing(RayJobEventTrigger):
        def _match(self, job: EndedJob) -> Any:
            raise OSError

    async def run() -> None:
        triggerer = Triggerer()
        fired = triggerer.start(RayJobEventTrigger(), store)
        triggerer.start(Failing(), Store())
        await until(lambda: store)
        end(head, "first")
        await until(lambda: "first" in json.dumps(store))
        assert ids(fired) == ["first"]
        await triggerer.stop()

    with suppress(OSError):
        asyncio.run(run())


@needs_store
def test_events_that_were_not_stored(head: StandInHead):
    """An event that Airflow did not store before its triggerer died is fired again."""
    store = Store()

    async def run(*, persists: bool) -> None:
        triggerer = Triggerer(persists=persists)
        fired = triggerer.start(RayJobEventTrigger(), store)
        await until(lambda: store)
        end(head, "first")
        await until(lambda: fired)
        await after_polls(head)
        assert ids(fired) == ["first"]
        assert ("first" in json.dumps(store)) is persists
        await triggerer.stop()

    asyncio.run(run(persists=False))
    asyncio.run(run(persists=True))


@needs_store
def test_store_that_is_away(head: StandInHead):
    """A write to a state store that fails is repeated, the first one too, and ends no watcher. Others are written."""
    away, other = Store(), Store()

    async def run() -> None:
        triggerer = Triggerer()
        away.failures = 3
        fired = triggerer.start(RayJobEventTrigger(), away, other)
        await until(lambda: away)
        away.failures = 30
        end(head, "first")
        await until(lambda: "first" in json.dumps(other))
        assert "first" not in json.dumps(away)
        await until(lambda: "first" in json.dumps(away))
        end(head, "second")
        await until(lambda: "second" in json.dumps(away))
        assert ids(fired) == ["first", "second"]
        await triggerer.stop()

    asyncio.run(run())


def test_other_coroutines_get_turns(head: StandInHead):
    """A watcher that looks at thousands of jobs does not hold up the other triggers of its triggerer."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> None:
        counting = asyncio.create_task(count())
        ended = [EndedJob(f"job-{n}", n, n, msgspec.Raw(b"{}")) for n in range(10 * event_triggers._AT_ONCE)]
        assert await RayJobEventTrigger()._find_wanted(ended) == []
        counting.cancel()

    asyncio.run(run())
    assert turns == 10


@pytest.mark.parametrize("has_deferred_tasks", [False, True])
def test_edited_connection(head: StandInHead, monkeypatch: pytest.MonkeyPatch, has_deferred_tasks: bool):
    """The connection is read again from time to time, also while deferred tasks list the jobs."""
    monkeypatch.setattr(event_triggers, "_CONNECTION_SECONDS", 2.0)
    monkeypatch.setattr(Prices, "prefers_list", lambda *_: True)
    head.add("followed", "RUNNING")

    async def run(other: StandInHead) -> None:
        triggers = [RayJobTrigger("followed", CONN, 0.2)] if has_deferred_tasks else []
        tasks = [asyncio.ensure_future(anext(trigger.run())) for trigger in triggers]
        await until(lambda: head.polls or not tasks)
        async for ended in event_triggers.watch_ended_jobs(CONN):
            if ended.address == other.address:
                return
            monkeypatch.setenv("RAY_API_SERVER_ADDRESS", other.address)
        for task in tasks:
            task.cancel()

    with StandInHead() as other:
        asyncio.run(asyncio.wait_for(run(other), 60))


def test_list_of_deferred_tasks_is_shared(head: StandInHead, monkeypatch: pytest.MonkeyPatch):
    """A watcher looks at the lists that the watch of deferred tasks makes, and makes few of its own."""
    monkeypatch.setattr(event_triggers, "config", SimpleNamespace(seconds=lambda *_: 3600.0))
    monkeypatch.setattr(Prices, "prefers_list", lambda *_: True)
    head.add("followed", "RUNNING")

    async def run() -> None:
        ends, fired = 0, []
        following = asyncio.create_task(anext(RayJobTrigger("followed", CONN, 0.2).run()))
        async for ended in event_triggers.watch_ended_jobs(CONN):
            fired.append([job.name for job in ended.jobs])
            end(head, f"job-{ends}")
            ends += 1
            if ends == 5:
                break
        following.cancel()
        assert fired[-1] == [f"job-{n}" for n in range(4)]

    asyncio.run(asyncio.wait_for(run(), 60))


def test_outage(head: StandInHead, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """An outage ends no watcher and is logged once at its begin and once at its end. So it is without Airflow 3.3."""
    monkeypatch.setattr(event_triggers, "FIRST_DELAY", 0.01)
    fired: list[Any] = []

    async def run() -> None:
        async def follow() -> None:
            async for event in RayJobEventTrigger().run():
                fired.append(event.payload)  # noqa: PERF401  (read meanwhile)

        task = asyncio.create_task(follow())
        await after_polls(head)
        head.is_busy = lambda path: True
        await after_polls(head, 4)
        end(head, "first")
        head.is_busy = lambda path: False
        await until(lambda: fired)
        task.cancel()

    with caplog.at_level("INFO", logger=event_triggers.__name__):
        asyncio.run(run())

    begin, end_ = caplog.messages
    assert begin.startswith(f"The ended Ray jobs of connection {CONN} cannot be listed. HTTP 503")
    assert end_ == f"The ended Ray jobs at {head.address} can be listed again."
    assert ids(fired) == ["first"]


def rests_of_a_watch(monkeypatch: pytest.MonkeyPatch, number: int) -> list[float]:
    """Return for how long a watch wants to rest after each list, without the rests."""
    rests: list[float] = []
    sleep = asyncio.sleep

    async def note(*given: Any) -> None:
        if given[-1]:
            rests.append(given[-1])
            if len(rests) == number:
                raise asyncio.CancelledError
        await sleep(0)

    async def watch() -> None:
        async for _ in event_triggers.watch_ended_jobs(CONN):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(ClusterWatch, "next_list", note)
        patch.setattr(event_triggers, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": note}))
        with suppress(asyncio.CancelledError):
            asyncio.run(watch())
    return rests


def test_wrong_interval(head: StandInHead, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A wrong setting is logged once. The watch goes on with the default."""
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__POLL_INTERVAL", "30s")

    assert min(rests_of_a_watch(monkeypatch, 4)) >= event_triggers.POLL_INTERVAL
    [message] = caplog.messages
    assert "[ray_jobs] poll_interval must be a number of seconds" in message


def test_rest_after_slow_lists(head: StandInHead, monkeypatch: pytest.MonkeyPatch):
    """One slow list is not believed at once, and a list that fails slowly costs the head as much as another."""
    head.on_poll = lambda number: time.sleep(2) if number == 1 else None
    assert 20 <= rests_of_a_watch(monkeypatch, 1)[0] < 2 / event_triggers.BUDGET
    head.on_poll = lambda number: time.sleep(2)
    lists = dataclasses.replace(endpoints.list_records(), timeout=1.0)
    monkeypatch.setattr(endpoints, "list_records", lambda: lists)
    assert min(rests_of_a_watch(monkeypatch, 2)) >= 1.0 / event_triggers.BUDGET


def test_arguments():
    """The arguments survive Airflow's database, equal ones are one trigger, and an unknown status is an error."""
    trigger = RayJobEventTrigger("mine", name="a*", metadata={"b": "c"}, status=["STOPPED", "FAILED"])
    path, arguments = trigger.serialize()

    assert path.endswith(".RayJobEventTrigger")
    assert RayJobEventTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)
    assert RayJobEventTrigger("mine", status={"FAILED", "STOPPED"}, name="a*", metadata={"b": "c"}).serialize()[1] == (
        arguments
    )
    for wrong in ("RUNNING", "DONE"):
        with pytest.raises(ValueError, match=f"status must be SUCCEEDED, FAILED or STOPPED, not '{wrong}'"):
            RayJobEventTrigger(status=["FAILED", wrong])
    with pytest.raises(ValueError, match="status must be one or more of SUCCEEDED, FAILED and STOPPED"):
        RayJobEventTrigger(status=[])


DAG_FILE = """
from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_rayjobs.event_triggers import RayJobEventTrigger

for name in ("one", "two"):
    asset = Asset(name, watchers=[AssetWatcher(name, RayJobEventTrigger(name=f"{name}-*"))])
    with DAG(f"after_{name}", schedule=[asset]):
        @task
        def show(triggering_asset_events=None):
            for events in triggering_asset_events.values():
                print("PAYLOADS", [event.extra["payload"]["submission_id"] for event in events])

        show()
"""


@pytest.mark.airflow
@needs_store
def test_restart_of_a_real_triggerer(tmp_path: Path):
    """A triggerer that is killed fires nothing twice, and fires afterwards for the jobs that have ended meanwhile."""
    (tmp_path / "watchers.py").write_text(DAG_FILE)
    with StandInHead() as head:
        end(head, "one-old")
        connections = {CONN: {"conn_type": "ray_jobs", "host": head.address}}
        settings = {"AIRFLOW__RAY_JOBS__POLL_INTERVAL": "1", "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1"}
        with LocalAirflow(tmp_path, connections, settings) as airflow:

            def wait_for(condition: Callable[[], Any]) -> Any:
                deadline = time.monotonic() + 180
                while not (found := condition()):
                    assert time.monotonic() < deadline, airflow.output
                    time.sleep(0.3)
                return found

            def fired() -> list[str]:
                # Airflow 3.3 answers with 500 while a run that an event has caused is queued
                with suppress(RuntimeError):
                    events = airflow.api("GET", "/assets/events")["asset_events"]
                    return [event["extra"]["payload"]["submission_id"] for event in events]
                return []

            def remembered() -> str:
                assets = airflow.api("GET", "/assets")["assets"]
                return json.dumps([airflow.api("GET", f"/assets/{each['id']}/state-store") for each in assets])

            wait_for(lambda: remembered().count("ray_jobs_") >= 2)
            end(head, "one-1")
            wait_for(lambda: "one-1" in remembered())
            airflow.kill("triggerer")
            end(head, "one-2")
            end(head, "two-1", end_time=START + 2000)
            polls = head.polls
            airflow.start_component("triggerer", "--skip-serve-logs")
            wait_for(lambda: head.polls >= polls + 3 and len(fired()) >= 3)
            wait_for(lambda: "one-2" in remembered() and "two-1" in remembered())
            polls = head.polls
            wait_for(lambda: head.polls >= polls + 3)

            assert sorted(wait_for(fired)) == ["one-1", "one-2", "two-1"]
            runs = {dag: airflow.api("GET", f"/dags/{dag}/dagRuns")["dag_runs"] for dag in ("after_one", "after_two")}
            assert [len(each) for each in runs.values()] == [2, 1]
