"""The tasks whose histories are simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor

from .ray import Job, Plan

if TYPE_CHECKING:
    from .history import Fault, History


@dataclass(frozen=True)
class Scenario:
    """
    A task and the jobs that it submits.

    :param plans: the plans of its first, second, ... job; the last one counts for all later jobs.
    :param arguments: of the operator.
    :param watches: for a sensor: ``submission`` or ``driver``, a job that somebody else began.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    plans: tuple[Plan, ...] = (Plan(),)
    retries: int = 2
    watches: str = ""
    faults: tuple[Fault, ...] = ()

    @property
    def is_sensor(self) -> bool:
        return bool(self.watches)

    @property
    def waits(self) -> bool:
        return bool(self.arguments.get("wait_for_completion", True))

    @property
    def stop_on_kill(self) -> bool:
        return bool(self.arguments.get("stop_on_kill", True))

    @property
    def has_time_limit(self) -> bool:
        return any(name.endswith("_timeout") and name not in _PATIENCE for name in self.arguments)

    @property
    def shows_log(self) -> bool:
        return self.arguments.get("fetch_logs", "live") != "never"

    @property
    def returns_value(self) -> bool:
        return bool(self.arguments.get("return_result"))

    def result_of(self, job: Job) -> str | None:
        """Return what a task returns if it ends with a job."""
        return job.value if self.returns_value else job.submission_id

    def make_task(self, history: History) -> Any:
        if not self.is_sensor:
            return RayJobSubmitOperator(
                **{"task_id": "task", "entrypoint": "true", "retries": self.retries, **self.arguments}
            )
        return RayJobSensor(
            **{"task_id": "task", "submission_id": self._watched_id, "retries": self.retries, **self.arguments}
        )

    @property
    def _watched_id(self) -> str:
        return "01000000" if self.watches == "driver" else "watched-job"

    def prepare(self, history: History) -> None:
        """Begin the job that a sensor waits for."""
        if self.watches == "driver":
            history.cluster.connect_driver(self.plans[0])
        elif self.watches:
            history.cluster.submit({"submission_id": self._watched_id, "metadata": {"owner": "other"}}, self.plans[0])

    def watched_job(self, history: History) -> Job | None:
        """Return the first job that the sensor has seen in this try, or in an earlier one that then stored it."""
        for job in history.cluster.every_job:
            if self._watched_id not in (job.submission_id, job.core_id):
                continue
            for number, seen_at in job.seen.items():
                stored_at = history.airflow.stored_at.get(number, -1.0)
                if number == history.airflow.try_number or seen_at <= stored_at:
                    return job
        return None


# Intervals and jobs are short, so that a history has few requests: those take most of its time.
_LIVE = {"poll_interval": 5, "unreachable_timeout": 120}
# Timeouts that end no job.
_PATIENCE = ("stop_timeout", "unreachable_timeout", "missing_timeout")
_SHORT = Plan(pending=0.5, runs=2)
_ALL = (
    Scenario("worker", _LIVE),
    Scenario("deferrable", _LIVE | {"deferrable": True}),
    Scenario("deferrable after a while", _LIVE | {"deferrable": True, "defer_after": 4}),
    Scenario("worker, own id", _LIVE | {"submission_id": "nightly"}),
    Scenario("deferrable, own id", _LIVE | {"deferrable": True, "submission_id": "nightly"}),
    Scenario("worker, not waiting", _LIVE | {"wait_for_completion": False}),
    Scenario("worker, job fails once", _LIVE, (Plan(exit_code=3, runs=4), _SHORT)),
    Scenario("deferrable, supervisor dies once", _LIVE | {"deferrable": True}, (Plan(exit_code=None, runs=4), _SHORT)),
    Scenario("worker, job does not stop", _LIVE, (Plan(stop_takes=float("inf"), runs=40), _SHORT)),
    Scenario(
        "deferrable, job stops slowly",
        _LIVE | {"deferrable": True, "stop_timeout": 10},
        (Plan(stop_takes=30, runs=50), _SHORT),
    ),
    Scenario("worker, never stops on kill", _LIVE | {"stop_on_kill": False}),
    Scenario("deferrable, never stops on kill", _LIVE | {"deferrable": True, "stop_on_kill": False}),
    Scenario("worker, job_timeout", _LIVE | {"job_timeout": 6}, (Plan(runs=12), _SHORT)),
    Scenario("deferrable, job_timeout", _LIVE | {"job_timeout": 6, "deferrable": True}, (Plan(runs=12), _SHORT)),
    Scenario(
        "worker, execution_timeout", _LIVE | {"execution_timeout": timedelta(seconds=12)}, (Plan(runs=17), _SHORT)
    ),
    Scenario("worker, pending_timeout", _LIVE | {"pending_timeout": 6}, (Plan(pending=16), _SHORT)),
    Scenario("deferrable, log flushes", _LIVE | {"deferrable": True, "log_flush_interval": 6}, (Plan(runs=15),)),
    Scenario("worker, last try", _LIVE, retries=0),
    Scenario("deferrable, last try", _LIVE | {"deferrable": True}, retries=0),
    Scenario("worker, value", _LIVE | {"return_result": True}),
    Scenario("worker, value, own id", _LIVE | {"return_result": True, "submission_id": "nightly"}),
    Scenario(
        "deferrable, value without log", _LIVE | {"deferrable": True, "return_result": True, "fetch_logs": "never"}
    ),
    Scenario("sensor", {"poke_interval": 5}, watches="submission"),
    Scenario("sensor, reschedule", {"poke_interval": 5, "mode": "reschedule"}, watches="submission"),
    Scenario("sensor, deferrable", {"poke_interval": 5, "deferrable": True}, watches="submission"),
    Scenario("sensor of a driver", {"poke_interval": 5}, watches="driver"),
    Scenario("sensor of a driver, deferrable", {"poke_interval": 5, "deferrable": True}, watches="driver"),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
