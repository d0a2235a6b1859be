"""The fake cluster as a test sees it: it takes the place of the network in this process."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any, Self
from unittest import mock
from urllib.parse import unquote

import httpx

from airflow_provider_rayjobs.jobs import exchange
from airflow_provider_rayjobs.testing.clock import Clock
from airflow_provider_rayjobs.testing.cluster import TERMINAL, Cluster, Job, Plan, Reply

# Seconds that pass between two looks at a job that would not change, so that its time limits expire.
_DAY = 86_400.0
# The key in the metadata of a task's job. Tasks have time limits for such jobs only.
_TASK_ID = "airflow_task_id"


class FakeRay:
    """
    A Ray cluster in this process. While it is entered, all requests of this package go to it, whatever their address.

    The real client, operators and triggers send the requests, and the cluster answers as Ray 2.60 does. Time passes
    between requests only. A task sees its job just before each change, so that its time limits expire. At the next look
    at another job its plan has come true. If the plan has no end, a day has passed.

    :param address: the address of the connections that lead here. It matters only if there are several clusters.
    :ivar default_plan: of each job for which :meth:`plan` gave none.
    :ivar requests: method and path of each request.
    :ivar on_request: called with them. Its :class:`.Reply` is the answer, ``None`` leaves that to the cluster, and an
        exception is a lost connection.
    """

    def __init__(self, address: str = "http://fake-ray:8265") -> None:
        self.address = address
        self.default_plan = Plan()
        self.requests: list[str] = []
        self.on_request: Callable[[str, str], Reply | None] = lambda *_: None
        self._plans: dict[str, list[Plan]] = {}
        self._clock = Clock(int(time.time()))
        self._cluster = Cluster(self._clock, "fake", self._next_plan)
        # whether no time passes before the next look
        self._is_still = False
        self._cleanup = ExitStack()
        # the transport of a cluster that was entered before
        self._outer: httpx.MockTransport | None = None

    def __enter__(self) -> Self:
        # Imported here, because it imports Airflow.
        from airflow_provider_rayjobs import triggers  # noqa: PLC0415

        outer = exchange.process_transport
        self._outer = outer if isinstance(outer, httpx.MockTransport) else None
        _entered[self] = self._cleanup
        transport = httpx.MockTransport(self._answer)
        self._cleanup.enter_context(mock.patch.object(exchange, "process_transport", transport))
        # dag.test() has no scheduler that would have to notice the end of a process
        self._cleanup.enter_context(mock.patch.object(triggers, "MIN_DEFERRAL", 0.0))
        self.connect("ray_jobs_default")
        return self

    def __exit__(self, *_: object) -> None:
        was_before_others = self in [*_entered][:-1]
        while self in _entered:  # also those entered later, as each of them restores what it found
            _entered.popitem()[1].close()
        if was_before_others:
            raise RuntimeError(f"FakeRay {self.address} was left before others that were entered later. All are left.")

    def connect(self, *conn_ids: str) -> None:
        """Define connections that lead to this cluster; ``ray_jobs_default`` does so already."""
        if self not in _entered:
            raise RuntimeError(f"FakeRay {self.address} is not entered. Call connect() in its with block.")
        for conn_id in conn_ids:
            name = f"AIRFLOW_CONN_{conn_id.upper()}"
            self._cleanup.callback(_set_variable, name, os.environ.get(name))
            _set_variable(name, json.dumps({"conn_type": "ray_jobs", "host": self.address}))

    # -- what the jobs do ------------------------------------------------------------------------------------------

    def plan(self, task_id: str, *plans: Plan) -> None:
        """Plan the first, second, ... job of a task; the last plan counts for all later ones."""
        self._plans[task_id] = list(plans)

    def _next_plan(self, submission: Mapping[str, Any]) -> Plan:
        task_id = (submission.get("metadata") or {}).get(_TASK_ID, "")
        plans = self._plans.get(task_id) or [self.default_plan]
        return plans.pop(0) if len(plans) > 1 else plans[0]

    def submit(self, submission_id: str, plan: Plan | None = None, **submission: Any) -> Job:
        """Submit a job as another user does, e.g. one that a sensor waits for."""
        return self._cluster.submit({"submission_id": submission_id, "entrypoint": "true"} | submission, plan)

    def stop(self, job: Job) -> None:
        """Stop a job as another user does."""
        self._cluster.stop(job)

    def restart(self) -> None:
        """Restart the head, which loses all its jobs and packages."""
        self._cluster.restart()

    # -- what happened ---------------------------------------------------------------------------------------------

    @property
    def jobs(self) -> list[Job]:
        """All jobs in the order of their submission."""
        return [*self._cluster.every_job]

    def jobs_of(self, task_id: str) -> list[Job]:
        """Return the jobs of a task in the order of their submission."""
        return [job for job in self.jobs if job.metadata.get(_TASK_ID) == task_id]

    @property
    def packages(self) -> dict[str, bytes]:
        """The uploaded packages, zip files by their name."""
        return self._cluster.packages

    # -- the transport ---------------------------------------------------------------------------------------------

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if self._outer is not None and not str(request.url).startswith(self.address):
            return self._outer.handle_request(request)
        # the address of a connection may have a path of its own
        path = "/api/" + request.url.raw_path.decode().partition("?")[0].partition("/api/")[2]
        self.requests.append(f"{request.method} {path}")
        reply = self.on_request(request.method, path)
        if reply is None:
            if request.method == "GET" and path.startswith("/api/jobs/"):
                self._let_time_pass(unquote(path.removeprefix("/api/jobs/")))
            reply = self._cluster.handle(request.method, path, dict(request.url.params), request.content)
            if path.endswith("/stop"):  # a PENDING job that is still there after it counts as stopped
                job = self._cluster.find(unquote(path.removeprefix("/api/jobs/").removesuffix("/stop")))
                self._is_still = job is not None and job.status == "PENDING"
        headers = {"content-type": reply.content_type, "date": formatdate(self._clock.time(), usegmt=True)}
        return httpx.Response(reply.status, headers=headers, content=reply.body)

    def _let_time_pass(self, submission_id: str) -> None:
        clock, job = self._clock, self._cluster.find(submission_id)
        may_expire = job is not None and _TASK_ID in job.metadata
        # the changes of the next second, as the head tells full seconds
        ahead = (0.0 if self._is_still else 1.0) if may_expire else math.inf
        has_changed = False
        while (when := clock.next_at()) < math.inf and when <= clock.now + ahead:
            has_changed = clock.step()
        is_still, self._is_still = self._is_still, False
        if is_still or job is None or job.status in TERMINAL:
            return
        if when < math.inf:
            clock.now = math.ceil(when) - 1.0
            self._is_still = True  # a task whose time limit has expired looks at its job before it stops it
        elif not has_changed:
            clock.now += _DAY


# the clusters that are entered, in their order, and what restores the process
_entered: dict[FakeRay, ExitStack] = {}


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
