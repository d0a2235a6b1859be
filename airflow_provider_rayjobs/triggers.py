"""Follow jobs on the triggerer's event loop: one trigger follows one job and fires one event."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import structlog
from airflow.providers.common.compat.sdk import redact
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_rayjobs import exceptions
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import RayApiUnreachableError, RayJobsError, RayJobTimeoutError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.options import LOGS_OFF, LogOptions
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, stop_and_wait
from airflow_provider_rayjobs.jobs.tls import certificate_mtimes
from airflow_provider_rayjobs.log_budget import FlushTimer, LogBudget
from airflow_provider_rayjobs.log_checkpoint import CheckpointedShare
from airflow_provider_rayjobs.masking import mask_soon, masking_env_vars

# Shared by all triggers of this process.
_log_budget = LogBudget()
# The logger of a job's own lines. Its name distinguishes them from this package's messages in the task's log.
job_logger = structlog.get_logger("airflow.task.ray_job")
# Minimum seconds between the start of a trigger and its event. Airflow needs up to 5 s (``[workers]
# min_heartbeat_interval``) and a scheduler loop to notice that a deferred task's process has ended. If the task resumes
# before that, Airflow fails it as killed (apache/airflow issues 66374, 67287, 72716). Seen on Airflow 3.3.2 for 2 of
# 10 tasks that deferred for 4 s without this package, and for none of 12 with this minimum.
MIN_DEFERRAL = 8.0
# Seconds for a stop, of the 30 that Airflow gives a trigger's ``on_kill`` (``[triggerer] on_kill_timeout``).
_KILL_TIMEOUT = 25.0
# Seconds before the next lookup of an unusable connection.
_LOOKUP_PAUSE = 5.0


@dataclass(eq=False, repr=False)
class RayJobTrigger(BaseTrigger):
    """
    Follow a job to its end and fire once, with all that the resuming task needs.

    The trigger shows as much of the job's log as its share of the :mod:`.log_budget` allows. The worker that resumes
    the task shows the rest, from the event's log offset on. An expired time limit is an event too: the worker stops the
    job, as only a worker can record that the job was abandoned.

    :param submission_id: a submission id, or a Ray Core job id.
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``.
    :param poll_interval: seconds between two polls; the first ones are faster.
    :param unreachable_timeout: seconds without a usable answer after which the cluster counts as unreachable.
    :param missing_timeout: seconds for which "no such job" is retried.
    :param address: where the job was submitted. A connection to another address counts as an outage.
    :param session: name of the Ray session in which the job was submitted.
    :param nonce: the submission nonce in the job's metadata; a job with another one is not stopped.
    :param limits: :meth:`.Limits.to_json` of the time limits.
    :param stop_on_kill: whether the job is stopped with the task (Airflow 3.3 and later).
    :param stop_timeout: seconds in which Ray has to confirm that stop.
    :param logs: :meth:`.LogOptions.to_json`; without it the trigger shows no log. With a ``flush_interval`` it shows
        none either: after that interval it fires as soon as there are new lines.
    :param log_state: :attr:`.LogReader.state` of the worker's log reader.
    :param deferred_at: when the task was deferred, Unix seconds.
    """

    submission_id: str
    ray_conn_id: str = DEFAULT_CONN_ID
    poll_interval: float = follow.POLL_INTERVAL
    unreachable_timeout: float = follow.UNREACHABLE_TIMEOUT
    missing_timeout: float = 0.0
    address: str | None = None
    session: str | None = None
    nonce: str | None = None
    limits: dict[str, Any] | None = None
    stop_on_kill: bool = False
    stop_timeout: float = STOP_TIMEOUT
    logs: dict[str, Any] | None = None
    log_state: dict[str, Any] | None = None
    deferred_at: float | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self._cluster: Cluster | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments for Airflow's database."""
        arguments = {field.name: getattr(self, field.name) for field in fields(self)}
        return "airflow_provider_rayjobs.triggers.RayJobTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event. An error becomes an event as well, as Airflow would lose the class of a raised error."""
        clock = asyncio.get_running_loop().time
        earliest = clock() + MIN_DEFERRAL
        event = await self._follow()
        await asyncio.sleep(earliest - clock())
        yield event

    async def on_kill(self) -> None:
        """
        Stop the job. Airflow 3.3 and later call this if the task was cleared or marked, or if its run timed out.

        Airflow does not call it when a triggerer stops or hands its triggers over, so the job continues.
        """
        if not self.stop_on_kill:
            return
        stop = asyncio.ensure_future(self._stop())
        while not stop.done():
            # Airflow 3.3.2 cancels the trigger, and on_kill with it, every second until both have ended.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(stop)

    async def _stop(self) -> None:
        try:
            hook = RayJobsHook(self.ray_conn_id)
            cluster = self._cluster or await hook.aget_cluster(check_token_file=False)
            async with shared_client(hook, cluster) as client:
                stopped = await client.run(
                    stop_and_wait(self.submission_id, min(self.stop_timeout, _KILL_TIMEOUT), self.nonce)
                )
            level = logging.INFO if stopped.has_ended else logging.WARNING
            self.log.log(level, "Airflow ended this task. %s", stopped.summary)
        except Exception as error:  # noqa: BLE001  (Airflow would only log it)
            self.log.warning("Ray job %s could not be stopped and may still be running. %s", self.submission_id, error)

    async def _follow(self) -> TriggerEvent:
        event: dict[str, Any] = {"submission_id": self.submission_id, "session": self.session, "nonce": self.nonce}
        reader: LogReader | None = None
        try:
            # triggers that start at the same moment do not poll at the same moment
            await asyncio.sleep(random.uniform(0, min(self.poll_interval, MIN_DEFERRAL / 2)))  # noqa: S311
            hook = RayJobsHook(self.ray_conn_id)
            self._cluster = await self._look_up_cluster(hook)
            async with shared_client(hook, self._cluster) as client, self._reader() as reader:
                following = follow.follow_job(
                    self.submission_id,
                    poll_interval=self.poll_interval,
                    unreachable_timeout=self.unreachable_timeout,
                    missing_timeout=self.missing_timeout,
                    reader=reader,
                    limits=Limits.from_json(self.limits),
                    session=self.session,
                )
                details = await client.run(masking_env_vars(following, mask_soon), emit_job_log)
            event |= job_event(details)
        except Exception as error:  # noqa: BLE001  (the worker raises it)
            event |= error_event(error)
        return TriggerEvent(event | {"log_state": reader.state if reader else self.log_state})

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[LogReader | None]:
        """Yield the reader of the job's log, ``None`` if the trigger reads no log."""
        options = LogOptions.from_json(self.logs) if self.logs else LOGS_OFF
        if options.flush_interval is not None:
            # Airflow truncates a trigger's log file whenever a try defers, so the trigger shows nothing. Both trigger
            # and worker read the whole log: an interval of twice the rest keeps their reading at 4 % of the time.
            timer = FlushTimer(max(options.flush_interval, 2 * (self.log_state or {}).get("rest", 0)))
            yield options.reader(self.log_state, policy=timer)
            return
        share = CheckpointedShare(
            _log_budget, self.task_instance, self.submission_id, self.deferred_at, self.log.warning
        )
        reader = options.reader(self.log_state, policy=share)
        if reader is None:
            yield None
            return
        async with share.following(reader):
            yield reader

    async def _look_up_cluster(self, hook: RayJobsHook) -> Cluster:
        """
        Look up the connection. If the job's address is known, retry a failed lookup like an outage.

        While Airflow's API server is down, connections appear undefined. The default one then points to this machine.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + self.unreachable_timeout
        while True:
            try:
                cluster = await hook.aget_cluster(check_token_file=False)
                if self.address in (None, cluster.address):
                    return cluster
                raise RayApiUnreachableError(
                    f"Ray job {self.submission_id} is at {self.address}, but connection {self.ray_conn_id} now has the "
                    f"address {cluster.address}. The job may still be running at its old address: check it there."
                )
            except Exception:
                if self.address is None or clock() >= give_up_at:
                    raise
            await asyncio.sleep(min(_LOOKUP_PAUSE, self.poll_interval))


def emit_job_log(record: str) -> None:
    """
    Write one record of a job's log into the task's log, and mask it here.

    Airflow's supervisor does not know the secrets that only this process has read, such as those in templates.
    """
    job_logger.info("%s", redact(record))


def job_event(details: JobDetails) -> dict[str, Any]:
    """Describe a job for an event: plain JSON without the job's secrets."""
    return {"job": _with_masked_message(details.to_event())}


