"""Follow jobs on the triggerer's event loop: one trigger follows one job and fires one event."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import structlog
from airflow.providers.common.compat.sdk import redact
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_rayjobs import config, exceptions, log_budget, metrics, migration, tracing
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import Delivery, RayJobsError, RayJobTimeoutError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.options import LOGS_OFF, LogOptions
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.pending import ClusterView, PendingReport
from airflow_provider_rayjobs.jobs.steps import Engine, Step, map_steps, with_jitter
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, stop_and_wait
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.jobs.watch import ClusterWatch
from airflow_provider_rayjobs.log_checkpoint import CheckpointedShare
from airflow_provider_rayjobs.log_pace import LogPace
from airflow_provider_rayjobs.masking import mask_soon, masking_env_vars

T = TypeVar("T")

# Shared by all triggers of this process.
_log_budget = log_budget.LogBudget()
# The logger of a job's own lines. Its name distinguishes them from this package's messages in the task's log.
job_logger = structlog.get_logger("airflow.task.ray_job")
# Minimum seconds between the start of a trigger and its event. Airflow needs up to 5 s (``[workers]
# min_heartbeat_interval``) and a scheduler loop to notice that a deferred task's process has ended. If the task resumes
# before that, Airflow fails it as killed (apache/airflow issues 66374, 67287, 72716). Seen on Airflow 3.3.2 for 2 of
# 10 tasks that deferred for 4 s without this package, and for none of 12 with this minimum.
MIN_DEFERRAL = 8.0
# Seconds for the state of the task, the lookup of the connection and the stop, of the 30 that Airflow gives a
# trigger's ``on_kill`` (``[triggerer] on_kill_timeout``).
_STATE_TIMEOUT = 6.0
_KILL_LOOKUP_TIMEOUT = 8.0
_KILL_TIMEOUT = 14.0
# Seconds before the next lookup of an unusable connection.
_LOOKUP_PAUSE = 5.0


@dataclass(frozen=True)
class TriggerOptions:
    """
    The arguments of a trigger beside the job, the connection and the interval. Airflow stores them in its database.

    :param unreachable_timeout: seconds without a usable answer after which the cluster counts as unreachable.
    :param missing_timeout: seconds for which "no such job" is retried.
    :param job_ref: :meth:`.JobRef.to_json` of the job; ``None`` if only its id is known.
    :param try_id: the id of the try that deferred; the event has it, too.
    :param limits: :meth:`.Limits.to_json` of the time limits.
    :param execution_deadline: when the try's ``execution_timeout`` expires, Unix seconds.
    :param stop_on_kill: whether the job is stopped with the task (Airflow 3.3 and later).
    :param stop_timeout: seconds in which Ray has to confirm that stop.
    :param logs: :meth:`.LogOptions.to_json`; without it the trigger shows no log. With a ``flush_interval`` it shows
        none either: after that interval it fires as soon as there are new lines.
    :param log_state: :attr:`.LogReader.state` of the worker's log reader.
    :param deferred_at: when the task was deferred, Unix seconds.
    :param pending_for: seconds from the submission to the last poll that found the job PENDING; ``None`` if unknown.
    :param demand: the resources that the job needs on one node, as pairs of Ray's name and quantity; ``None`` if
        unknown.
    :param team: the team of the task, for metrics.
    :param version: the version of this form.
    """

    unreachable_timeout: float = follow.UNREACHABLE_TIMEOUT
    missing_timeout: float = 0.0
    job_ref: dict[str, Any] | None = None
    try_id: str | None = None
    limits: dict[str, Any] | None = None
    execution_deadline: float | None = None
    stop_on_kill: bool = False
    stop_timeout: float = STOP_TIMEOUT
    logs: dict[str, Any] | None = None
    log_state: dict[str, Any] | None = None
    deferred_at: float | None = None
    pending_for: float | None = None
    demand: list[list[Any]] | None = None
    team: str | None = None
    version: int = 1


class RayJobTrigger(BaseTrigger):
    """
    Follow a job to its end and fire once, with all that the resuming task needs.

    The trigger shows as much of the job's log as its share of the :mod:`.log_budget` allows. The worker that resumes
    the task shows the rest, from the event's log offset on. An expired time limit is an event too: the worker stops the
    job, as only a worker can record that the job was abandoned.

    :param submission_id: a submission id, or a Ray Core job id.
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``.
    :param poll_interval: seconds between two polls; the first ones are faster.
    :param options: see :class:`TriggerOptions`. Those of other versions of this package are ignored.
    """

    def __init__(
        self,
        submission_id: str,
        ray_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = follow.POLL_INTERVAL,
        **options: Any,
    ) -> None:
        super().__init__()
        self.submission_id = submission_id
        self.ray_conn_id = ray_conn_id
        self.poll_interval = poll_interval
        known = {each.name for each in fields(TriggerOptions)}
        self.options = TriggerOptions(**{name: value for name, value in options.items() if name in known})
        self._unknown = sorted(options.keys() - known)
        if self._unknown and "version" not in options:  # not from Airflow's database
            migration.check_arguments("RayJobTrigger", self._unknown, {*known, "ray_conn_id", "poll_interval"})
            raise TypeError(f"RayJobTrigger has no argument {', '.join(self._unknown)}.")
        self._job = JobRef.from_json({"address": "", "submission_id": submission_id} | (self.options.job_ref or {}))
        self._cluster: Cluster | None = None
        self._pending_for = self.options.pending_for
        # when the next time limit of the job expires, on the event loop's clock
        self._limit_at = math.inf
        # the stop of the job, after a kill
        self._stopping: asyncio.Task[None] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments for Airflow's database."""
        arguments = {
            "submission_id": self.submission_id,
            "ray_conn_id": self.ray_conn_id,
            "poll_interval": self.poll_interval,
        }
        return "airflow_provider_rayjobs.triggers.RayJobTrigger", arguments | asdict(self.options)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event. An error becomes an event as well, as Airflow would lose the class of a raised error."""
        clock = asyncio.get_running_loop().time
        earliest = clock() + MIN_DEFERRAL
        try:
            event = await self._follow()
            await asyncio.sleep(earliest - clock())
        except asyncio.CancelledError:
            # ``dag.test()`` runs triggers without a triggerer, and Ctrl-C cancels them.
            if self.trigger_id is None and self.task_instance is None:
                await self.on_kill()
            raise
        yield event

    async def on_kill(self) -> None:
        """
        Stop the job. Airflow 3.3 and later call this if the task was cleared or marked, or if its run timed out.

        Airflow does not call it when a triggerer stops or hands its triggers over, so the job continues. It does call
        it in a triggerer that was too slow and lost its triggers to another one (3.3.2). The task is still deferred
        then, and the job is left to the other triggerer.
        """
        if not self.options.stop_on_kill:
            return
        self.log.info("Stopping Ray job %s, unless another triggerer follows it now.", self.submission_id)
        self._stopping = asyncio.create_task(self._stop())
        await self._wait_for_stop()

    async def cleanup(self) -> None:
        """
        Wait for the end of the stop, so that the task's log says how it ended.

        Airflow closes the log after this method. On Python 3.11 it does not wait for ``on_kill``: ``asyncio.wait_for``
        leaves a coroutine behind when it is cancelled for the second time.
        """
        await self._wait_for_stop()

    async def _wait_for_stop(self) -> None:
        while self._stopping is not None and not self._stopping.done():
            # Airflow 3.3.2 cancels the trigger every second until it has ended, and what it awaits with it.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(self._stopping)

    async def _is_still_deferred(self) -> bool:
        """Ask Airflow whether the task waits for a trigger; ``False`` if Airflow does not answer in time."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + _STATE_TIMEOUT
        while self.task_instance is not None and (left := give_up_at - clock()) > 0:
            try:
                return "deferred" in await asyncio.wait_for(asyncio.to_thread(_ask_states, self.task_instance), left)
            except Exception:  # noqa: BLE001  (the API server or the database is away)
                await asyncio.sleep(min(0.5, max(left, 0)))
        return False

    async def _stop(self) -> None:
        if await self._is_still_deferred():
            self.log.warning("Another triggerer follows Ray job %s now. It is not stopped.", self.submission_id)
            return
        try:
            hook = RayJobsHook(self.ray_conn_id)
            cluster = self._cluster or await self._look_up_for_stop(hook)
            async with shared_client(hook, cluster, self.options.team) as client:
                longest = _KILL_TIMEOUT if self._cluster is None else _KILL_TIMEOUT + _KILL_LOOKUP_TIMEOUT
                stopped = await client.run(stop_and_wait(self._job, min(self.options.stop_timeout, longest)))
            level = logging.INFO if stopped.has_ended else logging.WARNING
            self.log.log(level, "Airflow ended this task. %s", stopped.summary)
        except Exception as error:  # noqa: BLE001  (Airflow would only log it)
            self.log.warning("Ray job %s could not be stopped and may still be running. %s", self.submission_id, error)

    async def _look_up_for_stop(self, hook: RayJobsHook) -> Cluster:
        try:
            return await asyncio.wait_for(self._look_up_cluster(hook, math.inf), _KILL_LOOKUP_TIMEOUT)
        except Exception:
            if not self._job.address:
                raise
            # A cluster that requires no credentials still answers.
            return Cluster(self._job.address, dashboard_url=self._job.address)

    async def _follow(self) -> TriggerEvent:
        options = self.options
        event: dict[str, Any] = {
            "version": 1,
            "submission_id": self.submission_id,
            "try_id": options.try_id,
            "execution_deadline": options.execution_deadline,
        }
        reader: LogReader | None = None
        if self._unknown:
            self.log.warning("Arguments of another version are ignored: %s.", ", ".join(self._unknown))
        try:
            # triggers that start at the same moment do not poll at the same moment
            await asyncio.sleep(random.uniform(0, min(self.poll_interval, MIN_DEFERRAL / 2)))  # noqa: S311
            hook = RayJobsHook(self.ray_conn_id)
            self._cluster = await self._look_up_cluster(hook, options.unreachable_timeout)
            deadline = options.execution_deadline
            time_left = math.inf if deadline is None else deadline - time.time()
            give_up_at = asyncio.get_running_loop().time() + time_left
            limits = Limits.from_json(options.limits)
            async with _share(hook, self._cluster, options.team) as shared, self._reader(shared.pace) as reader:
                following = follow.follow_job(
                    self._job,
                    poll_interval=self.poll_interval,
                    unreachable_timeout=options.unreachable_timeout,
                    missing_timeout=options.missing_timeout,
                    reader=reader,
                    limits=limits,
                    pending=PendingReport(
                        None if options.demand is None else dict(options.demand), limits, shared.view
                    ),
                    time_left=time_left,
                )
                engine = masking_env_vars(self._noting_job(following, limits), mask_soon)
                due = partial(self._next_limit, give_up_at)
                with (
                    shared.watch.following(self.poll_interval, due) as follower,
                    tracing.span("wait", submission_id=self.submission_id, address=self._cluster.address) as note,
                ):
                    details = await follower.run(engine, emit_job_log)
                    note("job.status", details.status)
            outcome: JobDetails | Exception = details
        except Exception as error:  # noqa: BLE001  (the worker raises it)
            outcome = error
        await asyncio.sleep(0)  # mask_soon() may have a secret of the last poll
        event |= error_event(outcome) if isinstance(outcome, Exception) else job_event(outcome)
        event["pending_for"] = self._pending_for
        seen = {"job_ref": self._job.to_json(), "log_state": reader.state if reader else options.log_state}
        return TriggerEvent(event | seen)

    def _next_limit(self, give_up_at: float) -> float:
        return min(self._limit_at, give_up_at)

    def _noting_job(self, engine: Engine[T], limits: Limits) -> Engine[T]:
        """Run an engine. Note which job is meant as soon as an answer tells it, and when its next limit expires."""

        def note(step: Step) -> Engine[Any]:
            answer = yield step
            if isinstance(answer, JobDetails) and self._job.is_same(answer):
                self._job = self._job.seen(answer)
                self._pending_for = pending_for(answer, self._pending_for)
                self._limit_at = asyncio.get_running_loop().time() + limits.remaining(answer)
            return answer

        return map_steps(engine, note)

    @asynccontextmanager
    async def _reader(self, pace: LogPace) -> AsyncIterator[LogReader | None]:
        """Yield the reader of the job's log, ``None`` if the trigger reads no log."""
        log_state = self.options.log_state
        options = LogOptions.from_json(self.options.logs) if self.options.logs else LOGS_OFF
        if options.fetch_logs != "live":
            yield None
            return
        if options.flush_interval is not None:
            # Airflow truncates a trigger's log file whenever a try defers, so the trigger shows nothing. Both trigger
            # and worker read the whole log: an interval of twice the rest keeps their reading at 4 % of the time.
            timer = log_budget.FlushTimer(max(options.flush_interval, 2 * (log_state or {}).get("rest", 0)))
            with pace.reading(timer) as policy:
                yield options.reader(log_state, policy=policy)
            return
        with config.falling_back():
            _log_budget.rate = config.count("log_budget", log_budget.RATE)
        share = CheckpointedShare(
            _log_budget, self.task_instance, self.submission_id, self.options.deferred_at, self.log.warning
        )
        with pace.reading(share) as policy:
            reader = options.reader(log_state, policy=policy)
            if reader is None:
                yield None
                return
            async with share.following(reader):
                yield reader

    async def _look_up_cluster(self, hook: RayJobsHook, retry_for: float) -> Cluster:
        """
        Look up the connection. The job is at the address of its :class:`.JobRef`, even if the connection was edited.

        While Airflow's API server is down, connections appear undefined. So a failed lookup is retried for a while.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + retry_for
        while True:
            try:
                cluster = await hook.aget_cluster(check_token_file=False)
                return cluster.at(self._job.address or cluster.address)
            except Exception:
                if not self._job.address or clock() >= give_up_at:
                    raise
            await asyncio.sleep(with_jitter(_LOOKUP_PAUSE))


def pending_for(details: JobDetails, before: float | None) -> float | None:
    """Return for how long a job was PENDING, as of this poll; ``before`` is the value of the last one."""
    return details.age if details.status == JobStatus.PENDING else before


def _ask_states(ti: Any) -> Collection[str | None]:
    # Imported here, because few triggers are killed.
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415

    return states_of(ti, RuntimeTaskInstance.get_task_states)


def states_of(ti: Any, get_task_states: Callable[..., dict[str, Any]]) -> Collection[str | None]:
    """Ask Airflow for the state of a task instance. Return it as the only element, or nothing if it is deleted."""
    map_index = -1 if ti.map_index is None else ti.map_index
    states = get_task_states(dag_id=ti.dag_id, map_index=map_index, task_ids=[ti.task_id], run_ids=[ti.run_id])
    found: dict[str, str | None] = states.get(ti.run_id, {})
    return found.values()


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
    if isinstance(error, RayJobsError):
        event["delivery"] = str(error.delivery)
    if isinstance(error, RayJobTimeoutError):
        seen = error.details and _with_masked_message(error.details.to_event())
        return event | {"limit": error.limit, "seen": seen}
    return event


def _with_masked_message(event: dict[str, Any]) -> dict[str, Any]:
    """Mask only the message. An id must stay intact even if it contains the letters of a secret."""
    return {key: str(redact(value)) if key == "message" and value else value for key, value in event.items()}


def details_from_event(event: Mapping[str, Any]) -> JobDetails:
    """
    Return the job of an event. If the job has not ended, its log has new lines.

    Of its metadata it has the nonce alone, which the reader of its log needs.

    :raises RayJobsError: the trigger's error, of the same class.
    """
    if "job" in event:
        nonce = (event.get("job_ref") or {}).get("nonce")
        return replace(JobDetails.from_json(event["job"]), metadata={NONCE: nonce} if nonce else {})
    kind = getattr(exceptions, str(event.get("error")), None)
    message = str(event.get("message") or f"The trigger of job {event.get('submission_id')} ended without a message.")
    if kind is RayJobTimeoutError:
        seen = event.get("seen")
        details = JobDetails.from_json(seen) if seen else None
        raise RayJobTimeoutError(message, limit=str(event.get("limit")), details=details)
    if not (isinstance(kind, type) and issubclass(kind, RayJobsError)):
        raise RayJobsError(f"{event.get('error')}: {message}")
    error = kind(message)
    with suppress(ValueError):
        error.delivery = Delivery(str(event.get("delivery")))
    raise error


@dataclass
class _Shared:
    client: AsyncRayJobsClient
    watch: ClusterWatch
    pace: LogPace = field(default_factory=LogPace)
    view: ClusterView = field(default_factory=ClusterView)
    users: int = 0


# Creating a client's TLS context blocks the event loop for 24 ms, so triggers of one cluster share a client. They also
# share the watch that polls for all of them. Both belong to one event loop; the outer dictionary drops closed loops.
_Key = tuple[str, Cluster, str | None]
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def _share(hook: RayJobsHook, cluster: Cluster, team: str | None = None) -> AsyncIterator[_Shared]:
    """Share client and watch of a cluster on this event loop. The last trigger that uses them closes them."""
    clients = _shared.setdefault(asyncio.get_running_loop(), {})
    # by connection, as a client's errors name it, by all credentials, and by team, as metrics name it
    key = (hook.ray_conn_id, cluster, team)
    if key not in clients:
        meter = metrics.watch_meter(hook.ray_conn_id, team)

        def count(jobs: int, interval: float) -> None:
            meter.send(metrics.WATCHED_JOBS, jobs)
            meter.send(metrics.WATCH_INTERVAL, interval)

        client = hook.async_client_of(cluster, meter)
        clients[key] = _Shared(client, ClusterWatch(client, count))
    shared = clients[key]
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            del clients[key]
            try:
                await shared.watch.aclose()
            finally:  # Airflow cancels a trigger every second until it has ended
                await shared.client.aclose()


@asynccontextmanager
async def shared_client(
    hook: RayJobsHook, cluster: Cluster, team: str | None = None
) -> AsyncIterator[AsyncRayJobsClient]:
    """Share the client of a cluster, for requests that do not wait for its watch."""
    async with _share(hook, cluster, team) as shared:
        yield shared.client


@asynccontextmanager
async def shared_watch(hook: RayJobsHook, cluster: Cluster) -> AsyncIterator[ClusterWatch]:
    """Share the watch of a cluster, which lists all jobs if many are followed."""
    async with _share(hook, cluster) as shared:
        yield shared.watch
