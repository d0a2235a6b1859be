"""The data types of the Ray Jobs API: jobs, submissions, versions and resources, under Ray's own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class _OpenEnum(StrEnum):
    """An enumeration of Ray that keeps unknown values, as a newer Ray may add some."""

    @classmethod
    def _missing_(cls, value: object) -> _OpenEnum | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return member

    @property
    def is_known(self) -> bool:
        return self.name in type(self).__members__


class JobStatus(_OpenEnum):
    """The status of a job (Ray ``dashboard/modules/job/common.py``). An unknown status is not terminal."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    def is_terminal(self) -> bool:
        """Tell whether the job has ended; a terminal status never changes again."""
        return self in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)


class JobType(_OpenEnum):
    """How a job was started: through the Jobs API, or by a driver that called ``ray.init`` (interactive)."""

    SUBMISSION = "SUBMISSION"
    DRIVER = "DRIVER"


class JobErrorType(_OpenEnum):
    """Why a job FAILED (since about Ray 2.50). Only ``JOB_ENTRYPOINT_COMMAND_ERROR`` means that the user's code ran."""

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
    The versions of the Jobs API and of Ray, and the name of the Ray session.

    Another session means that the head was restarted and its jobs are gone. Heads before about 2.40 do not report it.
    """

    version: str
    ray_version: str
    session_name: str | None = None

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> RayVersion:
        return cls(str(answer["version"]), str(answer["ray_version"]), answer.get("session_name"))

    def release(self) -> tuple[int, int]:
        """Return major and minor version; ``(0, 0)`` for a version of another form."""
        major, _, rest = self.ray_version.partition(".")
        minor = rest.partition(".")[0]
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


# After these words, Ray's message on a failed job quotes the end of the log.
LOG_EXCERPT_MARKER = ", last available logs"
# The fields that may be stored. Runtime environment (``env_vars``), entrypoint and metadata may hold secrets.
_PUBLIC_FIELDS = (
    "type", "job_id", "submission_id", "status", "message", "error_type", "start_time", "end_time",
    "driver_agent_http_address", "driver_node_id", "driver_exit_code",
)  # fmt: skip


# The types of Ray's fields in JSON. A value of another type comes from another program.
_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("start_time", "end_time", "driver_exit_code"), int),
    **dict.fromkeys(("metadata", "runtime_env", "driver_info"), Mapping),
}  # fmt: skip


def _checked(name: str, value: Any) -> Any:
    if not isinstance(value, _TYPES.get(name, str)):
        raise TypeError(f"{name} is of type {type(value).__name__}")
    if isinstance(value, int) and abs(value) >= 2**63:  # no time, and too large for arithmetic with a float
        raise ValueError(f"{name} is too large")
    return value


@dataclass(frozen=True)
class JobDetails:
    """
    A job as Ray describes it. All times are Unix milliseconds by the head's clock. No repr shows ``env_vars``.

    :param job_id: the Ray Core job id, e.g. ``02000000``; unset until the driver connects to Ray.
    :param start_time: the time of the submission.
    :param message: Ray's explanation of the status; for FAILED it may end with the last log lines.
    :param driver_exit_code: unset while the job runs, and for a stopped job.
    :param seen_at: the time of the head's answer, to the second.
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
    runtime_env: Mapping[str, Any] = field(default_factory=dict, repr=False)
    driver_info: Mapping[str, Any] | None = field(default=None, repr=False)
    driver_agent_http_address: str | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None
    seen_at: int | None = None

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> JobDetails:
        """Read Ray's JSON without unknown fields, as a newer Ray may add some."""
        names = [one.name for one in fields(cls) if answer.get(one.name) is not None and one.name != "seen_at"]
        given = {name: _checked(name, answer[name]) for name in names}
        if "error_type" in given:
            given["error_type"] = JobErrorType(given["error_type"])
        return cls(**{**given, "type": JobType(answer["type"]), "status": JobStatus(answer["status"])})

    def to_event(self) -> dict[str, Any]:
        """Return the job as JSON types, without secrets and without the log excerpt in Ray's message."""
        public = {name: getattr(self, name) for name in _PUBLIC_FIELDS}
        public["message"] = self.message and self.message.partition(LOG_EXCERPT_MARKER)[0]
        return {
            name: str(value) if isinstance(value, StrEnum) else value
            for name, value in public.items()
            if value is not None
        }

    @property
    def name(self) -> str:
        """The submission id, or the Ray Core job id of an interactive job."""
        return self.submission_id or self.job_id or "?"

    @property
    def duration(self) -> float | None:
        """Seconds from submission to end; ``None`` while the job has not ended."""
        if self.start_time is None or self.end_time is None:
            return None
        return (self.end_time - self.start_time) / 1000

    @property
    def age(self) -> float | None:
        """Seconds from submission to the head's answer; ``None`` if either time is unknown."""
        if self.start_time is None or self.seen_at is None:
            return None
        return max(self.seen_at - self.start_time, 0) / 1000


