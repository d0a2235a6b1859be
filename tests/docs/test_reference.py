"""The reference has every public class, function and argument of the package, and every field of the connection."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from doc_files import DOCS

from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator
from airflow_provider_rayjobs.connection import EXTRAS
from airflow_provider_rayjobs.functions.options import FunctionOptions, TaskOptions
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.operators import RayJobDeleteOperator, RayJobStopOperator, RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from airflow_provider_rayjobs.triggers import TriggerOptions

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}
DIRECTIVES = re.compile(r"^\.\. auto(\w+):: airflow_provider_rayjobs\.(\S+)((?:\n   :.*)*)", re.MULTILINE)
# Modules that DAGs, connections and tests import.
PUBLIC = [
    "operators", "cleanup", "decorators", "sensors", "triggers", "event_triggers", "hooks", "exceptions", "jobs",
    "testing", "in_job", "pytest_plugin",
]  # fmt: skip
if HAS_STORE:  # Airflow 3.3
    PUBLIC.append("retries")
# Names without an underscore that other modules of the package use, and users do not.
INTERNAL = {
    "operators.build_metadata": "for the decorator and tests",
    "triggers.pending_for": "for the submit operator",
    "triggers.states_of": "for the submit operator",
    "triggers.emit_job_log": "for operators and sensor",
    "triggers.job_event": "the form of an event",
    "triggers.error_event": "the form of an event",
    "triggers.shared_client": "for the triggers of a cluster",
    "triggers.shared_watch": "for the watchers of a cluster",
    "event_triggers.EndedJobs": "what a shared stream carries",
    "event_triggers.watch_ended_jobs": "the shared stream",
    "in_job.send": "the form of a message",
    "in_job.send_result": "for the program of a function",
    "in_job.stored_name": "for the program of a function",
    "in_job.open_log": "for the program of a function",
    "in_job.to_json": "for the package of a function",
    "in_job.check": "for results",
    "in_job.type_name": "for the package of a function",
    "jobs.RayJobsClient.run": "the driver of engines",
    "jobs.RayJobsClient.perform": "the driver of engines",
    "jobs.RayJobsClient.send": "one request of an engine",
    "jobs.RayJobsClient.log": "a message of an engine",
}


def documented() -> Iterator[str]:
    """Yield what the directives of the reference show, as ``module.name`` or ``module.Class.member``."""
    for page in PAGES.values():
        for kind, name, options in DIRECTIVES.findall(page):
            yield name
            members = re.search(r":members:(.*)", options)
            if members is None:
                continue
            listed = [each.strip() for each in members[1].split(",") if each.strip()]
            yield from (f"{name}.{each}" for each in listed or _members(kind, name))


def _members(kind: str, name: str) -> list[str]:
    if kind == "module":
        return public_names(importlib.import_module(f"airflow_provider_rayjobs.{name}"))
    module, _, attribute = name.rpartition(".")
    return [*vars(getattr(importlib.import_module(f"airflow_provider_rayjobs.{module}"), attribute))]


def public_names(module: ModuleType) -> list[str]:
    """Return the names in ``__all__``, or those that the module defines."""
    return getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_reference_has_each_public_name(name: str):
    """Each public class and function of a module is in the reference, or is one for the package itself."""
    module = importlib.import_module(f"airflow_provider_rayjobs.{name}")
    shown = set(documented()) | INTERNAL.keys()

    assert [each for each in public_names(module) if f"{name}.{each}" not in shown] == []


@pytest.mark.parametrize(
    "name", ["hooks.RayJobsHook", "jobs.RayJobsClient", "jobs.AsyncRayJobsClient", "testing.FakeRay"]
)
def test_reference_has_each_method(name: str):
    """Each public method of a class that users call is in the reference."""
    module, _, class_name = name.rpartition(".")
    described = getattr(importlib.import_module(f"airflow_provider_rayjobs.{module}"), class_name)
    internal = {each.rpartition(".")[2] for each in INTERNAL if each.startswith("jobs.RayJobsClient.")}
    methods = [each for each, value in vars(described).items() if not each.startswith("_") and _is_method(value)]
    shown = set(documented())

    assert [each for each in methods if f"{name}.{each}" not in shown and each not in internal] == []


def _is_method(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property)


def parameters(operator: Any) -> set[str]:
    """Return the arguments of an operator that this package defines."""
    return {
        name
        for each in operator.__mro__
        if each.__module__.startswith("airflow_provider_rayjobs.") and "__init__" in vars(each)
        for name, parameter in inspect.signature(each.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


@pytest.mark.parametrize(
    "operator",
    [RayJobSubmitOperator, RayJobStopOperator, RayJobDeleteOperator, RayJobCleanupOperator, RayJobSensor],
)
def test_docstring_has_each_argument(operator: Any):
    """Each argument of an operator is described, with the mark of those that are templated."""
    described = {
        name: text
        for each in operator.__mro__
        for name, text in re.findall(r":param (\w+): (.*?)(?=\n *:param |\Z)", each.__doc__ or "", re.DOTALL)
        if each.__module__.startswith("airflow_provider_rayjobs.")
    }
    arguments = parameters(operator)
    templated = {name for name in arguments if not {name, f"is_{name}"}.isdisjoint(operator.template_fields)}

    assert described.keys() == arguments
    assert {name for name, text in described.items() if "(templated" in text} == templated


def test_reference_has_each_option_of_a_function():
    """Each option of ``@task.ray_job`` is in the table, and is described here or at the submit operator."""
    own = FunctionOptions.__annotations__.keys() - TaskOptions.__annotations__.keys()
    described = {*re.findall(r"``(\w+)``:", FunctionOptions.__doc__ or ""), *parameters(RayJobSubmitOperator)}

    assert own - described == set()
    assert [name for name in own if f"| `{name}` |" not in PAGES["decorator"]] == []


def test_docstring_has_each_option_of_a_trigger():
    """Each option of a trigger is described."""
    described = re.findall(r":param (\w+):", TriggerOptions.__doc__ or "")

    assert sorted(described) == sorted(TriggerOptions.__annotations__)


def test_reference_has_each_field_of_the_connection():
    """Each extra of a connection is in its table, and each that needs more words is described below."""
    page = PAGES["connection"]

    assert [name for name in EXTRAS if f"| `{name}` |" not in page] == []


def test_reference_has_each_endpoint():
    """The values of the tag ``endpoint`` are those of the client."""
    source = inspect.getsource(endpoints)
    names = set(re.findall(r'endpoint="(\w+)"', source))

    assert [name for name in names if f"`{name}`" not in PAGES["metrics"]] == []


@pytest.mark.parametrize("name", INTERNAL)
def test_internal_name_exists(name: str):
    """Each name that the reference leaves out is still in the code."""
    module, _, attribute = name.partition(".")
    found: Any = importlib.import_module(f"airflow_provider_rayjobs.{module}")

    for each in attribute.split("."):
        found = getattr(found, each)
