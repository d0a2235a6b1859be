"""
Many histories: all with one fault at an operation, then random walks.

A walk begins with one fault. Each step adds a fault at an operation or a time of the history before, so that faults
strike what earlier faults have brought about: the second submission, the stop after a kill. Each step is a history.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, product
from multiprocessing import get_context

from . import network
from .airflow import FAILS, FAILS_AFTER
from .history import Fault, History, Report
from .scenarios import SCENARIOS

# What may happen in the world at any moment.
EVENTS = (
    "die", "machine lost", "clear", "mark failed", "mark success", "sigterm", "freeze 20", "freeze 400",
    "airflow fails the try",
    "triggerer dies", "triggerer restarts", "head restarts", "head restarts and the id is taken", "network down 30",
    "network down 150", "gateway errors 20", "connection unreadable 10", "connection unreadable 90",
    "api server down 10", "api server down 40",
    "connection names an alias", "connection names another cluster", "record deleted",
    "record deleted and comes back", "job stopped by hand",
)  # fmt: skip
# Those of them that are tried at each operation, before and after it.
_CRASHES = (
    "die", "clear", "mark failed", "sigterm", "airflow fails the try", "head restarts and the id is taken"
)  # fmt: skip
# Faults of a request that leave its process waiting.
_WAITS = ("request lost", "answer late", "slow", "slow both ways")
_MAX_FAULTS = 4
# Operations that are close to another one.
_NEAR = 4


@dataclass(frozen=True)
class Case:
    """The complete description of a history."""

    scenario: str
    faults: tuple[Fault, ...]
    seed: int = 0

    def run(self, *, is_verbose: bool = False) -> Report:
        return History(SCENARIOS[self.scenario], self.faults, self.seed, is_verbose=is_verbose).run()

    def __str__(self) -> str:
        return " | ".join([self.scenario, str(self.seed), *map(str, self.faults)])

    @classmethod
    def parse(cls, text: str) -> Case:
        scenario, seed, *faults = text.split(" | ")
        return cls(scenario, tuple(map(Fault.parse, faults)), int(seed))


@dataclass
class Finding:
    """A violation, and the case that shows it."""

    case: Case
    violations: list[str]
    after: int

    @property
    def kind(self) -> tuple[str, ...]:
        """What tells findings apart: the invariant, and what the faults do."""
        return (self.violations[0].partition(":")[0], *sorted(fault.what for fault in self.case.faults))


@dataclass
class Tally:
    """The result of a part of a campaign."""

    histories: int = 0
    operations: int = 0
    findings: list[Finding] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)

    def add(self, case: Case, report: Report) -> None:
        self.histories += 1
        self.operations += len(report.operations)
        for tag in report.tags:
            self.tags[tag] = self.tags.get(tag, 0) + 1
        if report.violations:
            self.findings.append(Finding(case, report.violations, self.histories))

    def merge(self, other: Tally) -> None:
        for finding in other.findings:
            finding.after += self.histories
        self.histories += other.histories
        self.operations += other.operations
        self.findings += other.findings
        for tag, count in other.tags.items():
            self.tags[tag] = self.tags.get(tag, 0) + count


def faults_of(operation: str) -> Sequence[str]:
    """Return the faults of an operation itself."""
    label = operation.partition(" ")[2].partition("#")[0]
    if label.startswith(("store ", "xcom ")):
        return (FAILS, FAILS_AFTER)
    if label in ("lookup", "post_execute", "start", "report", "defer", "states"):
        return (FAILS,)
    if label == "log":  # a log may have any text, so nobody can tell that of a gateway
        return [fault for fault in network.FAULTS if "200 of a gateway" not in fault]
    return () if label == "event" else network.FAULTS


@cache
def without_faults(scenario: str) -> Report:
    """Return the history of a scenario without faults."""
    return Case(scenario, ()).run()


def single_faults(scenario: str) -> Iterator[Case]:
    """Yield the histories with one fault at each operation: of those of a kind, the first two and the last."""
    operations = without_faults(scenario).operations
    last = {operation.partition("#")[0]: operation for operation in operations}
    for operation in operations:
        name, _, number = operation.partition("#")
        if int(number) > 2 and operation != last[name]:
            continue
        for what in _CRASHES:
            yield Case(scenario, (Fault(f"{operation} before", what),))
            yield Case(scenario, (Fault(f"{operation} after", what),))
        for what in faults_of(operation):
            yield Case(scenario, (Fault(operation, what),))


def kills_of_submissions(scenario: str) -> Iterator[Case]:
    """Yield the histories in which a kill meets a submission that takes long."""
    report = without_faults(scenario)
    for operation, began in zip(report.operations, report.times, strict=True):
        if operation != "worker submit#1":
            continue
        kills = product(_WAITS, ("sigterm", "mark failed", "clear", "die"), (0.2, 0.8, 1.4))
        # each has a seed of its own, because a seed says when the process learns of the kill
        for seed, (fault, what, delay) in enumerate(kills, start=1000 * [*SCENARIOS].index(scenario)):
            yield Case(scenario, (Fault(operation, fault), Fault(f"{began + delay:.3f}", what)), seed)


def walk(seed: int) -> Iterator[tuple[Case, Report]]:
    """Run a random walk, and yield each history of it."""
    rng = random.Random(seed)  # noqa: S311  (no secret)
    scenario = rng.choice(list(SCENARIOS))
    report = without_faults(scenario)
    faults: tuple[Fault, ...] = ()
    near: int | None = None
    for _ in range(rng.randint(1, _MAX_FAULTS)):
        fault, near = _random_fault(rng, report, near)
        faults = (*faults, fault)
        case = Case(scenario, faults, seed)
        report = case.run()
        yield case, report
        if report.violations or not report.operations:
            return


def _random_fault(rng: random.Random, report: Report, near: int | None) -> tuple[Fault, int]:
    """Return a fault and the index of its operation: in half of the cases one close to that of the last fault."""
    index = rng.randrange(len(report.operations))
    if near is not None and rng.random() < 0.5:
        index = min(max(near + rng.randint(-1, _NEAR), 0), len(report.operations) - 1)
    operation = report.operations[index]
    own = faults_of(operation)
    kind = rng.random()
    if kind < 0.3:
        delay = rng.choice((0.0, 0.1, 1.0, 3.0, 10.0, 60.0)) * rng.random()
        return Fault(f"{report.times[index] + delay:.3f}", rng.choice(EVENTS)), index
    if own and kind < 0.65:
        return Fault(operation, rng.choice(own)), index
    return Fault(f"{operation} {rng.choice(('before', 'after'))}", rng.choice(EVENTS)), index


def shrink(case: Case, kind: str) -> Case:
    """Drop faults one by one while the invariant is still violated."""
    for index in range(len(case.faults)):
        smaller = Case(case.scenario, (*case.faults[:index], *case.faults[index + 1 :]), case.seed)
        if any(violation.startswith(f"{kind}:") for violation in smaller.run().violations):
            return shrink(smaller, kind)
    return case


def run_scenario(scenario: str) -> Tally:
    """Run the enumerated histories of a scenario."""
    tally = Tally()
    for case in chain(single_faults(scenario), kills_of_submissions(scenario)):
        tally.add(case, case.run())
    return tally


def run_walks(seeds: range, deadline: float = float("inf")) -> Tally:
    """Run the walks of some seeds."""
    tally = Tally()
    for seed in seeds:
        for case, report in walk(seed):
            tally.add(case, report)
        if time.time() > deadline:
            break
    return tally


def run_campaign(
    histories: int, seed: int, processes: int = 2, *, enumerated: bool = True, seconds: float = float("inf")
) -> Tally:
    """
    Run at least that many histories in several processes.

    :param seed: of the first walk; later ones count up.
    :param seconds: after which no further walk begins.
    """
    tally = Tally()
    deadline = time.time() + seconds
    size = 200
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start) as pool:
        parts = list(pool.map(run_scenario, SCENARIOS)) if enumerated else []
        for part in parts:
            tally.merge(part)
        while tally.histories < histories and time.time() < deadline:
            count = max((histories - tally.histories) // (size * 2) + 1, processes)
            chunks = [range(seed + index * size, seed + (index + 1) * size) for index in range(count)]
            seed += count * size
            for part in pool.map(run_walks, chunks, [deadline] * count):
                tally.merge(part)
    return tally


def _start() -> None:
    sys.unraisablehook = lambda _: None  # dead processes leave coroutines behind
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
