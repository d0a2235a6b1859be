"""An event loop without files on a clock of its own: it never waits, and every sleep ends exactly on time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector:
    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing is left that could happen"
        self._loop.now += timeout
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._selector = _Selector(self)

    def time(self) -> float:
        return self.now

    def _process_events(self, event_list: Any) -> None:
        pass


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time. Every task must have ended with it."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(main)
        assert [task for task in asyncio.all_tasks(loop) if not task.done()] == []
        return result
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
