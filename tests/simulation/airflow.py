"""
A simulated Airflow 3.3: one task instance, its server, its workers, and the triggerer.

The state of the task instance changes as in Airflow's API server and scheduler:

- Each start of a task is a process of its own, with a new operator. A retry and a Clear begin a new try; the resume of
  a deferred task and the next poke of a rescheduled sensor continue a try.
- The server accepts reports only from the process that it believes is running. Any other process learns from its next
  heartbeat, up to 5 s later, that it has to end: SIGTERM, which calls ``on_kill``, and SIGKILL 5 s later.
- A retry and a Clear give the task instance another id at once. Airflow hides the task state store from the process
  with the old id. It may fail a try whose process lives, and begin the next one before that process ends.
- A dead worker fails its try at once if its supervisor lives, after 300 s if the whole machine is gone.
- ``max_tries`` grows with a Clear, except if a running task is cleared and its process then crashes. ``clear_number``
  grows with every Clear. A Clear of an ended run gives the run another start date.
- A deferral is rejected if the task was marked or cleared meanwhile. A trigger travels as JSON; if a user marks or
  clears a deferred task, the triggerer cancels the trigger, awaits its ``on_kill``, and cancels it again each second.
- The triggers of a dead triggerer start again elsewhere 30 s later. Nobody calls ``on_kill`` for them meanwhile.
- The task state store survives retries and Clears. A store, an XCom or a connection may fail for a moment. While the
  API server is down, the supervisor repeats a call of the task five times.
"""

from __future__ import annotations

import asyncio
import json
import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from airflow.sdk.module_loading import import_string

from airflow_provider_rayjobs.testing.clock import Timer

from .clock import Clock, Process, Thread, VirtualLoop, current_thread
from .network import Script

HEARTBEAT = 5.0
HEARTBEAT_TIMEOUT = 300.0
SIGKILL_DELAY = 5.0
# Seconds after SIGTERM for which a submission under way may still be stopped: the handler of the signal has 3 s.
KILL_TIME = 2.5
RETRY_DELAY = 5.0
# How often the supervisor sends a call of the task to the API server.
API_ATTEMPTS = 5
# Seconds until another triggerer starts the triggers of a dead one.
TRIGGERER_LOSS = 35.0
_TERMINAL = ("success", "failed", "skipped")
_USER_ACTION = "user-action"
# the try of the trigger that runs
_trigger_try: ContextVar[int] = ContextVar("trigger_try", default=0)
# errors of a store, an XCom or a connection that cannot be used for a moment
FAILS = "fails"
FAILS_AFTER = "fails after its effect"


class ApiServerError(RuntimeError):
    """What a task gets if Airflow's API server does not answer."""


@dataclass
class TriggerRow:
    """A trigger in Airflow's database."""

    number: int
    classpath: str
    arguments: str
    method: str
    kwargs: dict[str, Any]
    try_number: int
    timer: Timer | None = None
    # the cancellation with which the triggerer ends the trigger; None while it should run
    cancel_message: str | None = None


@dataclass
class Worker:
    """A process of one start of the task."""

    process: Process
    number: int
    try_number: int
    may_retry: bool
    # the id of the task instance when the process started
    ti_id: int
    # how often the task had been cleared when the process started
    clear_number: int
    # whether the task resumes after a trigger
    is_resumed: bool = False
    task: Any = None
    thread: Thread | None = None
    is_terminating: bool = False
    # when SIGTERM was sent; infinity if it was not
    terminated_at: float = float("inf")
    ended_at: float = float("inf")
    # the whole machine is gone, so no supervisor reports the end
    is_machine_lost: bool = False
    # SIGKILL, OOM: the end was a crash, not an answer to the server's SIGTERM
    has_crashed: bool = True
    # when the process asked Airflow last whether it should run: 0 if it got no answer, -1 if it did not ask
    looked_at: float = -1.0
    # the process was killed because it did not end in time after SIGTERM
    was_too_slow: bool = False
    # the process has called nothing but the report of its end, or of its deferral
    is_reporting: bool = False
    # the process was frozen for so long that its try was over; what it shows then is no part of a try's log
    is_zombie: bool = False

    @property
    def had_no_time_to_stop(self) -> bool:
        """Tell whether the process ended without SIGTERM, or was killed before its handler could stop a job."""
        is_warned = self.terminated_at != float("inf")
        return not is_warned or (self.process.was_killed and self.ended_at < self.terminated_at + KILL_TIME)