# Milliseconds. The autoscaler reports every 5 s, and later while it is busy. An old report is that of a dead one.
_MAX_REPORT_AGE = 60_000


@dataclass(frozen=True)
class ClusterResources:
    """
    The resources of the nodes, and those in use in the whole cluster: name to quantity, memory in bytes.

    :param nodes: the shapes of nodes, each with the number of such nodes.
    :param waiting: the requests of jobs, tasks and actors that no node serves yet, each with its number.
    :param reported_at: Unix milliseconds by the head's clock.
    """

    nodes: tuple[tuple[Mapping[str, float], int], ...] = ()
    used: Mapping[str, float] = field(default_factory=dict)
    waiting: tuple[tuple[Mapping[str, float], int], ...] = ()
    reported_at: float | None = None

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> ClusterResources:
        """Read the autoscaler's report; a head without one is no error, and a value of another type is one."""
        status = (answer.get("data") or {}).get("clusterStatus") or {}
        report = status.get("loadMetricsReport") or {}
        nodes = _shapes(report.get("nodeTypes"))
        # The dashboard turns snake_case into camelCase in "usage", but not in "nodeTypes".
        usage = {_plain(name): _quantity(use) for name, (use, _) in (report.get("usage") or {}).items()}
        used = {name: usage[_plain(name)] for node, _ in nodes for name in node if _plain(name) in usage}
        reported_at = None if status.get("time") is None else 1000 * _quantity(status["time"])
        return cls(nodes, used, _shapes(report.get("resourceDemand")), reported_at)

    def at(self, time: int) -> ClusterResources:
        """Return these resources, or none if their report is out of date at a time of the head's clock."""
        is_old = self.reported_at is not None and time > self.reported_at + _MAX_REPORT_AGE
        return ClusterResources() if is_old else self


def _shapes(pairs: Any) -> tuple[tuple[Mapping[str, float], int], ...]:
    return tuple(
        ({name: _quantity(number) for name, number in shape.items()}, int(_quantity(count)))
        for shape, count in pairs or ()
    )


def _quantity(value: Any) -> float:
    """Return a number that is finite, also in arithmetic with others of its kind."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**63:
        raise TypeError(f"{type(value).__name__} is no quantity")
    return value


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


@dataclass(frozen=True)
class JobSubmission:
    """A submission, made and checked by :func:`~.submission.build_submission`; ``entrypoint_memory`` is in bytes."""

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
        """Return the resources that the entrypoint needs on one node, by Ray's names; memory in bytes."""
        requested = {
            "CPU": self.entrypoint_num_cpus,
            "GPU": self.entrypoint_num_gpus,
            "memory": self.entrypoint_memory,
            **(self.entrypoint_resources or {}),
        }
        return {name: quantity for name, quantity in requested.items() if quantity}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of the submission without unset fields: older heads reject fields that they do not know."""
        return {name: value for name, value in vars(self).items() if value is not None}
