"""
How far a trigger has shown its job's log, kept where it outlives the triggerer: in an XCom of the task.

Its event carries that to the worker. A triggerer that dies sends none, and the next one starts the trigger from its
arguments, which are as old as the deferral. Nobody waits for the XComs but the log: each goes through the triggerer's
supervisor into Airflow's database, which may take its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from airflow.sdk.bases.xcom import BaseXCom

from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.logs.trickle import BudgetShare

KEY = "ray_job_log"
# XComs a second that all triggers of a triggerer write together.
RATE = 4.0
# Seconds after its deferral within which a trigger is taken to be run for the first time, so that there is nothing to
# look up: a triggerer takes up new ones each second, and those of another one that is lost after 30 s.
_FIRST_RUN = 8.0
# Airflow before 3.3 has no XCom for an event loop.
_HAS_XCOMS = hasattr(BaseXCom, "aset")

# when the next XCom may be written, by the event loop's clock
_next_write = 0.0


class LogCheckpoint:
    """
    How far the log of one job was shown in one try of a task.

    :param task_instance: as Airflow gives it to a trigger; ``None`` for a trigger without a task, which keeps nothing.
    :param submission_id: of the job.
    :param deferred_at: when the task was deferred, Unix seconds.
    :param warn: told where a triggerer was lost: text, and what to fill in.
    """

    def __init__(
        self, task_instance: Any, submission_id: str, deferred_at: float | None, warn: Callable[..., object]
    ) -> None:
        self.submission_id = submission_id
        self._deferred_at = deferred_at
        self._warn = warn
        self._wanted = asyncio.Event()
        self._place: dict[str, Any] = {}
        if _HAS_XCOMS and task_instance is not None:
            self._try_number = task_instance.try_number
            self._place = {
                "key": KEY,
                "dag_id": task_instance.dag_id,
                "run_id": task_instance.run_id,
                "task_id": task_instance.task_id,
                "map_index": -1 if task_instance.map_index is None else task_instance.map_index,
            }

    @asynccontextmanager
    async def following(self, reader: LogReader, share: BudgetShare) -> AsyncIterator[None]:
        """Let a reader go on where a lost one has stopped, and keep how far it comes: between any two turns."""
        if not self._place:
            yield
            return
        share.keep_bookmark(self._wanted.set)
        is_first_run = self._deferred_at is not None and time.time() - self._deferred_at < _FIRST_RUN
        if not is_first_run:
            share.await_bookmark()
        keeping = asyncio.ensure_future(self._follow(reader, share, looks_up=not is_first_run))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _follow(self, reader: LogReader, share: BudgetShare, *, looks_up: bool) -> None:
        if looks_up:
            kept = await self.recall()
            if kept is not None:
                reader.restore(kept)
                self._warn(
                    "The triggerer that followed job %s was lost. What it showed of the job's log, %d bytes, is in its "
                    "own log file; what it showed last may stand here once more.",
                    self.submission_id,
                    reader.log.position,
                )
            share.bookmark_kept(is_marked=kept is not None)
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await _my_turn()
            await self.keep(reader.state)
            share.bookmark_kept()

    async def recall(self) -> dict[str, Any] | None:
        """Return the state of a reader whose trigger was lost; ``None`` where there was none."""
        kept: Any = None
        with suppress(Exception):  # without it lines repeat, and nothing is lost
            # not through a backend of the user's, which may block the event loop
            kept = await BaseXCom.aget_one(**self._place)
        is_mine = isinstance(kept, dict) and (kept.get("job"), kept.get("try_number")) == (
            self.submission_id,
            self._try_number,
        )
        return kept["log"] if is_mine else None

    async def keep(self, state: dict[str, Any]) -> None:
        """Keep the state of a reader."""
        value = {"job": self.submission_id, "try_number": self._try_number, "log": state}
        with suppress(Exception):
            await BaseXCom.aset(value=value, **self._place)


async def _my_turn() -> None:
    """Wait until one more XCom may be written."""
    global _next_write  # noqa: PLW0603  (one pipe for all triggers of this process)
    now = asyncio.get_running_loop().time()
    turn = max(now, _next_write)
    _next_write = turn + 1 / RATE
    await asyncio.sleep(turn - now)
