"""
Stop the job when Airflow kills the task.

Airflow calls ``on_kill`` from a signal handler, in the middle of ``execute``, and sends SIGKILL 5 s later. The
interrupted code may hold locks, such as that of a log handler or of the connection to the supervisor. So the handler
must not log or call Airflow: it sets a flag that ``execute`` polls, and starts a thread that sends the stop with a
client of its own.

Airflow also kills a try that it has failed although its process lives. The next try then follows the job, and only
``execute`` can ask Airflow about that. So the thread waits for its verdict, and sends the stop without one if
``execute`` hangs in a request or Airflow does not answer. A process that was frozen, for example with its virtual
machine, has probably lost its task to another try: it sends no stop without a verdict.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from airflow.providers.common.compat.sdk import conf

from airflow_provider_rayjobs.jobs.client import RayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.stop import stop_and_wait

# Seconds for the verdict of ``execute``, then for the stop. Together less than the 5 s before SIGKILL.
VERDICT_TIMEOUT = 1.5
_TIMEOUT = 3.0


class KillSwitch:
    """Passes a kill from a task's ``on_kill`` to its ``execute``, and stops the job."""

    def __init__(self) -> None:
        # The task's ``stop_on_kill``. If it is off, a kill has no effect.
        self.is_enabled = True
        # The result of the stop, which ``execute`` logs.
        self.summary = ""
        # Whether the process was frozen for so long that another try may have taken over.
        self.was_frozen = False
        # Unix seconds of the last sign of ``execute``; 0 while it does not poll.
        self._polled_at = 0.0
        self._freeze_limit = math.inf
        # Whether Airflow has killed the task, whatever ``is_enabled`` says.
        self.is_killed = False
        # Whether a try has ended, with nothing left to stop.
        self._has_ended = False
        self._connect: Callable[[], RayJobsClient] | None = None
        self._job: JobRef | None = None
        self._task_instance: Any = None
        # Whether another try may follow the job, and whether one does.
        self._may_be_superseded = False
        self._is_superseded = False
        # Set with the verdict of ``execute``; the thread that waits for it and stops the job.
        self._verdict: threading.Event | None = None
        self._stopping: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[KillSwitch], tuple[()]]:
        """Give the copy of an operator, deep or pickled, a new switch: no try runs with it."""
        return KillSwitch, ()

    @property
    def is_triggered(self) -> bool:
        """Tell whether ``execute`` has to end."""
        return self.is_killed and self.is_enabled

    def begin_try(self, task_instance: Any = None) -> None:
        """Begin to notice freezes, and the end of the try."""
        self._task_instance = task_instance
        self.was_frozen = self._is_superseded = self._has_ended = False
        self._polled_at = time.time()
        # Read here, because a signal handler must not read the configuration.
        self._freeze_limit = conf.getfloat("scheduler", "task_instance_heartbeat_timeout", fallback=300.0) / 2

    def end_try(self) -> None:
        """Ignore kills until the next try. Airflow calls ``on_kill`` after a try that has timed out."""
        self._has_ended = True

    def poll(self) -> bool:
        """Return ``is_triggered``, and notice a freeze since the last poll."""
        self.notice_freeze()
        self._polled_at = time.time()
        return self.is_triggered

    def end_polling(self) -> None:
        """From now on ``execute`` does not poll: a kill stops the job at once, and a pause is no freeze."""
        self.notice_freeze()
        self._polled_at = 0.0

    def notice_freeze(self) -> bool:
        """Tell whether the process was frozen."""
        # The wall clock, because the monotonic clock stands still while a virtual machine is suspended. Airflow starts
        # another try after its heartbeat timeout. Half of it, as the last heartbeat came before the freeze.
        if self._polled_at:
            now = time.time()
            self.was_frozen = self.was_frozen or now - self._polled_at > self._freeze_limit
            self._polled_at = now
        return self.was_frozen

    def arm(self, connect: Callable[[], RayJobsClient], job: JobRef, *, may_be_superseded: bool = False) -> None:
        """
        Stop this job on a kill from now on.

        :param connect: creates a client without a call to Airflow.
        :param may_be_superseded: whether another try can find the job. Then a kill waits for :meth:`settle`.
        """
        self._job = job
        self._connect = connect
        self._may_be_superseded = may_be_superseded

    def disarm(self) -> None:
        """Stop no job on a kill from now on."""
        self._connect = None

    def kill(self) -> None:
        """Set the flag, and see to the stop of the job if the switch is armed. Runs in a signal handler."""
        if self._has_ended:  # ``dag.test()`` runs the next try with the same switch
            return
        was_frozen = self.notice_freeze() and self._may_be_superseded
        self.is_killed = True
        if not self.is_enabled or was_frozen or self._is_superseded or self._connect is None or self._job is None:
            return
        # Airflow has the end of the try, and only callbacks run: a kill ends them, for example after their
        # ``task_success_overtime``.
        if getattr(self._task_instance, "state", None) not in (None, "running"):
            return
        if self._verdict is not None and not self._verdict.is_set() and self._stopping and self._stopping.is_alive():
            return  # the thread of an earlier kill waits for the verdict
        self.summary = f"The stop request for job {self._job.submission_id} was not answered within {_TIMEOUT:.0f} s."
        self._verdict = verdict = threading.Event()
        self._stopping = stopping = threading.Thread(
            target=self._stop, args=(self._connect, self._job, verdict), daemon=True
        )
        if self._may_be_superseded and self._polled_at:
            stopping.start()
            return
        verdict.set()
        # Disable all logging, that of httpx too: the interrupted code may hold the lock of a log handler.
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            stopping.start()
            stopping.join(_TIMEOUT)  # a DNS lookup has no timeout
        finally:
            logging.disable(before)

    def settle(self, *, is_superseded: bool) -> None:
        """Give the verdict on a kill: another try sees to the job, or the job is stopped now. Wait for that stop."""
        self._is_superseded = is_superseded
        if self._verdict is not None and self._stopping is not None:
            self._verdict.set()
            self._stopping.join(_TIMEOUT)
        self.end_polling()

    def _stop(self, connect: Callable[[], RayJobsClient], job: JobRef, verdict: threading.Event) -> None:
        verdict.wait(VERDICT_TIMEOUT)
        if self._is_superseded:
            self.summary = ""
            return
        try:
            with connect() as client:
                # The submission may be on its way, so an unknown job is polled again.
                self.summary = client.run(stop_and_wait(job, _TIMEOUT, may_arrive=True, is_brief=True)).summary
        except Exception as error:  # noqa: BLE001  (also of the user's ``auth`` class)
            self.summary = f"The stop request for job {job.submission_id} may not have reached Ray. {error}"