def error_event(error: Exception) -> dict[str, Any]:
    """Describe an error for an event. Add the last polled job if a time limit expired."""
    event = _with_masked_message({"error": type(error).__name__, "message": str(error)})
    if isinstance(error, RayJobTimeoutError) and error.details is not None:
        return event | {"limit": error.limit, "seen": _with_masked_message(error.details.to_event())}
    return event


def _with_masked_message(event: dict[str, Any]) -> dict[str, Any]:
    """Mask only the message. An id must stay intact even if it contains the letters of a secret."""
    return {key: str(redact(value)) if key == "message" and value else value for key, value in event.items()}


def details_from_event(event: Mapping[str, Any]) -> JobDetails:
    """
    Return the job of an event. If the job has not ended, its log has new lines.

    :raises RayJobsError: the trigger's error, of the same class.
    """
    if "job" in event:
        return JobDetails.from_json(event["job"])
    kind = getattr(exceptions, str(event.get("error")), None)
    if kind is RayJobTimeoutError:
        raise RayJobTimeoutError(
            str(event["message"]), limit=str(event["limit"]), details=JobDetails.from_json(event["seen"])
        )
    message = str(event.get("message") or f"The trigger of job {event.get('submission_id')} ended without a message.")
    if isinstance(kind, type) and issubclass(kind, RayJobsError):
        raise kind(message)
    raise RayJobsError(f"{event.get('error')}: {message}")


@dataclass
class _Shared:
    client: AsyncRayJobsClient
    users: int = 0


# Creating a client's TLS context blocks the event loop for 24 ms, so triggers of one cluster share a client. A client
# belongs to one event loop; the outer dictionary drops closed loops.
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, Cluster, tuple[int, ...]], _Shared]] = (
    WeakKeyDictionary()
)


@asynccontextmanager
async def shared_client(hook: RayJobsHook, cluster: Cluster) -> AsyncIterator[AsyncRayJobsClient]:
    """Share the client of a cluster on this event loop. The last trigger that uses it closes it."""
    clients = _shared.setdefault(asyncio.get_running_loop(), {})
    # by connection, as a client's errors name it; by times, as a replaced certificate needs a new client
    key = (hook.ray_conn_id, cluster, certificate_mtimes(cluster.access))
    if key not in clients:
        clients[key] = _Shared(hook.async_client_of(cluster))
    shared = clients[key]
    shared.users += 1
    try:
        yield shared.client
    finally:
        shared.users -= 1
        if not shared.users:
            del clients[key]
            await shared.client.aclose()
