"""
The boundary around a try of a task: whatever breaks, see to a job that may run.

Much may break before the try's first request and after its last: the task state store, the arguments, the connection,
the trigger. So the boundary needs no more than the job record and a client for its cluster. See :mod:`.states`.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred, redact

from airflow_provider_rayjobs import config, links, metrics
from airflow_provider_rayjobs.exceptions import (
    RayJobLostError,
    RayJobNotFoundError,
    RayJobResultError,
    RayJobsError,
    RayJobStoppedError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.client import RayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import NO_LIMITS, Limits, describe_shortage
from airflow_provider_rayjobs.jobs.logs.cursor import NO_ENDING
from airflow_provider_rayjobs.jobs.logs.messages import NO_MESSAGES
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobDetails, JobStatus, JobSubmission
from airflow_provider_rayjobs.jobs.steps import Engine, Interrupted, interruptible
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, StopResult, stop_and_wait
from airflow_provider_rayjobs.masking import masking_env_vars
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.attempts import (
    JobRecord,
    JobRecordStore,
    RetryGeneration,
    id_of_try,
    owner_of,
)
from airflow_provider_rayjobs.task.kill_switch import KillSwitch
from airflow_provider_rayjobs.task.outcomes import (
    ending_retries,
    error_for_outcome,
    is_last_try,
    is_mistake,
    is_unschedulable,
    to_task_error,
)
from airflow_provider_rayjobs.task.results import read_result
from airflow_provider_rayjobs.task.states import State
from airflow_provider_rayjobs.task.targets import Target, find_target
from airflow_provider_rayjobs.triggers import emit_job_log, states_of

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_rayjobs.jobs.packages.local_code import LocalCode

T = TypeVar("T")

# The XCom that names the job of a deferred task if the task state store does not.
JOB_REF_KEY = "ray_job_ref"
# States in which no next try follows the job: marked, or cleared.
_FINAL_STATES = ("success", "failed", "skipped", "removed", "restarting")
# States in which Airflow rejects a deferral, a success or a failure.
_ENDED_STATES = (*_FINAL_STATES, "up_for_retry")


@dataclass(frozen=True)
class Settings:
    """The operator's rendered and checked arguments; durations are in seconds."""

    submission_id: str | None
    wait_for_completion: bool
    deferrable: bool
    defer_after: float
    logs: LogOptions
    poll_interval: float
    unreachable_timeout: float
    first_contact_timeout: float
    stop_on_kill: bool
    stop_timeout: float
    limits: Limits
    fail_on: frozenset[int]
    skip_on: frozenset[int]
    execution_timeout: float | None = None
    return_result: bool = False
    may_unpickle: bool = False


class SubmitTask(Protocol):
    """The part of the submit operator that a try uses."""

    ray_conn_id: str
    durable: bool
    stop_on_kill: bool | str | None
    execution_timeout: timedelta | None
    outlets: list[Any]
    pool: str

    @property
    def log(self) -> Any: ...

    def settings(self) -> Settings: ...

    def resolve_local_code(self, context: Context) -> Engine[LocalCode | None]: ...

    def new_submission(
        self, context: Context, submission_id: str, nonce: str | None = None, *, runtime_env: Any = None
    ) -> JobSubmission: ...

    def read_stored_result(self, nonce: str, limit: int) -> bytes: ...

    def note_job(self, submission_id: str, address: str, url: str) -> None: ...

    def defer(self, *, trigger: BaseTrigger, method_name: str) -> NoReturn: ...


