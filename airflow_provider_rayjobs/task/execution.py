"""
What one try of a task does on a worker: find its job or submit one, follow it, and end as it ends.

Whatever breaks that off must leave no job that nobody looks after. There are four ways: the job's own bad end and every
other error (:meth:`Execution._handle_error`), a limit (:meth:`Execution._abandon`), Airflow's ``execution_timeout``
(:meth:`Execution._handle_airflow_timeout`), and Airflow's kill (:meth:`Execution._handle_kill`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_rayjobs import links
from airflow_provider_rayjobs.exceptions import (
    RayApiAddressError,
    RayApiAuthError,
    RayApiRejectedError,
    RayApiTLSError,
    RayJobExistsError,
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
from airflow_provider_rayjobs.jobs.submission import new_nonce
from airflow_provider_rayjobs.jobs.submit import get_session, submit_job
from airflow_provider_rayjobs.masking import masking_env_vars
from airflow_provider_rayjobs.task.attempts import (
    Action,
    JobRecord,
    JobRecordStore,
    RetryGeneration,
    decide,
    new_submission_id,
    numbered_id,
    query_job,
)
from airflow_provider_rayjobs.task.kill_switch import KillSwitch
from airflow_provider_rayjobs.task.outcomes import (
    error_for_outcome,
    has_retry_policy,
    is_last_try,
    is_unschedulable,
    to_task_error,
)
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event, emit_job_log

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_rayjobs.jobs.packages.local_code import LocalCode

T = TypeVar("T")

# Answers that mean that no job came of a submission.
_NOTHING_CAME_OF_IT = (
    RayApiRejectedError,
    RayApiAuthError,
    RayApiAddressError,
    RayApiTLSError,
    RayJobExistsError,
)


@dataclass(frozen=True)
class Settings:
    """The operator's arguments as templates left them, checked; durations in seconds."""

    submission_id: str | None
    wait_for_completion: bool
    logs: LogOptions
    poll_interval: float
    unreachable_timeout: float
    stop_on_kill: bool
    stop_timeout: float
    limits: Limits
    fail_on: frozenset[int]
    skip_on: frozenset[int]


