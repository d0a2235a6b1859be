"""
Decide which Ray job belongs to a try of a task, from the job record and Ray's answer about that job.

Ray runs a submitted job to its end even if the submitter dies. So a retry first looks for the job of the last try.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.follow import Outage
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus
from airflow_provider_rayjobs.jobs.steps import Engine, Send, Sleep
from airflow_provider_rayjobs.jobs.submission import MAX_ID_LENGTH, new_nonce

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
    Distinguishes a retry from a Clear.

    :param max_tries: the maximum of the task instance; a Clear of the task raises it.
    :param run_start: the start of the dag run, ISO 8601; a Clear of a finished run sets it again.
    :param clear_number: how often any task of the dag run was cleared; ``None`` if unknown.
    """

    max_tries: int
    run_start: str
    clear_number: int | None = None

    @classmethod
    def of(cls, context: Context) -> Self:
        """Return the generation of a try."""
        run = context["dag_run"]
        start = run.start_date.isoformat() if run.start_date else ""
        return cls(context["ti"].max_tries, start, getattr(run, "clear_number", None))

    @classmethod
    def from_json(cls, stored: Any) -> Self | None:
        """Read what :func:`dataclasses.asdict` wrote; ``None`` for anything else."""
        if not isinstance(stored, Mapping) or not {"max_tries", "run_start"} <= stored.keys():
            return None
        return cls(stored["max_tries"], stored["run_start"], stored.get("clear_number"))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self | None:
        """Return the generation of the try that submitted a job, as far as the job's metadata tells it."""
        max_tries, clear_number = metadata.get("airflow_max_tries", ""), metadata.get("airflow_clear_number", "")
        if not max_tries.isdecimal():
            return None
        cleared = int(clear_number) if clear_number.isdecimal() else None
        return cls(int(max_tries), metadata.get("airflow_run_start_date", ""), cleared)

    def metadata(self) -> dict[str, str]:
        """Return the metadata from which :meth:`from_metadata` reads the generation."""
        return {
            "airflow_max_tries": str(self.max_tries),
            "airflow_run_start_date": self.run_start,
            "airflow_clear_number": "" if self.clear_number is None else str(self.clear_number),
        }

    def is_retry_of(self, earlier: RetryGeneration) -> bool:
        """
        Tell whether the task was not cleared since an earlier try.

        Only a Clear of the task changes ``max_tries``, even without ``reset_dag_runs``, which keeps ``clear_number``.
        With another ``clear_number``, another task of the run may have been cleared.
        """
        is_uncleared = self.clear_number is not None and self.clear_number == earlier.clear_number
        return self.max_tries == earlier.max_tries and (is_uncleared or self.run_start == earlier.run_start)


@dataclass(frozen=True)
class ThisTry:
    """
    What a try knows about itself.

    :param owner: the keys of the job metadata that name the task instance.
    :param stop_on_kill: whether a Clear stops the job of the try before.
    :param final_exit_codes: the exit codes of the entrypoint that end the task at once.
    """

    generation: RetryGeneration
    owner: Mapping[str, str] = field(default_factory=dict)
    stop_on_kill: bool = True
    final_exit_codes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class JobRecord:
    """
    The entry of the task state store about the last job that a task instance submitted.

    :param job: which job.
    :param conn_id: the connection that the try used, for credentials.
    :param generation: of the try that submitted the job; ``None`` if the record is unreadable.
    :param base_id: the user's ``submission_id``; "" if there is none.
    :param number: the number of this submission under ``base_id``.
    :param accepted: whether Ray certainly has received the job.
    :param abandoned: whether a time limit expired; stored before the stop is sent.
    :param delivered: whether a try has returned the job's result or raised its failure; for information.
    :param unusable: whether its result can never be read, although the job may have succeeded.
    :param holder: the try that follows the job, by its task instance id (a UUID).
    :param traceparent: the span of the try that submitted the job, in W3C's format; "" without tracing.
    :param version: the version of this form.
    """

    job: JobRef
    conn_id: str = ""
    generation: RetryGeneration | None = None
    base_id: str = ""
    number: int = 1
    accepted: bool = False
    abandoned: bool = False
    delivered: bool = False
    unusable: bool = False
    holder: str = ""
    traceparent: str = ""
    version: int = 1

    @property
    def submission_id(self) -> str:
        return self.job.submission_id

    @classmethod
    def from_json(cls, stored: Any) -> Self | None:
        """
        Read the record as :func:`dataclasses.asdict` wrote it. Ignore the fields of later versions.

        Keep the submission id of an unreadable record, as it is enough to ask Ray. Without an id return ``None``.
        """
        with suppress(TypeError, ValueError, KeyError, AttributeError):
            known = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
            generation = RetryGeneration.from_json(stored.get("generation"))
            job, number = JobRef.from_json(stored["job"]), int(stored.get("number", 1))
            if endpoints.is_job_id(job.submission_id) and isinstance(job.address, str):
                return cls(**{**known, "job": job, "generation": generation, "number": number, "version": cls.version})
        found = _find_id(stored)
        return None if found is None else cls(JobRef("", found), accepted=True)


