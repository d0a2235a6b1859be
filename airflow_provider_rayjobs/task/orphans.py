"""
Decide which Ray jobs no task instance of this Airflow needs any more, from the job list and Airflow's task states.

Some events orphan a job without a call of any hook: a task is marked while it waits for its retry, a worker is lost on
the last try, Airflow rejects a deferral. The job's metadata names its task instance, so that a later look finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Self

from airflow_provider_rayjobs import config
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.submission import NONCE

# Metadata keys. The other ones that the submit operator sets are read in ``OwnJob.of`` alone.
DEPLOYMENT = "airflow_deployment"
MAY_OUTLIVE_TASK = "airflow_may_outlive_task"

# The state of a task instance that Airflow does not know: its DAG run was deleted, or the task expands to fewer ones.
DELETED = "deleted"
# The states in which a task instance needs no job. In any other state, and without one, a try runs or may follow.
_FINISHED = frozenset({"success", "failed", "upstream_failed", "skipped", "removed", DELETED})


def deployment_name() -> str:
    """Return the name of this Airflow, ``[ray_jobs] deployment_name``; "" if it is unset."""
    return config.text("deployment_name")


class TaskInstanceKey(NamedTuple):
    dag_id: str
    task_id: str
    run_id: str
    map_index: int

    def state_in(self, states: Mapping[str, Mapping[str, str | None]]) -> str:
        """
        Return this task instance's state, "none" without one, or :data:`DELETED`.

        :param states: what Airflow answers for the runs of one task: by run id, then by task id and map index.
        """
        found = states.get(self.run_id, {})
        name = self.task_id if self.map_index < 0 else f"{self.task_id}_{self.map_index}"
        return str(found[name] or "none") if name in found else DELETED


@dataclass(frozen=True)
class OwnJob:
    """
    A job that a task instance of this Airflow submitted.

    :param may_outlive_task: whether the job may run on after its task: ``wait_for_completion`` or ``stop_on_kill`` is
        off, or the provider that submitted it does not say.
    """

    details: JobDetails
    submission_id: str
    task_instance: TaskInstanceKey
    try_number: int
    may_outlive_task: bool

    @classmethod
    def of(cls, details: JobDetails, deployment: str) -> Self | None:
        """Read the metadata of a job. Return ``None`` if no task instance of this Airflow submitted it."""
        metadata = details.metadata
        if details.submission_id is None or NONCE not in metadata or metadata.get(DEPLOYMENT) != deployment:
            return None
        try:
            key = TaskInstanceKey(
                metadata["airflow_dag_id"],
                metadata["airflow_task_id"],
                metadata["airflow_run_id"],
                int(metadata["airflow_map_index"]),
            )
            try_number = int(metadata["airflow_try_number"])
        except (KeyError, ValueError):
            return None
        return cls(details, details.submission_id, key, try_number, metadata.get(MAY_OUTLIVE_TASK) != "false")

    def __str__(self) -> str:
        key = self.task_instance
        map_index = f", map index {key.map_index}" if key.map_index >= 0 else ""
        return (
            f"Ray job {self.submission_id} of {key.dag_id}.{key.task_id} "
            f"(run {key.run_id}{map_index}, try {self.try_number})"
        )

    @property
    def seconds_since_end(self) -> float | None:
        """Seconds from the end to the head's answer; ``None`` if either time is unknown."""
        if self.details.end_time is None or self.details.seen_at is None:
            return None
        return max(self.details.seen_at - self.details.end_time, 0) / 1000

    def is_superseded_by(self, other: OwnJob, grace_period: float) -> bool:
        """
        Tell whether a job of the same task instance replaced this one.

        Both times and tries must agree: the head's clock may step back, and a frozen worker may submit late.
        """
        return (
            (other.details.start_time or 0) > (self.details.start_time or 0)
            and other.try_number >= self.try_number
            and (other.details.age or 0) >= grace_period
        )


def newest_jobs(jobs: Iterable[OwnJob]) -> dict[TaskInstanceKey, OwnJob]:
    """Return the last submission of each task instance, ended ones included."""
    return {job.task_instance: job for job in sorted(jobs, key=lambda job: job.details.start_time or 0)}


@dataclass(frozen=True)
class Rules:
    """
    The limits of a cleanup, in seconds by the head's clock.

    :param grace_period: the age from which a job may be stopped.
    :param delete_older_than: the time since its end after which a job's record may be deleted; ``None``: never.
    """

    grace_period: float
    delete_older_than: float | None


class Action(Enum):
    """What a cleanup does with a job."""

    LEAVE = auto()
    ASK = auto()
    STOP = auto()
    DELETE = auto()


@dataclass(frozen=True)
class Decision:
    """An action, and the reason to stop a job."""

    action: Action
    reason: str = ""


def decide(job: OwnJob, newest: OwnJob, rules: Rules, task_state: str | None = None) -> Decision:
    """
    Decide what a cleanup does with a job of this Airflow.

    The first row that applies counts. A task instance is finished if it is success, failed, upstream_failed, skipped,
    removed or deleted.

    =============================================  ========  ===========================================================
    the job                                        action    remark
    =============================================  ========  ===========================================================
    ended less than ``delete_older_than`` ago      LEAVE     also if the time of its end is unknown
    ended, Airflow was not asked yet               ASK
    ended, task instance finished                  DELETE
    ended, otherwise                               LEAVE     a retry, or a resumed task, reads the record
    may outlive its task                           LEAVE
    neither PENDING nor RUNNING                    LEAVE     a status of a newer Ray
    younger than ``grace_period``                  LEAVE     its try is just starting
    superseded by a newer job of the same task     STOP      a retry follows the newest job only; that job must be older
    instance                                                 than ``grace_period``, too
    Airflow was not asked yet                      ASK
    task instance finished                         STOP
    otherwise                                      LEAVE     a try follows the job, or will follow or replace it
    =============================================  ========  ===========================================================

    :param newest: the newest job of the same task instance, see :func:`newest_jobs`.
    :param task_state: the state of the task instance; ``None`` before Airflow was asked.
    """
    details = job.details
    if details.status.is_terminal():
        since_end = job.seconds_since_end
        if rules.delete_older_than is None or since_end is None or since_end < rules.delete_older_than:
            return Decision(Action.LEAVE)
        return _decide_by_state(task_state, Action.DELETE)
    if job.may_outlive_task or details.status not in (JobStatus.PENDING, JobStatus.RUNNING):
        return Decision(Action.LEAVE)
    if details.age is None or details.age < rules.grace_period:
        return Decision(Action.LEAVE)
    if job.is_superseded_by(newest, rules.grace_period):
        return Decision(Action.STOP, f"job {newest.submission_id} (try {newest.try_number}) replaced it")
    return _decide_by_state(task_state, Action.STOP)


def _decide_by_state(task_state: str | None, unneeded: Action) -> Decision:
    if task_state is None:
        return Decision(Action.ASK)
    if task_state in _FINISHED:
        return Decision(unneeded, f"its task instance is {task_state}")
    return Decision(Action.LEAVE)
