"""
Stop the job when Airflow kills the task.

Airflow calls ``on_kill`` from a signal handler, in the middle of ``execute``, and sends SIGKILL 5 s later. The
interrupted code may hold locks, such as that of a log handler or of the connection to the supervisor. So the handler
must not log or call Airflow: it sends the stop with a client of its own, and sets a flag that ``execute`` polls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.client import RayJobsClient

# Seconds for the handler in total, then for connect and read in its first and in its second request.
_TOTAL_TIMEOUT = 3.0
_REQUEST_TIMEOUTS = (1.0, 0.5)


class KillSwitch:
    """Passes a kill from a task's ``on_kill`` to its ``execute``, and stops the job."""

    def __init__(self) -> None:
        # The task's ``stop_on_kill``. If it is off, a kill has no effect.
        self.is_enabled = True
        # The result of the stop, which ``execute`` logs.
        self.summary = ""
        self._is_killed = False
        self._connect: Callable[[], RayJobsClient] | None = None
        self._submission_id = ""

    @property
    def is_triggered(self) -> bool:
        """Tell whether ``execute`` has to end."""
        return self._is_killed and self.is_enabled

    def arm(self, connect: Callable[[], RayJobsClient], submission_id: str) -> None:
        """Stop this job on a kill from now on. ``connect`` creates a client without a call to Airflow."""
        self._submission_id = submission_id
        self._connect = connect

    def disarm(self) -> None:
        """Stop no job on a kill from now on."""
        self._connect = None

    def kill(self) -> None:
        """Set the flag, and stop the job if the switch is armed. Runs in a signal handler."""
        self._is_killed = True
        if not self.is_enabled or self._connect is None:
            return
        # In a thread, because a DNS lookup has no timeout.
        stop = threading.Thread(target=self._stop, args=(self._connect,), daemon=True)
        # Disable all logging, that of httpx too: the interrupted code may hold the lock of a log handler.
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            stop.start()
            stop.join(_TOTAL_TIMEOUT)
        finally:
            logging.disable(before)

    def _stop(self, connect: Callable[[], RayJobsClient]) -> None:
        job = self._submission_id
        for timeout in _REQUEST_TIMEOUTS:
            try:
                with connect() as client:
                    was_running = client.send(replace(endpoints.stop_job(job), timeout=timeout))
            except RayJobNotFoundError:
                self.summary = f"The cluster does not know job {job}: it has not arrived yet, or was deleted."
                return
            except RayJobsError as error:
                self.summary = f"The stop request for job {job} may not have reached Ray. {error}"
            else:
                self.summary = f"Ray accepted the stop of job {job}." if was_running else f"Job {job} had ended."
                return