def _find_id(stored: Any) -> str | None:
    """Return the submission id in a record of an unknown form."""
    for part in (stored.get("job"), stored) if isinstance(stored, Mapping) else ():
        if isinstance(part, Mapping) and endpoints.is_job_id(found := part.get("submission_id")):
            return str(found)
    return None


@dataclass(frozen=True)
class ClusterAnswer:
    """The recorded job, or ``None`` if its cluster does not know it, and the present Ray session."""

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


def decide(record: JobRecord | None, answer: ClusterAnswer | None, this: ThisTry) -> Decision:
    """
    Decide which Ray job belongs to a try. The first row that applies counts.

    ==========================================  ========  ==============================================================
    the try finds                               action    remark
    ==========================================  ========  ==============================================================
    no job record                               SUBMIT
    Ray was not asked yet                       ASK       without an answer until ``unreachable_timeout`` the try fails
    job unknown, the head was restarted         SUBMIT    the job was lost with the old session
    job unknown, abandoned                      SUBMIT
    job unknown, submission never confirmed     RESUBMIT  with the same id a late request cannot create a second job
    job unknown, otherwise                      SUBMIT    it was deleted
    another job has the id                      SUBMIT    the other job is left alone
    job SUCCEEDED, task not cleared             FINISH    also if the last try took that result and failed afterwards
    job SUCCEEDED, its result unusable          SUBMIT    the last try found that the result can never be read
    job FAILED with a final exit code           FINISH    the task ends as ``fail_on_exit_code`` says; not if cleared
    job ended otherwise                         SUBMIT
    job not ended, abandoned                    REPLACE
    job not ended, task cleared                 REPLACE   with ``stop_on_kill=False``: SUBMIT, and the job runs on
    job not ended, task not cleared             REATTACH  the usual retry
    ==========================================  ========  ==============================================================

    :param answer: the answer of the recorded job's own cluster; ``None`` before Ray was asked.
    """
    if record is None:
        return Decision(Action.SUBMIT)
    if answer is None:
        return Decision(Action.ASK)
    if answer.job is None:
        action, fact = _decide_unknown(record, answer.session)
    else:
        action, fact = _decide_known(record, answer.job, this)
    return Decision(action, f"Ray job {record.submission_id} of an earlier try {fact}. {action.value}")


def _decide_unknown(record: JobRecord, session: str | None) -> tuple[Action, str]:
    if not record.job.is_in(session):
        fact = f"was lost when the head was restarted (Ray session then: {record.job.session}, now: {session})"
        return Action.SUBMIT, fact
    if record.abandoned:
        return Action.SUBMIT, "exceeded a time limit and no longer exists"
    if not record.accepted:
        return Action.RESUBMIT, "is unknown to Ray, and its submission was never confirmed"
    return Action.SUBMIT, "was deleted from the cluster"


def _decide_known(record: JobRecord, job: JobDetails, this: ThisTry) -> tuple[Action, str]:
    if not _is_ours(record, job, this):
        return Action.SUBMIT, "is gone: another job has its id now, which is left alone"
    generation = record.generation or RetryGeneration.from_metadata(job.metadata)
    is_cleared = generation is not None and not this.generation.is_retry_of(generation)
    cleared = ", and the task was cleared" if is_cleared else ""
    if job.status.is_terminal():
        if job.status == JobStatus.SUCCEEDED and not is_cleared and not record.unusable:
            return Action.FINISH, "SUCCEEDED"
        is_final = job.driver_exit_code in this.final_exit_codes
        if job.status == JobStatus.FAILED and is_final and not is_cleared:
            return Action.FINISH, f"FAILED with exit code {job.driver_exit_code}, after which no job is submitted"
        unusable = ", but its result cannot be read" if record.unusable else ""
        return Action.SUBMIT, f"ended {job.status}{cleared}{unusable}"
    if record.abandoned:
        return Action.REPLACE, f"exceeded a time limit and is still {job.status}"
    if is_cleared and not this.stop_on_kill:
        return Action.SUBMIT, f"is still {job.status}, and the task was cleared. It runs on, as stop_on_kill is off"
    if is_cleared:
        return Action.REPLACE, f"is still {job.status}, but the task was cleared"
    return Action.REATTACH, f"is {job.status}"


