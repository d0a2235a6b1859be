"""
A simulated Ray cluster: the Jobs API as Ray 2.60 answers it, and the jobs behind it.

- A job is PENDING, then RUNNING, then it ends as its :class:`Plan` says. While it runs it prints numbered lines.
- A stop is accepted at once and takes effect later. A PENDING job is stopped when it starts.
- A restart kills all jobs, forgets their records, and begins a new session. Ray Core job ids count up again.
- A job that succeeds pushes a value, as a message in its log.
- A deleted record may come back as FAILED, without metadata.

Answers have the shape of the recorded ones in ``tests/samples``. The cluster needs a clock with ``now``, ``time()`` and
``call_later()``, and knows nothing of HTTP clients or of whoever submits the jobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

_SAMPLES = Path(__file__).parents[1] / "samples" / "2.60.0"
NODE = "a87fa57498476b2c1e6aae7ffde1bedf0e3643332c009805c1626622"
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class ClockLike(Protocol):
    now: float

    def time(self) -> float: ...

    def call_later(self, delay: float, call: Callable[[], object], /) -> Any: ...


class Reply(NamedTuple):
    """An answer of HTTP."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


@cache
def sample(name: str) -> str:
    """Return a recorded answer of Ray 2.60."""
    return (_SAMPLES / name).read_text()


@cache
def _shape(name: str) -> dict[str, Any]:
    shape: dict[str, Any] = json.loads(sample(name))
    return shape


@dataclass(frozen=True)
class Plan:
    """
    What a job does; times are seconds.

    :param pending: from the submission to the start; infinity for a record that Ray never starts.
    :param runs: from the start to the end.
    :param exit_code: of the entrypoint, 0 for SUCCEEDED. ``None`` if the supervisor dies: FAILED without exit code.
    :param lines: printed evenly while the job runs.
    :param stop_takes: from the stop of a RUNNING job to its end; infinity for a job that does not stop.
    """

    pending: float = 1.0
    runs: float = 7.0
    exit_code: int | None = 0
    lines: int = 7
    stop_takes: float = 1.0


@dataclass
class Job:
    """A job and what really happened to it."""

    submission_id: str | None
    metadata: Mapping[str, str]
    plan: Plan
    session: str
    start_time: float
    number: int
    entrypoint: str = "true"
    runtime_env: Any = None
    core_id: str | None = None
    status: str = "PENDING"
    run_at: float | None = None
    end_time: float | None = None
    error_type: str | None = None
    exit_code: int | None = None
    message: str = ""
    # when Ray accepted the first stop; None if it never did
    stop_accepted: float | None = None
    # the head died, and the job with it
    is_lost: bool = False
    is_deleted: bool = False
    # the submission arrived when its sender could not stop the job any more
    is_late: bool = False
    # a repetition of a submission arrived after the record of its job was deleted
    is_repetition: bool = False
    # a number of the sender's choice, for checks
    generation: int = 0
    # when a client first got an answer about the job, by the number of its try
    seen: dict[int, float] = field(default_factory=dict)

    @property
    def is_living(self) -> bool:
        """
        Tell whether the job runs or may run on.

        A job whose stop Ray accepted while it was PENDING does not count: it runs for a moment, then Ray stops it.
        """
        if self.is_lost or self.status in TERMINAL:
            return False
        return self.stop_accepted is None or (self.run_at is not None and self.stop_accepted >= self.run_at)

    @property
    def name(self) -> str:
        return f"{self.submission_id or self.core_id}/{self.session[-1]}"

    @property
    def value(self) -> str:
        """What the program of the job pushes at its end."""
        return f"value of job {self.number} in {self.session}"

    def all_lines(self, printed: int | None = None) -> list[str]:
        """Return the lines of the log, each with the job and its number."""
        count = self.plan.lines if printed is None else printed
        return [f"job {self.number} line {number} of {self.submission_id}" for number in range(count)]


