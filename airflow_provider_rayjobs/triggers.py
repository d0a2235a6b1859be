"""The engine on the triggerer's event loop: one trigger follows one job and yields one event."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
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
from airflow_provider_rayjobs.jobs.logs.trickle import FlushTimer, LogBudget
from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, stop_and_wait
from airflow_provider_rayjobs.jobs.tls import certificate_mtimes
from airflow_provider_rayjobs.log_checkpoint import LogCheckpoint
from airflow_provider_rayjobs.masking import mask_soon, masking_env_vars

# What all triggers of this process may show of their jobs' logs.
_trickle = LogBudget()
# Under this name a job's own lines stand in the task's log: what tells them from ours.
job_logger = structlog.get_logger("airflow.task.ray_job")
# Seconds before which no event is fired. Airflow notices only after up to 5 s (``[workers] min_heartbeat_interval``)
# and a scheduler loop that the process of a deferred task has gone; a task that has resumed by then it takes for
# killed, and fails it (apache/airflow issues 66374, 67287, 72716). Seen for 2 of 10 tasks that deferred for 4 s on
# Airflow 3.3.2 without any code of ours, and for none of 12 with this.
MIN_DEFERRAL = 8.0
# Seconds for a stop, of the 30 that Airflow gives a trigger's ``on_kill`` (``[triggerer] on_kill_timeout``).
_KILL_TIMEOUT = 25.0
# Seconds between two looks at a connection that leads nowhere.
_LOOKUP_PAUSE = 5.0


class RayJobTrigger(BaseTrigger):
    """
    Follow a job to its end and fire once, with all that the resuming task needs.

    Of the job's log it shows a little, as all triggers of a triggerer share one thin pipe (:mod:`.jobs.logs.trickle`),
    and the event says how far it came: the worker that resumes the task shows the rest. Nor does it stop a job whose
    limit is over: the worker does, which can remember it.

    :param submission_id: a submission id, or a Ray Core job id.
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``.
    :param poll_interval: seconds between two looks, once the first quick ones are over.
    :param unreachable_timeout: seconds without a usable answer that are borne in a row.
    :param missing_timeout: seconds for which "no such job" is borne.
    :param address: where the job was submitted; a connection that leads elsewhere counts as out of reach.
    :param session: the cluster's name for its life at the submission.
    :param nonce: by which the job is known to be ours.
    :param limits: :meth:`.Limits.to_json` of how long the job may wait and run.
    :param stop_on_kill: whether the job dies with the task (Airflow 3.3 and later tell a trigger about that).
    :param stop_timeout: seconds in which its end has to be confirmed then.
    :param logs: :meth:`.LogOptions.to_json` of what is shown of the job's log; nothing when not given. With its
        ``flush_interval`` the trigger shows nothing itself: it fires when that is over and there is something to show.
    :param log_state: how far the log was shown before.
    :param deferred_at: when the task was deferred, Unix seconds.
    """

    def __init__(
        self,
        submission_id: str,
        ray_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = follow.POLL_INTERVAL,
        unreachable_timeout: float = follow.UNREACHABLE_TIMEOUT,
        missing_timeout: float = 0.0,
        address: str | None = None,
        session: str | None = None,
        nonce: str | None = None,
        limits: dict[str, Any] | None = None,
        stop_on_kill: bool = False,
        stop_timeout: float = STOP_TIMEOUT,
        logs: dict[str, Any] | None = None,
        log_state: dict[str, Any] | None = None,
        deferred_at: float | None = None,
    ) -> None:
        super().__init__()
        self.submission_id = submission_id
        self.ray_conn_id = ray_conn_id
        self.poll_interval = poll_interval
        self.unreachable_timeout = unreachable_timeout
        self.missing_timeout = missing_timeout
        self.address = address
        self.session = session
        self.nonce = nonce
        self.limits = limits
        self.stop_on_kill = stop_on_kill
        self.stop_timeout = stop_timeout
        self.logs = logs
        self.log_state = log_state
        self.deferred_at = deferred_at
        self._cluster: Cluster | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments, as Airflow's database keeps them."""
        return (
            "airflow_provider_rayjobs.triggers.RayJobTrigger",
            {
                "submission_id": self.submission_id,
                "ray_conn_id": self.ray_conn_id,
                "poll_interval": self.poll_interval,
                "unreachable_timeout": self.unreachable_timeout,
                "missing_timeout": self.missing_timeout,
                "address": self.address,
                "session": self.session,
                "nonce": self.nonce,
                "limits": self.limits,
                "stop_on_kill": self.stop_on_kill,
                "stop_timeout": self.stop_timeout,
                "logs": self.logs,
                "log_state": self.log_state,
                "deferred_at": self.deferred_at,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, whatever happens: an error that is raised here loses its class on the way."""
        clock = asyncio.get_running_loop().time
        settled = clock() + MIN_DEFERRAL
        event = await self._follow()
        await asyncio.sleep(settled - clock())
        yield event

    async def on_kill(self) -> None:
        """
        Stop the job: the task was cleared or marked, or its run timed out; Airflow 3.3 and later call it then.

        A triggerer that ends, or hands its triggers over, does not: the job runs on, and so does the watch over it.
        """
        if not self.stop_on_kill:
            return
        stop = asyncio.ensure_future(self._stop())
        while not stop.done():
            # Airflow 3.3.2 cancels the trigger anew every second for as long as it is there, on_kill with it.
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
        except Exception as error:  # noqa: BLE001  (nobody is left to handle it)
            self.log.warning("Ray job %s could not be stopped and may run on. %s", self.submission_id, error)

    async def _follow(self) -> TriggerEvent:
        event: dict[str, Any] = {"submission_id": self.submission_id, "session": self.session, "nonce": self.nonce}
        reader: LogReader | None = None
        try:
            # triggers that are started at once shall not look at the cluster, and show lines, all at once for ever
            await asyncio.sleep(random.uniform(0, min(self.poll_interval, MIN_DEFERRAL / 2)))  # noqa: S311
            hook = RayJobsHook(self.ray_conn_id)
            self._cluster = await self._find_cluster(hook)
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
        except Exception as error:  # noqa: BLE001  (whatever it is, the worker shall say it)
            event |= error_event(error)
        return TriggerEvent(event | {"log_state": reader.state if reader else self.log_state})

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[LogReader | None]:
        """Lend what shows the job's log, or watches it for the worker that does."""
        options = LogOptions.from_json(self.logs) if self.logs else LOGS_OFF
        if options.flush_interval is not None:
            # Airflow opens a trigger's log file anew each time that a try is deferred: what is shown here would be
            # lost. The log is read here and on the worker, so that it has to be left alone for twice as long.
            relay = FlushTimer(max(options.flush_interval, 2 * (self.log_state or {}).get("rest", 0)))
            yield options.reader(self.log_state, turns=relay)
            return
        with _trickle.share() as share:
            reader = options.reader(self.log_state, turns=share)
            if reader is None:
                yield None
                return
            bookmark = LogCheckpoint(self.task_instance, self.submission_id, self.deferred_at, self.log.warning)
            async with bookmark.following(reader, share):
                yield reader

    async def _find_cluster(self, hook: RayJobsHook) -> Cluster:
        """
        Look the connection up, for as long as an outage is borne.

        While Airflow's API server is away, a connection looks as if it were not defined, and the default one would
        lead to this machine.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + self.unreachable_timeout
        while True:
            try:
                cluster = await hook.aget_cluster(check_token_file=False)
                if self.address in (None, cluster.address):
                    return cluster
                raise RayApiUnreachableError(
                    f"Ray job {self.submission_id} is at {self.address}, but connection {self.ray_conn_id} "
                    f"leads to {cluster.address} now. The job may run on there: look for it."
                )
            except Exception:
                if self.address is None or clock() >= give_up_at:
                    raise
            await asyncio.sleep(min(_LOOKUP_PAUSE, self.poll_interval))


def emit_job_log(record: str) -> None:
    """
    Write one record of a job's log into the task's log, masked in this process.

    Airflow's supervisor masks what it was told of; what this process alone has read, such as a template's, it does not
    know.
    """
    job_logger.info("%s", redact(record))


def job_event(details: JobDetails) -> dict[str, Any]:
    """Return what an event says of a job: plain JSON, and no secret of the job's."""
    return {"job": _masked(details.to_event())}


def error_event(error: Exception) -> dict[str, Any]:
    """Return what an event says where the follower gave up; for a limit with the job as it was seen then."""
    event = _masked({"error": type(error).__name__, "message": str(error)})
    if isinstance(error, RayJobTimeoutError) and error.details is not None:
        return event | {"limit": error.limit, "seen": _masked(error.details.to_event())}
    return event


def _masked(said: dict[str, Any]) -> dict[str, Any]:
    """Mask what is text for people; an id that happens to hold a secret's letters has to stay what it is."""
    return {key: str(redact(value)) if key == "message" and value else value for key, value in said.items()}


def details_from_event(event: Mapping[str, Any]) -> JobDetails:
    """
    Return the job that an event tells of; one that has not ended wants its log to be shown.

    :raises RayJobsError: of the class that the follower met, when it gave up.
    """
    if "job" in event:
        return JobDetails.from_json(event["job"])
    kind = getattr(exceptions, str(event.get("error")), None)
    if kind is RayJobTimeoutError:
        raise RayJobTimeoutError(
            str(event["message"]), limit=str(event["limit"]), details=JobDetails.from_json(event["seen"])
        )
    message = str(event.get("message") or f"The trigger of job {event.get('submission_id')} ended without a word.")
    if isinstance(kind, type) and issubclass(kind, RayJobsError):
        raise kind(message)
    raise RayJobsError(f"{event.get('error')}: {message}")


@dataclass
class _Shared:
    client: AsyncRayJobsClient
    users: int = 0


# A client costs 24 ms of the event loop (its TLS context), so triggers of one cluster share one. Clients
# belong to the loop that they were made on; the outer dictionary forgets loops that are gone.
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, Cluster, tuple[int, ...]], _Shared]] = (
    WeakKeyDictionary()
)


@asynccontextmanager
async def shared_client(hook: RayJobsHook, cluster: Cluster) -> AsyncIterator[AsyncRayJobsClient]:
    """Lend the client for a cluster on this event loop; the last one to leave closes it."""
    clients = _shared.setdefault(asyncio.get_running_loop(), {})
    # a certificate that was replaced is shown, or believed, from the next trigger on; errors name the connection
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
