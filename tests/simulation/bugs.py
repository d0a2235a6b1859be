"""
Bugs that this package once had, put back one at a time: the simulation must find them.

Each bug changes one decision of the code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any
from unittest import mock

from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.logs.messages import MessageFilter
from airflow_provider_rayjobs.jobs.stop import stop_and_wait
from airflow_provider_rayjobs.task import attempts, kill_switch
from airflow_provider_rayjobs.task.execution import Execution

from .campaign import Case, Finding, kills_of_submissions, single_faults
from .scenarios import SCENARIOS


def _delivered_means_cleared() -> Any:
    decide = attempts._decide_known
    other = attempts.RetryGeneration(-1, "")

    def decide_known(record: Any, job: Any, this: Any) -> Any:
        return decide(replace(record, generation=other) if record.delivered else record, job, this)

    return mock.patch.object(attempts, "_decide_known", decide_known)


def _replaces_without_end() -> Any:
    stop = Execution._stop

    def stop_as_if_ended(execution: Execution) -> Any:
        return replace(stop(execution), has_ended=True)

    return mock.patch.object(Execution, "_stop", stop_as_if_ended)


# The bug as a sentence, and the patch that puts it back.
BUGS: dict[str, Callable[[], Any]] = {
    "a retry after a delivered result runs the job again": _delivered_means_cleared,
    "an answer about another job with the same id counts": partial(
        mock.patch.object, JobRef, "is_same", return_value=True
    ),
    "a try does not ask Airflow before it defers": partial(
        mock.patch.object, Execution, "_is_ended", return_value=False
    ),
    "a job is replaced although its end is not confirmed": _replaces_without_end,
    "a value of another job counts": partial(mock.patch.object, MessageFilter, "_is_ours", return_value=True),
    "a try that Airflow has failed stops the job of its successor": partial(
        mock.patch.object, Execution, "_was_superseded", return_value=False
    ),
    "a kill gives up if the submission has not arrived": lambda: mock.patch.object(
        kill_switch, "stop_and_wait", lambda job, timeout, **_: partial(stop_and_wait, is_brief=True)(job, timeout)
    ),
}


def enumerated(seed: int) -> Iterator[Case]:
    """Yield all enumerated histories of all scenarios in a random order."""
    cases = [case for name in SCENARIOS for case in chain(single_faults(name), kills_of_submissions(name))]
    random.Random(seed).shuffle(cases)  # noqa: S311  (no secret)
    yield from cases


def find(bug: str, seed: int = 0) -> Finding | None:
    """Put a bug back, and run enumerated histories until one violates an invariant."""
    with BUGS[bug]():
        for number, case in enumerate(enumerated(seed), start=1):
            report = case.run()
            if report.violations:
                return Finding(case, report.violations, number)
    return None
