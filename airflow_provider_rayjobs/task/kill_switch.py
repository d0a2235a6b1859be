"""
Stop the job when Airflow kills the task.

Airflow calls ``on_kill`` from a signal handler, in the middle of ``execute``, and sends SIGKILL 5 s later. The
interrupted code may hold locks, such as that of a log handler or of the connection to the supervisor. So the handler
must not log or call Airflow: it sends the stop with a client of its own, and sets a flag that ``execute`` polls.

A process that was frozen, for example with its virtual machine, may have lost its task to another try. Then the
handler sends nothing. ``execute`` reads the job record first, which names the try that follows the job.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from airflow.providers.common.compat.sdk import conf

from airflow_provider_rayjobs.jobs.client import RayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.stop import stop_and_wait

# Seconds for the handler.
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
        # Unix seconds of the last poll; 0 before the try begins.
        self._polled_at = 0.0
        self._freeze_limit = math.inf
        # Whether Airflow has killed the task, whatever ``is_enabled`` says.
        self.is_killed = False
        self._connect: Callable[[], RayJobsClient] | None = None
        self._job: JobRef | None = None

    @property
    def is_triggered(self) -> bool:
        """Tell whether ``execute`` has to end."""
        return self.is_killed and self.is_enabled

    def begin_try(self) -> None:
        """Begin to notice freezes."""
        self.was_frozen = False
        self._polled_at = time.time()
        # Read here, because a signal handler must not read the configuration.
        self._freeze_limit = conf.getfloat("scheduler", "task_instance_heartbeat_timeout", fallback=300.0) / 2

    def poll(self) -> bool:
        """Return ``is_triggered``, and notice a freeze since the last poll."""
        self._notice_freeze()
        return self.is_triggered

    def end_polling(self) -> None:
        """Notice no freeze until the next poll."""
        self._polled_at = 0.0

    def arm(self, connect: Callable[[], RayJobsClient], job: JobRef) -> None:
        """Stop this job on a kill from now on. ``connect`` creates a client without a call to Airflow."""
        self._job = job
        self._connect = connect

    def disarm(self) -> None:
        """Stop no job on a kill from now on."""
        self._connect = None

    def kill(self) -> None:
        """Set the flag, and stop the job if the switch is armed. Runs in a signal handler."""
        self._notice_freeze()
        self.is_killed = True
        if not self.is_enabled or self.was_frozen or self._connect is None or self._job is None:
            return
        self.summary = f"The stop request for job {self._job.submission_id} was not answered within {_TIMEOUT:.0f} s."
        # In a thread, because a DNS lookup has no timeout.
        stop = threading.Thread(target=self._stop, args=(self._connect, self._job), daemon=True)
        # Disable all logging, that of httpx too: the interrupted code may hold the lock of a log handler.
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            stop.start()
            stop.join(_TIMEOUT)
        finally:
            logging.disable(before)

    def _notice_freeze(self) -> None:
        # The wall clock, because the monotonic clock stands still while a virtual machine is suspended. Airflow starts
        # another try after its heartbeat timeout. Half of it, as the last heartbeat came before the freeze.
        now = time.time()
        if self._polled_at and now - self._polled_at > self._freeze_limit:
            self.was_frozen = True
        self._polled_at = now

    def _stop(self, connect: Callable[[], RayJobsClient], job: JobRef) -> None:
        try:
            with connect() as client:
                # The submission may be on its way, so an unknown job is polled again.
                self.summary = client.run(stop_and_wait(job, _TIMEOUT, may_arrive=True, is_brief=True)).summary
        except Exception as error:  # noqa: BLE001  (also of the user's ``auth`` class)
            self.summary = f"The stop request for job {job.submission_id} may not have reached Ray. {error}"