def _is_ours(record: JobRecord, job: JobDetails, this: ThisTry) -> bool:
    """Compare a job with the record, or with the task instance if the record has no nonce."""
    if record.job.nonce is not None:
        return record.job.is_same(job)
    return all(job.metadata.get(key) == value for key, value in this.owner.items())


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
            yield Sleep(outage.pause(error, now, _RETRY_INTERVAL))
        else:
            now = yield Sleep(0)
            yield from outage.record_success(now)
            return ClusterAnswer(job, version.session_name)


def id_of_try(context: Context) -> str:
    """Return the id of a try: each try of a task instance has its own."""
    return str(getattr(context["ti"], "id", ""))


def owner_of(context: Context) -> dict[str, str]:
    """Return the keys of a job's metadata that name its task instance."""
    task_instance = context["ti"]
    return {
        "airflow_dag_id": task_instance.dag_id,
        "airflow_run_id": task_instance.run_id,
        "airflow_task_id": task_instance.task_id,
        "airflow_map_index": str(-1 if task_instance.map_index is None else task_instance.map_index),
    }


def new_submission_id(context: Context) -> str:
    """Return a unique id that names the task, such as ``nightly.train-m3-try2-5f0c9a1b7d3e2468``."""
    task_instance = context["ti"]
    # Truncated, so that the start of each name stays readable within Ray's 200 characters.
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{task_instance.dag_id[:80]}.{task_instance.task_id[:70]}")
    return f"{name}{_map_suffix(context)}-try{task_instance.try_number}-{secrets.token_hex(8)}"


def _map_suffix(context: Context) -> str:
    """Return ``-m3`` for the instance of a mapped task with map index 3, "" for an unmapped task."""
    map_index = context["ti"].map_index
    return f"-m{map_index}" if map_index is not None and map_index >= 0 else ""


def numbered_id(base_id: str, map_suffix: str, number: int) -> str:
    """Return the id of the n-th submission under the user's id: ``nightly``, ``nightly-2``; mapped ``nightly-m3-2``."""
    if len(base_id) > MAX_ID_LENGTH:
        return base_id  # which the check of the submission refuses
    suffix = map_suffix + ("" if number == 1 else f"-{number}")
    return base_id[: MAX_ID_LENGTH - len(suffix)] + suffix


class JobRecordStore:
    """
    Keeps the job record of a task instance in Airflow's task state store, across retries and Clears.

    :param store: ``None`` before Airflow 3.3 and with ``durable=False``; the record then lives as long as the try.
    :raises Exception: Airflow cannot read its store.
    """

    def __init__(self, store: Any = None) -> None:
        self._store = store
        self.record = self.read()
        # as this try found it; a write of its own name may fail
        self.found_holder = self.record.holder if self.record is not None else ""

    @property
    def is_durable(self) -> bool:
        """Tell whether the next try will find the record."""
        return self._store is not None

    def read(self) -> JobRecord | None:
        """
        Return the record as it is stored now.

        :raises ValueError: no submission id can be read. A new job might run beside the recorded one.
        """
        stored = self._store.get(_KEY) if self._store is not None else None
        record = JobRecord.from_json(stored) if stored else None
        if stored and record is None:
            raise ValueError(
                f"The job record of this task (key {_KEY} of its task state store) holds no submission id. Nothing was "
                "submitted. If a state_store_backend is configured, configure it on all workers. If no job of this "
                "task runs, delete the key and clear the task."
            )
        return record

    def new_record(self, context: Context, base_id: str | None, address: str, conn_id: str) -> JobRecord:
        """Return the record of a new submission, under an id that this task instance has not used."""
        number = 1
        if base_id and self.record is not None and self.record.base_id == base_id:
            number = self.record.number + 1
        elif base_id and (not self.is_durable or self.record is not None):
            number = context["ti"].try_number  # more than the number of any earlier submission
        submission_id = numbered_id(base_id, _map_suffix(context), number) if base_id else new_submission_id(context)
        job = JobRef(address, submission_id, nonce=new_nonce())
        return JobRecord(job, conn_id, RetryGeneration.of(context), base_id=base_id or "", number=number)

    def save(self, record: JobRecord) -> None:
        """Store a record in place of the last one."""
        self.record = record
        if self._store is not None:
            self._store.set(_KEY, asdict(record), retention=_RETENTION)

    def update(self, **changes: Any) -> None:
        """Change fields of the record. Store it only if a value changes."""
        if self.record is not None and (changed := replace(self.record, **changes)) != self.record:
            self.save(changed)
