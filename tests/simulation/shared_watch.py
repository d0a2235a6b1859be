"""
Histories of many triggers that share the watch of one cluster: they join, leave and fail in every order.

A history has a triggerer and up to 60 followed jobs. Each trigger joins at some time, has an interval and limits of its
own, and may be cancelled or killed. Requests fail, and the head may be away, restart or lose records.

What must hold:

1. A trigger that is not cancelled fires one event; its job is the trigger's own, with the status that it really has.
2. Without a cause of its own, no trigger fires an error: no limit, no lost job, no outage longer than its timeout.
3. It fires soon after its job's end or limit, as soon as the head can be reached.
4. When the last trigger has left, its client is closed, and no task is left on the event loop.
"""

from __future__ import annotations

import asyncio
import gc
import random
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.jobs.logs.options import LogOptions

from . import virtual_time
from .airflow import Airflow
from .clock import Clock, Process, VirtualLoop, current_thread
from .network import LOST, Network
from .ray import Cluster, Job, Plan

HOST = "ray-head"
UNREACHABLE = 300.0
# Seconds from the end of a job, or of an outage, to the event: the longest backoff, its jitter, a request that hangs
# before it, and the budget after a round in which each request was slow.
LATE = 200.0
# Seconds after which a history has an endless loop.
_END = 5_000.0


@dataclass
class Watcher:
    """A trigger, and what happened to it."""

    name: str
    job: Job | None
    arguments: dict[str, Any]
    joins_at: float
    leaves_at: float = float("inf")
    is_killed: bool = False
    events: list[Any] = field(default_factory=list)
    fired_at: float | None = None
    was_cancelled: bool = False


