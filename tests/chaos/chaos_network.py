"""The network between the tasks of one connection and the head."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from sandbox.fault_proxy import Fault, FaultProxy


class Network:
    """
    A proxy, and the faults that are planned for it.

    :param head: the address of the head.
    :param add_event: adds a line to the timelines of the runs that use the connection.
    """

    def __init__(self, head: str, rng: random.Random, add_event: Callable[[str], None]) -> None:
        self.proxy = FaultProxy(head, add_event)
        self.proxy.fault = self._choose_fault
        # whether the head is unreachable
        self.is_down = False
        self._rng = rng
        self._lock = threading.Lock()
        # fault, share of the requests, and end on the monotonic clock
        self._faults: list[tuple[Fault, float, float]] = []
        self._submission_faults: list[Fault] = []

    def add_fault(self, fault: Fault, share: float, seconds: float) -> None:
        """Apply a fault to a share of the requests, for some seconds."""
        with self._lock:
            self._faults.append((fault, share, time.monotonic() + seconds))

    def add_submission_fault(self, fault: Fault) -> None:
        """Apply a fault to the next submission."""
        with self._lock:
            self._submission_faults.append(fault)

    def _choose_fault(self, method: str, path: str, number: int) -> Fault:
        if self.is_down:
            return "drop"
        with self._lock:
            if method == "POST" and path == "/api/jobs/" and self._submission_faults:
                return self._submission_faults.pop()
            self._faults = [each for each in self._faults if each[2] > time.monotonic()]
            return next((fault for fault, share, _ in self._faults if self._rng.random() < share), None)
