"""
How far a trigger has shown its job's log, kept where it outlives the triggerer: in an XCom of the task.

Its event carries that to the worker. A triggerer that dies sends none, and the next one starts the trigger from its
arguments, which are as old as the deferral.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from airflow.sdk.bases.xcom import BaseXCom

from airflow_provider_rayjobs.jobs.logs.reader import LogReader

KEY = "ray_job_log"
# XComs a second that all triggers of a triggerer write together: each goes into Airflow's database.
RATE = 4.0
# Seconds between two looks at what a trigger has shown.
_PERIOD = 1.0
# Airflow before 3.3 has no XCom for an event loop.
_HAS_XCOMS = hasattr(BaseXCom, "aset")

_open: set[Bookmark] = set()


class Bookmark:
    """
    How far the log of one job was shown in one try of a task.

    :param task_instance: as Airflow gives it to a trigger; ``None`` for a trigger without a task, which keeps nothing.
    :param submission_id: of the job.
    """

    def __init__(self, task_instance: Any, submission_id: str) -> None:
        self.submission_id = submission_id
        self._try_number = getattr(task_instance, "try_number", None)
        self._place: dict[str, Any] | None = None
        if _HAS_XCOMS and task_instance is not None:
            self._place = {
                "key": KEY,
                "dag_id": task_instance.dag_id,
                "run_id": task_instance.run_id,
                "task_id": task_instance.task_id,
                "map_index": -1 if task_instance.map_index is None else task_instance.map_index,
            }

    async def recall(self) -> dict[str, Any] | None:
        """Return the state of a reader whose trigger was lost; ``None`` where there was none."""
        kept: Any = None
        if self._place is not None:
            with suppress(Exception):  # without it lines repeat, and nothing is lost
                # not through a backend of the user's, which may block the event loop
                kept = await BaseXCom.aget_one(**self._place)
        if not isinstance(kept, dict) or (kept.get("job"), kept.get("try_number")) != (
            self.submission_id,
            self._try_number,
        ):
            return None
        state: dict[str, Any] = kept["log"]
        return state

    async def keep(self, state: dict[str, Any]) -> None:
        """Keep the state of a reader."""
        if self._place is not None:
            with suppress(Exception):
                value = {"job": self.submission_id, "try_number": self._try_number, "log": state}
                await BaseXCom.aset(value=value, **self._place)

    @asynccontextmanager
    async def following(self, reader: LogReader) -> AsyncIterator[None]:
        """Keep the state of a reader whenever it has changed, in good time."""
        _open.add(self)
        keeping = asyncio.ensure_future(self._follow(reader))
        try:
            yield
        finally:
            _open.discard(self)
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    async def _follow(self, reader: LogReader) -> None:
        kept: dict[str, Any] | None = None
        while True:
            if (state := reader.state) != kept:
                await self.keep(state)
                kept = state
            await asyncio.sleep(max(_PERIOD, len(_open) / RATE))
