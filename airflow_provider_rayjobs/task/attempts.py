"""
Which Ray job belongs to this try of a task: one pure decision, and the note that it is made from.

Ray runs a submitted job once, whether or not its submitter lives. So a new try first asks what became of the job of the
last one.
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
from airflow_provider_rayjobs.jobs.submission import MAX_ID_LENGTH, NONCE

if TYPE_CHECKING:
    from airflow.sdk import Context

# Airflow's task state store, and with it a memory between two tries.
HAS_STORE = Version(airflow_version).release >= (3, 3)
_KEY = "ray_job"
# The note is deleted with its dag run. Airflow's own default would let it expire after 30 days, which a run that
# somebody clears later may well outlive.
_RETENTION = timedelta(days=3650)
# Seconds between two questions to a cluster that does not answer.
_PAUSE = 3.0


@dataclass(frozen=True)
class RetryGeneration:
    """
    What tells a retry from a Clear: both stay the same over retries, and one of them changes when a person clears.

    :param max_tries: of the task instance; Clear adds to it.
    :param run_start: when the dag run started, ISO 8601; clearing a run that has ended starts it anew.
    """

    max_tries: int
    run_start: str

    @classmethod
    def of(cls, context: Context) -> Self:
        """Return the round of a try."""
        start = context["dag_run"].start_date
        return cls(context["ti"].max_tries, start.isoformat() if start else "")


@dataclass(frozen=True)
class JobRecord:
    """
    What a task instance remembers of the job that it submitted last.

    :param nonce: in the job's metadata, too: by it a job is known to be ours.
    :param session: the cluster's name for its life at the submission; ``None`` on heads that have none.
    :param given: the ``submission_id`` that the user gave, "" for none.
    :param number: how many submissions this task instance has made under it.
    :param demand: what the job needs on one node, for when it finds no place.
    :param accepted: whether Ray was seen to have the job.
    :param abandoned: whether a limit of ours was over; remembered before the stop was sent.
    :param delivered: whether its success became the task's.
    """

    submission_id: str
    nonce: str
    round: RetryGeneration
    address: str
    session: str | None = None
    given: str = ""
    number: int = 1
    demand: Mapping[str, float] = field(default_factory=dict)
    accepted: bool = False
    abandoned: bool = False
    delivered: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what the store takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` made, of a later version of this package, too."""
        known = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
        return cls(**{**known, "round": RetryGeneration(**stored["round"])})


@dataclass(frozen=True)
class ClusterAnswer:
    """
    What Ray says of the remembered job.

    :param job: ``None`` for a job that the cluster does not know.
    :param session: of the cluster as it answers now.
    """

    job: JobDetails | None
    session: str | None = None


class Action(Enum):
    """What a try does first."""

    ASK = "ask Ray about the remembered job"
    SUBMIT = "submit under a new id"
    RESUBMIT = "submit under the remembered id"
    REATTACH = "follow the remembered job"
    FINISH = "take the remembered job's success"
    REPLACE = "stop the remembered job, wait for its end, then submit under a new id"


@dataclass(frozen=True)
class Decision:
    """
    What to do, and why.

    :param reason: a sentence for the task's log; empty where there is nothing to tell.
    """

    action: Action
    reason: str = ""


def decide(remembered: JobRecord | None, found: ClusterAnswer | None, this: RetryGeneration, address: str) -> Decision:
    """
    Decide which Ray job belongs to a try.

    =====================================================  ==========================================================
    the try finds                                          it does
    =====================================================  ==========================================================
    nothing remembered                                     SUBMIT
    the connection leads to another address                SUBMIT; the old job may live on there
    nothing heard from Ray yet                             ASK, for ``unreachable_timeout``; never submit
    a job that is unknown, in another session              SUBMIT: it died with its cluster
    a job that is unknown, never seen accepted             RESUBMIT: a request still on its way makes no second job
    a job that is unknown, seen accepted or given up       SUBMIT: somebody deleted it
    a job that is not ours, by its metadata                SUBMIT, and leave it alone
    FAILED or STOPPED                                      SUBMIT
    SUCCEEDED, not delivered, same round                   FINISH
    SUCCEEDED, delivered or of another round               SUBMIT: a person cleared the task
    not ended, given up                                    REPLACE
    not ended, delivered or of another round               REPLACE: a person cleared the task
    not ended, same round                                  REATTACH
    =====================================================  ==========================================================

    :param remembered: what the task instance remembers.
    :param found: what Ray says of that job; ``None`` while nobody has asked.
    :param this: the round of this try.
    :param address: where the connection leads now.
    """
    if remembered is None:
        return Decision(Action.SUBMIT)
    name = f"Ray job {remembered.submission_id}"
    if remembered.address != address:
        return Decision(
            Action.SUBMIT,
            f"{name} of an earlier try was submitted to {remembered.address}; the connection leads to {address} now. "
            "It may live on there: look for it. A new job is submitted.",
        )
    if found is None:
        return Decision(Action.ASK)
    if found.job is None:
        return _decide_unknown(remembered, found, name)
    job = found.job
    if job.metadata.get(NONCE) != remembered.nonce:
        return Decision(
            Action.SUBMIT, f"{name} is not ours, as its metadata says; it is left alone. A new job is submitted."
        )
    is_cleared = remembered.delivered or remembered.round != this
    if job.status == JobStatus.SUCCEEDED and not is_cleared:
        return Decision(Action.FINISH, f"{name} of an earlier try SUCCEEDED; nothing is submitted.")
    if job.status.is_terminal():
        cleared = ", and the task was cleared" if is_cleared else ""
        return Decision(Action.SUBMIT, f"{name} of an earlier try ended {job.status}{cleared}. A new job is submitted.")
    if remembered.abandoned:
        return Decision(Action.REPLACE, f"{name} was given up by an earlier try and is {job.status}; it is stopped.")
    if is_cleared:
        return Decision(Action.REPLACE, f"{name} is still {job.status}, and the task was cleared; it is stopped.")
    return Decision(
        Action.REATTACH,
        f"{name} of an earlier try is {job.status}; this try follows it. Its log is shown from the start.",
    )


