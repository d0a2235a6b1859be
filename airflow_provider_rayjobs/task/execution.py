"""
One try of a task on a worker: find its Ray job or submit one, follow it, and end as it ends.

An error, a time limit or a kill may abort a try at any moment. The try must not orphan its job then: see
:mod:`.states`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_rayjobs import links
from airflow_provider_rayjobs.exceptions import (
    RayJobLostError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobStoppedError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import endpoints, follow
from airflow_provider_rayjobs.jobs.limits import Limits, describe_shortage
from airflow_provider_rayjobs.jobs.logs.cursor import NO_ENDING
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobDetails, JobStatus, JobSubmission
from airflow_provider_rayjobs.jobs.steps import Engine, Interrupted, interruptible
from airflow_provider_rayjobs.jobs.stop import StopResult, stop_and_wait
from airflow_provider_rayjobs.jobs.submit import get_session, submit_job
from airflow_provider_rayjobs.masking import masking_env_vars
from airflow_provider_rayjobs.task.attempts import Action, JobRecord, JobRecordStore, RetryGeneration, decide, query_job
from airflow_provider_rayjobs.task.kill_switch import KillSwitch
from airflow_provider_rayjobs.task.outcomes import (
    FINAL_ERRORS,
    error_for_outcome,
    is_last_try,
    is_unschedulable,
    to_task_error,
)
from airflow_provider_rayjobs.task.states import State
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event, emit_job_log

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_rayjobs.jobs.packages.local_code import LocalCode
    from airflow_provider_rayjobs.jobs.packages.upload import UploadedPackages

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The operator's rendered and checked arguments; durations are in seconds."""

    submission_id: str | None
    wait_for_completion: bool
    deferrable: bool
    logs: LogOptions
    poll_interval: float
    unreachable_timeout: float
    stop_on_kill: bool
    stop_timeout: float
    limits: Limits
    fail_on: frozenset[int]
    skip_on: frozenset[int]


class SubmitTask(Protocol):
    """The part of the submit operator that a try uses."""

    ray_conn_id: str

    @property
    def log(self) -> Any: ...

    def resolve_local_code(self) -> Engine[LocalCode | None]: ...

    def new_submission(
        self, context: Context, submission_id: str, nonce: str | None = None, *, runtime_env: Any = None
    ) -> JobSubmission: ...

    def defer(self, *, trigger: BaseTrigger, method_name: str) -> NoReturn: ...