@dataclass(frozen=True)
class Shown:
    """A record of the job's log in the log of a try."""

    try_number: int
    by: str
    text: str
    time: float


class Airflow:
    """
    The task instance and everything of Airflow that acts on it.

    :param make_task: creates the operator, as the parsing of the DAG file does.
    :param script: the faults of the history.
    """

    dag_id, task_id, run_id = "dag", "task", "run"

    def __init__(
        self, clock: Clock, script: Script, rng: random.Random, make_task: Callable[[], Any], retries: int = 2
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.state: str | None = None
        self.try_number = 0
        self.ti_id = 0
        self.max_tries = retries
        self.clear_number = 0
        self.run_start = clock.now
        self.connections: dict[str, dict[str, Any]] = {}
        self.shown: list[Shown] = []
        self.messages: list[tuple[float, str, str]] = []
        self.xcoms: dict[str, Any] = {}
        # how each try ended, by its own account: (try, state, error or result)
        self.ends: list[tuple[int, str, Any]] = []
        # whether a task that resumed could not read its job record
        self.has_lost_record = False
        # what ``execute`` returned
        self.results: list[Any] = []
        self.on_success: Callable[[Any], object] = lambda _: None
        self.on_terminal: Callable[[], object] = lambda: None
        self.tags: set[str] = set()
        # when each try wrote to the task state store last
        self.stored_at: dict[int, float] = {}
        self.lookups_fail_until = 0.0
        self.api_fails_until = 0.0
        self.workers: list[Worker] = []
        self.script = script
        self._make_task = make_task
        self._retries = retries
        self._store: dict[str, str] = {}
        self._running: Worker | None = None
        self._next_start: Timer | None = None
        self._first_reschedule: datetime | None = None
        self._row: TriggerRow | None = None
        self._rows = 0
        self._triggerer: Triggerer | None = None
        self.triggerers: list[Triggerer] = []
        # a history in an endless loop: no further try
        self.retries_are_over = False
        self._try_started = 0.0
        # when the task instance ended last, and when a user acted on it last
        self.ended_at = 0.0
        self.last_action = 0.0

    # -- the scheduler and the API server -------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Tell whether the task instance has ended and none of its processes is left."""
        return self.state in _TERMINAL and not any(worker.process.is_alive for worker in self.workers)

    def is_replaced(self, worker: Worker) -> bool:
        """Tell whether the task instance has another id than when the process started."""
        return worker.ti_id != self.ti_id

    def start(self) -> None:
        """Schedule the first try, and start a triggerer."""
        self._triggerer = Triggerer(self)
        self._schedule(0.1)

    def _schedule(self, delay: float, method: str | None = None, kwargs: Any = None, *, new_try: bool = True) -> None:
        if self._next_start is not None:
            self._next_start.cancel()
        text = json.dumps(kwargs or {})
        self._next_start = self.clock.call_later(delay, lambda: self._launch(method, json.loads(text), new_try))

    def _launch(self, method: str | None, kwargs: dict[str, Any], new_try: bool) -> None:
        if self.clock.now < self.api_fails_until:
            delay = self.api_fails_until - self.clock.now + 1
            self._next_start = self.clock.call_later(delay, lambda: self._launch(method, kwargs, new_try))
            return
        self._next_start = None
        if new_try:
            self.try_number += 1
            self._first_reschedule = None
            self._try_started = self.clock.now
        if self.state in (*_TERMINAL, None) and self.run_start is None:
            self.run_start = self.clock.now
        number = len(self.workers) + 1
        worker = Worker(
            Process(self.clock, f"worker {number} (try {self.try_number})"),
            number,
            self.try_number,
            self.max_tries != 0 and self.try_number <= self.max_tries,
            self.ti_id,
            self.clear_number,
            is_resumed=method is not None,
        )
        self.workers.append(worker)
        self._running = worker
        self._set_state("running")
        worker.process.on_exit = lambda: self._process_has_ended(worker)
        worker.thread = worker.process.start(lambda: self._run_task(worker, method, kwargs))

    def _set_state(self, state: str | None) -> None:
        self.script.note(f"airflow: the task instance is {state}, try {self.try_number} of {self.max_tries + 1}")
        self.state = state
        if state in _TERMINAL:
            self.ended_at = self.clock.now
            self.on_terminal()

    def _accept(self, worker: Worker, state: str) -> bool:
        """Accept the report of a process, unless the server believes that another one is running, or none."""
        if self._running is not worker or self.state != "running":
            self.script.note(f"airflow: 409, the report {state!r} of {worker.process.name} is rejected")
            self._note_late_action(worker)
            return False
        worker.has_crashed = False
        self._running = None
        self._set_state(state)
        return True

    def _note_late_action(self, worker: Worker) -> None:
        """Note that a user acted on the task after its process has looked, so that the process could not notice."""
        if 0 <= worker.looked_at <= self.last_action:
            self.tags.add("marked or cleared after the last look")

    def _process_has_ended(self, worker: Worker) -> None:
        """Handle the end of a process, as its supervisor and then the scheduler see it."""
        worker.ended_at = self.clock.now
        if self.state in _TERMINAL and worker.process.was_killed and not worker.was_too_slow:
            self.tags.add("the process of the last try was killed")
        if worker.is_reporting:
            self._note_late_action(worker)
        delay = HEARTBEAT_TIMEOUT if worker.is_machine_lost else 0.2
        self.clock.call_later(delay, lambda: self._handle_end(worker))

    def _handle_end(self, worker: Worker) -> None:
        if self._running is not worker:
            return
        if self.state == "restarting":
            if worker.is_terminating or not worker.has_crashed:
                self.max_tries = self.try_number + self._retries
            self._running = None
            self._set_state("scheduled")
            self._schedule(self.rng.uniform(0.5, 2))
        elif self.state == "running":
            self._running = None
            self._end_try(worker, "the process has ended without a report")
        else:
            self._running = None

    def _end_try(self, worker: Worker, reason: Any) -> None:
        """Fail a try that did not report its end."""
        self.ends.append((worker.try_number, "lost", reason))
        self._fail(is_final=not worker.may_retry)

    def _fail(self, *, is_final: bool) -> None:
        if is_final or self.retries_are_over:
            self._set_state("failed")
        else:
            self.ti_id += 1
            self._set_state("up_for_retry")
            self._schedule(RETRY_DELAY)

    # -- what users and machines do -------------------------------------------------------------------------------

    def clear(self) -> None:
        """Clear the task instance."""
        self.last_action = self.clock.now
        self.clear_number += 1
        self.ti_id += 1
        self.script.note(f"user: clears the task ({self.state})")
        if self.state == "running":
            self._set_state("restarting")
            self._expect_heartbeat()
            return
        if self.state in _TERMINAL:
            self.run_start = self.clock.now
        self.max_tries = self.try_number + self._retries
        self._forget_running()
        self._drop_trigger()
        self._set_state(None)
        self._schedule(self.rng.uniform(0.1, 2))

    def mark(self, state: str) -> None:
        """Mark the task instance as ``success`` or ``failed``."""
        self.last_action = self.clock.now
        self.script.note(f"user: marks the task as {state} ({self.state})")
        is_dead = self.state == "running" and not (self._running and self._running.process.is_alive)
        if is_dead or self.state in ("up_for_retry", "scheduled", "up_for_reschedule", "restarting", None):
            self.tags.add("marked while no process or trigger was there")
        if self._next_start is not None:
            self._next_start.cancel()
            self._next_start = None
        was_running = self._running
        self._forget_running()
        self._drop_trigger()
        if self.state not in _TERMINAL:
            self.ends.append((self.try_number, f"marked {state}", was_running is not None))
        self._set_state(state)

    def _forget_running(self) -> None:
        self._running = None
        self._expect_heartbeat()

    def _expect_heartbeat(self) -> None:
        """Let every process that should not run learn that from its next heartbeat."""
        for worker in self.workers:
            if worker.process.is_alive and not worker.is_terminating:
                delay = self.rng.uniform(0, HEARTBEAT)
                self.clock.call_later(delay, lambda worker=worker: self._heartbeat(worker))

    def _heartbeat(self, worker: Worker) -> None:
        frozen = worker.process.frozen_until - self.clock.now
        if frozen > 0:
            self.clock.call_later(frozen, lambda: self._heartbeat(worker))
        elif worker.process.is_alive and not (self._running is worker and self.state == "running"):
            self.script.note(f"airflow: {worker.process.name} should not run any more")
            self.terminate(worker)

    def terminate(self, worker: Worker | None = None) -> None:
        """Send SIGTERM to a process of the task, and SIGKILL 5 s later."""
        worker = worker or self._running
        if worker is None or not worker.process.is_alive or worker.is_terminating:
            return
        worker.is_terminating = True
        worker.terminated_at = self.clock.now
        self.script.note(f"airflow: SIGTERM to {worker.process.name}")
        task, thread = worker.task, worker.thread
        if task is None or thread is None:
            worker.process.kill()
            return
        thread.signal(task.on_kill)
        self.clock.call_later(SIGKILL_DELAY, lambda: self._sigkill(worker))

    def _sigkill(self, worker: Worker) -> None:
        frozen = worker.process.frozen_until - self.clock.now
        if frozen > 0:  # and its supervisor with it
            self.clock.call_later(frozen + SIGKILL_DELAY, lambda: self._sigkill(worker))
        elif worker.process.is_alive:
            self.script.note(f"airflow: SIGKILL to {worker.process.name}")
            worker.was_too_slow = True
            worker.process.kill()

    def kill_worker(self, *, machine: bool = False) -> None:
        """Let the running process die, with its supervisor or without it."""
        if self._running is not None and self._running.process.is_alive:
            self._running.is_machine_lost = machine
            self._running.process.kill()

    def fail_try(self) -> None:
        """Fail the running try although its process lives, as after a second delivery of a message by Redis."""
        worker = self._running
        if worker is None or not worker.process.is_alive or self.state != "running":
            return
        self._forget_running()
        self._end_try(worker, "the executor has reported a failure")
        if self.state == "up_for_retry":  # also before the next heartbeat of the process
            self._schedule(self.rng.uniform(0.5, RETRY_DELAY))

    def freeze_worker(self, seconds: float) -> None:
        """Freeze the machine of the running process. After 300 s without a heartbeat its try is over."""
        worker = self._running
        if worker is None or not worker.process.is_alive:
            return
        worker.process.freeze(seconds)
        if seconds > HEARTBEAT_TIMEOUT:
            self.clock.call_later(HEARTBEAT_TIMEOUT, lambda: self._time_out(worker))

    def _time_out(self, worker: Worker) -> None:
        if self._running is worker and self.state == "running":
            self.script.note(f"airflow: no heartbeat of {worker.process.name}")
            worker.is_zombie = True
            self._forget_running()
            self._end_try(worker, "no heartbeat")
        elif self._running is worker:
            worker.is_zombie = True
            self._handle_end(worker)

    def kill_triggerer(self, *, restart: bool = False) -> None:
        """Let the triggerer die; or restart, which cancels its triggers without ``on_kill``."""
        old = self._triggerer
        if old is None:
            return
        self._triggerer = None
        if old.is_cancelling:
            self.tags.add("no triggerer had the trigger")
        delay = 3.0 if restart else TRIGGERER_LOSS
        self.clock.call_later(delay, self._start_triggerer)
        if restart:
            old.shut_down()
        else:
            old.process.kill()

    def _start_triggerer(self) -> None:
        if self._triggerer is None:
            self._triggerer = Triggerer(self)
            if self._row is not None:
                self._triggerer.add(self._row)

    def _drop_trigger(self) -> None:
        """Delete the trigger because a user marked or cleared the deferred task."""
        row, self._row = self._row, None
        if row is None:
            return
        row.cancel_message = _USER_ACTION
        if row.timer is not None:
            row.timer.cancel()
        if self._triggerer is None or not self._triggerer.has(row):
            self.tags.add("no triggerer had the trigger")
        else:
            triggerer = self._triggerer
            self.clock.call_later(self.rng.uniform(0.2, 1.5), lambda: triggerer.cancel(row))

    # -- a worker -------------------------------------------------------------------------------------------------

    def _run_task(self, worker: Worker, method: str | None, kwargs: dict[str, Any]) -> None:
        process = worker.process
        worker.task = task = self._make_task()
        ExecutorSafeguard.tracker.set(task)
        context = self._context(worker)
        try:
            result = self._execute(worker, task, context, method, kwargs)
            self.results.append(result)
            _, fault = self.script.begin(process, "post_execute")
            if fault is not None:
                raise ApiServerError("post_execute failed")
            if result is not None:
                self._push(process, "return_value", result)
            state, value = "success", result
        except TaskDeferred as deferral:
            self._defer(worker, deferral)
            return
        except AirflowRescheduleException as reschedule:
            state, value = "up_for_reschedule", reschedule
        except AirflowSkipException as skip:
            state, value = "skipped", skip
        except (AirflowFailException, AirflowSensorTimeout) as error:
            state, value = "failed", error
        except (Exception, AirflowTaskTimeout, SystemExit) as error:  # noqa: BLE001  (as Airflow does)
            state, value = self._decide_retry(worker, task, context, error), error
        if isinstance(value, BaseException):
            process.check()
            self.script.note(f"{process.name}: {state}: {type(value).__name__}: {str(value)[:300]}")
        self._report(worker, state, value)

    def _execute(self, worker: Worker, task: Any, context: Any, method: str | None, kwargs: dict[str, Any]) -> Any:
        alarm: Timer | None = None
        if task.execution_timeout is not None and worker.thread is not None:
            thread = worker.thread
            alarm = self.clock.call_later(
                task.execution_timeout.total_seconds(), lambda: thread.signal(_raise_task_timeout)
            )
        try:
            return task.execute(context) if method is None else task.resume_execution(method, kwargs, context)
        except AirflowTaskTimeout:
            if alarm is not None:
                alarm.cancel()
            task.on_kill()
            raise
        finally:
            if alarm is not None:
                alarm.cancel()

    def _decide_retry(self, worker: Worker, task: Any, context: Any, error: BaseException) -> str:
        policy = getattr(task, "retry_policy", None)
        if policy is not None:
            decision = policy.evaluate(error, self.try_number, self.max_tries, context)
            if decision.action.value == "fail":
                return "failed"
        return "up_for_retry" if worker.may_retry else "failed"

    def _report(self, worker: Worker, state: str, value: Any) -> None:
        key, fault = self.script.begin(worker.process, "report")
        worker.is_reporting = True
        self._wait_for_server()
        if fault is not None:  # the report is lost; the server waits for a heartbeat that does not come
            self.script.note(f"{worker.process.name}: the report {state!r} is lost")
            worker.is_machine_lost = True
            self._note_late_action(worker)
            return
        self._end(worker, state, value)
        self.script.end(worker.process, key)

    def _wait_for_server(self) -> None:
        """Wait until the server takes a report: the supervisor repeats it."""
        current_thread().wait(max(self.api_fails_until - self.clock.now, 0) + 0.01)

    def _end(self, worker: Worker, state: str, value: Any) -> None:
        if self._running is worker and self.state == "running":
            self.ends.append((worker.try_number, state, value))
        if state == "up_for_retry":
            if self._accept(worker, state):
                self.ti_id += 1
                self._schedule(RETRY_DELAY)
        elif state == "up_for_reschedule":
            if self._accept(worker, state):
                self._first_reschedule = self._first_reschedule or _date(self.clock.time())
                delay = value.reschedule_date.timestamp() - self.clock.time()
                self._schedule(max(delay, 0) + self.rng.uniform(0, 1), new_try=False)
        elif self._accept(worker, state) and state == "success":
            self.on_success(value)

    def _defer(self, worker: Worker, deferral: TaskDeferred) -> None:
        process = worker.process
        classpath, arguments = deferral.trigger.serialize()
        self._rows += 1
        row = TriggerRow(
            self._rows,
            classpath,
            json.dumps(arguments),
            deferral.method_name,
            json.loads(json.dumps(deferral.kwargs or {})),
            worker.try_number,
        )
        key, fault = self.script.begin(process, "defer")
        worker.is_reporting = True
        self._wait_for_server()
        if fault is not None:
            self.script.note(f"{process.name}: the deferral is lost")
            worker.is_machine_lost = True
            self._note_late_action(worker)
            return
        if self._accept(worker, "deferred"):
            self._row = row
            if deferral.timeout is not None:
                row.timer = self.clock.call_later(
                    deferral.timeout.total_seconds(), lambda: self.trigger_failed(row, "Trigger timeout")
                )
            if self._triggerer is not None:
                self._triggerer.add(row)
        self.script.end(process, key)

    # -- what a task uses -----------------------------------------------------------------------------------------

    def _context(self, worker: Worker) -> Any:
        start = _date(self.run_start + self.clock.time() - self.clock.now)
        logical_date = datetime(2027, 1, 1, tzinfo=UTC)
        ti = SimpleNamespace(
            id=f"00000000-0000-7000-8000-{self.ti_id:012d}",
            dag_id=self.dag_id,
            task_id=self.task_id,
            run_id=self.run_id,
            map_index=-1,
            try_number=self.try_number,
            max_tries=self.max_tries,
            start_date=_date(self._try_started + self.clock.time() - self.clock.now),
            task=worker.task,
            xcom_push=lambda key, value: self._push(worker.process, key, value),
            xcom_pull=lambda *, key, **_: self._pull(worker.process, key),
            get_first_reschedule_date=lambda _context: self._first_reschedule,
            get_task_states=lambda **_: self._get_states(worker),
        )
        dag_run = SimpleNamespace(
            run_id=self.run_id, logical_date=logical_date, start_date=start, clear_number=self.clear_number
        )
        return {
            "ti": ti,
            "task_instance": ti,
            "task": worker.task,
            "dag_run": dag_run,
            "run_id": self.run_id,
            "logical_date": logical_date,
            "task_state_store": StateStore(self, worker),
        }

    def _get_states(self, worker: Worker) -> dict[str, Any]:
        """Do what ``RuntimeTaskInstance.get_task_states`` does."""

        def look() -> dict[str, Any]:
            worker.looked_at = self.clock.now
            return {self.run_id: {self.task_id: self.state}}

        try:
            states: dict[str, Any] = self.effect(worker.process, "states", look)
        except ApiServerError:
            worker.looked_at = 0.0
            raise
        return states

    def ask_states(self, _ti: Any) -> list[str | None]:
        """Return what a trigger gets from its triggerer's supervisor."""
        process = current_thread().process
        key, fault = self.script.begin(process, "states")
        if fault is not None:
            raise ApiServerError("the supervisor does not answer")
        state = self.state
        self.script.end(process, key)
        return [state]

    def _push(self, process: Process, key: str, value: Any) -> None:
        self.effect(process, f"xcom {key}", lambda: self.xcoms.__setitem__(key, json.loads(json.dumps(value))))

    def _pull(self, process: Process, key: str) -> Any:
        return self.effect(process, f"xcom get {key}", lambda: self.xcoms.get(key))

    def effect(self, process: Process, label: str, act: Callable[[], Any]) -> Any:
        """Perform a call to Airflow's API server, which may fail before or after its effect."""
        process.check()
        key, fault = self.script.begin(process, label)
        current_thread().wait(0.005)
        for attempt in range(API_ATTEMPTS - 1):
            if self.clock.now < self.api_fails_until:
                current_thread().wait(self.rng.uniform(1, 2**attempt))
        if fault == FAILS or self.clock.now < self.api_fails_until:
            raise ApiServerError(f"{label}: the API server does not answer")
        result = act()
        if label.startswith("store set"):
            self.stored_at[self.try_number] = self.clock.now
        self.script.end(process, key)
        current_thread().wait(0.005)
        if fault == FAILS_AFTER:
            raise ApiServerError(f"{label}: the answer of the API server was lost")
        return result

    def get_connection(self, conn_id: str) -> Connection:
        """Look a connection up. Airflow calls one that cannot be read at the moment undefined."""
        process = current_thread().process
        process.check()
        _, fault = self.script.begin(process, "lookup")
        if fault is not None or self.clock.now < self.lookups_fail_until or conn_id not in self.connections:
            raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")
        return Connection(conn_id=conn_id, **self.connections[conn_id])

    def show(self, text: str) -> None:
        """Write a record of the job's log into the log of the running try."""
        process = current_thread().process
        process.check()
        worker = next((each for each in self.workers if each.process is process), None)
        if worker is None or not (worker.is_zombie or self.is_replaced(worker)):  # no part of a try's log
            try_number = _trigger_try.get() if worker is None else worker.try_number
            self.shown.append(Shown(try_number, process.name, text, self.clock.now))

    # -- the triggerer --------------------------------------------------------------------------------------------

    def trigger_fired(self, row: TriggerRow, payload: Any) -> None:
        if self._row is row:
            self._resume(row, row.method, row.kwargs | {"event": payload})
        else:
            self.tags.add("marked or cleared while the trigger fired")

    def trigger_failed(self, row: TriggerRow, error: str, trace: list[str] | None = None) -> None:
        """Resume the task only to fail it."""
        if self._row is not row:
            return
        if error == "Trigger timeout":
            row.cancel_message = "timeout"
            if self._triggerer is not None:
                self._triggerer.cancel(row)
        self._resume(row, "__fail__", {"error": error} | ({"traceback": trace} if trace else {}))

    def _resume(self, row: TriggerRow, method: str, kwargs: dict[str, Any]) -> None:
        self._row = None
        if row.timer is not None:
            row.timer.cancel()
        self._set_state("scheduled")
        self._schedule(self.rng.uniform(0.5, 2), method, kwargs, new_try=False)


class StateStore:
    """``context["task_state_store"]``."""

    def __init__(self, airflow: Airflow, worker: Worker) -> None:
        self._airflow = airflow
        self._worker = worker
        self._process = worker.process

    def _values(self) -> dict[str, str]:
        """Return the values that Airflow shows to this try: none after another try has replaced its id."""
        return {} if self._airflow.is_replaced(self._worker) else self._airflow._store

    def get(self, key: str, default: Any = None) -> Any:
        def look() -> Any:
            values = self._values()
            return json.loads(values[key]) if key in values else default

        try:
            return self._airflow.effect(self._process, f"store get {key}", look)
        except ApiServerError:
            self._airflow.has_lost_record |= self._worker.is_resumed
            if self._process.frozen_until > 0:
                self._airflow.tags.add("a worker that had been frozen could not ask whether it was replaced")
            raise

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        assert value is not None
        text = json.dumps(value)

        def store() -> None:
            if self._airflow.is_replaced(self._worker):
                raise ApiServerError("404: task instance not found")
            self._airflow._store[key] = text

        self._airflow.effect(self._process, f"store set {key}", store)

    def delete(self, key: str) -> None:
        self._airflow.effect(self._process, f"store delete {key}", lambda: self._values().pop(key, None))


class Triggerer:
    """A process with an event loop that runs triggers."""

    on_start: Callable[[], object] = lambda: None

    def __init__(self, airflow: Airflow) -> None:
        self._airflow = airflow
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wanted: list[TriggerRow] = []
        self._kills = 0
        self._loop: VirtualLoop | None = None
        self.process = Process(airflow.clock, "triggerer")
        airflow.triggerers.append(self)
        self.process.start(self._run)

    def _run(self) -> None:
        self._loop = VirtualLoop(current_thread())
        type(self).on_start()
        for row in self._wanted:
            self._start(row)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def has(self, row: TriggerRow) -> bool:
        """Tell whether the triggerer has started a trigger."""
        return row.number in self._tasks

    @property
    def is_cancelling(self) -> bool:
        """Tell whether a trigger is, or will be, in its ``on_kill``."""
        rows = (row for row in self._wanted if row.cancel_message == _USER_ACTION and row.number in self._tasks)
        return self._kills > 0 or any(not self._tasks[row.number].done() for row in rows)

    def add(self, row: TriggerRow) -> None:
        """Start a trigger soon, as the next look at the database finds it."""
        self._wanted.append(row)
        if self._loop is not None:
            self._airflow.clock.call_later(self._airflow.rng.uniform(0.1, 1), lambda: self._start(row))

    def _start(self, row: TriggerRow) -> None:
        if self._loop is not None and self.process.is_alive and row.cancel_message is None:
            self._tasks[row.number] = self._loop.create_task(self._run_trigger(row))
            self._loop.wake()

    def cancel(self, row: TriggerRow) -> None:
        """Cancel a trigger, and again each second until it has ended."""
        task = self._tasks.get(row.number)
        if task is None or task.done() or not self.process.is_alive or self._loop is None:
            return
        task.cancel(row.cancel_message)
        self._loop.wake()
        self._airflow.clock.call_later(1.0, lambda: self.cancel(row))

    def shut_down(self) -> None:
        """End as at SIGTERM: cancel the triggers without a message, then exit."""
        for task in self._tasks.values():
            task.cancel()
        if self._loop is not None:
            self._loop.wake()
        self._airflow.clock.call_later(1.0, self.process.kill)

    async def _kill(self, trigger: Any) -> None:
        """Call ``on_kill``. It may take longer than the task of the trigger, which is cancelled again and again."""
        self._kills += 1
        try:
            await trigger.on_kill()
        finally:
            self._kills -= 1

    async def _run_trigger(self, row: TriggerRow) -> None:
        airflow, script, process = self._airflow, self._airflow.script, self.process
        _trigger_try.set(row.try_number)
        try:
            key, fault = script.begin(process, "start")
            if fault is not None:
                raise ImportError("the trigger cannot be imported")
            trigger = import_string(row.classpath)(**json.loads(row.arguments))
            trigger.task_instance = SimpleNamespace(
                dag_id=airflow.dag_id,
                task_id=airflow.task_id,
                run_id=airflow.run_id,
                map_index=-1,
                try_number=row.try_number,
            )
        except Exception as error:  # noqa: BLE001  (as Airflow does)
            if row.cancel_message == _USER_ACTION:
                airflow.tags.add("no triggerer had the trigger")
            airflow.trigger_failed(row, "Trigger failure", traceback.format_exception(error))
            return
        has_fired = False
        try:
            async for event in trigger.run():
                has_fired = True
                key, _ = script.begin(process, "event")
                payload = json.loads(json.dumps(event.payload))
                await asyncio.sleep(0.02)
                process.check()
                airflow.trigger_fired(row, payload)
                script.end(process, key)
        except asyncio.CancelledError as cancelled:
            if cancelled.args[:1] == (_USER_ACTION,):
                script.note("triggerer: on_kill")
                with suppress(TimeoutError, asyncio.CancelledError):
                    await asyncio.wait_for(self._kill(trigger), timeout=30)
            raise
        except Exception as error:  # noqa: BLE001  (as Airflow does)
            process.check()
            airflow.trigger_failed(row, "Trigger failure", traceback.format_exception(error))
        else:
            if not has_fired:
                process.check()
                airflow.trigger_failed(row, "Trigger failure")
        finally:
            with suppress(Exception):
                await trigger.cleanup()


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _raise_task_timeout() -> None:
    raise AirflowTaskTimeout("Timeout")
