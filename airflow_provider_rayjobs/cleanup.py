"""The operator that stops orphaned jobs of this Airflow, and deletes the records of its ended jobs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_rayjobs import metrics
from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobNotTerminalError, RayJobsError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, stop_and_wait
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.literals import ChecksLiterals
from airflow_provider_rayjobs.task.orphans import (
    Action,
    OwnJob,
    Rules,
    TaskInstanceKey,
    decide,
    deployment_name,
    newest_jobs,
)
from airflow_provider_rayjobs.task.outcomes import failing_at_once_for_mistakes, raising_task_errors

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_rayjobs.jobs.client import RayJobsClient

T = TypeVar("T")

# Airflow knows that a task instance runs before it submits a job, so seconds suffice. Minutes cover slow components.
_GRACE_PERIOD = 600.0
# A worker hears of a mark at its next heartbeat (5 s), and stops the job within ``STOP_TIMEOUT``.
_RECHECK_DELAY = 60.0
_DELETE_OLDER_THAN = timedelta(days=7)

# The limits of one run; the next one continues. A stop takes seconds, a deletion two requests of a few milliseconds.
_MAX_STOPS = 100
_MAX_DELETIONS = 1000
# A run ends after so many failures: then the cluster fails, not a job.
_MAX_FAILURES = 5
# Records deleted between two lines of the log, which name them.
_DELETIONS_PER_LINE = 50
# The run ids travel in the URL, which an ingress may limit to 8 KiB.
_RUNS_PER_REQUEST = 20


class RayJobCleanupOperator(ChecksLiterals, BaseOperator):
    """
    Stop the orphaned jobs of this Airflow on one cluster, and delete the records of its ended jobs.

    A job is orphaned if its task instance is finished or deleted, or if a newer job of that task instance replaced it
    (:func:`~airflow_provider_rayjobs.task.orphans.decide`). The operator looks twice before it stops a job, and fails
    without a stop if Airflow does not answer. It leaves alone the jobs of tasks with ``wait_for_completion=False`` or
    ``stop_on_kill=False``, and every job that another Airflow or another program submitted.

    Each Airflow that uses the cluster needs a name of its own: the setting ``[ray_jobs] deployment_name``,
    equal on all of its workers. A job has the name that was set at its submission.

    One run stops at most 100 jobs and deletes at most 1,000 records. Run it every hour. The XCom return value has
    ``dry_run``, ``stopped`` (the list of submission ids) and ``deleted`` (the number of records); in a dry run they say
    what a real run would have done.

    Every duration in seconds may also be a timedelta.

    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param grace_period: the age in seconds from which a job may be stopped, by the head's clock. The default is 600.
        (templated)
    :param recheck_delay: seconds between the two looks. The default is 60: a task that a user has just marked stops its
        own job in this time. (templated)
    :param delete_older_than: seconds since its end after which a job's record is deleted, with its entry and log in the
        dashboard; ``None`` deletes none. The default is 7 days: each record makes Ray's job list slower. (templated)
    :param stop_timeout: seconds within which the end of a stopped job must be confirmed. The default is 30. (templated)
    :param dry_run: whether to log what would be done, and change nothing. (templated, as ``is_dry_run``)
    """

    template_fields: Sequence[str] = (
        "ray_conn_id", "grace_period", "recheck_delay", "delete_older_than", "stop_timeout", "is_dry_run",
    )  # fmt: skip
    ui_color = "#d8ecfb"

    def __init__(
        self,
        *,
        ray_conn_id: str = DEFAULT_CONN_ID,
        grace_period: float | str | timedelta = _GRACE_PERIOD,
        recheck_delay: float | str | timedelta = _RECHECK_DELAY,
        delete_older_than: float | str | timedelta | None = _DELETE_OLDER_THAN,
        stop_timeout: float | str | timedelta = STOP_TIMEOUT,
        dry_run: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ray_conn_id = ray_conn_id
        self.grace_period = grace_period
        self.recheck_delay = recheck_delay
        self.delete_older_than = delete_older_than
        self.stop_timeout = stop_timeout
        self.is_dry_run = dry_run  # ``dry_run`` is a method of BaseOperator
        self._check_literals()

    def execute(self, context: Context) -> dict[str, Any]:
        """Look, look again, stop, delete, and return a summary."""
        with failing_at_once_for_mistakes():
            rules = Rules(
                grace_period=template_values.as_seconds("grace_period", self.grace_period),
                delete_older_than=template_values.as_optional_seconds("delete_older_than", self.delete_older_than),
            )
            recheck_delay = template_values.as_seconds("recheck_delay", self.recheck_delay)
            stop_timeout = template_values.as_seconds("stop_timeout", self.stop_timeout)
            is_dry_run = template_values.as_bool("dry_run", self.is_dry_run)
            deployment = _required_deployment_name()
            conn = RayJobsHook(self.ray_conn_id).get_conn()
        with raising_task_errors(self), conn as client:
            found = _look(client, deployment, rules, context)
            if suspects := {job.submission_id for job, _ in found.orphans}:
                self.log.info("Jobs that look orphaned: %d. Looking again in %.12g s.", len(suspects), recheck_delay)
                time.sleep(recheck_delay)
                found = _look(client, deployment, rules, context)
            orphans = [(job, reason) for job, reason in found.orphans if job.submission_id in suspects]
            metrics.task_meter(context).send(metrics.ORPHANS_FOUND, len(orphans), conn_id=self.ray_conn_id)
            work = _Work(self.log, client, is_dry_run)
            stopped = work.stop(orphans[:_MAX_STOPS], stop_timeout)
            deleted = work.delete(found.deletable[:_MAX_DELETIONS])
        summary = (
            f"{'Dry run: would stop' if is_dry_run else 'Stopped'} {len(stopped)} of {len(orphans)} orphaned jobs, "
            f"{'would delete' if is_dry_run else 'deleted'} {deleted} of {len(found.deletable)} old records, "
            f"{work.failures} failures. Living jobs at {client.address}: {found.living} of deployment {deployment}; "
            f"{found.foreign} of tasks with another deployment name or none, which are left alone."
        )
        self.log.info("%s", summary)
        if work.failures:
            raise RayJobsError(f"{summary} The warnings in this log name the failures. The next run tries them again.")
        return {"dry_run": is_dry_run, "stopped": stopped, "deleted": deleted}


def _required_deployment_name() -> str:
    if name := deployment_name():
        return name
    raise ValueError(
        "[ray_jobs] deployment_name is not set: could not tell the jobs of this Airflow from those of "
        "another. Set it on all workers, e.g. AIRFLOW__RAY_JOBS__DEPLOYMENT_NAME=production. Each Airflow "
        "that uses the cluster needs another name."
    )


@dataclass(frozen=True)
class _Look:
    """
    What one look at the cluster and at Airflow has found.

    :param orphans: each job to stop with the reason, the oldest first.
    :param deletable: the ended jobs whose records may be deleted, the oldest first.
    :param living: the number of living jobs of this Airflow.
    :param foreign: the number of living jobs that tasks of another or of an unnamed Airflow have submitted.
    """

    orphans: list[tuple[OwnJob, str]]
    deletable: list[OwnJob]
    living: int
    foreign: int


def _look(client: RayJobsClient, deployment: str, rules: Rules, context: Context) -> _Look:
    """List the jobs of the cluster, ask Airflow about those that need it, and decide about each."""
    listed = sorted(client.list_jobs(), key=lambda details: details.start_time or 0)
    own = [job for details in listed if (job := OwnJob.of(details, deployment))]
    newest = newest_jobs(own)

    def decision(job: OwnJob, states: Mapping[TaskInstanceKey, str]) -> tuple[Action, str]:
        decided = decide(job, newest[job.task_instance], rules, states.get(job.task_instance))
        return decided.action, decided.reason

    states = _ask_airflow(context, {job.task_instance for job in own if decision(job, {})[0] is Action.ASK})
    decisions = [(job, *decision(job, states)) for job in own]
    living = sum(_is_living(job.details) for job in own)
    return _Look(
        orphans=[(job, reason) for job, action, reason in decisions if action is Action.STOP],
        deletable=[job for job, action, _ in decisions if action is Action.DELETE],
        living=living,
        foreign=sum(_is_living(details) and "airflow_dag_id" in details.metadata for details in listed) - living,
    )


def _is_living(details: JobDetails) -> bool:
    return details.status in (JobStatus.PENDING, JobStatus.RUNNING)


def _ask_airflow(context: Context, keys: Iterable[TaskInstanceKey]) -> dict[TaskInstanceKey, str]:
    """
    Ask Airflow for the states of task instances.

    Each request asks about one task: in an answer about several, ``a_1`` may be a task, or map index 1 of task ``a``.
    """
    by_task: dict[tuple[str, str], dict[str, list[TaskInstanceKey]]] = defaultdict(lambda: defaultdict(list))
    for key in keys:
        by_task[key.dag_id, key.task_id][key.run_id].append(key)
    states: dict[TaskInstanceKey, str] = {}
    for (dag_id, task_id), by_run in by_task.items():
        for run_ids in _batches(sorted(by_run), _RUNS_PER_REQUEST):
            answer = context["ti"].get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=list(run_ids))
            states |= {key: key.state_in(answer) for run_id in run_ids for key in by_run[run_id]}
    return states


class _Work:
    """
    The changes of one run. A failed job does not stop the rest, unless too many fail.

    :param is_dry_run: whether to log what would be done, and change nothing.
    """

    def __init__(self, log: Any, client: RayJobsClient, is_dry_run: bool) -> None:
        self.log = log
        self.client = client
        self.is_dry_run = is_dry_run
        self.failures = 0

    @property
    def has_given_up(self) -> bool:
        """Tell whether so much has failed that the cluster is at fault, not a job."""
        return self.failures >= _MAX_FAILURES

    def stop(self, orphans: Sequence[tuple[OwnJob, str]], timeout: float) -> list[str]:
        """Stop jobs, and return the submission ids of those that were stopped."""
        stopped = []
        for job, reason in orphans:
            if self.has_given_up:
                break
            self.log.info(
                "%s %s: it is %s for %.0f s, and %s.",
                "Would stop" if self.is_dry_run else "Stopping",
                job,
                job.details.status,
                job.details.age or 0,
                reason,
            )
            if self._do(partial(self._stop, job, timeout)):
                stopped.append(job.submission_id)
        return stopped

    def delete(self, jobs: Sequence[OwnJob]) -> int:
        """Delete the records of ended jobs, and return their number."""
        deleted = 0
        for batch in _batches(jobs, _DELETIONS_PER_LINE):
            if self.has_given_up:
                break
            self.log.info(
                "%s the records of ended jobs (%d): %s.",
                "Would delete" if self.is_dry_run else "Deleting",
                len(batch),
                ", ".join(job.submission_id for job in batch),
            )
            deleted += sum(self._do(partial(self._delete, job)) for job in batch)
        return deleted

    def _do(self, change: Callable[[], object]) -> bool:
        """Make a change, and tell whether it succeeded, or would be made."""
        if self.has_given_up:
            return False
        try:
            if not self.is_dry_run:
                change()
        except RayJobsError as error:
            self.failures += 1
            self.log.warning("%s", error)
            return False
        return True

    def _stop(self, job: OwnJob, timeout: float) -> None:
        ref = JobRef(self.client.address, job.submission_id).seen(job.details)
        stopped = self.client.run(stop_and_wait(ref, timeout))
        if not stopped.has_ended:
            raise RayJobNotTerminalError(stopped.summary)
        self.log.info("%s", stopped.summary)

    def _delete(self, job: OwnJob) -> None:
        try:
            self.client.delete_job(job.submission_id)
        except RayJobNotFoundError:
            self.log.info("The record of job %s was deleted by another program.", job.submission_id)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
