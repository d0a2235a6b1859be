"""The fault cases that exist only with PostgreSQL, Redis, Celery workers and two triggerers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fault_harness import (
    DEFERRED,
    ENDLESS_IN_FIRST_TRY,
    MODES,
    NO_RETRY,
    RETRY,
    TAKES_RESULT,
    UNTIL_RELEASED,
    FaultCase,
)

from sandbox.production_airflow import CELERY_WORKERS, TRIGGERERS

if TYPE_CHECKING:
    from sandbox.production_airflow import ProductionAirflow

# Seconds that a service manager gives to a worker whose tasks take longer.
GRACE = 5.0
# Seconds after which the token in the message of a task has expired: AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT of the
# deployment, [api_auth] jwt_leeway, and some for the way of the message.
TOKEN_LIFETIME = 40.0 + 10.0 + 5.0
# What the process of a try says that Airflow has failed meanwhile.
SUPERSEDED = "another try of this task may see to Ray job"
# Seconds that a service is away.
OUTAGE = 12.0
# Seconds for which a triggerer must be lost until the other one takes its triggers.
TAKEOVER = 45.0
LINES = 60
LINES_UNTIL_RELEASED = (
    f"for i in $(seq {LINES}); do echo line $i; sleep 0.5; done; until test -e @RELEASE@; do sleep 0.5; done"
)


def airflow_of(case: FaultCase) -> ProductionAirflow:
    return case.harness.airflow


def wait_for_worker(case: FaultCase) -> str:
    """Wait until the job runs and a Celery worker runs the task, and return the worker's name."""
    case.wait_for_job("RUNNING")
    name = airflow_of(case).worker_of(case.pids()[0])
    case.add_event(f"{name} runs the task")
    assert name is not None
    return name


# -- Celery workers -------------------------------------------------------------------------------------------------


def shut_worker_down(case: FaultCase) -> None:
    """SIGTERM to the worker alone. The task runs for longer than Airflow waits for the heartbeat of a lost worker."""
    program = airflow_of(case).component(wait_for_worker(case))
    case.add_event("SIGTERM to the worker")
    program.send_signal(signal.SIGTERM)
    case.wait_until("the worker shuts down", lambda: "Warm shutdown" in program.log.read_text(errors="replace"))
    (case.folder / "worker-shuts-down").touch()
    time.sleep(60)
    assert program.is_running()
    case.release()
    case.wait_until("the worker has exited", lambda: not program.is_running())


