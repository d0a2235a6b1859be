"""The Ray Jobs API's own nouns: what a job is, how it ends, what a submission says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class _OpenEnum(StrEnum):
    """A closed set of Ray's words that a newer Ray may open: an unknown word is kept, and says so of itself."""

    @classmethod
    def _missing_(cls, value: object) -> _OpenEnum | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word

    @property
    def is_known(self) -> bool:
        """Tell whether this version of the package knows the word."""
        return self.name in type(self).__members__


class JobStatus(_OpenEnum):
    """
    Where a job stands. A word that we do not know is not terminal: a new Ray must not break running DAGs.

    Source: Ray ``dashboard/modules/job/common.py``, ``JobStatus``.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    def is_terminal(self) -> bool:
        """Tell whether the job has ended, in whichever way; a terminal status never changes again."""
        return self in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)


class JobType(_OpenEnum):
    """How a job came to be: through the Jobs API, or by a driver that connected by itself (``ray.init``)."""

    SUBMISSION = "SUBMISSION"
    DRIVER = "DRIVER"


class JobErrorType(_OpenEnum):
    """
    Why a job FAILED, as far as Ray knows (Ray 2.49 to 2.51 and later; older heads leave it out).

    Only ``JOB_ENTRYPOINT_COMMAND_ERROR`` means that the user's code ran and ended non-zero.

    Source: Ray ``dashboard/modules/job/common.py``, ``JobErrorType``.
    """

    RUNTIME_ENV_SETUP_FAILURE = "RUNTIME_ENV_SETUP_FAILURE"
    JOB_SUPERVISOR_ACTOR_START_TIMEOUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
    JOB_SUPERVISOR_ACTOR_START_FAILURE = "JOB_SUPERVISOR_ACTOR_START_FAILURE"
    JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE = "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"
    JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE = "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"
    JOB_SUPERVISOR_ACTOR_DIED = "JOB_SUPERVISOR_ACTOR_DIED"
    JOB_ENTRYPOINT_COMMAND_START_ERROR = "JOB_ENTRYPOINT_COMMAND_START_ERROR"
    JOB_ENTRYPOINT_COMMAND_ERROR = "JOB_ENTRYPOINT_COMMAND_ERROR"


@dataclass(frozen=True)
class RayVersion:
    """
    What answers at an address.

    :param version: the version of the Jobs API, ``"4"`` in Ray 2.
    :param ray_version: e.g. ``"2.60.0"``.
    :param session_name: names this life of the cluster: another one means that the cluster was started anew
        and its jobs are gone. ``None`` on heads older than about 2.40.
    """

    version: str
    ray_version: str
    session_name: str | None = None

    def release(self) -> tuple[int, int]:
        """Return major and minor, ``(0, 0)`` for a version that does not read like one."""
        major, _, rest = self.ray_version.partition(".")
        minor = rest.partition(".")[0]
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


# Where Ray's message on a failed job turns into a copy of the log's end.
LOG_EXCERPT_MARKER = ", last available logs"
# What may leave a worker in an event or an XCom. The runtime environment, the entrypoint and the metadata
# stay: Ray returns env_vars in clear text, and an event is a row in Airflow's database.
_PUBLIC_FIELDS = (
    "type", "job_id", "submission_id", "status", "message", "error_type", "start_time", "end_time",
    "driver_agent_http_address", "driver_node_id", "driver_exit_code",
)  # fmt: skip


@dataclass(frozen=True)
class JobDetails:
    """
    A job as Ray describes it, under Ray's own names.

    :param job_id: the Ray Core job id, e.g. ``02000000``; unset until the driver connects to Ray.
    :param start_time: of the submission, Unix milliseconds, by the head's clock.
    :param end_time: Unix milliseconds, by the head's clock.
    :param message: Ray's sentence on the status; for FAILED it may end in the last log lines.
    :param driver_exit_code: unset while the job runs and when it was stopped.
    :param seen_at: when the head said so, Unix milliseconds by its own clock, to the second.
    """

    type: JobType
    status: JobStatus
    submission_id: str | None = None
    job_id: str | None = None
    entrypoint: str = field(default="", repr=False)
    message: str | None = None
    error_type: JobErrorType | None = None
    start_time: int | None = None
    end_time: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    # Holds env_vars in clear text: kept out of every repr, and so out of logs and tracebacks.
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    driver_info: Mapping[str, Any] | None = field(default=None, repr=False)
    driver_agent_http_address: str | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None
    seen_at: int | None = None

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> JobDetails:
        """Read Ray's JSON; fields that we do not know are left out, as newer heads may add some."""
        error_type = answer.get("error_type")
        return cls(
            type=JobType(answer["type"]),
            status=JobStatus(answer["status"]),
            error_type=None if error_type is None else JobErrorType(error_type),
            entrypoint=answer.get("entrypoint") or "",
            metadata=answer.get("metadata") or {},
            runtime_env=answer.get("runtime_env") or {},
            **{
                name: answer.get(name)
                for name in (
                    "submission_id", "job_id", "message", "start_time", "end_time", "driver_info",
                    "driver_agent_http_address", "driver_node_id", "driver_exit_code",
                )
            },
        )  # fmt: skip

    def to_event(self) -> dict[str, Any]:
        """
        Return what may travel through Airflow's database: plain JSON types, and no secret of the job's.

        Ray's message goes without its copy of the log's end: whatever a job prints is masked in logs, and in no row.
        """
        everything = asdict(self)
        everything["message"] = self.message and self.message.partition(LOG_EXCERPT_MARKER)[0]
        return {
            name: str(value) if isinstance(value, StrEnum) else value
            for name in _PUBLIC_FIELDS
            if (value := everything[name]) is not None
        }

    @property
    def name(self) -> str:
        """The id to call the job by: the submission id, or the Ray Core job id of an interactive job."""
        return self.submission_id or self.job_id or "?"

    @property
    def duration(self) -> float | None:
        """Seconds from submission to end by the head's clock; ``None`` while the job has not ended."""
        if self.start_time is None or self.end_time is None:
            return None
        return (self.end_time - self.start_time) / 1000

    @property
    def age(self) -> float | None:
        """Seconds from submission to when the head described the job, both by its own clock."""
        if self.start_time is None or self.seen_at is None:
            return None
        return max(self.seen_at - self.start_time, 0) / 1000


