"""A trigger that does nothing but watch its triggerer's event loop; a module, as the triggerer has to import it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from benchmarks.lateness import lateness


class ProbeTrigger(BaseTrigger):
    """Yield how late the event loop was in so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.probe.ProbeTrigger", {"seconds": self.seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(await lateness(self.seconds))


class Probe(BaseOperator):
    """Defer to the probe and return what it found."""

    def __init__(self, *, seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seconds = seconds

    def execute(self, context: Context) -> None:  # noqa: ARG002  (Airflow's signature)
        self.defer(trigger=ProbeTrigger(self.seconds), method_name="resume")

    def resume(self, context: Context, event: dict[str, float]) -> dict[str, float]:  # noqa: ARG002  (as above)
        return event
