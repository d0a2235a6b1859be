"""
A Ray cluster in memory: the Jobs API as Ray 2.60 answers it, and the jobs behind it.

- A job is PENDING, then RUNNING, then it ends as its :class:`Plan` says. What it prints, it prints at its start.
- A job that would be PENDING for more than 15 minutes is FAILED then.
- A stop is accepted at once and takes effect later. A PENDING job is stopped when it starts.
- A restart kills all jobs, forgets their records, and begins a new session. Ray Core job ids count up again.

The cluster knows nothing of HTTP clients or of the tasks that submit jobs. The simulation of this package extends it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from airflow_provider_rayjobs.in_job import check
from airflow_provider_rayjobs.in_job.__main__ import describe_error, exit_code_of
from airflow_provider_rayjobs.jobs.pending import RAY_START_LIMIT
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.testing.clock import Clock

TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_MESSAGES = {
    "PENDING": "Job has not started yet. It may be waiting for the runtime environment to be set up.",
    "RUNNING": "Job is currently running.",
    "SUCCEEDED": "Job finished successfully.",
    "STOPPED": "Job was intentionally stopped.",
}
_NODE = "a87fa57498476b2c1e6aae7ffde1bedf0e3643332c009805c1626622"


class Reply(NamedTuple):
    """An answer of HTTP."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def json(cls, value: Any) -> Reply:
        return cls(200, json.dumps(value).encode(), "application/json; charset=utf-8")


@dataclass(frozen=True)
class Plan:
    """
    What a job does; times are seconds.

    :param log: what it prints.
    :param exit_code: of the entrypoint, 0 for SUCCEEDED. ``None`` if the supervisor dies: FAILED without exit code.
    :param result: what it pushes before it succeeds: the return value of a function, or of a task with
        ``return_result``.
    :param raises: what the function of ``@task.ray_job`` raises. The exit code follows from its class.
    :param progress: what it reports, e.g. ``{"done": 3, "total": 10, "text": "epoch 3"}``.
    :param message: Ray's message about a job that FAILED, instead of the usual one.
    :param error_type: Ray's error type of such a job, e.g. ``RUNTIME_ENV_SETUP_FAILURE``.
    :param pending: from the submission to the start. Ray fails a job that has not started after 900 seconds.
    :param runs: from the start to the end; infinity for a job that runs until it is stopped.
    :param stop_takes: from the stop of a RUNNING job to its end; infinity for a job that does not stop.
    """

    log: str = ""
    exit_code: int | None = 0
    result: Any = None
    raises: BaseException | None = None
    progress: Mapping[str, Any] | None = None
    message: str = ""
    error_type: str = ""
    pending: float = 0.0
    runs: float = 0.0
    stop_takes: float = 0.0

    def __post_init__(self) -> None:
        check(self.result, "result")
        check(self.progress, "progress")
        if self.raises is not None:
            object.__setattr__(self, "exit_code", exit_code_of(self.raises))


@dataclass
class Job:
    """
    A job and what happened to it. Times are seconds of the cluster's clock.

    :param submission: the body of the submission, as Ray's REST API defines it.
    :param stop_accepted: when Ray accepted the first stop; ``None`` if it never did.
    :param is_lost: the head died, and the job with it.
    """

    submission: Mapping[str, Any]
    plan: Plan
    session: str
    start_time: float
    number: int
    core_id: str | None = None
    status: str = "PENDING"
    run_at: float | None = None
    end_time: float | None = None
    error_type: str | None = None
    exit_code: int | None = None
    message: str = ""
    stop_accepted: float | None = None
    is_lost: bool = False

    @property
    def submission_id(self) -> str | None:
        return self.submission.get("submission_id")

    @property
    def entrypoint(self) -> str:
        return str(self.submission.get("entrypoint"))

    @property
    def runtime_env(self) -> Any:
        return self.submission.get("runtime_env")

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.submission.get("metadata") or {}


