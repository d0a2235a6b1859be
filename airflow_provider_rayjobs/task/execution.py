"""
One try of a task on a worker: find its Ray job or submit one, follow it, and end as it ends.

An error, a time limit or a kill may abort a try at any moment. :mod:`.boundary` sees to the job then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow_provider_rayjobs import links, metrics, tracing
from airflow_provider_rayjobs.exceptions import (
    RayJobNotTerminalError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.first_contact import FirstContact
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.pending import PendingReport
from airflow_provider_rayjobs.jobs.steps import Engine, Interrupted, RunBlocking, Step, map_steps
from airflow_provider_rayjobs.jobs.submit import get_session, submit_job
from airflow_provider_rayjobs.task.attempts import (
    Action,
    ClusterAnswer,
    JobRecord,
    RetryGeneration,
    ThisTry,
    decide,
    owner_of,
    query_job,
)
from airflow_provider_rayjobs.task.boundary import JOB_REF_KEY, Boundary
from airflow_provider_rayjobs.task.outcomes import has_retry_policy
from airflow_provider_rayjobs.task.states import State
from airflow_provider_rayjobs.task.targets import Target
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event, pending_for

if TYPE_CHECKING:
    from airflow_provider_rayjobs.jobs.packages.upload import UploadedPackages


T = TypeVar("T")

# Seconds between two pushes of a job's progress.
_PUSH_INTERVAL = 30.0
# The pool of tasks that name none. Users do not expect it to limit their jobs.
_DEFAULT_POOL = "default_pool"
# A worker cannot ask Airflow for the settings of a pool.
_POOL_NOTICE = (
    "While this task is deferred, it takes a slot of the pool %s only if the pool includes deferred tasks "
    "(--include-deferred of `airflow pools set`). Otherwise the pool does not limit how many jobs run at once."
)


class Execution(Boundary):
    """One try of a task: find its job or submit one, follow it, and end as it ends."""

    # The deadline of the try from before it was deferred.
    _handed_deadline: float | None = None
    # Whether the cluster has answered about an earlier try's job.
    _has_answered = False

    def submit_and_wait(self) -> Any:
        """Find or submit the job, follow it if the task waits, and return its submission id or its result."""
        return self.guard(self._submit_and_wait)

    def resume(self, event: Mapping[str, Any]) -> Any:
        """
        Continue with the event of the trigger, and return the submission id or the result.

        An event of another try is ignored. Airflow 3.3 passes it to the new try of a task that was cleared after it
        resumed (``scheduler_job_runner.py`` resets a RESTARTING task without ``clear_next_method_args``).
        """
        if event.get("try_id") not in (None, self._id):
            self.is_resumed, self.state = False, State.STARTING
            return self.submit_and_wait()
        return self.guard(lambda: self._resume(event))

    def _submit_and_wait(self) -> Any:
        self._set_up()
        if not self.store.is_durable and self.context["ti"].max_tries:
            self.log.info("No task state store is used. Each try of this task submits a new job.")
        ended = self._attach_or_submit()
        if not self.settings.wait_for_completion:
            delivered = self._deliver()
            if self.state is State.FOLLOWING:
                self._raise_if_ended()
                self._enter(State.RELEASED)
            return delivered
        if ended is not None:
            self._show_log(ended)
            return self._conclude(ended)
        if self.settings.deferrable and self.settings.defer_after <= 0:
            self._defer()
        following = follow.follow_job(
            self._record.job,
            poll_interval=self.settings.poll_interval,
            unreachable_timeout=self.settings.unreachable_timeout,
            reader=self.reader,
            limits=self.limits,
            pending=PendingReport(self._demand(), self.limits),
            hand_over_after=self.settings.defer_after if self.settings.deferrable else math.inf,
        )
        job = self._record.job
        with tracing.span("wait", submission_id=job.submission_id, address=job.address) as note:
            details = self._run(self._showing_job(following))
            note("job.status", details.status)
        if not details.status.is_terminal():
            self._status = details.status
            self._update(job=self._record.job.seen(details))
            self._defer()
        return self._conclude(details)

    def _resume(self, event: Mapping[str, Any]) -> Any:
        self._set_up(event)
        self._enter(State.FOLLOWING)
        self._handed_deadline = event.get("execution_deadline")
        self.reader = self.settings.logs.reader(event.get("log_state"), messages=self.settings.return_result)
        details = details_from_event(event)
        self._pending_for = event.get("pending_for")
        self._update(job=self._record.job.seen(details))
        if not details.status.is_terminal():  # ``log_flush_interval`` has passed
            self._status = details.status
            if self.reader is not None:
                self._run(self.reader.read(details, self.settings.logs.flush_interval or 0.0))
            self._defer()
        self._enter(State.DONE)
        self._show_log(details)
        return self._conclude(details)

    def _set_up(self, event: Mapping[str, Any] | None = None) -> None:
        """Read the job record, the arguments and the connection, in this order: any of them may fail."""
        self._open_store(event)
        self._read_arguments()
        self._own = Target.of_connection(self.task.ray_conn_id, check_token_file=not self.is_resumed)
        if event is not None:
            self._find_target()

    def _attach_or_submit(self) -> JobDetails | None:
        """Find this try's job, or submit one. Return the job if it has ended and this try takes its end."""
        had_record = self.store.record is not None
        action, job = self._decide()
        if action is Action.REPLACE:
            action, job = self._replace()
        self._count_action(action, job, had_record=had_record)
        if job is not None and action in (Action.FINISH, Action.REATTACH):
            is_confirmed = self._record.accepted or job.status != JobStatus.PENDING
            seen = self._record.job.seen(job)
            if action is Action.REATTACH:
                self._enter(State.FOLLOWING)
            self._update(job=seen, accepted=is_confirmed, holder=self._id)
            self._push_xcoms()
            self._pending_for = pending_for(job, None)
            tracing.link_to(self._record.traceparent)
            self.limits = replace(self.limits, is_confirmed=is_confirmed)
            return job if action is Action.FINISH else None
        if action is Action.RESUBMIT:
            self._submit(self._record)
        else:
            self._target = self._own
            self._submit(self._new_record())
        return None

    def _decide(self) -> tuple[Action, JobDetails | None]:
        """Return the first action of the try, and the recorded job if Ray was asked and knows it."""
        record, this = self.store.record, self._this_try
        decision, job = decide(record, None, this), None
        if record is not None and decision.action is Action.ASK:
            self._find_target()
            if self.store.is_durable:
                self._meter.send(metrics.RECONNECT_ATTEMPT)
            answer = self._run(query_job(self._record, self.settings.unreachable_timeout))
            self._has_answered = True
            decision, job = decide(self._record, answer, this), answer.job
            if decision.action in (Action.SUBMIT, Action.FINISH):
                self._enter(State.NO_JOB)
        if decision.reason:
            self.log.warning("%s", decision.reason)
        return decision.action, job

    def _replace(self) -> tuple[Action, JobDetails | None]:
        """Stop the recorded job. If it ended by itself before the stop, its end decides once more."""
        stopped = self._stop()
        if not stopped.has_ended:
            raise RayJobNotTerminalError(f"{stopped.summary} No other job was submitted. Retry the task.")
        answer = ClusterAnswer(stopped.details, self._record.job.session)
        if decide(self._record, answer, self._this_try).action is Action.FINISH:
            return Action.FINISH, stopped.details
        self._meter.send(metrics.REPLACEMENTS)
        self._enter(State.NO_JOB)
        return Action.SUBMIT, None

    def _count_action(self, action: Action, job: JobDetails | None, *, had_record: bool) -> None:
        """Count the first action of the try, also as ``airflow.sdk.ResumableJobMixin`` does."""
        if action is Action.REATTACH:
            self._meter.send(metrics.REATTACHMENTS)
            found = metrics.RECONNECT_SUCCESS
        elif action is not Action.FINISH:
            found = metrics.TERMINAL_RESUBMIT if had_record else metrics.FRESH_SUBMIT
        elif job is not None and job.status == JobStatus.SUCCEEDED:
            found = metrics.ALREADY_SUCCEEDED
        else:
            return
        if self.store.is_durable:
            self._meter.send(found)

    @property
    def _this_try(self) -> ThisTry:
        settings = self.settings
        # A retry policy decides about its errors itself, so its retry submits a new job.
        is_final = settings.wait_for_completion and not has_retry_policy(self.task)
        return ThisTry(
            RetryGeneration.of(self.context),
            owner=owner_of(self.context),
            stop_on_kill=settings.stop_on_kill,
            final_exit_codes=settings.fail_on | settings.skip_on if is_final else frozenset(),
        )

    def _new_record(self) -> JobRecord:
        target = self.target
        record = self.store.new_record(
            self.context, self.settings.submission_id, target.cluster.address, target.hook.ray_conn_id
        )
        if record.number > 1:
            self.log.info("submission_id %s was used before. The new job is %s.", record.base_id, record.submission_id)
        return record

    def _showing_job(self, engine: Engine[T]) -> Engine[T]:
        """Note when the job was PENDING last, and show its status and progress in the web UI while it runs."""

        def show() -> None:
            with suppress(Exception):  # Airflow cannot store an XCom
                self._push_seen(_PUSH_INTERVAL)

        def note(step: Step) -> Engine[Any]:
            answer = yield step
            if self.kill_switch.was_frozen:  # until Airflow says that no other try has taken over
                yield RunBlocking(self._was_superseded)
            if isinstance(answer, JobDetails):
                self._status = answer.status
                self._pending_for = pending_for(answer, self._pending_for)
                if not answer.status.is_terminal():
                    yield RunBlocking(show)
            return answer

        return map_steps(engine, note)

    def _submit(self, record: JobRecord) -> None:
        record = replace(record, traceparent=tracing.traceparent())
        with tracing.span("submit", submission_id=record.submission_id, address=record.job.address):
            self._submit_with_code(record)

    def _submit_with_code(self, record: JobRecord) -> None:
        """Upload local code, store the job record, then submit the job."""
        timeout = self.settings.unreachable_timeout
        contact = FirstContact(self.settings.first_contact_timeout, self._has_answered)
        code = self._run(self.task.resolve_local_code(self.context))
        submission = self.task.new_submission(
            self.context, record.submission_id, record.job.nonce, runtime_env=code.runtime_env if code else None
        )
        packages: UploadedPackages | None = None
        sent = 0
        if code is not None:
            # Imported here, because few tasks have local code.
            from airflow_provider_rayjobs.jobs.packages.upload import upload_packages  # noqa: PLC0415

            packages = self._run(contact.limit(upload_packages(code, timeout)))
            sent = packages.sent
            self._meter.send(metrics.PACKAGE_BYTES_SENT, sent)
            self._meter.send(metrics.PACKAGE_BYTES_SAVED, packages.saved)
        session = self._run(contact.limit(get_session(record.submission_id, timeout)))
        job = replace(record.job, session=session)
        self.store.save(
            replace(record, job=job, generation=RetryGeneration.of(self.context), holder=self._id, delivered=False)
        )
        self._push_xcoms()
        if self.kill_switch.is_killed:  # also with ``stop_on_kill=False``
            raise Interrupted
        self._enter(State.SUBMITTING)
        try:
            is_confirmed = self._run(submit_job(submission, timeout, partial(self._prepare_attempt, packages)))
        except RayJobsError as error:
            if not error.delivery.may_have_effect:
                self._enter(State.NO_JOB)
            raise
        finally:
            if packages is not None:  # those that the cluster had lost
                self._meter.send(metrics.PACKAGE_BYTES_SENT, packages.sent - sent)
        self._enter(State.FOLLOWING)
        self._meter.send(metrics.SUBMISSIONS)
        self._pending_for = 0.0
        if is_confirmed:
            self._update(accepted=True)
        self.limits = replace(self.limits, is_confirmed=is_confirmed)
        cluster = self.target.cluster
        url = cluster.job_url(record.submission_id)
        self.log.info("Submitted Ray job %s to %s: %s", record.submission_id, cluster.address, url)

    def _prepare_attempt(self, packages: UploadedPackages | None, is_repeated: bool) -> Engine[None]:
        """Submit nothing if another try has taken over while this process was frozen."""
        if self.kill_switch.notice_freeze():
            yield RunBlocking(self._raise_if_superseded)
        if packages is not None:
            yield from packages.ensure(is_repeated)

    def _push_xcoms(self) -> None:
        """Push the submission id and the link, before the submission, so that no failure can hide the job."""
        task_instance = self.context["ti"]
        task_instance.xcom_push(key="submission_id", value=self._record.submission_id)
        task_instance.xcom_push(key=JOB_REF_KEY, value=self._record.job.to_json())
        links.push_link(self.task, task_instance, self.target.cluster.job_url(self._record.submission_id))

    def _defer(self) -> NoReturn:
        self._note_job()
        if not self.is_resumed and self.task.pool != _DEFAULT_POOL:
            self.log.info(_POOL_NOTICE, self.task.pool)
        demand = self._demand()
        self._raise_if_ended()
        self._enter(State.DEFERRED)
        record, settings = self._record, self.settings
        self.task.defer(
            trigger=RayJobTrigger(
                record.submission_id,
                self.target.hook.ray_conn_id,
                settings.poll_interval,
                unreachable_timeout=settings.unreachable_timeout,
                job_ref=record.job.to_json(),
                try_id=self._id,
                limits=self.limits.to_json(),
                execution_deadline=self._execution_deadline,
                stop_on_kill=settings.stop_on_kill,
                stop_timeout=settings.stop_timeout,
                logs=settings.logs.to_json(),
                log_state=self.reader.state if self.reader else None,
                deferred_at=time.time(),
                pending_for=self._pending_for,
                demand=None if demand is None else [[name, quantity] for name, quantity in demand.items()],
                team=metrics.stats_tags(self.context["ti"]).get("team_name"),
            ),
            method_name="execute_complete",
        )

    @property
    def _execution_deadline(self) -> float | None:
        """
        When this try's ``execution_timeout`` expires, Unix seconds. Airflow does not enforce it for a trigger.

        The trigger hands it over, as Airflow before 3.2 sets ``start_date`` again when a task resumes.
        """
        if self._handed_deadline is not None:
            return self._handed_deadline
        start = getattr(self.context["ti"], "start_date", None)
        if self.settings.execution_timeout is None or start is None:
            return None
        return float(start.timestamp() + self.settings.execution_timeout)

    def _raise_if_ended(self) -> None:
        """Raise :class:`Interrupted` if Airflow has ended the try: it rejects a deferral and a success then."""
        if self._is_ended():
            raise Interrupted
