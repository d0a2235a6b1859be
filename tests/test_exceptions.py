"""The errors are public API: they can be pickled, and the docstring shows their tree."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from airflow_provider_rayjobs import exceptions
from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiConnectionError,
    RayApiResponseError,
    RayJobFunctionError,
    RayJobResultError,
    RayJobsError,
    RayJobTimeoutError,
    RayJobUnsuccessfulError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType

CLASSES = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, Exception)]
DETAILS = JobDetails(JobType.SUBMISSION, JobStatus("NEW"), submission_id="a", runtime_env={"pip": ["b"]})


def attributes_of(kind: type[Exception]) -> dict[str, object]:
    if issubclass(kind, RayApiConnectionError):
        return {"delivery": Delivery.NOT_SENT}
    if issubclass(kind, RayApiResponseError):
        return {"status_code": 418, "delivery": Delivery.REFUSED}
    if issubclass(kind, RayJobTimeoutError):
        return {"limit": "job_timeout", "details": DETAILS}
    if issubclass(kind, RayJobResultError):
        return {"is_final": True}
    if issubclass(kind, RayJobFunctionError):
        return {"details": DETAILS, "last_lines": ("one", "two"), "exception_types": ("ValueError", "Exception")}
    return {"details": DETAILS, "last_lines": ("one", "two")} if issubclass(kind, RayJobUnsuccessfulError) else {}


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_can_be_pickled(kind: type[Exception]) -> None:
    """Pickling keeps the class, the text and the attributes of every error."""
    error = kind("what happened", **attributes_of(kind))

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert str(again) == "what happened"
    assert vars(again) == vars(error) == attributes_of(kind)


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_can_be_created_from_text(kind: type[Exception]) -> None:
    """Every error can be created from its text alone, as from the event of a trigger."""
    error = kind("what happened")

    assert isinstance(error, exceptions.RayJobsError)
    assert str(error) == "what happened"


def test_tree_shows_every_error() -> None:
    """The tree in the module's docstring shows every error below its base class."""
    documented = {}
    above: list[str] = []
    for line in str(exceptions.__doc__).splitlines():
        if found := re.match(r"    ([│├└─ ]*)(Ray\w+)", line):
            above[len(found[1]) // 4 :] = [found[2]]
            documented[found[2]] = above[-2] if len(above) > 1 else "Exception"

    assert documented == {kind.__name__: kind.__base__.__name__ for kind in CLASSES}


def test_delivery_survives_pickling() -> None:
    """A request may have arrived unless the error says otherwise. What the error says survives pickling."""
    error = RayJobsError("what happened")
    assert error.delivery is Delivery.MAY_HAVE_ARRIVED

    error.delivery = Delivery.REFUSED
    assert pickle.loads(pickle.dumps(error)).delivery is Delivery.REFUSED


@pytest.mark.parametrize(
    ("delivery", "may_have_effect"),
    [
        (Delivery.NOT_SENT, False),
        (Delivery.MAY_HAVE_ARRIVED, True),
        (Delivery.REFUSED, False),
        (Delivery.FOREIGN, True),
    ],
)
def test_only_a_refusal_and_an_unsent_request_have_no_effect(delivery: Delivery, may_have_effect: bool) -> None:
    """Only a request that was not sent, or that Ray refused, certainly had no effect."""
    assert delivery.may_have_effect is may_have_effect


def test_every_error_is_described() -> None:
    """Every error has a docstring, and a description in the tree."""
    assert all(kind.__doc__ for kind in CLASSES)
    assert all(
        re.search(rf"{kind.__name__} {{2,}}\S", str(exceptions.__doc__)) for kind in CLASSES if kind is not RayJobsError
    )