class Cluster:
    """
    A head and its jobs.

    :param plan_for: the plan of the next submission.
    :param watch: called with a word and a job whenever something happens to one.
    """

    def __init__(
        self,
        clock: ClockLike,
        name: str,
        plan_for: Callable[[Mapping[str, Any]], Plan],
        watch: Callable[[str, Job], object] = lambda *_: None,
    ) -> None:
        self.name = name
        self.jobs: dict[str, Job] = {}
        self.every_job: list[Job] = []
        self.is_up = True
        self.ends_are_held = False
        self._held: list[Job] = []
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

    def go_down(self) -> None:
        """Let the head die, and all jobs with it."""
        self.is_up = False
        for job in self.jobs.values():
            job.is_lost = True
            self._watch("lost", job)
        self.jobs = {}
        self._next_session()

    def come_up(self) -> None:
        self.is_up = True

    def hold_ends(self, *, held: bool) -> None:
        """Let no living job end on its own while this is on, so that an orphaned one is found."""
        self.ends_are_held = held
        if not held:
            for job in self._held:
                self._end_by_itself(job)
            self._held = []

    def delete_record(self, submission_id: str, *, comes_back: bool = False) -> None:
        """Delete the record of an ended job. One that comes back is FAILED and has no metadata."""
        job = self.jobs.get(submission_id)
        if job is None or job.status not in TERMINAL:
            return
        del self.jobs[submission_id]
        job.is_deleted = True
        if comes_back:
            self.jobs[submission_id] = replace(
                job, metadata={}, status="FAILED", exit_code=None, message="Job supervisor actor died."
            )

    def submit(self, body: Mapping[str, Any], plan: Plan | None = None) -> Job:
        """Accept a job."""
        job = Job(
            str(body["submission_id"]),
            dict(body.get("metadata") or {}),
            plan or self._plan_for(body),
            self.session,
            self._clock.now,
            len(self.every_job),
            str(body.get("entrypoint")),
            body.get("runtime_env"),
        )
        self._add(str(job.submission_id), job)
        return job

    def connect_driver(self, plan: Plan) -> Job:
        """Begin an interactive job, which only has a Ray Core job id."""
        job = Job(None, {}, plan, self.session, self._clock.now, len(self.every_job), core_id=self._next_core_id())
        self._add(str(job.core_id), job)
        self._start(job)
        return job

    def _next_core_id(self) -> str:
        self._core_ids += 1
        return f"{self._core_ids:02x}000000"

    def _add(self, key: str, job: Job) -> None:
        self.jobs[key] = job
        self.every_job.append(job)
        self._watch("accepted", job)
        if job.submission_id is not None and job.plan.pending != float("inf"):
            self._clock.call_later(job.plan.pending, lambda: self._start(job))

    def _start(self, job: Job) -> None:
        if job.is_lost or job.status != "PENDING":
            return
        job.status, job.run_at = "RUNNING", self._clock.now
        job.core_id = job.core_id or self._next_core_id()
        self._watch("started", job)
        if job.stop_accepted is not None:
            self._clock.call_later(min(job.plan.stop_takes, 1.0), lambda: self._end(job, "STOPPED"))
        self._clock.call_later(job.plan.runs, lambda: self._end_by_itself(job))

    def _end_by_itself(self, job: Job) -> None:
        if self.ends_are_held:
            self._held.append(job)
        elif job.plan.exit_code is None:
            self._end(job, "FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED", message="The job supervisor actor died.")
        elif job.plan.exit_code:
            message = f"Job entrypoint command failed with exit code {job.plan.exit_code}, last available logs"
            self._end(job, "FAILED", job.plan.exit_code, "JOB_ENTRYPOINT_COMMAND_ERROR", message)
        else:
            self._end(job, "SUCCEEDED", 0)

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
            if job.status == "RUNNING" and job.plan.stop_takes != float("inf"):
                self._clock.call_later(job.plan.stop_takes, lambda: self._end(job, "STOPPED"))
        return True

    def find(self, key: str) -> Job | None:
        """Return a job by its submission id or its Ray Core job id."""
        return self.jobs.get(key) or next((each for each in self.jobs.values() if each.core_id == key), None)

    # -- the Jobs API ---------------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Reply:
        """Answer a request."""
        if path == "/api/version":
            return _json(_shape("version.json") | {"session_name": self.session})
        if path == "/api/jobs/":
            return self._handle_submit(body) if method == "POST" else self._handle_list()
        if path == "/api/v0/logs/file":
            return self._handle_log_file(query)
        if path == "/api/cluster_status":
            return Reply(200, sample("cluster_status.json").encode(), "application/json; charset=utf-8")
        if not path.startswith("/api/jobs/"):
            return Reply(404, sample("no_such_path.404.txt").encode())
        key, _, action = path.removeprefix("/api/jobs/").partition("/")
        return self._handle_job(method, unquote(key), action)

    def _handle_submit(self, body: bytes) -> Reply:
        submission = json.loads(body)
        key = submission["submission_id"]
        if key in self.jobs:
            return Reply(500, sample("duplicate_id.500.txt").replace("sample-succeeded", key).encode())
        self.submit(submission)
        return _json({"job_id": key, "submission_id": key})

    def _handle_list(self) -> Reply:
        return _json([self._details(job) for job in self.jobs.values()])

    def _handle_job(self, method: str, key: str, action: str) -> Reply:
        job = self.find(key)
        if job is None:
            return Reply(404, sample("unknown_job.404.txt").replace("unknown-1", key).strip().encode())
        if action == "" and method == "GET":
            return _json(self._details(job))
        if job.submission_id is None:
            return Reply(400, sample("stop_driver.400.txt").encode())
        if action == "stop":
            return _json({"stopped": self.stop(job)})
        if action == "logs":
            return _json({"logs": self.log_of(job).decode()})
        if method == "DELETE":
            if job.status not in TERMINAL:
                return Reply(500, sample("delete_running.500.txt").encode())
            self.delete_record(key)
            return _json({"deleted": True})
        return Reply(404, sample("no_such_path.404.txt").encode())

    def _handle_log_file(self, query: Mapping[str, str]) -> Reply:
        key = query.get("filename", "").removeprefix("job-driver-").removesuffix(".log")
        job = self.jobs.get(key)
        if job is None or job.run_at is None:
            return Reply(500, sample("no_log_file.500.txt").replace("nobody", key).encode())
        return Reply(200, self.log_of(job), "application/octet-stream")

    def printed(self, job: Job) -> int:
        """Return how many whole lines a job has printed."""
        if job.run_at is None:
            return 0
        until = self._clock.now if job.end_time is None else job.end_time
        share = min((until - job.run_at) / job.plan.runs, 1.0) if job.plan.runs else 1.0
        return int(share * job.plan.lines + 1e-6)

    def log_of(self, job: Job) -> bytes:
        """
        Return the log so far. A running job is in the middle of a line.

        The program shows the values of all earlier jobs. It pushes its own one before it succeeds, and then shows that
        of another program.
        """
        lines = job.all_lines(self.printed(job))
        text = "".join(map(_result, self.every_job[: job.number])) + "".join(f"{line}\n" for line in lines)
        if job.status == "RUNNING" and len(lines) < job.plan.lines:
            text += job.all_lines(len(lines) + 1)[-1][:9]
        if job.status == "SUCCEEDED":
            text += _result(job) + '##ray_job ffffffffffffffff result "another value"\n'
        return text.encode()

    def _details(self, job: Job) -> dict[str, Any]:
        shape = "driver" if job.submission_id is None else job.status.lower()
        details = _shape(f"job_{shape}.json")
        start = self._clock.time() - self._clock.now
        is_running = job.run_at is not None and job.submission_id is not None
        return details | {
            "submission_id": job.submission_id,
            "job_id": job.core_id,
            "status": job.status,
            "entrypoint": job.entrypoint,
            "metadata": dict(job.metadata),
            "runtime_env": job.runtime_env,
            "message": job.message or details["message"],
            "error_type": job.error_type,
            "driver_exit_code": job.exit_code,
            "driver_node_id": NODE if is_running else None,
            "start_time": int((start + job.start_time) * 1000),
            "end_time": None if job.end_time is None else int((start + job.end_time) * 1000),
        }


def _result(job: Job) -> str:
    """Return the message with the value of a job; a job of another user has none."""
    nonce = job.metadata.get("submission_nonce")
    return f"##ray_job {nonce} result {json.dumps(job.value)}\n" if nonce else ""


def _json(value: Any) -> Reply:
    return Reply(200, json.dumps(value).encode(), "application/json; charset=utf-8")