def resume_on_other_worker(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.wait_until("a worker shuts down", (case.folder / "worker-shuts-down").exists)
    case.release()
    case.wait_for_state("success")
    assert not set(airflow_of(case).exits) & set(CELERY_WORKERS), "the worker exited before the task was resumed"


def kill_worker(case: FaultCase) -> None:
    program = airflow_of(case).component(wait_for_worker(case))
    case.add_event("SIGKILL to the worker with its tasks")
    program.kill()
    case.wait_for_following_try()
    case.release()


def kill_worker_after_grace(case: FaultCase) -> None:
    program = airflow_of(case).component(wait_for_worker(case))
    case.add_event("SIGTERM to the worker")
    program.send_signal(signal.SIGTERM)
    assert not program.wait(GRACE)
    case.add_event("SIGKILL to the worker with its tasks")
    program.kill()
    case.wait_for_following_try()
    case.release()


def terminate_process_group(case: FaultCase) -> None:
    program = airflow_of(case).component(wait_for_worker(case))
    case.add_event("SIGTERM to the process group of the worker")
    program.send_signal(signal.SIGTERM, to_group=True)


def shut_worker_down_cold(case: FaultCase) -> None:
    program = airflow_of(case).component(wait_for_worker(case))
    case.add_event("SIGQUIT to the worker")
    program.send_signal(signal.SIGQUIT)


def deliver_again(case: FaultCase) -> None:
    """The visibility timeout of the message passes while the task runs."""
    wait_for_worker(case)
    case.add_event("Redis delivers the message again")
    airflow_of(case).redis.deliver_again()
    logs = [airflow_of(case).home / f"{name}.log" for name in CELERY_WORKERS]
    case.wait_until(
        "a worker ignores the message",
        lambda: any("already running elsewhere" in log.read_text(errors="replace") for log in logs),
    )
    time.sleep(10)
    case.release()


def fail_running_try(case: FaultCase) -> None:
    """Redis delivers the message after its token has expired. Airflow fails the try, whose process lives."""
    wait_for_worker(case)
    time.sleep(TOKEN_LIFETIME)
    case.add_event("Redis delivers the message again")
    airflow_of(case).redis.deliver_again()
    case.wait_for_following_try()
    case.wait_until("the process of the first try has ended", lambda: SUPERSEDED in case.log(1))
    time.sleep(10)
    case.release()


# -- triggerers -----------------------------------------------------------------------------------------------------


def kill_triggerer_of_two(case: FaultCase) -> None:
    """Kill triggerers until it was the one that has the trigger. Each is started again."""
    case.wait_for_job("RUNNING")
    time.sleep(5)
    lost = case.task_instance["triggerer_job"]["id"]

    def has_moved() -> bool:
        return (case.task_instance.get("triggerer_job") or {"id": lost})["id"] != lost

    for name in TRIGGERERS:
        case.add_event(f"SIGKILL to {name}")
        airflow_of(case).component(name).kill()
        deadline = time.monotonic() + TAKEOVER
        while time.monotonic() < deadline and not has_moved():
            time.sleep(1)
        if has_moved():
            break
    case.wait_until("the other triggerer follows the job", lambda: "The triggerer that followed job" in case.log(1))
    case.release()


# -- services -------------------------------------------------------------------------------------------------------


def wait_for(file: str) -> Callable[[FaultCase], None]:
    """Return a script: wait until the common fault is over, then end the job."""

    def script(case: FaultCase) -> None:
        case.wait_for_job("RUNNING")
        (case.folder / f"{case.name}.ready").touch()
        case.wait_until("the fault is over", (case.folder / file).exists)
        case.release()

    return script


def end_job_without_redis(case: FaultCase) -> None:
    """The trigger fires while the scheduler cannot send the task to a worker."""
    case.wait_for_job("RUNNING")
    (case.folder / f"{case.name}.ready").touch()
    case.wait_until("Redis is away", (case.folder / "redis-is-away").exists)
    case.release()


def kill_workers(case: FaultCase) -> None:
    airflow_of(case).kill("celery")


def lose_queue(case: FaultCase) -> None:
    """No worker takes the queued task, and Redis loses its message."""
    airflow = airflow_of(case)
    case.wait_for_state("queued")
    time.sleep(5)
    case.add_event("Redis is killed and started empty, then the workers are started")
    airflow.redis.kill()
    airflow.redis.start()
    for name in CELERY_WORKERS:
        airflow.keep(name)


def wait_for_ready(cases: list[FaultCase]) -> None:
    for case in cases:
        case.wait_until("the case is ready", (case.folder / f"{case.name}.ready").exists)


def lose_redis(cases: list[FaultCase]) -> None:
    airflow = airflow_of(cases[0])
    wait_for_ready(cases)
    airflow.redis.kill()
    (cases[0].folder / "redis-is-away").touch()
    time.sleep(OUTAGE)
    airflow.redis.start()
    time.sleep(10)
    (cases[0].folder / "redis-is-back").touch()


def lose_postgresql(cases: list[FaultCase], *, crash: bool) -> None:
    airflow = airflow_of(cases[0])
    wait_for_ready(cases)
    if crash:
        airflow.postgresql.kill()
    else:
        airflow.postgresql.stop()
    time.sleep(OUTAGE)
    airflow.postgresql.start()
    time.sleep(20)
    for case in cases:
        case.add_event(f"components that have exited so far: {airflow.exits}")
    (cases[0].folder / f"postgresql-is-back-{crash}").touch()


def postgresql_cases(*, crash: bool) -> list[FaultCase]:
    return [
        FaultCase(f"postgresql_{'killed' if crash else 'restarted'}_{mode}",
                  "The task survives an outage of Airflow's database, or its next try follows the job.",
                  {"entrypoint": UNTIL_RELEASED, **RETRY, **options}, wait_for(f"postgresql-is-back-{crash}"),
                  log_contains=("end\n",))
        for mode, options in MODES
    ]  # fmt: skip


# Cases that run side by side, and the fault that all of them meet.
PRODUCTION_WAVES: list[tuple[list[FaultCase], Callable[[list[FaultCase]], None] | None]] = [
    (
        [
            FaultCase("celery_worker_shut_down_worker",
                      "A worker that shuts down warmly ends its task with its one job.",
                      {"entrypoint": UNTIL_RELEASED, **NO_RETRY}, shut_worker_down, tries=1,
                      logged_once=("start", "end")),
            FaultCase("celery_worker_shut_down_deferred",
                      "A deferred task resumes on another worker while one shuts down.",
                      {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **DEFERRED}, resume_on_other_worker, tries=1,
                      logged_once=("start", "end")),
        ],
        None,
    ),
    (
        [
            FaultCase("celery_worker_killed", "The next try follows the job of a lost Celery worker.",
                      {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_worker, tries=2, log_contains=("end\n",)),
            FaultCase("triggerer_of_two_killed",
                      "The other triggerer follows the job of a lost one, and no line is lost.",
                      {"entrypoint": LINES_UNTIL_RELEASED, **NO_RETRY, **DEFERRED}, kill_triggerer_of_two, tries=1,
                      log_contains=tuple(f"line {number + 1}\n" for number in range(LINES))),
        ],
        None,
    ),
    (
        [
            FaultCase("celery_worker_killed_after_grace",
                      "The next try follows the job of a worker that was killed while it shut down.",
                      {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_worker_after_grace, tries=2,
                      log_contains=("end\n",)),
        ],
        None,
    ),
    (
        [
            FaultCase("celery_worker_group_terminated",
                      "SIGTERM to all processes of a worker stops the job, and the next try submits another.",
                      {"entrypoint": ENDLESS_IN_FIRST_TRY, **RETRY}, terminate_process_group,
                      jobs=("STOPPED", "SUCCEEDED"), tries=2, log_contains=("Airflow ended this task",)),
        ],
        None,
    ),
    (
        [
            FaultCase("celery_worker_shut_down_cold",
                      "A worker that shuts down at once stops the job, and the next try submits another.",
                      {"entrypoint": ENDLESS_IN_FIRST_TRY, **RETRY}, shut_worker_down_cold,
                      jobs=("STOPPED", "SUCCEEDED"), tries=2),
        ],
        None,
    ),
    (
        [
            FaultCase("celery_message_delivered_twice",
                      "A task whose message Redis delivers again runs once, with one job.",
                      {"entrypoint": UNTIL_RELEASED, **NO_RETRY}, deliver_again, tries=1,
                      logged_once=("start", "end")),
        ],
        None,
    ),
    (
        [
            FaultCase("celery_try_failed_while_it_runs",
                      "The next try follows the job of a try that Airflow has failed although its process lives.",
                      {"entrypoint": UNTIL_RELEASED, **RETRY}, fail_running_try, tries=2,
                      log_contains=(SUPERSEDED, "end\n")),
        ],
        None,
    ),
    (
        [
            *(
                FaultCase(f"redis_killed_{mode}", "A running or deferred task does not notice an outage of Redis.",
                          {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **options}, wait_for("redis-is-back"), tries=1,
                          logged_once=("start", "end"))
                for mode, options in MODES
            ),
            FaultCase("redis_killed_when_trigger_fires",
                      "The next try takes the result of a task that could not be resumed without Redis.",
                      {"entrypoint": UNTIL_RELEASED, **RETRY, **DEFERRED, "retry_delay": 2 * OUTAGE},
                      end_job_without_redis, tries=2, log_contains=(TAKES_RESULT,)),
        ],
        lose_redis,
    ),
    (
        [
            FaultCase("celery_queue_lost", "A task whose message was lost with Redis is queued again, and has one job.",
                      {"entrypoint": "true", **NO_RETRY}, lose_queue, before=kill_workers, tries=1),
        ],
        None,
    ),
    (postgresql_cases(crash=False), partial(lose_postgresql, crash=False)),
    (postgresql_cases(crash=True), partial(lose_postgresql, crash=True)),
]  # fmt: skip