@dataclass(frozen=True)
class ClusterResources:
    """
    What a cluster has, and what of it is in use.

    :param nodes: the resources of each node, name to quantity (memory in bytes).
    :param used: of the whole cluster, by the same names.
    """

    nodes: tuple[Mapping[str, float], ...] = ()
    used: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> ClusterResources:
        """Read the autoscaler's report; a head without one says nothing, which is no error."""
        report = ((answer.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
        nodes = tuple(shape for shape, count in report.get("nodeTypes") or () for _ in range(count))
        # The dashboard turns the names here, and not those of the nodes, from snake_case into camelCase.
        usage = {_plain(name): use for name, (use, _) in (report.get("usage") or {}).items()}
        return cls(nodes, {name: usage[_plain(name)] for node in nodes for name in node if _plain(name) in usage})


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


@dataclass(frozen=True)
class JobSubmission:
    """
    What is sent to Ray to start a job; made, and checked, by :func:`~.submission.build_submission`.

    :param submission_id: ours, chosen before anything is sent; Ray refuses an id twice.
    :param entrypoint: a shell command.
    :param metadata: text to text; holds the nonce by which a submission recognises its own job.
    :param entrypoint_memory: bytes.
    """

    submission_id: str
    entrypoint: str = field(repr=False)
    runtime_env: Mapping[str, Any] | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None
    entrypoint_resources: Mapping[str, float] | None = None
    entrypoint_label_selector: Mapping[str, str] | None = None

    def demand(self) -> dict[str, float]:
        """Return what the job needs on one node before its entrypoint starts: Ray's names, memory in bytes."""
        asked = {
            "CPU": self.entrypoint_num_cpus,
            "GPU": self.entrypoint_num_gpus,
            "memory": self.entrypoint_memory,
            **(self.entrypoint_resources or {}),
        }
        return {name: quantity for name, quantity in asked.items() if quantity}

    def to_json(self) -> dict[str, Any]:
        """Return the request's body; what is not set is left out, as older heads refuse fields they do not know."""
        return {name: value for name, value in vars(self).items() if value is not None}