class SubmitTask(Protocol):
    """The part of the submit operator that a try needs: it describes the submission, and it defers."""

    ray_conn_id: str
    deferrable: bool
    execution_timeout: timedelta | None

    @property
    def log(self) -> Any:
        """The task's logger."""

    def resolve_local_code(self) -> Engine[LocalCode | None]:
        """Find and hash the local code of the runtime environment."""

    def plan(
        self,
        context: Context,
        submission_id: str,
        nonce: str | None = None,
        *,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> JobSubmission:
        """Return the submission that the rendered arguments ask for."""

    def defer(self, *, trigger: BaseTrigger, method_name: str) -> NoReturn:
        """Hand the task over to the triggerer."""


class Execution:
    """
    One try of a task.

    :param task: plans the submission, and is what defers.
    :param memory: what earlier tries remembered.
    :param kill: where the task's ``on_kill`` leaves its mark.
    :param is_resumed: whether there is a job that is followed already.
    """

    def __init__(
        self,
        task: SubmitTask,
        context: Context,
        settings: Settings,
        memory: JobRecordStore,
        kill: KillSwitch,
        *,
        is_resumed: bool = False,
    ) -> None:
        self.task = task
        self.context = context
        self.settings = settings
        self.memory = memory
        self.kill = kill
        self.hook = RayJobsHook(task.ray_conn_id)
        self.cluster = self.hook.get_cluster(check_token_file=not is_resumed)
        self.client = self.hook.client_of(self.cluster)
        self.log = task.log
        self.limits = settings.limits
        self.reader = settings.logs.reader()
        # whether there may be a job of this task that has not ended
        self.is_alive = False

    def submit_and_wait(self) -> str:
        """Do all of it, and return the submission id."""
        return self._run_attempt(self._submit_and_wait)

    def resume(self, event: Mapping[str, Any]) -> str:
        """Take up after the trigger."""
        return self._run_attempt(lambda: self._resume(event))

    def _submit_and_wait(self) -> str:
        details = self._attach_or_submit()
        if not self.settings.wait_for_completion:
            return self._finish()
        if details is None:
            if self.task.deferrable:
                self._defer()
            details = self._run(
                follow.follow_job(
                    self._note.submission_id,
                    poll_interval=self.settings.poll_interval,
                    unreachable_timeout=self.settings.unreachable_timeout,
                    reader=self.reader,
                    limits=self.limits,
                    session=self._note.session,
                )
            )
        else:
            self._show_log(details)
        return self._conclude(details)

    def _resume(self, event: Mapping[str, Any]) -> str:
        submission_id = str(event["submission_id"])
        note = self.memory.note
        if note is None or note.submission_id != submission_id:
            # without a store nothing came along but the event
            self.memory.note = JobRecord(
                submission_id,
                event.get("nonce") or "",
                RetryGeneration.of(self.context),
                self.cluster.address,
                session=event.get("session"),
                accepted=True,
                demand=self.task.plan(self.context, submission_id, runtime_env={}).demand(),
            )
        self.is_alive = True
        self._arm()
        self.reader = self.settings.logs.reader(event.get("log_state"))
        details = details_from_event(event)
        if not details.status.is_terminal():
            self._flush(details)
        self.is_alive = False
        self._show_log(details)
        return self._conclude(details)

    def _flush(self, details: JobDetails) -> NoReturn:
        """Show what a job that runs has printed since the last time, and wait on."""
        if self.reader is not None:
            self._run(self.reader.read(details, self.settings.logs.flush_interval or 0.0))
        self._defer()

    # -- which job ------------------------------------------------------------------------------------------------

    def _attach_or_submit(self) -> JobDetails | None:
        """Find this try's job, or submit one; return the job if an earlier try saw it to success."""
        this = RetryGeneration.of(self.context)
        note = self.memory.note
        decision = decide(note, None, this, self.cluster.address)
        job: JobDetails | None = None
        if note is not None and decision.action is Action.ASK:
            self.is_alive = True
            found = self._run(query_job(note, self.settings.unreachable_timeout))
            decision = decide(note, found, this, self.cluster.address)
            job = found.job
            self.is_alive = decision.action in (Action.REATTACH, Action.REPLACE)
        if decision.reason:
            self.log.warning("%s", decision.reason)
        if job is not None and decision.action in (Action.FINISH, Action.REATTACH):
            self._push_xcoms()
            if decision.action is Action.FINISH:
                return job
            self._arm()
            if job.status != JobStatus.PENDING:
                self.memory.change(accepted=True)
            self.limits = replace(self.limits, is_confirmed=self._note.accepted)
            return None
        if decision.action is Action.REPLACE:
            self._stop()
        self._submit(this, again=note if decision.action is Action.RESUBMIT else None)
        return None

    def _submit(self, this: RetryGeneration, again: JobRecord | None) -> None:
        """
        Remember a submission, then send it.

        :param again: one that an earlier try remembered and that never arrived.
        """
        note = again or self._new_note(this)
        code = self._run(self.task.resolve_local_code())
        submission = self.task.plan(
            self.context, note.submission_id, note.nonce, runtime_env=code.runtime_env if code else None
        )
        if code is not None:
            self._provide(code)
        session = self._run(get_session(note.submission_id, self.settings.unreachable_timeout))
        self.memory.write(replace(note, round=this, session=session, demand=submission.demand(), delivered=False))
        self._push_xcoms()
        self.is_alive = True
        if not note.given:
            self._arm()  # an id that a user chose may yet turn out to be somebody else's
        try:
            is_confirmed = self._run(submit_job(submission, self.settings.unreachable_timeout))
        except _NOTHING_CAME_OF_IT as error:
            self.is_alive = error.was_retried
            raise
        self._arm()
        if is_confirmed:
            self.memory.change(accepted=True)
        self.limits = replace(self.limits, is_confirmed=is_confirmed)
        self.log.info(
            "Submitted Ray job %s to %s: %s",
            note.submission_id,
            self.cluster.address,
            self.cluster.job_url(note.submission_id),
        )

    def _provide(self, code: LocalCode) -> None:
        """Have the packages on the cluster before anything of the job is remembered or sent."""
        from airflow_provider_rayjobs.jobs.packages.upload import upload_packages  # noqa: PLC0415  (few tasks need it)

        self._run(upload_packages(code, self.settings.unreachable_timeout))

    def _new_note(self, this: RetryGeneration) -> JobRecord:
        given = self.settings.submission_id
        before = self.memory.note
        number = 1
        if given is None:
            submission_id = new_submission_id(self.context)
        else:
            if before is not None and before.given == given:
                number = before.number + 1
            elif not self.memory.is_durable:
                number = self.context["ti"].try_number
            submission_id = numbered_id(given, number)
            if number > 1:
                self.log.info("The submission_id %s was used before; this job is %s.", given, submission_id)
        return JobRecord(submission_id, new_nonce(), this, self.cluster.address, given=given or "", number=number)

    def _push_xcoms(self) -> None:
        """Push what others need to find the job: what is lost here would be lost with the job."""
        task_instance = self.context["ti"]
        task_instance.xcom_push(key="submission_id", value=self._note.submission_id)
        task_instance.xcom_push(key=links.XCOM_KEY, value=self.cluster.job_url(self._note.submission_id))

    # -- how it ends ----------------------------------------------------------------------------------------------

    def _defer(self) -> NoReturn:
        if self.kill.is_triggered:
            raise Interrupted
        self.kill.disarm()  # from here on the trigger's own kill counts
        self.is_alive = False
        self.task.defer(
            trigger=RayJobTrigger(
                self._note.submission_id,
                ray_conn_id=self.task.ray_conn_id,
                poll_interval=self.settings.poll_interval,
                unreachable_timeout=self.settings.unreachable_timeout,
                address=self.cluster.address,
                session=self._note.session,
                nonce=self._note.nonce,
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
        """End the task as its job ended."""
        self.is_alive = False
        self.kill.disarm()
        error = error_for_outcome(
            details,
            self.cluster.address,
            self.reader.log.ending if self.reader else NO_ENDING,
            self._shortage() if is_unschedulable(details) else "",
        )
        if error is not None:
            raise error
        self.log.info("Ray job %s SUCCEEDED after %.1f s", details.name, details.duration or 0.0)
        return self._finish()

    def _finish(self) -> str:
        self.is_alive = False
        self.memory.change(accepted=True, delivered=True)
        return self._note.submission_id

    def _run_attempt(self, work: Callable[[], str]) -> str:
        """Do the work of a try, and see to the job if that breaks off."""
        try:
            try:
                return work()
            except RayJobTimeoutError as error:
                return self._abandon(error)
            except AirflowTaskTimeout as error:
                return self._handle_airflow_timeout(error)
        except Interrupted:
            self._handle_kill()
        except Exception as error:  # noqa: BLE001  (raised again)
            self._handle_error(error)
        finally:
            self.kill.disarm()
            self.client.close()

    def _handle_error(self, error: Exception) -> NoReturn:
        """Raise what Airflow shall see; a job that is alive is left to the next try, or stopped where there is none."""
        raised = to_task_error(
            error,
            has_retry_policy=has_retry_policy(self.task),
            fail_on=self.settings.fail_on,
            skip_on=self.settings.skip_on,
        )
        if self.is_alive and not isinstance(error, RayJobNotFoundError | RayJobLostError):
            name = self._note.submission_id
            if self.memory.is_durable and not is_last_try(raised, self.task, self.context):
                self._warn("Ray job %s may still run. It is left alone: the next try follows it.", name)
            else:
                self._warn("Ray job %s may still run, and no try will follow it: it is stopped.", name)
                self._stop()
        if raised is error:
            raise error
        raise raised from error.__cause__  # the same error under Airflow's class: one is enough in the log

    def _abandon(self, error: RayJobTimeoutError) -> str:
        """Stop a job whose limit is over; it may have ended by itself in the meantime."""
        if error.limit == "execution_timeout" and not self.settings.stop_on_kill:
            self.is_alive = False
            self.log.warning("%s It is left alone, as stop_on_kill is off.", error)
            raise error
        self.is_alive = True
        self.memory.change(abandoned=True)
        self._warn("%s It is given up, and stopped.", error)
        was_pending = error.details is not None and error.details.status == JobStatus.PENDING
        shortage = [self._shortage()] if was_pending else []
        stopped = self._stop()
        if stopped.details is not None and stopped.details.status.is_terminal():
            self._show_log(stopped.details)
            if stopped.details.status != JobStatus.STOPPED:
                return self._conclude(stopped.details)
        raise RayJobTimeoutError(
            "\n".join([str(error), f"It is at {self.cluster.address}, and was given up.", *shortage, stopped.summary]),
            limit=error.limit,
            details=stopped.details or error.details,
        ) from None

    def _handle_airflow_timeout(self, error: AirflowTaskTimeout) -> str:
        """Do for Airflow's own limit what is done for ours."""
        if not self.is_alive:
            raise error
        seconds = self.task.execution_timeout.total_seconds() if self.task.execution_timeout else 0.0
        return self._abandon(
            RayJobTimeoutError(
                f"Ray job {self._note.submission_id} had not ended when this try's execution_timeout of "
                f"{seconds:.12g} s was over.",
                limit="execution_timeout",
            )
        )

    def _handle_kill(self) -> NoReturn:
        """End because Airflow wants it: the task was cleared, marked or timed out, or its worker has to go."""
        if not self.is_alive:
            raise RayJobStoppedError("Airflow ended this task when it had no Ray job that runs.") from None
        self._warn("Airflow ends this task. %s", self.kill.summary)
        stopped = self._stop()
        if stopped.details is not None:
            self._show_log(stopped.details)
        raise RayJobStoppedError(
            f"Airflow ended this task, and so its Ray job at {self.cluster.address} was stopped. {stopped.summary}",
            details=stopped.details,
        ) from None

    # -- what the rest is made of ---------------------------------------------------------------------------------

    @property
    def _note(self) -> JobRecord:
        if self.memory.note is None:
            raise RuntimeError("no job was taken up yet")
        return self.memory.note

    def _arm(self) -> None:
        self.kill.arm(lambda: self.hook.client_of(self.cluster, is_quiet=True), self._note.submission_id)

    def _stop(self) -> StopResult:
        stopped = self.client.run(
            stop_and_wait(self._note.submission_id, self.settings.stop_timeout, self._note.nonce or None)
        )
        self.is_alive = False
        if stopped.has_ended:
            self.log.info("%s", stopped.summary)
        else:
            self._warn("%s", stopped.summary)
        return stopped

    def _warn(self, message: str, *args: Any) -> None:
        """Write a warning, if there is a log: it breaks with a supervisor that dies, and what comes next must not."""
        with suppress(OSError):
            self.log.warning(message, *args)

    def _shortage(self) -> str:
        """Say why a job does not start, as far as the cluster tells."""
        cluster: ClusterResources | None = None
        with suppress(RayJobsError):  # the job's own story matters more than this
            cluster = self.client.send(endpoints.get_cluster_status())
        return describe_shortage(self._note.demand, cluster)

    def _show_log(self, details: JobDetails) -> None:
        if self.reader is not None and details.status.is_terminal():
            self.client.run(self.reader.read(details), emit_job_log)

    def _run(self, engine: Engine[T]) -> T:
        return self.client.run(interruptible(masking_env_vars(engine), lambda: self.kill.is_triggered), emit_job_log)