class Cluster:
    """
    A head and its jobs.

    :param plan_for: the plan of the next submission.
    :param watch: called with a word and a job whenever something happens to one.
    """

    job_type: type[Job] = Job

    def __init__(
        self,
        clock: Clock,
        name: str,
        plan_for: Callable[[Mapping[str, Any]], Plan],
        watch: Callable[[str, Any], object] = lambda *_: None,
    ) -> None:
        self.name = name
        self.jobs: dict[str, Job] = {}
        self.every_job: list[Job] = []
        self.packages: dict[str, bytes] = {}
        self._clock = clock
        self._plan_for = plan_for
        self._watch = watch
        self._sessions = 0
        self._core_ids = 0
        self._next_session()

    # -- what happens to the cluster ------------------------------------------------------------------------------

    def _next_session(self) -> None:
        self._sessions += 1
        self._core_ids = 0
        self.session = f"session_2027-01-15_08-00-00_{self.name}_{self._sessions}"

    def restart(self) -> None:
        """Let the head die, and all jobs and packages with it. A new session begins."""
        for job in self.jobs.values():
            job.is_lost = True
            self._watch("lost", job)
        self.jobs = {}
        self.packages = {}
        self._next_session()

    def submit(self, submission: Mapping[str, Any], plan: Plan | None = None) -> Job:
        """Accept a job."""
        plan = plan or self._plan_for(submission)
        job = self.job_type(submission, plan, self.session, self._clock.now, len(self.every_job))
        self._add(str(job.submission_id), job)
        if plan.pending > RAY_START_LIMIT:
            self._clock.call_later(RAY_START_LIMIT, lambda: self._fail_to_start(job))
        else:
            self._clock.call_later(plan.pending, lambda: self._start(job))
        return job

    def _next_core_id(self) -> str:
        self._core_ids += 1
        return f"{self._core_ids:02x}000000"

    def _add(self, key: str, job: Job) -> None:
        self.jobs[key] = job
        self.every_job.append(job)
        self._watch("accepted", job)

    def _start(self, job: Job) -> None:
        if job.is_lost or job.status != "PENDING":
            return
        job.status, job.run_at = "RUNNING", self._clock.now
        job.core_id = job.core_id or self._next_core_id()
        self._watch("started", job)
        if job.stop_accepted is not None:
            self._clock.call_later(min(job.plan.stop_takes, 1.0), lambda: self._end(job, "STOPPED"))
        if job.plan.runs != math.inf:
            self._clock.call_later(job.plan.runs, lambda: self._end_by_itself(job))

    def _fail_to_start(self, job: Job) -> None:
        message = (
            f"Job supervisor actor failed to start within {RAY_START_LIMIT} seconds. This timeout can be configured by "
            "setting the environment variable RAY_JOB_START_TIMEOUT_SECONDS."
        )
        self._end(job, "FAILED", None, "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", message)

    def _end_by_itself(self, job: Job) -> None:
        plan, code = job.plan, job.plan.exit_code
        if code == 0:
            self._end(job, "SUCCEEDED", 0)
            return
        error_type, message = "JOB_SUPERVISOR_ACTOR_DIED", "The job supervisor actor died."
        if code is not None:
            error_type = "JOB_ENTRYPOINT_COMMAND_ERROR"
            message = (
                f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 "
                f"chars):\n{self.log_of(job).decode()[-20_000:]}"
            )
        self._end(job, "FAILED", code, plan.error_type or error_type, plan.message or message)

    def _end(
        self, job: Job, status: str, exit_code: int | None = None, error_type: str | None = None, message: str = ""
    ) -> None:
        if job.is_lost or job.status in TERMINAL:
            return
        job.end_time = self._clock.now
        job.status, job.exit_code, job.error_type, job.message = status, exit_code, error_type, message
        self._watch(f"ended {status}", job)

    def stop(self, job: Job) -> bool:
        """Accept a stop, and let the job end later."""
        if job.status in TERMINAL:
            return False
        if job.stop_accepted is None:
            job.stop_accepted = self._clock.now
            self._watch("stop accepted", job)
            if job.status == "RUNNING" and job.plan.stop_takes != math.inf:
                self._clock.call_later(job.plan.stop_takes, lambda: self._end(job, "STOPPED"))
        return True

    def find(self, key: str) -> Job | None:
        """Return a job by its submission id or its Ray Core job id; ``None`` if there is none."""
        return self.jobs.get(key) or next((each for each in self.jobs.values() if each.core_id == key), None)

    def delete_record(self, submission_id: str) -> None:
        del self.jobs[submission_id]

    # -- the Jobs API ---------------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Reply:
        """Answer a request. The path is percent-encoded."""
        if path == "/api/version":
            return Reply.json({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": self.session})
        if path == "/api/jobs/":
            return self._handle_submit(body) if method == "POST" else self._handle_list()
        if path == "/api/v0/logs/file":
            return self._handle_log_file(query)
        if path.startswith("/api/packages/gcs/"):
            return self._handle_package(method, unquote(path.rpartition("/")[2]), body)
        if not path.startswith("/api/jobs/"):
            return _no_such_path()
        key, _, action = path.removeprefix("/api/jobs/").partition("/")
        return self._handle_job(method, unquote(key), action)

    def _handle_submit(self, body: bytes) -> Reply:
        submission = json.loads(body)
        key = submission["submission_id"]
        if key in self.jobs:
            fact = f"Job with submission_id {key} already exists. Please use a different submission_id."
            return _error(f"ValueError: {fact}")
        self.submit(submission)
        return Reply.json({"job_id": key, "submission_id": key})

    def _handle_list(self) -> Reply:
        return Reply.json([self.details_of(job) for job in self.jobs.values()])

    def _handle_job(self, method: str, key: str, action: str) -> Reply:
        job = self.find(key)
        if job is None:
            return Reply(404, f"Job {key} does not exist".encode())
        if action == "" and method == "GET":
            return Reply.json(self.details_of(job))
        if job.submission_id is None:
            return Reply(400, b"Can only stop submission type jobs")
        if action == "stop":
            return Reply.json({"stopped": self.stop(job)})
        if action == "logs":
            return Reply.json({"logs": self.log_of(job).decode()})
        if method != "DELETE":
            return _no_such_path()
        if job.status not in TERMINAL:
            fact = f"Attempted to delete job '{key}', but it is in a non-terminal state {job.status}."
            return _error(f"RuntimeError: {fact}")
        self.delete_record(key)
        return Reply.json({"deleted": True})

    def _handle_log_file(self, query: Mapping[str, str]) -> Reply:
        name = query.get("filename", "")
        job = self.jobs.get(name.removeprefix("job-driver-").removesuffix(".log"))
        if job is None or job.run_at is None:
            return Reply(500, f"A file is not found at: /tmp/ray/{self.session}/logs/{name}".encode())
        return Reply(200, self.log_of(job), "application/octet-stream")

    def _handle_package(self, method: str, name: str, body: bytes) -> Reply:
        if method == "PUT":
            self.packages[name] = body
        elif name not in self.packages:
            return Reply(404, f"Package gcs://{name} does not exist".encode())
        return Reply(200)

    def log_of(self, job: Job) -> bytes:
        """Return the log so far."""
        if job.run_at is None:
            return b""
        log = job.plan.log
        if log and not log.endswith("\n"):
            log += "\n"
        if job.plan.progress is not None:
            log += message_line(job, "progress", job.plan.progress)
        if job.status == "SUCCEEDED":
            log += message_line(job, "result", job.plan.result)
        if job.status == "FAILED" and (error := job.plan.raises) is not None:
            function = job.entrypoint.rpartition(" ")[2].strip("'")  # no shlex: a shell command may be any text
            lines, content = describe_error(function, error, error.__traceback__)
            log += lines + message_line(job, "error", content)
        return log.encode(errors="backslashreplace")  # as Python's standard error

    def details_of(self, job: Job) -> dict[str, Any]:
        """Return Ray's JSON about a job."""
        start = self._clock.time() - self._clock.now
        has_driver = job.run_at is not None
        return {
            "type": "SUBMISSION",
            "job_id": job.core_id,
            "submission_id": job.submission_id,
            "driver_info": None,
            "status": job.status,
            "entrypoint": job.entrypoint,
            "message": job.message or _MESSAGES.get(job.status),
            "error_type": job.error_type,
            "start_time": int((start + job.start_time) * 1000),
            "end_time": None if job.end_time is None else int((start + job.end_time) * 1000),
            "metadata": dict(job.metadata),
            "runtime_env": job.runtime_env,
            "driver_agent_http_address": "http://192.0.2.2:43827" if has_driver else None,
            "driver_node_id": _NODE if has_driver else None,
            "driver_exit_code": job.exit_code,
        }


def message_line(job: Job, kind: str, value: Any) -> str:
    """Return a line of the log that is a message to the task (see :mod:`..in_job`). Jobs of other users send none."""
    nonce = job.metadata.get(NONCE)
    text = json.dumps(value).replace("#", "\\u0023")  # a text that quotes a message must not begin one
    return f"##ray_job {nonce} {kind} {text}\n" if nonce else ""


def _error(last_line: str) -> Reply:
    return Reply(500, f"Traceback (most recent call last):\n{last_line}\n.\n".encode())


def _no_such_path() -> Reply:
    return Reply(404, b"404: Not Found")
