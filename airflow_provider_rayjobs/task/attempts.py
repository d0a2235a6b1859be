"""
Decide which Ray job belongs to a try of a task, from the job record and Ray's answer about that job.

Ray runs a submitted job to its end even if the submitter dies. So a retry first looks for the job of the last try.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.follow import Outage
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.steps import Engine, Send, Sleep
from airflow_provider_rayjobs.jobs.submission import MAX_ID_LENGTH, NONCE, new_nonce

if TYPE_CHECKING:
    from airflow.sdk import Context

# Airflow 3.3 introduced the task state store, which keeps values between the tries of a task instance.
HAS_STORE = Version(airflow_version).release >= (3, 3)
_KEY = "ray_job"
# Airflow's default of 30 days is too short: users clear older runs, too. Airflow deletes the record with its dag run.
_RETENTION = timedelta(days=3650)
# Seconds between two requests to a cluster that does not answer.
_RETRY_INTERVAL = 3.0


@dataclass(frozen=True)
class RetryGeneration:
    """
    Distinguishes a retry from a Clear: retries keep both values, a Clear changes at least one.

    :param max_tries: the maximum of the task instance; a Clear raises it.
    :param run_start: the start of the dag run, ISO 8601; a Clear of a finished run sets it again.
    """

    max_tries: int
    run_start: str

    @classmethod
    def of(cls, context: Context) -> Self:
        """Return the generation of a try."""
        start = context["dag_run"].start_date
        return cls(context["ti"].max_tries, start.isoformat() if start else "")


@dataclass(frozen=True)
class JobRecord:
    """
    The entry of the task state store about the last job that a task instance submitted.

    :param nonce: the submission nonce in the job's metadata, by which the job is recognised.
    :param session: the Ray session at the submission; ``None`` if the head has no session names.
    :param base_id: the user's ``submission_id``; "" if there is none.
    :param number: the number of this submission under ``base_id``.
    :param demand: the resources that the job needs on one node, for the error of an unschedulable job.
    :param accepted: whether Ray certainly has received the job.
    :param abandoned: whether a time limit expired; stored before the stop is sent.
    :param delivered: whether a try has succeeded with this job.
    """

    submission_id: str
    nonce: str
    generation: RetryGeneration
    address: str
    session: str | None = None
    base_id: str = ""
    number: int = 1
    demand: Mapping[str, float] = field(default_factory=dict)
    accepted: bool = False
    abandoned: bool = False
    delivered: bool = False

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read the record as :func:`dataclasses.asdict` wrote it. Ignore the fields of later versions."""
        known = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
        return cls(**{**known, "generation": RetryGeneration(**stored["generation"])})

    @classmethod
    def from_event(
        cls, event: Mapping[str, Any], generation: RetryGeneration, address: str, demand: Mapping[str, float]
    ) -> Self:
        """Rebuild the record of a job that a trigger has followed."""
        nonce, session = event.get("nonce") or "", event.get("session")
        return cls(str(event["submission_id"]), nonce, generation, address, session, demand=demand, accepted=True)


@dataclass(frozen=True)
class ClusterAnswer:
    """The recorded job, or ``None`` if the cluster does not know it, and the present Ray session."""

    job: JobDetails | None
    session: str | None = None


class Action(Enum):
    """The first action of a try. Each value is a sentence for the task's log."""

    ASK = "Asking Ray about it."
    SUBMIT = "Submitting a new job."
    RESUBMIT = "Submitting it again under the same id."
    REATTACH = "This try follows it and shows its log from the start."
    FINISH = "This try takes its result."
    REPLACE = "Stopping it before a new job is submitted."


@dataclass(frozen=True)
class Decision:
    """An action, and the reason for it in full sentences ("" for none)."""

    action: Action
    reason: str = ""


def decide(
    record: JobRecord | None, answer: ClusterAnswer | None, generation: RetryGeneration, address: str
) -> Decision:
    """
    Decide which Ray job belongs to a try.

    The first row that applies counts. "Cleared" means that the recorded job is ``delivered``, or that the record has
    another generation.

    ==========================================  ========  ==============================================================
    the try finds                               action    remark
    ==========================================  ========  ==============================================================
    no job record                               SUBMIT
    the connection has another address          SUBMIT    the recorded job may still run at the old address
    Ray was not asked yet                       ASK       without an answer until ``unreachable_timeout`` the try fails
    job unknown, the head was restarted         SUBMIT    the job was lost with the old session
    job unknown, abandoned                      SUBMIT
    job unknown, submission never confirmed     RESUBMIT  with the same id a late request cannot create a second job
    job unknown, otherwise                      SUBMIT    it was deleted
    job with the nonce of another submission    SUBMIT    the other job is left alone
    job SUCCEEDED, task not cleared             FINISH
    job SUCCEEDED, task cleared                 SUBMIT
    job FAILED or STOPPED                       SUBMIT
    job not ended, abandoned                    REPLACE
    job not ended, task cleared                 REPLACE
    job not ended, task not cleared             REATTACH  the usual retry
    ==========================================  ========  ==============================================================

    :param answer: ``None`` before Ray was asked.
    :param generation: the generation of this try.
    :param address: the present address of the connection.
    """
    if record is None:
        return Decision(Action.SUBMIT)
    if record.address != address:
        action = Action.SUBMIT
        fact = f"is at {record.address} and may still run there; the connection now has the address {address}"
    elif answer is None:
        return Decision(Action.ASK)
    elif answer.job is None:
        action, fact = _decide_unknown(record, answer.session)
    else:
        action, fact = _decide_known(record, answer.job, record.delivered or record.generation != generation)
    return Decision(action, f"Ray job {record.submission_id} of an earlier try {fact}. {action.value}")


