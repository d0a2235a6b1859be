"""What happens to one run of a task, drawn at random."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from chaos_slots import Slot

# The faults of a proxy, see :data:`sandbox.fault_proxy.Fault`.
NETWORK_FAULTS: tuple[str | int, ...] = ("drop", "cut", "half", "delay", "drip", 502)
_KINDS = {
    "kill task": 4,
    "kill supervisor": 2,
    "clear": 4,
    "clear at the end": 2,
    "mark failed": 2,
    "mark success": 2,
    "stop job": 2,
    "network fault": 4,
    "submission fault": 3,
}
# Seconds that a job runs whose task is marked: it must not end before it is stopped.
_MARKED_SECONDS = 75.0


@dataclass(frozen=True)
class Action:
    """
    One action.

    :param at: seconds after the start of the run.
    :param delay: seconds between the start of a process and its kill, if it has to be waited for.
    :param fault: of the network, for some seconds, for a share of the requests.
    """

    kind: str
    at: float
    delay: float = 0.0
    fault: str | int = ""
    seconds: float = 0.0
    share: float = 0.0


@dataclass(frozen=True)
class Plan:
    """
    The configuration of a DAG run, and the actions during the run, in their order.

    :param lines: the lines that the job prints.
    :param pause: seconds after each line.
    """

    lines: int
    pause: float
    failing_tries: int
    unreachable_timeout: int
    dies_after_execute: bool
    actions: tuple[Action, ...] = field(default_factory=tuple)

    @property
    def conf(self) -> dict[str, Any]:
        """The configuration of the DAG run."""
        return {name: value for name, value in vars(self).items() if name != "actions"}


def new_plan(slot: Slot, rng: random.Random) -> Plan:
    """Draw a plan."""
    seconds = rng.uniform(5, 30)
    number = rng.choices((0, 1, 2, 3), (1, 4, 3, 1))[0]
    actions = [_new_action(kind, rng) for kind in rng.choices([*_KINDS], [*_KINDS.values()], k=number)]
    if any(action.kind.startswith("mark") for action in actions):
        seconds = _MARKED_SECONDS
    pause = rng.choice((0.2, 0.5, 1.0))
    return Plan(
        lines=round(seconds / pause),
        pause=pause,
        failing_tries=rng.choice((1, 1, 2, 0)) if slot.kind == "failing" else 0,
        unreachable_timeout=rng.choice((8, 60)),
        dies_after_execute=slot.retries > 0 and rng.random() < 0.1,
        actions=tuple(sorted(actions, key=lambda action: action.at)),
    )


def _new_action(kind: str, rng: random.Random) -> Action:
    at = rng.uniform(3, 45)
    if kind == "network fault":
        seconds, share = rng.uniform(3, 25), rng.choice((0.3, 0.6, 1.0))
        return Action(kind, rng.uniform(0, 30), fault=rng.choice(NETWORK_FAULTS), seconds=seconds, share=share)
    if kind == "submission fault":
        return Action(kind, 0, fault=rng.choice(NETWORK_FAULTS))
    return Action(kind, at, delay=rng.expovariate(1.0))
