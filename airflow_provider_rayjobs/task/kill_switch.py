"""
Airflow's kill: taken by a signal handler, told to the code that it interrupts.

Airflow calls ``on_kill`` on the main thread in the middle of ``execute``, and SIGKILL follows 5 s later. Locks that the
interrupted code holds stay held: a handler that logs may wait for ever for the log line that it interrupted, and so may
one that talks to Airflow. So it uses what is known already and a client of its own, sends, and leaves a mark. What it
does runs in a thread, as nothing else bounds a name that does not resolve.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.client import RayJobsClient

# Seconds that the handler takes at most, and that each of its two requests may take to connect and to be answered.
_LONGEST = 3.0
_TIMEOUTS = (1.0, 0.5)


class KillSwitch:
    """What a task's ``on_kill`` and its ``execute`` know of each other."""

    def __init__(self) -> None:
        # whether the task obeys at all (``stop_on_kill``)
        self.is_enabled = True
        # what the handler did, for the log of whoever may write one
        self.summary = ""
        self._is_marked = False
        self._connect: Callable[[], RayJobsClient] | None = None
        self._submission_id = ""

    @property
    def is_triggered(self) -> bool:
        """Tell whether Airflow wants the task to end, and the task obeys."""
        return self._is_marked and self.is_enabled

    def arm(self, connect: Callable[[], RayJobsClient], submission_id: str) -> None:
        """
        Say which job dies with the task from now on.

        :param connect: makes a client without asking Airflow for anything.
        """
        self._submission_id = submission_id
        self._connect = connect

    def disarm(self) -> None:
        """Say that the job is over, or somebody else's concern."""
        self._connect = None

    def kill(self) -> None:
        """Leave the mark, and stop the job if there is one; for a signal handler."""
        self._is_marked = True
        if self.is_enabled and self._connect is not None:
            stop = threading.Thread(target=self._stop, args=(self._connect,), daemon=True)
            with _silence():
                stop.start()
                stop.join(_LONGEST)

    def _stop(self, connect: Callable[[], RayJobsClient]) -> None:
        self.summary = _stop_at_once(connect, self._submission_id)


def _stop_at_once(connect: Callable[[], RayJobsClient], submission_id: str) -> str:
    summary = ""
    for timeout in _TIMEOUTS:
        try:
            with connect() as client:
                is_taken = client.send(replace(endpoints.stop_job(submission_id), timeout=timeout))
        except RayJobNotFoundError:
            return f"The cluster does not know job {submission_id} yet, or not any more."
        except RayJobsError as error:
            summary = f"Job {submission_id} may not have been asked to stop: {error}"
        else:
            return f"Job {submission_id} was asked to stop." if is_taken else f"Job {submission_id} had ended already."
    return summary


@contextmanager
def _silence() -> Iterator[None]:
    """Keep everything from logging, httpx too: the interrupted code may hold the lock of the log."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
