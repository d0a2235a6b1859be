"""The errors are public API: they travel, and their tree is the first thing to read."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from airflow_provider_rayjobs import exceptions
from airflow_provider_rayjobs.exceptions import (
    RayApiConnectionError,
    RayApiResponseError,
    RayJobsError,
    RayJobTimeoutError,
    RayJobUnsuccessfulError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType

CLASSES = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, Exception)]
DETAILS = JobDetails(JobType.SUBMISSION, JobStatus("NEW"), submission_id="a", runtime_env={"pip": ["b"]})


def attributes_of(kind: type[Exception]) -> dict[str, object]:
    if issubclass(kind, RayApiConnectionError):
        return {"sent": False}
    if issubclass(kind, RayApiResponseError):
        return {"status_code": 418}
    if issubclass(kind, RayJobTimeoutError):
        return {"limit": "job_timeout", "details": DETAILS}
    return {"details": DETAILS, "last_lines": ("one", "two")} if issubclass(kind, RayJobUnsuccessfulError) else {}


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_pickle(kind: type[Exception]) -> None:
    """Every error comes out of a pickle with its class, its text and its attributes."""
    error = kind("what happened", **attributes_of(kind))

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert str(again) == "what happened"
    assert vars(again) == vars(error) == attributes_of(kind)


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_need_a_text_only(kind: type[Exception]) -> None:
    """Every error can be made of its text alone, as it is where only an event came back from a trigger."""
    error = kind("what happened")

    assert isinstance(error, exceptions.RayJobsError)
    assert str(error) == "what happened"


def test_tree_of_errors() -> None:
    """The tree in the module's docstring shows every error, below the class that it is one of."""
    documented = {}
    above: list[str] = []
    for line in str(exceptions.__doc__).splitlines():
        if found := re.match(r"    ([│├└─ ]*)(Ray\w+)", line):
            above[len(found[1]) // 4 :] = [found[2]]
            documented[found[2]] = above[-2] if len(above) > 1 else "Exception"

    assert documented == {kind.__name__: kind.__base__.__name__ for kind in CLASSES}


def test_a_repeated_request_is_remembered() -> None:
    """Whether the request of an error was sent before is known after a pickle, too; unless it is said it was not."""
    error = RayJobsError("what happened")
    assert error.was_retried is False

    error.was_retried = True
    assert pickle.loads(pickle.dumps(error)).was_retried is True


def test_every_error_has_a_line_of_its_own() -> None:
    """Every error says in its docstring what happened, and the tree says it in other words beside its name."""
    assert all(kind.__doc__ for kind in CLASSES)
    assert all(
        re.search(rf"{kind.__name__} {{2,}}\S", str(exceptions.__doc__)) for kind in CLASSES if kind is not RayJobsError
    )