class Boundary:
    """
    What every try needs to end well. The constructor only assigns, so that :meth:`guard` sees every error.

    :param kill_switch: the switch of the task's ``on_kill``.
    :param is_resumed: whether the task resumes after a trigger has followed the job.
    """

    def __init__(
        self, task: SubmitTask, context: Context, kill_switch: KillSwitch, *, is_resumed: bool = False
    ) -> None:
        self.task = task
        self.log = task.log
        self.context = context
        self.kill_switch = kill_switch
        self.is_resumed = is_resumed
        self.state = State.DEFERRED if is_resumed else State.STARTING
        self._store: JobRecordStore | None = None
        self._settings: Settings | None = None
        self.limits = NO_LIMITS
        self.reader: LogReader | None = None
        self._own: Target | None = None
        self._target: Target | None = None
        self._clients: dict[Target, RayJobsClient] = {}
        self._meter = metrics.task_meter(context)
        # seconds from the submission to the last poll that found the job PENDING; ``None`` if unknown
        self._pending_for: float | None = None
        # of the job, as far as this try has seen it
        self._status: str | None = None
        # the XComs that show the job; the status and the time of the last attempt to push them
        self._pushed: dict[str, Any] = {}
        self._tried: str | None = None
        self._tried_at = -math.inf

    def guard(self, work: Callable[[], Any]) -> Any:
        """Do the work of a try, and count its outcome. See to a job that may run, whatever breaks."""
        outcome = "success"
        try:
            return self._guard(work)
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            if self.state is State.DONE:
                self.kill_switch.end_try()
                self._meter.send(metrics.OUTCOMES, outcome=outcome)
                self._meter.send(metrics.LOG_BYTES, self.reader.log.offset if self.reader else 0)

    def _guard(self, work: Callable[[], Any]) -> Any:
        try:
            try:
                return self._do_work(work)
            except RayJobTimeoutError as error:
                self._begin_cleanup()
                return self._abandon(error)
            except AirflowTaskTimeout:
                self._begin_cleanup()
                if not self._owns_job():
                    raise
                name = self._record.submission_id
                message = f"Ray job {name} did not end within the execution_timeout of this try."
                return self._abandon(RayJobTimeoutError(message, limit="execution_timeout"))
        except Interrupted:
            self._begin_cleanup()
            self._handle_kill()
        except KeyboardInterrupt:
            self._begin_cleanup()
            self._handle_interrupt()
            raise
        except TaskDeferred:
            raise
        except BaseException as error:  # noqa: BLE001  (raised again)
            self._begin_cleanup()
            self._handle_error(error)
        finally:
            if self.state not in (State.DEFERRED, State.RELEASED):
                self._enter(State.DONE)
            self._end_execution_timeout()  # it must not replace the outcome of the try
            self._note_job()
            for client in self._clients.values():
                client.close()

    def _do_work(self, work: Callable[[], Any]) -> Any:
        """
        Let Airflow's ``execution_timeout`` not break off what follows an error. A stop has a time limit of its own.

        A timeout that comes before the last line below replaces the error, and is handled as a timeout.
        """
        try:
            return work()
        except BaseException:
            self._end_execution_timeout()
            raise

    def _begin_cleanup(self) -> None:
        if self.state is State.RELEASED:
            self._enter(State.DONE)
        self.kill_switch.poll()  # a kill waits for the verdict that comes with the stop

    def _end_execution_timeout(self) -> None:
        if self.task.execution_timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _conclude(self, details: JobDetails) -> Any:
        """Return the submission id or the result of a job that SUCCEEDED, or raise the error for its end."""
        self._enter(State.DONE)
        self._status = details.status
        self._measure(details)
        ending = self.reader.log.ending if self.reader else NO_ENDING
        messages = self.reader.messages if self.reader else NO_MESSAGES
        shortage = self._shortage() if is_unschedulable(details) else ""
        if error := error_for_outcome(details, self.target.cluster.address, ending, shortage, messages):
            self._update(delivered=True)
            raise error
        self.log.info("Ray job %s SUCCEEDED after %.1f s.", details.name, details.duration or 0.0)
        if not self.settings.return_result:
            return self._deliver()
        try:
            result = read_result(
                self.reader,
                details,
                self.target.cluster.address,
                self.log.warning,
                read_stored=lambda size: self.task.read_stored_result(self._record.job.nonce or "", size),
                may_unpickle=self.settings.may_unpickle,
            )
        except RayJobResultError as unread:
            self._update(unusable=unread.is_final)
            raise
        self._deliver()
        return result

    def _measure(self, details: JobDetails) -> None:
        """Send for how long the job was pending and running, once for each job."""
        if self._pending_for is None or details.duration is None or self._record.delivered:
            return
        self._meter.send(metrics.PENDING, 1000 * self._pending_for)
        self._meter.send(metrics.RUNNING, 1000 * max(details.duration - self._pending_for, 0.0))

    def _note_job(self) -> None:
        """Note what the web UI and lineage show of the job. A failure must not replace the outcome of the try."""
        if self._target is None or self._store is None or self._store.record is None:
            return
        name, cluster = self._record.submission_id, self._target.cluster
        self.task.note_job(name, cluster.address, cluster.job_url(name))
        if self.state is State.DEFERRED:  # the pushes take time, and nothing would stop the job meanwhile
            return
        with suppress(Exception):
            self._push_seen()
            if self.state is State.DONE and (url := cluster.job_history_url(name, self._record.job.session)):
                links.push_link(self.task, self.context["ti"], url)

    def _push_seen(self, interval: float = 0.0) -> None:
        """Push status and progress of the job. Without a new status, ``interval`` seconds after the last attempt."""
        seen: dict[str, Any] = {}
        if self._status is not None:
            seen["job_status"] = str(self._status)
        if self.reader is not None and (progress := self.reader.progress) is not None:
            seen["progress"] = {"done": progress.done, "total": progress.total, "text": str(redact(progress.text))}
        status, now = seen.get("job_status"), time.monotonic()
        if status == self._tried and now < self._tried_at + interval:
            return
        self._tried, self._tried_at = status, now
        for key, value in seen.items():
            if value != self._pushed.get(key):
                self.context["ti"].xcom_push(key=key, value=value)
                self._pushed[key] = value

    def _deliver(self) -> str:
        self._end_execution_timeout()  # the success must not be lost
        self._update(accepted=True, delivered=True)
        self._describe_outlets()
        return self._record.submission_id

    def _describe_outlets(self) -> None:
        """Add the job, and what its program wants to say, to the events of the task's outlets."""
        extra = self.reader.messages.extra if self.reader else {}
        events: Any = self.context.get("outlet_events")
        for outlet in self.task.outlets:
            with suppress(Exception):  # not an asset
                events[outlet].extra.update(extra, submission_id=self._record.submission_id)

    def _open_store(self, event: Mapping[str, Any] | None = None) -> None:
        """Read the job record. If there is none to read, the trigger's event or an XCom names a resumed job."""
        # before the record is read, so that a freeze in between is noticed
        self.kill_switch.begin_try(self.context["ti"])
        try:
            store = JobRecordStore(self.context.get("task_state_store") if self.task.durable else None)
        except Exception as error:
            if not self.is_resumed:
                raise
            self._warn("The job record of this task cannot be read. %s", error)
            store = JobRecordStore()
        self._store = store
        with suppress(ValueError):  # settings() raises the same error
            self.kill_switch.is_enabled = template_values.as_stop_on_kill(self.task.stop_on_kill)
        if self.is_resumed:
            given = (event or {}).get("submission_id") or (store.record and store.record.submission_id)
            job_ref = (event or {}).get("job_ref")
            if not given:
                ti = self.context["ti"]
                job_ref = ti.xcom_pull(key=JOB_REF_KEY, task_ids=ti.task_id, map_indexes=ti.map_index)
                given = job_ref and job_ref["submission_id"]
            if given and (store.record is None or store.record.submission_id != given):
                job = JobRef.from_json({"address": "", "submission_id": given, **(job_ref or {})})
                store.record = JobRecord(job, self.task.ray_conn_id, RetryGeneration.of(self.context), accepted=True)
        elif self.state is State.STARTING:
            self._enter(State.NO_JOB if store.record is None else State.EARLIER_JOB)

    def _find_target(self) -> None:
        """Turn to the cluster of the recorded job."""
        record = self._record
        self._target = target = find_target(record.job, record.conn_id, self._own)
        if self._own is not None and target.cluster.address != self._own.cluster.address:
            self._warn(
                "Ray job %s is at %s, and the connection %s has the address %s now. The job is followed and stopped "
                "where it is.",
                record.submission_id, target.cluster.address, self._own.hook.ray_conn_id, self._own.cluster.address,
            )  # fmt: skip
        self._update(job=replace(record.job, address=target.cluster.address), conn_id=target.hook.ray_conn_id)
        self._enter(self.state)

    def _handle_error(self, error: BaseException) -> NoReturn:
        """Leave a job that may run to the next try, or stop it if there is none. Raise the error for Airflow."""
        fail_on, skip_on = (self._settings.fail_on, self._settings.skip_on) if self._settings else ((), ())
        raised = to_task_error(error, self.task, fail_on=fail_on, skip_on=skip_on)
        if self._owns_job() and not isinstance(error, RayJobNotFoundError | RayJobLostError):
            name = self._record.submission_id
            is_followed = self.store.is_durable and not is_last_try(raised, self.task, self.context)
            if is_followed and not (self.kill_switch.is_enabled and self._is_ended()):
                self._enter(State.DONE)
                self._warn("Ray job %s may still be running. It is not stopped: the next try follows it.", name)
            else:
                self._warn("Ray job %s may still be running, and no further try follows it. Stopping it.", name)
                self._try_to_stop()
        elif self.state is State.NO_JOB and is_mistake(error):  # otherwise a retry may find a job
            raised = ending_retries(error)
        if raised is error:
            raise error
        raise raised from error.__cause__  # not from error, which has the same text

    def _abandon(self, error: RayJobTimeoutError) -> Any:
        """Stop a job whose time limit expired. If the job ended before the stop, its own end decides."""
        if error.limit == "execution_timeout" and not self.kill_switch.is_enabled:
            self._enter(State.DONE)
            self.log.warning("%s The job is not stopped, because stop_on_kill is off.", error)
            raise error
        self._update(abandoned=True)
        self._warn("%s Stopping the job.", error)
        was_pending = error.details is not None and error.details.status == JobStatus.PENDING
        stopped = self._stop()
        shortage = [self._shortage()] if was_pending else []
        self._show_log(stopped.details)
        if stopped.details is not None and stopped.details.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            return self._conclude(stopped.details)
        progress = self.reader.progress if self.reader else None
        facts = [
            f"Its stop was requested at {self._record.job.address}, because this limit expired.",
            *shortage,
            stopped.summary,
        ]
        if progress is not None:
            facts.append(f"Its last progress: {redact(str(progress))}")
        raise RayJobTimeoutError(
            "\n".join([str(error), *facts]),
            limit=error.limit,
            details=stopped.details or error.details,
        ) from None

    def _handle_kill(self) -> NoReturn:
        """Stop a job that may run, and end the task: it was cleared, marked or timed out, or its worker shuts down."""
        if not self._owns_job():
            raise RayJobStoppedError("Airflow ended this task. The task had no Ray job to stop.") from None
        self._warn("Airflow is ending this task.")
        if not self.kill_switch.is_enabled:
            raise RayJobStoppedError("Airflow ended this task. Its Ray job runs on, as stop_on_kill is off.") from None
        stopped = self._stop()
        self._show_log(stopped.details)
        raise RayJobStoppedError(
            f"Airflow ended this task, so a stop was requested for its Ray job at {self._record.job.address}. "
            f"{stopped.summary}",
            details=stopped.details,
        ) from None

    def _handle_interrupt(self) -> None:
        """Stop a job that may run, after Ctrl-C on ``dag.test()``. Another Ctrl-C ends the wait for its end."""
        if not self._owns_job():
            return
        name = self._record.submission_id
        if self.kill_switch.is_enabled:
            self._warn("Interrupted by the user. Stopping Ray job %s.", name)
            self._try_to_stop()
        else:
            self._warn("Interrupted by the user. Ray job %s runs on, as stop_on_kill is off.", name)

    def _enter(self, state: State) -> None:
        """Change the state, and arm or disarm the kill switch as :mod:`.states` says."""
        self.state = state
        # Without a nonce, only an answer of Ray tells whether the recorded job is this task's.
        is_unknown = state is State.EARLIER_JOB and self._record.job.nonce is None
        if state.is_armed and self._target is not None and not is_unknown:
            target, is_durable = self._target, self.store.is_durable
            self.kill_switch.arm(lambda: target.client(is_quiet=True), self._record.job, may_be_superseded=is_durable)
        else:
            self.kill_switch.disarm()

    @property
    def _id(self) -> str:
        return id_of_try(self.context)

    @property
    def store(self) -> JobRecordStore:
        if self._store is None:
            raise RuntimeError("The job record was not read yet.")
        return self._store

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            raise RuntimeError("The arguments were not read yet.")
        return self._settings

    @property
    def target(self) -> Target:
        """The cluster that this try talks to: the recorded job's, or that of its own connection."""
        if self._target is None:
            raise RuntimeError("The connection was not read yet.")
        return self._target

    @property
    def _record(self) -> JobRecord:
        if self.store.record is None:
            raise RuntimeError("This try has no job record yet.")
        return self.store.record

    def _is_ended(self) -> bool:
        """
        Ask Airflow for the last time whether the task was marked or cleared. From now on a kill stops the job at once.

        A kill that comes during the question waits for the verdict of the try, which ends then.
        """
        self.kill_switch.poll()
        try:
            is_ended = any(state in _ENDED_STATES for state in self._states())
        except Exception:  # noqa: BLE001  (Airflow cannot be asked)
            is_ended = False
        self.kill_switch.end_polling()
        return is_ended or self.kill_switch.is_triggered

    def _states(self) -> Collection[str | None]:
        """Ask Airflow for the state of the task instance; nothing if it was deleted."""
        ti = self.context["ti"]
        return states_of(ti, ti.get_task_states)

    def _owns_job(self) -> bool:
        """Tell whether a job may run that this try must stop, or leave to the next try."""
        if self._store is None:
            try:
                self._open_store()
            except Exception as error:  # noqa: BLE001  (Airflow cannot read its store)
                self._warn("The job record of this task cannot be read. An earlier try's job may still run. %s", error)
                return False
        return self.state.owns_job and self.store.record is not None

    def _stop(self) -> StopResult:
        """Stop the recorded job where it is, unless another try sees to it."""
        if self._target is None:
            with suppress(Exception):  # the connection cannot be read
                self._own = Target.of_connection(self.task.ray_conn_id)
            self._find_target()
        self._raise_if_superseded()
        if self._is_ours():
            timeout = self._settings.stop_timeout if self._settings else STOP_TIMEOUT
            stopping = stop_and_wait(self._record.job, timeout, may_arrive=not self._record.accepted)
            stopped = self._client.run(stopping)
        else:
            name = self._record.submission_id
            stopped = StopResult(True, f"Another task's job has the id {name}. It is left alone.")
        self._enter(State.DONE)
        if stopped.details is not None:
            self._status = stopped.details.status
        if stopped.has_ended:
            self.log.info("%s", stopped.summary)
        else:
            self._warn("%s", stopped.summary)
        return stopped

    def _is_ours(self) -> bool:
        """Tell whether a job is this task's. Without a nonce in the record, the job's metadata tell it."""
        if self._record.job.nonce is not None:
            return True
        with suppress(RayJobsError):  # unknown or unreachable: the stop itself shows it
            job = self._client.send(endpoints.get_job(self._record.submission_id))
            return all(job.metadata.get(key) == value for key, value in owner_of(self.context).items())
        return True

    def _try_to_stop(self) -> None:
        """Stop the job after an error. A second error must not replace the first."""
        try:
            self._stop()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  (the error that ends the task is more important)
            self._warn("Ray job %s was not stopped. %s", self._record.submission_id, error)

    def _raise_if_superseded(self) -> None:
        """Raise :class:`RayJobStoppedError` if another try sees to the job. Otherwise let a kill stop it."""
        self.kill_switch.poll()
        is_superseded = self._was_superseded()
        self.kill_switch.settle(is_superseded=is_superseded)
        if self.kill_switch.summary:  # also if the thread could not wait for the verdict
            self._warn("%s", self.kill_switch.summary)
        if is_superseded:
            self._enter(State.DONE)
            raise RayJobStoppedError(
                "Airflow has ended this try, and another try of this task may see to Ray job "
                f"{self._record.submission_id} now. From now on, this try neither submits nor stops it."
            )

    def _was_superseded(self) -> bool:
        """
        Tell whether another try follows the job, or will: Airflow has failed this one although its process lives.

        Airflow hides the stored record from a try that it has failed and retries, from one that was cleared, and from
        one whose DAG run was deleted. The state of the task instance tells them apart.
        """
        if not self.store.is_durable:
            return False
        try:
            stored = self.store.read()
        except Exception:  # noqa: BLE001  (Airflow cannot be asked)
            return self.kill_switch.notice_freeze()
        if stored is not None:
            is_superseded = stored.holder not in (self._id, self.store.found_holder)
        else:
            # A success may be that of the next try, whose job outlives it.
            waits = self._settings is None or self._settings.wait_for_completion
            final = _FINAL_STATES if waits else set(_FINAL_STATES) - {"success"}
            try:
                is_superseded = any(state not in final for state in self._states())
            except Exception:  # noqa: BLE001  (a cleared try is replaced by the next one)
                is_superseded = True
        self.kill_switch.was_frozen = self.kill_switch.notice_freeze() and is_superseded
        return is_superseded

    def _update(self, **changes: Any) -> None:
        """Change the job record. A failing store does not end the try, as the next one asks Ray anyway."""
        try:
            if not (self.kill_switch.notice_freeze() and self._was_superseded()):
                self.store.update(**changes)
        except Exception as error:  # noqa: BLE001
            self._warn("The job record could not be changed. Ray job %s goes on. %s", self._record.submission_id, error)

    def _warn(self, message: str, *args: Any) -> None:
        """Log a warning. If Airflow's supervisor has died, logging fails, but the job must still be stopped."""
        with suppress(OSError):
            self.log.warning(message, *args)

    def _shortage(self) -> str:
        """Compare the resources that a pending job requests with those of the cluster; "" if that fails."""
        cluster: ClusterResources | None = None
        demand = self._demand()
        if demand is None:
            return ""
        with suppress(RayJobsError):  # the error of the job is more important
            cluster = self._client.send(endpoints.get_cluster_status())
        return describe_shortage(demand, cluster)

    def _demand(self) -> dict[str, float] | None:
        """Return the resources that the job needs on one node; ``None`` if an argument is invalid."""
        with suppress(ValueError):
            return self.task.new_submission(self.context, self._record.submission_id, runtime_env={}).demand()
        return None

    def _read_arguments(self) -> Settings:
        with config.falling_back() if self.is_resumed else nullcontext():
            self._settings = settings = self.task.settings()
        self.limits = settings.limits
        self.reader = settings.logs.reader(messages=settings.return_result)
        return settings

    def _show_log(self, details: JobDetails | None) -> None:
        if self._settings is None:
            with suppress(Exception):  # an argument is invalid, which ended the try
                self._read_arguments()
        if self.reader is not None and details is not None and details.status.is_terminal():
            self._client.run(self.reader.read(details), emit_job_log)

    @property
    def _client(self) -> RayJobsClient:
        target = self.target
        if target not in self._clients:
            self._clients[target] = target.client()
        return self._clients[target]

    def _run(self, engine: Engine[T]) -> T:
        return self._client.run(interruptible(masking_env_vars(engine), self.kill_switch.poll), emit_job_log)