def _decide_unknown(record: JobRecord, session: str | None) -> tuple[Action, str]:
    if session != record.session:
        fact = f"was lost when the head was restarted (Ray session then: {record.session}, now: {session})"
        return Action.SUBMIT, fact
    if record.abandoned:
        return Action.SUBMIT, "was abandoned and no longer exists"
    if not record.accepted:
        return Action.RESUBMIT, "is unknown to Ray, and its submission was never confirmed"
    return Action.SUBMIT, "was deleted from the cluster"


def _decide_known(record: JobRecord, job: JobDetails, is_cleared: bool) -> tuple[Action, str]:
    if job.metadata.get(NONCE) != record.nonce:
        return Action.SUBMIT, f"is left alone: its metadata has the {NONCE} of another submission"
    if job.status == JobStatus.SUCCEEDED and not is_cleared:
        return Action.FINISH, "SUCCEEDED"
    if job.status.is_terminal():
        return Action.SUBMIT, f"ended {job.status}" + (", and the task was cleared" if is_cleared else "")
    if record.abandoned:
        return Action.REPLACE, f"was abandoned and is still {job.status}"
    if is_cleared:
        return Action.REPLACE, f"is still {job.status}, but the task was cleared"
    return Action.REATTACH, f"is {job.status}"


def query_job(record: JobRecord, unreachable_timeout: float) -> Engine[ClusterAnswer]:
    """
    Ask Ray for the recorded job and for the present session.

    :param unreachable_timeout: seconds for which any failure is retried, HTTP 401 and 403 included.
    :raises RayApiUnreachableError: no usable answer within that time.
    """
    outage = Outage(record.submission_id, unreachable_timeout)
    while True:
        try:
            try:
                job: JobDetails | None = yield Send(endpoints.get_job(record.submission_id))
            except RayJobNotFoundError:
                job = None
            version = yield Send(endpoints.get_version())
        except RayJobsError as error:
            now = yield Sleep(0)
            yield from outage.record_failure(error, now)
            yield Sleep(_RETRY_INTERVAL)
        else:
            now = yield Sleep(0)
            yield from outage.record_success(now)
            return ClusterAnswer(job, version.session_name)


def new_submission_id(context: Context) -> str:
    """Return a unique id that names the task, such as ``nightly.train-m3-try2-5f0c9a1b7d3e2468``."""
    task_instance = context["ti"]
    # Truncated, so that the start of each name stays readable within Ray's 200 characters.
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{task_instance.dag_id[:80]}.{task_instance.task_id[:70]}")
    is_mapped = task_instance.map_index is not None and task_instance.map_index >= 0
    map_index = f"-m{task_instance.map_index}" if is_mapped else ""
    return f"{name}{map_index}-try{task_instance.try_number}-{secrets.token_hex(8)}"


def numbered_id(base_id: str, number: int) -> str:
    """Return the id of the n-th submission under the user's id: ``nightly``, ``nightly-2``."""
    if number == 1:
        return base_id
    suffix = f"-{number}"
    return base_id[: MAX_ID_LENGTH - len(suffix)] + suffix


class JobRecordStore:
    """
    Keeps the job record of a task instance in Airflow's task state store, across retries and Clears.

    :param store: ``None`` before Airflow 3.3 and with ``durable=False``; the record then lives as long as the try.
    """

    def __init__(self, store: Any = None) -> None:
        self._store = store
        stored = store.get(_KEY) if store is not None else None
        self.record = JobRecord.from_json(stored) if stored else None

    @property
    def is_durable(self) -> bool:
        """Tell whether the next try will find the record."""
        return self._store is not None

    def new_record(self, context: Context, base_id: str | None, address: str) -> JobRecord:
        """Return the record of a new submission, under an id that this task instance has not used."""
        number = 1
        if base_id and self.record is not None and self.record.base_id == base_id:
            number = self.record.number + 1
        elif base_id and not self.is_durable:
            number = context["ti"].try_number
        submission_id = numbered_id(base_id, number) if base_id else new_submission_id(context)
        generation = RetryGeneration.of(context)
        return JobRecord(submission_id, new_nonce(), generation, address, base_id=base_id or "", number=number)

    def save(self, record: JobRecord) -> None:
        """Store a record in place of the last one."""
        self.record = record
        if self._store is not None:
            self._store.set(_KEY, asdict(record), retention=_RETENTION)

    def update(self, **changes: Any) -> None:
        """Change fields of the record. Store it only if a value changes."""
        if self.record is not None and (changed := replace(self.record, **changes)) != self.record:
            self.save(changed)