def _decide_unknown(remembered: JobRecord, found: ClusterAnswer, name: str) -> Decision:
    if found.session != remembered.session:
        return Decision(
            Action.SUBMIT,
            f"{name} of an earlier try was lost with its cluster, which was started anew (session {remembered.session} "
            f"then, {found.session} now). A new job is submitted.",
        )
    if remembered.abandoned:
        return Decision(Action.SUBMIT, f"{name} was given up by an earlier try and is gone. A new job is submitted.")
    if not remembered.accepted:
        return Decision(Action.RESUBMIT, f"{name} was never seen to arrive; it is submitted under the same id.")
    return Decision(Action.SUBMIT, f"{name} of an earlier try was deleted by somebody. A new job is submitted.")


def query_job(remembered: JobRecord, unreachable_timeout: float) -> Engine[ClusterAnswer]:
    """
    Ask Ray about a remembered job, and which life of the cluster it is that answers.

    :param unreachable_timeout: seconds without a usable answer that are borne, a 401 or 403 being none.
    :raises RayApiUnreachableError: they are over.
    """
    outage = Outage(remembered.submission_id, unreachable_timeout)
    while True:
        try:
            try:
                job: JobDetails | None = yield Send(endpoints.get_job(remembered.submission_id))
            except RayJobNotFoundError:
                job = None
            version = yield Send(endpoints.get_version())
        except RayJobsError as error:
            now = yield Sleep(0)
            yield from outage.record_failure(error, now)
            yield Sleep(_PAUSE)
        else:
            now = yield Sleep(0)
            yield from outage.record_success(now)
            return ClusterAnswer(job, version.session_name)


def new_submission_id(context: Context) -> str:
    """Return an id that reads well, names its task, and is unique: ``nightly.train-m3-try2-5f0c9a1b7d3e2468``."""
    task_instance = context["ti"]
    # cut so that each name keeps its beginning, and the whole fits into Ray's 200 characters
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{task_instance.dag_id[:80]}.{task_instance.task_id[:70]}")
    is_mapped = task_instance.map_index is not None and task_instance.map_index >= 0
    map_index = f"-m{task_instance.map_index}" if is_mapped else ""
    return f"{name}{map_index}-try{task_instance.try_number}-{secrets.token_hex(8)}"


def numbered_id(given: str, number: int) -> str:
    """Return the id of a task instance's n-th submission under an id that the user gave: ``nightly``, ``nightly-2``."""
    suffix = "" if number == 1 else f"-{number}"
    return given[: MAX_ID_LENGTH - len(suffix)] + suffix if suffix else given


class JobRecordStore:
    """
    Where a task instance keeps its note: Airflow's task state store, which outlives retries and Clear.

    Without a store (Airflow before 3.3, or ``durable=False``) nothing outlives a try.
    """

    def __init__(self, store: Any = None) -> None:
        self._store = store
        note = store.get(_KEY) if store is not None else None
        self.note = JobRecord.from_json(note) if note else None

    @property
    def is_durable(self) -> bool:
        """Tell whether the next try will know what this one did."""
        return self._store is not None

    def write(self, note: JobRecord) -> None:
        """Keep a note in place of what was remembered before."""
        self.note = note
        if self._store is not None:
            self._store.set(_KEY, note.to_json(), retention=_RETENTION)

    def change(self, **fields: Any) -> None:
        """Change what is remembered of the present job, where that is anything new."""
        if self.note is not None and (changed := replace(self.note, **fields)) != self.note:
            self.write(changed)
