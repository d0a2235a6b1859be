"""A trigger that measures the delay of its triggerer's event loop. The triggerer imports it from this module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from benchmarks.event_loop_delay import measure_event_loop_delay


class DelayProbeTrigger(BaseTrigger):
    """Measure for ``seconds`` and yield the result of :func:`measure_event_loop_delay`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.delay_probe.DelayProbeTrigger", {"seconds": self.seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(await measure_event_loop_delay(self.seconds))


class DelayProbe(BaseOperator):
    """Defer to :class:`DelayProbeTrigger` and return its result."""

    def __init__(self, *, seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seconds = seconds

    def execute(self, context: Context) -> None:  # noqa: ARG002  (Airflow's signature)
        self.defer(trigger=DelayProbeTrigger(self.seconds), method_name="resume")

    def resume(self, context: Context, event: dict[str, float]) -> dict[str, float]:  # noqa: ARG002  (as above)
        return event
