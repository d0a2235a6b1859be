"""Many triggers that share one watch end as their jobs do, in whatever order they join, leave and fail."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest

from airflow_provider_rayjobs.jobs import watch
from airflow_provider_rayjobs.jobs.job_ref import JobRef

from .shared_watch import WatchHistory

# Dead processes leave coroutines behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HISTORIES = int(os.environ.get("SIMULATED_WATCHES", "300"))


def test_histories() -> None:
    """No history of a fixed range of seeds breaks a promise."""
    found = {seed: violations for seed in range(HISTORIES) if (violations := WatchHistory(seed).run())}

    assert found == {}


def test_history_is_the_same_each_time() -> None:
    """A history depends on its seed alone."""
    first, second = (WatchHistory(7, is_verbose=True) for _ in range(2))
    first.run()
    second.run()

    assert first.journal == second.journal
    assert len(first.journal) > 10


def _leaving_ends_the_round() -> Any:
    ask = watch.ClusterWatch.ask

    async def ask_and_cancel(self: watch.ClusterWatch, *arguments: Any) -> Any:
        try:
            return await ask(self, *arguments)
        except asyncio.CancelledError:
            if self._round is not None:
                self._round.cancel()
            raise

    return mock.patch.object(watch.ClusterWatch, "ask", ask_and_cancel)


# The bug as a sentence, and the patch that puts it in.
BUGS: dict[str, Callable[[], Any]] = {
    "followers are not told of an outage": partial(mock.patch.object, watch, "_fail", lambda *_: None),
    "an answer about another submission counts": partial(mock.patch.object, JobRef, "is_same", return_value=True),
    "a follower that leaves ends the round of all": _leaving_ends_the_round,
}


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_found(bug: str) -> None:
    """A bug is found in far fewer histories than the test has."""
    with BUGS[bug]():
        assert any(WatchHistory(seed).run() for seed in range(HISTORIES // 3))