class Execution:
    """
    One try of a task.

    :param kill_switch: the switch of the task's ``on_kill``.
    :param is_resumed: whether the task resumes after a trigger has followed the job.
    """

    def __init__(
        self,
        task: SubmitTask,
        context: Context,
        settings: Settings,
        store: JobRecordStore,
        kill_switch: KillSwitch,
        *,
        is_resumed: bool = False,
    ) -> None:
        self.task = task
        self.log = task.log
        self.context = context
        self.settings = settings
        self.store = store
        self.kill_switch = kill_switch
        self.kill_switch.is_enabled = settings.stop_on_kill
        self.hook = RayJobsHook(task.ray_conn_id)
        self.cluster = self.hook.get_cluster(check_token_file=not is_resumed)
        self.client = self.hook.client_of(self.cluster)
        self.limits = settings.limits
        self.reader = settings.logs.reader()
        self.state = State.DEFERRED if is_resumed else State.NO_JOB

    def submit_and_wait(self) -> str:
        """Find or submit the job, follow it if the task waits, and return the submission id."""
        return self._run_try(self._submit_and_wait)

    def resume(self, event: Mapping[str, Any]) -> str:
        """Continue with the event of the trigger, and return the submission id."""
        return self._run_try(lambda: self._resume(event))

    def _submit_and_wait(self) -> str:
        ended = self._attach_or_submit()
        if not self.settings.wait_for_completion:
            if self.state is State.FOLLOWING:
                self._enter(State.RELEASED)
            return self._deliver()
        if ended is not None:
            self._show_log(ended)
            return self._conclude(ended)
        if self.settings.deferrable:
            self._defer()
        following = follow.follow_job(
            self._record.submission_id,
            poll_interval=self.settings.poll_interval,
            unreachable_timeout=self.settings.unreachable_timeout,
            reader=self.reader,
            limits=self.limits,
            session=self._record.session,
        )
        return self._conclude(self._run(following))

    def _resume(self, event: Mapping[str, Any]) -> str:
        if self.store.record is None or self.store.record.submission_id != event["submission_id"]:
            # Without a task state store, only the event describes the job.
            demand = self.task.new_submission(self.context, event["submission_id"], runtime_env={}).demand()
            generation = RetryGeneration.of(self.context)
            self.store.record = JobRecord.from_event(event, generation, self.cluster.address, demand)
        self._enter(State.FOLLOWING)
        self.reader = self.settings.logs.reader(event.get("log_state"))
        details = details_from_event(event)
        if not details.status.is_terminal():  # ``log_flush_interval`` has passed
            if self.reader is not None:
                self._run(self.reader.read(details, self.settings.logs.flush_interval or 0.0))
            self._defer()
        self._enter(State.DONE)
        self._show_log(details)
        return self._conclude(details)

    # -- which job ------------------------------------------------------------------------------------------------

    def _attach_or_submit(self) -> JobDetails | None:
        """Find this try's job, or submit one. Return the job if it has SUCCEEDED already."""
        action, job = self._decide()
        if job is not None and action in (Action.FINISH, Action.REATTACH):
            self._push_xcoms()
            if action is Action.FINISH:
                return job
            self._enter(State.FOLLOWING)
            if job.status != JobStatus.PENDING:
                self.store.update(accepted=True)
            self.limits = replace(self.limits, is_confirmed=self._record.accepted)
            return None
        if action is Action.REPLACE:
            self._stop()
        self._submit(self._record if action is Action.RESUBMIT else self._new_record())
        return None

    def _decide(self) -> tuple[Action, JobDetails | None]:
        """Return the first action of the try, and the recorded job if Ray was asked and knows it."""
        record, generation, address = self.store.record, RetryGeneration.of(self.context), self.cluster.address
        decision, job = decide(record, None, generation, address), None
        if record is not None and decision.action is Action.ASK:
            self._enter(State.EARLIER_JOB)
            answer = self._run(query_job(record, self.settings.unreachable_timeout))
            decision, job = decide(record, answer, generation, address), answer.job
            if decision.action not in (Action.REATTACH, Action.REPLACE):
                self._enter(State.NO_JOB)
        if decision.reason:
            self.log.warning("%s", decision.reason)
        return decision.action, job

    def _new_record(self) -> JobRecord:
        record = self.store.new_record(self.context, self.settings.submission_id, self.cluster.address)
        if record.number > 1:
            self.log.info("submission_id %s was used before. The new job is %s.", record.base_id, record.submission_id)
        return record

    def _submit(self, record: JobRecord) -> None:
        """Upload local code, store the job record, then submit the job."""
        timeout = self.settings.unreachable_timeout
        code = self._run(self.task.resolve_local_code())
        submission = self.task.new_submission(
            self.context, record.submission_id, record.nonce, runtime_env=code.runtime_env if code else None
        )
        packages: UploadedPackages | None = None
        if code is not None:
            # Imported here, because few tasks have local code.
            from airflow_provider_rayjobs.jobs.packages.upload import upload_packages  # noqa: PLC0415

            packages = self._run(upload_packages(code, timeout))
        session = self._run(get_session(record.submission_id, timeout))
        generation, demand = RetryGeneration.of(self.context), submission.demand()
        self.store.save(replace(record, generation=generation, session=session, demand=demand, delivered=False))
        self._push_xcoms()
        self._enter(State.SUBMITTING)
        try:
            is_confirmed = self._run(submit_job(submission, timeout, packages.ensure if packages else None))
        except FINAL_ERRORS as error:
            if not error.was_retried:
                self._enter(State.NO_JOB)
            raise
        self._enter(State.FOLLOWING)
        if is_confirmed:
            self.store.update(accepted=True)
        self.limits = replace(self.limits, is_confirmed=is_confirmed)
        url = self.cluster.job_url(record.submission_id)
        self.log.info("Submitted Ray job %s to %s: %s", record.submission_id, self.cluster.address, url)

    def _push_xcoms(self) -> None:
        """Push the submission id and the link, before the submission, so that no failure can hide the job."""
        task_instance = self.context["ti"]
        task_instance.xcom_push(key="submission_id", value=self._record.submission_id)
        task_instance.xcom_push(key=links.XCOM_KEY, value=self.cluster.job_url(self._record.submission_id))

    # -- how the try ends -----------------------------------------------------------------------------------------

    def _defer(self) -> NoReturn:
        if self.kill_switch.is_triggered:
            raise Interrupted
        self._enter(State.DEFERRED)
        self.task.defer(
            trigger=RayJobTrigger(
                self._record.submission_id,
                ray_conn_id=self.task.ray_conn_id,
                poll_interval=self.settings.poll_interval,
                unreachable_timeout=self.settings.unreachable_timeout,
                address=self.cluster.address,
                session=self._record.session,
                nonce=self._record.nonce,
                limits=self.limits.to_json(),
                stop_on_kill=self.settings.stop_on_kill,
                stop_timeout=self.settings.stop_timeout,
                logs=self.settings.logs.to_json(),
                log_state=self.reader.state if self.reader else None,
                deferred_at=time.time(),
            ),
            method_name="execute_complete",
        )

    def _conclude(self, details: JobDetails) -> str:
        """Return the submission id of a job that SUCCEEDED, or raise the error for its end."""
        self._enter(State.DONE)
        ending = self.reader.log.ending if self.reader else NO_ENDING
        shortage = self._shortage() if is_unschedulable(details) else ""
        if error := error_for_outcome(details, self.cluster.address, ending, shortage):
            raise error
        self.log.info("Ray job %s SUCCEEDED after %.1f s.", details.name, details.duration or 0.0)
        return self._deliver()

    def _deliver(self) -> str:
        self.store.update(accepted=True, delivered=True)
        return self._record.submission_id

    def _run_try(self, work: Callable[[], str]) -> str:
        """Do the work of a try, and handle each event that may abort it."""
        try:
            try:
                return work()
            except RayJobTimeoutError as error:
                return self._abandon(error)
            except AirflowTaskTimeout:
                if not self.state.owns_job:
                    raise
                return self._abandon(
                    RayJobTimeoutError(
                        f"Ray job {self._record.submission_id} did not end within this try's execution_timeout of "
                        f"{self.limits.execution_timeout or 0.0:.12g} s.",
                        limit="execution_timeout",
                    )
                )
        except Interrupted:
            self._handle_kill()
        except Exception as error:  # noqa: BLE001  (raised again)
            self._handle_error(error)
        finally:
            if self.state is not State.DEFERRED:
                self._enter(State.DONE)
            self.client.close()

    def _handle_error(self, error: Exception) -> NoReturn:
        """Leave a job that may run to the next try, or stop it if there is none. Raise the error for Airflow."""
        raised = to_task_error(error, self.task, fail_on=self.settings.fail_on, skip_on=self.settings.skip_on)
        if self.state.owns_job and not isinstance(error, RayJobNotFoundError | RayJobLostError):
            name = self._record.submission_id
            if self.store.is_durable and not is_last_try(raised, self.task, self.context):
                self._warn("Ray job %s may still be running. It is not stopped: the next try follows it.", name)
            else:
                self._warn("Ray job %s may still be running, and no further try follows it. Stopping it.", name)
                self._stop()
        if raised is error:
            raise error
        raise raised from error.__cause__  # not from error, which has the same text

    def _abandon(self, error: RayJobTimeoutError) -> str:
        """Stop a job whose time limit expired. If the job ended before the stop, its own end decides."""
        if error.limit == "execution_timeout" and not self.settings.stop_on_kill:
            self._enter(State.DONE)
            self.log.warning("%s The job is not stopped, because stop_on_kill is off.", error)
            raise error
        self.store.update(abandoned=True)
        self._warn("%s Stopping the job.", error)
        was_pending = error.details is not None and error.details.status == JobStatus.PENDING
        shortage = [self._shortage()] if was_pending else []
        stopped = self._stop()
        self._show_log(stopped.details)
        if stopped.details is not None and stopped.details.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            return self._conclude(stopped.details)
        raise RayJobTimeoutError(
            "\n".join([str(error), f"The job at {self.cluster.address} was abandoned.", *shortage, stopped.summary]),
            limit=error.limit,
            details=stopped.details or error.details,
        ) from None

    def _handle_kill(self) -> NoReturn:
        """Stop a job that may run, and end the task: it was cleared, marked or timed out, or its worker shuts down."""
        if not self.state.owns_job:
            raise RayJobStoppedError("Airflow ended this task. The task had no Ray job to stop.") from None
        self._warn("Airflow is ending this task. %s", self.kill_switch.summary)
        stopped = self._stop()
        self._show_log(stopped.details)
        raise RayJobStoppedError(
            f"Airflow ended this task, so a stop was requested for its Ray job at {self.cluster.address}. "
            f"{stopped.summary}",
            details=stopped.details,
        ) from None

    # -- helpers --------------------------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        """Change the state, and arm or disarm the kill switch as :mod:`.states` says."""
        self.state = state
        if state.is_armed(has_generated_id=self.store.record is not None and not self.store.record.base_id):
            self.kill_switch.arm(lambda: self.hook.client_of(self.cluster, is_quiet=True), self._record.submission_id)
        else:
            self.kill_switch.disarm()

    @property
    def _record(self) -> JobRecord:
        if self.store.record is None:
            raise RuntimeError("This try has no job record yet.")
        return self.store.record

    def _stop(self) -> StopResult:
        stopping = stop_and_wait(self._record.submission_id, self.settings.stop_timeout, self._record.nonce or None)
        stopped = self.client.run(stopping)
        self._enter(State.DONE)
        if stopped.has_ended:
            self.log.info("%s", stopped.summary)
        else:
            self._warn("%s", stopped.summary)
        return stopped

    def _warn(self, message: str, *args: Any) -> None:
        """Log a warning. If Airflow's supervisor has died, logging fails, but the job must still be stopped."""
        with suppress(OSError):
            self.log.warning(message, *args)

    def _shortage(self) -> str:
        """Compare the resources that a pending job requests with those of the cluster."""
        cluster: ClusterResources | None = None
        with suppress(RayJobsError):  # the error of the job is more important
            cluster = self.client.send(endpoints.get_cluster_status())
        return describe_shortage(self._record.demand, cluster)

    def _show_log(self, details: JobDetails | None) -> None:
        if self.reader is not None and details is not None and details.status.is_terminal():
            self.client.run(self.reader.read(details), emit_job_log)

    def _run(self, engine: Engine[T]) -> T:
        engine = interruptible(masking_env_vars(engine), lambda: self.kill_switch.is_triggered)
        return self.client.run(engine, emit_job_log)