class WatchHistory:
    """A history of one seed. It is the script of the simulated network, too."""

    def __init__(self, seed: int, *, is_verbose: bool = False) -> None:
        self.rng = random.Random(seed)  # noqa: S311  (no secret)
        self.violations: list[str] = []
        self.journal: list[str] = []
        self.clock = Clock()
        self.plans: list[Plan] = []
        self.cluster = Cluster(self.clock, "one", lambda _: self.plans.pop(), self._note_job)
        self.network = Network(self.clock, self)
        self.network.clusters = {HOST: self.cluster}
        self.airflow = Airflow(self.clock, self, self.rng, lambda: None)
        self.airflow.connections["ray"] = {"conn_type": "ray_jobs", "host": f"http://{HOST}:8265"}
        self.watchers: list[Watcher] = []
        # how many requests fail, of a hundred
        self.failing = self.rng.choice((0, 0, 2, 10))
        # when the head could not be reached, or a request failed, last
        self.disturbed_at = 0.0
        self.has_restarted = False
        self._is_verbose = is_verbose

    # -- the script of the network ---------------------------------------------------------------------------------

    def begin(self, process: Process, label: str) -> tuple[str, str | None]:
        fault = (
            self.rng.choice(LOST) if label in ("status", "list") and self.rng.random() * 100 < self.failing else None
        )
        if fault is not None or self.clock.now < self.network.outage_until or not self.cluster.is_up:
            self.disturbed_at = self.clock.now
            self.note(f"fault of {label}: {fault}")
        return label, fault

    def end(self, process: Process, key: str) -> None:
        process.check()

    def saw(self, job: Job) -> None:
        job.seen_at = self.clock.now

    def note(self, text: str) -> None:
        if self._is_verbose:
            self.journal.append(f"{self.clock.now:9.3f}  {text}")

    def _note_job(self, event: str, job: Job) -> None:
        self.note(f"ray: {job.name} {event}")

    # -- the history -----------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run the history, and return what did not hold."""
        gc.disable()
        try:
            with virtual_time.entered(self.clock, self.network, self.airflow, self.rng):
                self._run()
        finally:
            gc.enable()
        return self.violations

    def _run(self) -> None:
        for number in range(self.rng.choice((1, 2, 3, 8, 60))):
            self._add_watcher(number)
        self._plan_disasters()
        process = Process(self.clock, "triggerer")
        process.start(self._run_triggerer)
        while process.is_alive and self.clock.now < _END and self.clock.step():
            pass
        if process.is_alive:
            self.violations.append("endless: the triggerer does not end")
            process.kill()
            while any(not thread.is_over for thread in process.threads) and self.clock.step():
                pass

    def _add_watcher(self, number: int) -> None:
        rng = self.rng
        joins_at = rng.uniform(0, rng.choice((1, 60)))
        arguments: dict[str, Any] = {
            "poll_interval": rng.choice((1.0, 5.0, 5.0, 5.0, 20.0)),
            "unreachable_timeout": UNREACHABLE,
            "stop_on_kill": True,
            "logs": LogOptions().to_json() if rng.random() < 0.3 else None,
        }
        job: Job | None = None
        name = f"job-{number}"
        kind = rng.random()
        if kind < 0.9:
            plan = Plan(pending=rng.uniform(0, 5), runs=rng.uniform(0, 90), exit_code=rng.choice((0, 0, 3)))
            metadata = {"submission_nonce": name}
            job = self.cluster.submit({"submission_id": name, "metadata": metadata}, plan)
            nonce = name if kind < 0.85 else "another submission"
            arguments["job_ref"] = {"address": f"http://{HOST}:8265", "submission_id": name, "nonce": nonce}
            if kind < 0.15:
                arguments["limits"] = {"job_timeout": rng.uniform(5, 60)}
            elif kind < 0.25:
                arguments["execution_deadline"] = self.clock.time() + joins_at + rng.uniform(0, 60)
        watcher = Watcher(name, job, arguments, joins_at)
        if rng.random() < 0.25:
            watcher.leaves_at = joins_at + rng.choice((0.0, 1.0, 60.0)) * rng.random()
            watcher.is_killed = rng.random() < 0.3
        self.watchers.append(watcher)

    def _plan_disasters(self) -> None:
        for _ in range(self.rng.choice((0, 0, 1, 2))):
            at, what = self.rng.uniform(0, 90), self.rng.choice((self._cut, self._cut, self._restart))
            self.clock.call_later(at, what)

    def _cut(self) -> None:
        self.network.outage = self.rng.choice(("refused", "502 of an ingress", "401 of an ingress", "request lost"))
        self.network.outage_until = self.clock.now + self.rng.uniform(1, 90)
        self.note(f"network: {self.network.outage} until {self.network.outage_until:.0f}")

    def _restart(self) -> None:
        self.has_restarted = True
        self.cluster.go_down()
        self.clock.call_later(self.rng.uniform(0, 20), self.cluster.come_up)

    # -- the triggerer ---------------------------------------------------------------------------------------------

    def _run_triggerer(self) -> None:
        loop = VirtualLoop(current_thread())
        try:
            loop.run_until_complete(self._follow_all())
        finally:
            loop.close()

    async def _follow_all(self) -> None:
        await asyncio.gather(*(self._follow(each) for each in self.watchers))
        await asyncio.sleep(1)
        if triggers._shared.get(asyncio.get_running_loop()):
            self.violations.append("shared: a client is open after the last trigger has left")
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            self.violations.append(f"tasks: {len(left)} are left: {left}")
        for each in self.watchers:
            self._check(each)

    async def _follow(self, watcher: Watcher) -> None:
        await asyncio.sleep(watcher.joins_at)
        self.note(f"{watcher.name} joins")
        trigger = triggers.RayJobTrigger(watcher.name, "ray", **watcher.arguments)
        trigger.task_instance = None

        async def fire() -> None:
            async for event in trigger.run():
                watcher.events.append(event.payload)
                watcher.fired_at = self.clock.now
                self.note(f"{watcher.name} fires {event.payload}")

        task = asyncio.create_task(fire())
        await asyncio.wait(
            [task], timeout=max(watcher.leaves_at - self.clock.now, 0) if watcher.leaves_at < _END else None
        )
        if not task.done():
            self.note(f"{watcher.name} leaves")
            watcher.was_cancelled = True
            task.cancel()
            await asyncio.wait([task])
            if watcher.is_killed:
                await trigger.on_kill()
        elif task.cancelled():
            self.violations.append(f"cancelled: {watcher.name} ended without a reason")
        elif task.exception() is not None:
            self.violations.append(f"raised: {watcher.name}: {task.exception()!r}")

    # -- what must hold --------------------------------------------------------------------------------------------

    def _check(self, watcher: Watcher) -> None:
        job, name = watcher.job, watcher.name
        if watcher.was_cancelled:
            return
        if len(watcher.events) != 1:
            self.violations.append(f"events: {name} fired {len(watcher.events)} events")
            return
        [event] = watcher.events
        error = event.get("error")
        has_limit = "limits" in watcher.arguments or "execution_deadline" in watcher.arguments
        is_other = job is None or watcher.arguments["job_ref"]["nonce"] != name
        if error is None:
            if job is None or is_other:
                self.violations.append(f"identity: {name} fired the job of another submission: {event}")
            elif event["job"]["submission_id"] != name or event["job"]["status"] != job.status:
                self.violations.append(f"status: {name} fired {event['job']}, but its job is {job.status}")
        elif error == "RayJobTimeoutError":
            if not has_limit:
                self.violations.append(f"limit: {name} has none: {event['message']}")
        elif error in ("RayJobLostError", "RayJobNotFoundError"):
            if not (self.has_restarted or is_other):
                self.violations.append(f"lost: {name}: {event['message']}")
        else:
            self.violations.append(f"error: {name} fired {error}: {event['message']}")
        self._check_time(watcher)

    def _check_time(self, watcher: Watcher) -> None:
        job = watcher.job
        ended = 0.0 if job is None or job.end_time is None else job.end_time
        since = max(watcher.joins_at + triggers.MIN_DEFERRAL, ended, self.disturbed_at, self.network.outage_until)
        if watcher.fired_at is not None and watcher.fired_at > since + LATE:
            self.violations.append(f"late: {watcher.name} fired {watcher.fired_at - since:.0f} s late")
