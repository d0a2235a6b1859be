"""
Schedule DAGs by the end of Ray jobs that Airflow did not start.

All watchers of a cluster share one poll of its list of jobs (Airflow 3.3). Each of them remembers in the state store of
its assets which jobs it has fired for. It writes that down after Airflow has stored the events: so a triggerer that
dies in between repeats them, and loses none.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_rayjobs import config
from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.ended import EndedJob, EndedMemory, find_ended
from airflow_provider_rayjobs.jobs.follow import FIRST_DELAY, MAX_OUTAGE_DELAY, MIN_POLL_INTERVAL, POLL_INTERVAL
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.steps import with_jitter
from airflow_provider_rayjobs.jobs.watch import BUDGET, Prices
from airflow_provider_rayjobs.triggers import shared_watch

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import SharedStreamProducer

_log = logging.getLogger(__name__)
# The metadata key of jobs that Airflow has submitted.
_OF_AIRFLOW = "airflow_dag_id"
# Seconds after which the connection is read again.
_CONNECTION_SECONDS = 600.0
# Jobs that are looked at before other coroutines get a turn, about 2 ms.
_AT_ONCE = 100
# The longest rest after a list that failed, in seconds.
_MAX_FAILURE_REST = 600.0
# What a watcher remembers, as its asset stores it.
Stored = dict[str, Any]


@dataclass
class EndedJobs:
    """
    All jobs of a cluster that have ended.

    :param time: of the list, Unix milliseconds by the head's clock.
    :param memories: what watchers want to store after Airflow has stored their events.
    """

    address: str
    time: int
    jobs: Sequence[EndedJob]
    memories: dict[RayJobEventTrigger, Stored] = field(default_factory=dict)


async def watch_ended_jobs(ray_conn_id: str) -> AsyncIterator[EndedJobs]:
    """
    List the ended jobs of a cluster forever. Any outage is tolerated.

    A list that the watch of the deferred tasks makes meanwhile is taken. Further lists take at most 5 % of the head's
    time.
    """
    hook, clock, delay, prices = RayJobsHook(ray_conn_id), asyncio.get_running_loop().time, 0.0, Prices()
    read_interval = _interval_reader()
    while True:
        rest, began = 0.0, clock()
        try:
            # the connection may have been edited meanwhile
            cluster, read_again_at = await hook.aget_cluster(check_token_file=False), clock() + _CONNECTION_SECONDS
            async with shared_watch(hook, cluster) as watch:
                records = None
                while clock() < read_again_at:
                    began = clock()
                    if records is None:
                        records = await watch.client.send(endpoints.list_records())
                        rest = prices.learn_list(clock() - began, clock()) / BUDGET
                    if delay:
                        _log.info("The ended Ray jobs at %s can be listed again.", cluster.address)
                    delay = 0.0
                    yield EndedJobs(cluster.address, records.time, await find_ended(records))
                    records = await watch.next_list(max(read_interval(), rest))
            continue
        except Exception as error:  # noqa: BLE001  (no watcher may end)
            if not delay:
                _log.warning("The ended Ray jobs of connection %s cannot be listed. %s", ray_conn_id, error)
            delay = min(max(2 * delay, FIRST_DELAY), MAX_OUTAGE_DELAY)
            is_work = isinstance(error, RayJobsError) and error.delivery.may_have_effect
            rest = min((clock() - began) / BUDGET, _MAX_FAILURE_REST) if is_work else 0.0
        await asyncio.sleep(max(with_jitter(delay), rest))


def _interval_reader() -> Callable[[], float]:
    """Return a function that reads ``[ray_jobs] poll_interval``. A wrong one is logged once, and ends no watcher."""
    was_wrong = False

    def read() -> float:
        nonlocal was_wrong
        try:
            interval, was_wrong = max(config.seconds("poll_interval", POLL_INTERVAL), MIN_POLL_INTERVAL), False
        except Exception as error:  # noqa: BLE001  (no watcher may end)
            if not was_wrong:
                _log.warning("%s Ray jobs are listed every %.0f s.", error, POLL_INTERVAL)
            interval, was_wrong = POLL_INTERVAL, True
        return interval

    return read


class RayJobEventTrigger(BaseEventTrigger):
    """
    Fire for each Ray job that has ended and that Airflow did not submit: for an ``AssetWatcher``.

    The payload of the event has ``ray_conn_id``, ``address``, and Ray's fields of the job, such as ``submission_id``,
    ``job_id``, ``status``, ``start_time`` and ``end_time``, without those that may hold secrets (``metadata``,
    ``entrypoint``, ``runtime_env``, ``message``).

    Jobs that have ended before the watcher's first list of jobs are ignored. From then on a job is found whenever it
    ended, also while no triggerer ran. Before Airflow 3.3 each start of the trigger is such a beginning.

    :param ray_conn_id: an Airflow connection of type ``ray_jobs``.
    :param name: a pattern such as ``train-*`` for the submission id, the Ray Core job id or the ``job_name``.
    :param metadata: patterns for the job's metadata, by key. All of them must match.
    :param status: one or more of ``SUCCEEDED``, ``FAILED`` and ``STOPPED``. An interactive job ends as ``SUCCEEDED``.
    """

    def __init__(
        self,
        ray_conn_id: str = DEFAULT_CONN_ID,
        *,
        name: str = "*",
        metadata: Mapping[str, str] | None = None,
        status: str | Collection[str] = "SUCCEEDED",
    ) -> None:
        super().__init__()
        self.ray_conn_id = ray_conn_id
        self.name = name
        self.metadata = {str(key): str(pattern) for key, pattern in (metadata or {}).items()}
        self.status = sorted({status} if isinstance(status, str) else status)
        self._is_stored = True
        if not self.status:
            raise ValueError("status must be one or more of SUCCEEDED, FAILED and STOPPED.")
        if wrong := [each for each in self.status if not JobStatus(each).is_terminal()]:
            raise ValueError(f"status must be SUCCEEDED, FAILED or STOPPED, not {wrong[0]!r}.")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments for Airflow's database."""
        arguments = {
            "ray_conn_id": self.ray_conn_id,
            "name": self.name,
            "metadata": self.metadata,
            "status": self.status,
        }
        return "airflow_provider_rayjobs.event_triggers.RayJobEventTrigger", arguments

    def shared_stream_key(self) -> Hashable:
        """Share the poll with all watchers of the connection."""
        return __name__, self.ray_conn_id

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return the poll of a connection. Airflow tells it which events are stored."""
        from airflow.triggers.shared_stream import SharedStreamProducer  # noqa: PLC0415  (Airflow 3.3)

        class Producer(SharedStreamProducer):
            async def open_stream(self) -> AsyncIterator[tuple[EndedJobs, dict[RayJobEventTrigger, Stored]]]:
                async for ended in watch_ended_jobs(kwargs["ray_conn_id"]):
                    yield ended, ended.memories

            async def advance(self, batch: Sequence[Any]) -> None:
                newest: dict[RayJobEventTrigger, Stored] = {}
                for item in batch:
                    if item.outcome.is_clean:
                        newest |= item.broker_payload
                for watcher, memory in newest.items():
                    await watcher.store(memory)

        return Producer()

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll alone, before Airflow 3.3."""
        async for event in self.filter_shared_stream(watch_ended_jobs(self.ray_conn_id)):
            yield event

    async def filter_shared_stream(self, shared_stream: AsyncIterator[EndedJobs]) -> AsyncIterator[TriggerEvent]:
        """Yield an event for each new job that matches."""
        memory = await self._read()
        async for ended in shared_stream:
            is_first = memory is None
            if memory is None:
                memory = EndedMemory.starting(ended.time)
            wanted = await self._find_wanted(memory.find_new(ended.jobs, ended.time))
            for job, details in wanted:
                memory.take(job)
                if not is_first:
                    place = {"ray_conn_id": self.ray_conn_id, "address": ended.address}
                    job_fields = details.to_event()
                    job_fields.pop("message", None)
                    yield TriggerEvent(place | job_fields)
            if is_first:
                await self.store(memory.to_json())
            elif wanted or not self._is_stored:
                self._is_stored = False
                ended.memories[self] = memory.to_json()

    async def _find_wanted(self, jobs: Sequence[EndedJob]) -> list[tuple[EndedJob, JobDetails]]:
        wanted = []
        for number, job in enumerate(jobs, start=1):
            if details := self._match(job):
                wanted.append((job, details))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return wanted

    def _match(self, job: EndedJob) -> JobDetails | None:
        """Return the job if it is wanted."""
        with suppress(ValueError, TypeError, KeyError):  # a broken record
            details = job.details()
            metadata = details.metadata
            names = [each for each in (details.submission_id, details.job_id, metadata.get("job_name")) if each]
            if (
                details.status in self.status
                and _OF_AIRFLOW not in metadata
                and any(fnmatchcase(each, self.name) for each in names)
                and all(key in metadata and fnmatchcase(metadata[key], each) for key, each in self.metadata.items())
            ):
                return details
        return None

    @property
    def _key(self) -> str:
        arguments = json.dumps(self.serialize()[1], sort_keys=True)
        return f"ray_jobs_{hashlib.sha256(arguments.encode()).hexdigest()[:16]}"

    def _stores(self) -> list[Any]:
        """Return the state store of each asset. Airflow runs one trigger for all watchers with the same arguments."""
        stores: Any = getattr(self, "asset_state_store", None)  # Airflow 3.3
        return [] if stores is None else [*stores._by_name.values()]  # noqa: SLF001  (there is no public way)

    async def _read(self) -> EndedMemory | None:
        """Return what all stores know, and write it to those that know less: an asset may be new, or was away."""
        found = [await store.aget(self._key) for store in self._stores()]
        known = [EndedMemory.from_json(stored) for stored in found if stored is not None]
        if not known:
            return None
        memory = EndedMemory.merged(known)
        if any(stored != memory.to_json() for stored in found):
            await self.store(memory.to_json())
        return memory

    async def store(self, memory: Stored) -> None:
        """Write to the store of each asset. What cannot be written is written after the next list."""
        self._is_stored = True
        for store in self._stores():
            try:
                await store.aset(self._key, memory)
            except Exception as error:  # noqa: BLE001  (Airflow's API server is away, or the asset is gone)
                self._is_stored = False
                _log.warning("It cannot be stored for which Ray jobs a watcher has fired. %s", error)
