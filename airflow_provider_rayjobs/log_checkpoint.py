"""
The checkpoint of a trigger's log offset: an XCom of the task, which outlives the triggerer.

A trigger's event carries its log offset to the worker. A lost triggerer sends no event, and the next one starts the
trigger again with the offset of the deferral. So a trigger stores its offset before its first turn and after each turn.
That may take seconds, as an XCom passes through the triggerer's supervisor into Airflow's database. Only the log waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from airflow.sdk.bases.xcom import BaseXCom

from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.log_budget import BudgetShare, LogBudget

KEY = "ray_job_log"
# XComs per second of all triggers of a triggerer together.
RATE = 4.0
# Seconds after a deferral in which its trigger can only start for the first time, without a checkpoint. A triggerer
# starts new triggers within a second, and those of a lost triggerer after 30 s.
_FIRST_RUN = 8.0
# Seconds for the lookup of a checkpoint after the job's end. A busy triggerer took 21 s for its first XCom.
_LOOKUP_TIMEOUT = 60.0
# Unix seconds; about the start of the process.
_STARTED_AT = time.time()
# Airflow before 3.3 has no XComs for an event loop.
_HAS_XCOMS = hasattr(BaseXCom, "aset")

# earliest time of the next XCom, on the event loop's clock
_next_write = 0.0


class CheckpointedShare(BudgetShare):
    """
    A share of the log budget that gets a turn only after the offset of its last turn is stored.

    :param task_instance: of the trigger; without one no checkpoint is stored.
    :param deferred_at: when the task was deferred, Unix seconds.
    :param warn: called with a message and its arguments if an earlier triggerer was lost.
    """

    def __init__(
        self,
        budget: LogBudget,
        task_instance: Any,
        submission_id: str,
        deferred_at: float | None,
        warn: Callable[..., object],
    ) -> None:
        super().__init__(budget)
        self._submission_id = submission_id
        self._warn = warn
        self._xcom: dict[str, Any] = {}
        if _HAS_XCOMS and task_instance is not None:
            self._try_number = task_instance.try_number
            self._xcom = {
                "key": KEY,
                "dag_id": task_instance.dag_id,
                "run_id": task_instance.run_id,
                "task_id": task_instance.task_id,
                "map_index": -1 if task_instance.map_index is None else task_instance.map_index,
            }
        # without XComs there is no checkpoint to wait for
        self._has_checkpoint = not self._xcom
        self._has_shown = False
        self._has_warned = False
        self._reader: LogReader | None = None
        # looks a checkpoint up or stores one; the log waits meanwhile
        self._work: asyncio.Future[None] | None = None
        # A triggerer that started after the deferral may continue the trigger of another one.
        is_first_run = deferred_at is not None and deferred_at > _STARTED_AT and time.time() - deferred_at < _FIRST_RUN
        self._has_lookup = bool(self._xcom) and not is_first_run

    def begin(self, now: float) -> bool:
        self._has_shown = False
        return not self._is_working and super().begin(now)

    def take(self, record: bytes) -> bool:
        if not self._has_checkpoint:
            self._store_soon()
            return False
        is_taken = super().take(record)
        self._has_shown = self._has_shown or is_taken
        return is_taken

    def end(self, *, is_throttled: bool) -> None:
        # other triggers do not wait for one that waits for its first checkpoint
        super().end(is_throttled=is_throttled and self._has_checkpoint)
        if self._has_shown and self._xcom:
            self._store_soon()

    @asynccontextmanager
    async def following(self, reader: LogReader) -> AsyncIterator[None]:
        """Restore the checkpoint of a lost triggerer into a reader, and store the reader's offset between turns."""
        self._reader = reader
        restoring: list[asyncio.Future[None]] = []
        if self._has_lookup:
            self._work = asyncio.ensure_future(self._restore(reader))
            restoring = [self._work]
        try:
            try:
                yield
            except Exception:
                await self._wait_for(restoring)
                raise
            # The job may end before the lookup. The worker continues at the offset that the lookup finds.
            await self._wait_for(restoring)
        finally:
            self._reader = None
            if self._work is not None:
                self._work.cancel()
                await asyncio.gather(self._work, return_exceptions=True)
            self.leave()

    @staticmethod
    async def _wait_for(restoring: list[asyncio.Future[None]]) -> None:
        if restoring:
            await asyncio.wait(restoring, timeout=_LOOKUP_TIMEOUT)

    @property
    def _is_working(self) -> bool:
        return self._work is not None and not self._work.done()

    def _store_soon(self) -> None:
        if self._reader is not None and not self._is_working:
            self._work = asyncio.ensure_future(self._store_offset(self._reader))

    async def _store_offset(self, reader: LogReader) -> None:
        await _next_slot()
        value = {"version": 1, "job": self._submission_id, "try_number": self._try_number, "log": reader.state}
        try:
            await BaseXCom.aset(value=value, **self._xcom)
        except Exception as error:  # noqa: BLE001  (a later checkpoint replaces a failed one)
            if not self._has_warned:
                self._has_warned = True
                self._warn(
                    "The log offset of job %s cannot be stored. If this triggerer is lost, lines may be repeated. %s",
                    self._submission_id,
                    error,
                )
        self._has_checkpoint = True

    async def _restore(self, reader: LogReader) -> None:
        found: Any = None
        try:
            # not through the user's XCom backend, which may block the event loop
            found = await BaseXCom.aget_one(**self._xcom)
        except Exception as error:  # noqa: BLE001  (no line is lost)
            self._warn("The log offset of job %s cannot be read. Lines may be repeated. %s", self._submission_id, error)
        this = (self._submission_id, self._try_number)
        if isinstance(found, dict) and (found.get("job"), found.get("try_number")) == this:
            reader.restore(found.get("log"))
            self._has_checkpoint = True
            self._warn(
                "The triggerer that followed job %s was lost. The first %d bytes of the job's log were shown before, "
                "some of them in that triggerer's own log file. The last lines of them may be repeated here.",
                self._submission_id,
                reader.log.offset,
            )


async def _next_slot() -> None:
    """Wait until one more XCom may be written."""
    global _next_write  # noqa: PLW0603  (all triggers of this process share one supervisor)
    now = asyncio.get_running_loop().time()
    slot = max(now, _next_write)
    _next_write = slot + 1 / RATE
    await asyncio.sleep(slot - now)
