"""
The tables of the documentation that are generated from the code.

After a change of the code, write them again with::

    UPDATE_DOCS=1 python -m pytest tests/test_doc_tables.py
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import doc_cases
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_rayjobs import config, connection, exceptions, lineage, links, log_checkpoint, metrics, tracing
from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator
from airflow_provider_rayjobs.decorators import _RayJobDecoratedOperator
from airflow_provider_rayjobs.exceptions import Delivery, RayApiResponseError, RayJobEntrypointError
from airflow_provider_rayjobs.functions.options import FunctionOptions, TaskOptions
from airflow_provider_rayjobs.get_provider_info import get_provider_info
from airflow_provider_rayjobs.in_job import FAIL_EXIT_CODE, NONCE_VARIABLE
from airflow_provider_rayjobs.jobs.models import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.operators import (
    RayJobDeleteOperator,
    RayJobStopOperator,
    RayJobSubmitOperator,
    build_metadata,
)
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from airflow_provider_rayjobs.task.boundary import JOB_REF_KEY
from airflow_provider_rayjobs.task.outcomes import to_sensor_error, to_task_error

DOCS = Path(__file__).parents[1] / "docs"


def settings() -> Iterator[tuple[str, ...]]:
    yield "setting", "type and default", "meaning"
    for name, option in get_provider_info()["config"][config.SECTION]["options"].items():
        default = f"`{option['default']}`" if option["default"] else "unset"
        yield f"`{name}`", f"{option['type']}, {default}", option["description"]


def all_metrics() -> Iterator[tuple[str, ...]]:
    yield "metric", "type and unit", "tags", "meaning"
    for metric in metrics.METRICS:
        tags = ", ".join(f"`{tag}`" for tag in metric.tags)
        yield f"`{metric.name}`", f"{metric.kind}, {metric.unit}", tags, metric.meaning


def parameters(operator: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of an operator that this package defines, those of its base classes first."""
    found: dict[str, inspect.Parameter] = {}
    for each in reversed(operator.__mro__):
        if each.__module__.startswith("airflow_provider_rayjobs.") and "__init__" in vars(each):
            found |= inspect.signature(each.__init__).parameters
    return {name: each for name, each in found.items() if each.kind is each.KEYWORD_ONLY}


def is_templated(operator: Any, argument: str) -> bool:
    return not {argument, f"is_{argument}"}.isdisjoint(operator.template_fields)  # ``dry_run`` is a method of Airflow's


def arguments(operator: Any) -> Iterator[tuple[str, ...]]:
    yield "argument", "type", "default", "templated"
    for name, each in parameters(operator).items():
        yield f"`{name}`", _type(each.annotation), _default(each), "✓" if is_templated(operator, name) else ""


def function_options() -> Iterator[tuple[str, ...]]:
    yield "option", "type", "templated"
    yield "`multiple_outputs`", _type("bool | None"), ""
    own = FunctionOptions.__annotations__.keys() - TaskOptions.__annotations__.keys()
    for name, annotation in FunctionOptions.__annotations__.items():
        if name in own:
            text = getattr(annotation, "__forward_arg__", str(annotation))
            templated = "✓" if is_templated(_RayJobDecoratedOperator, name) else ""
            yield f"`{name}`", _type(text), templated


def _type(annotation: str) -> str:
    # the pages say once what else a templated argument may be
    return f"`{annotation.replace(' | Rendered', '')}`".replace("|", r"\|")


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "required"
    if parameter.name == "deferrable":  # read from Airflow's configuration when the module is imported
        return "`default_deferrable`"
    given = parameter.default
    return f"{given.days} days" if isinstance(given, timedelta) else f"`{given!r}`"


def all_exceptions() -> Iterator[tuple[str, ...]]:
    yield "class", "cause and remedy", "operators", "sensor"
    for line in str(exceptions.__doc__).splitlines():
        if found := re.fullmatch(r" +[├└│─ ]*(\w+Error) +(\S.*)", line):
            kind = getattr(exceptions, found[1])
            meaning = found[2].removesuffix(" Known causes:")
            # a literal block, such as the tree, has no markup for the attributes in brackets
            meaning = re.sub(r"\((\w+(?:, \w+)*)\)", lambda names: f"(`{names[1].replace(', ', '`, `')}`)", meaning)
            yield f"`{found[1]}`", meaning, _retried(kind, _as_task), _retried(kind, to_sensor_error)


def _as_task(error: Exception, **options: Any) -> BaseException:
    return to_task_error(error, SimpleNamespace(retry_policy=None), **options)


def _retried(kind: type[Exception], translate: Callable[..., BaseException]) -> str:
    """Say whether an error is retried, as the code decides about examples of it."""
    if isinstance(translate(kind("")), AirflowFailException):
        return "no"
    if issubclass(kind, RayApiResponseError):
        is_final = isinstance(translate(kind("", delivery=Delivery.REFUSED)), AirflowFailException)
        return "no, if Ray refuses" if is_final else "yes"
    if translate is _as_task and kind is exceptions.RayJobRuntimeEnvError:
        message = (Path(__file__).parent / "samples" / "2.60.0" / "runtime_env_refused.txt").read_text()
        refused = JobDetails(JobType.SUBMISSION, JobStatus.FAILED, message=message)
        assert isinstance(translate(kind("", details=refused)), AirflowFailException)
        return "no, if Ray refuses"
    if translate is _as_task and issubclass(kind, RayJobEntrypointError):
        code = FAIL_EXIT_CODE if kind is exceptions.RayJobFunctionError else 3
        details = JobDetails(JobType.SUBMISSION, JobStatus.FAILED, driver_exit_code=code)
        options = {} if kind is exceptions.RayJobFunctionError else {"fail_on": {code}}
        assert isinstance(translate(kind("", details=details), **options), AirflowFailException)
        return "yes, but for `AirflowFailException`" if not options else "yes, but for `fail_on_exit_code`"
    return "yes"


def connection_extras() -> Iterator[tuple[str, ...]]:
    yield "extra", "label in the form", "meaning"
    [connection_type] = get_provider_info()["connection-types"]
    described = connection_type["conn-fields"]
    assert described.keys() == connection.EXTRAS.keys()
    for name, each in described.items():
        meaning = re.sub(r"(\{.*?\}|(?:https?:/)?/[\w./{}#:@-]*[\w}])", r"`\1`", each["description"])
        kind = connection.EXTRAS[name]
        yield f"`{name}`", each["label"], meaning if kind.startswith("text") else f"{meaning} ({kind})"


_METADATA = {
    "job_name": "the name in the Ray dashboard: the argument `job_name`, or `dag_id.task_id`",
    "airflow_dag_id": "the DAG",
    "airflow_run_id": "the DAG run",
    "airflow_task_id": "the task",
    "airflow_map_index": "the map index; -1 for a task that is not mapped",
    "airflow_try_number": "the number of the try that submitted the job",
    "airflow_max_tries": "`max_tries` of the task instance then, which tells a retry from a Clear",
    "airflow_run_start_date": "the start of the DAG run then; likewise",
    "airflow_clear_number": "how often tasks of the run were cleared until then; likewise",
    "airflow_logical_date": "the logical date of the run; empty if it has none",
    "airflow_deployment": "`[ray_jobs] deployment_name` then, for the cleanup",
    "airflow_may_outlive_task": "`true` with `wait_for_completion=False` or `stop_on_kill=False`, for the cleanup",
    NONCE: "a random number that tells this submission from others with the same id",
}


def metadata() -> Iterator[tuple[str, ...]]:
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=1, max_tries=0)
    run = SimpleNamespace(start_date=datetime(2026, 1, 1), clear_number=0)  # noqa: DTZ001
    context: Any = {"ti": ti, "dag_run": run, "logical_date": None}
    assert build_metadata(context, {}, may_outlive_task=False).keys() | {NONCE} == _METADATA.keys()
    yield "key", "value"
    for name, meaning in _METADATA.items():
        yield f"`{name}`", meaning


def variables() -> Iterator[tuple[str, ...]]:
    yield "variable", "value"
    yield "`AIRFLOW_CTX_DAG_ID`, `AIRFLOW_CTX_TASK_ID`, …", "the variables that Airflow's own operators set"
    yield "`RAY_JOB_SUBMISSION_ID`", "the submission id of the job"
    yield f"`{NONCE_VARIABLE}`", "marks the messages of the program to its task"
    yield f"`{tracing.VARIABLE}`", "the span of the submission, if Airflow's tracing is on, unless `env_vars` has it"
    for name in (lineage.PARENT, lineage.ROOT):
        yield (
            f"`{name}`",
            "the run of the task for OpenLineage, if its provider is configured, unless `env_vars` has it",
        )


def xcoms() -> Iterator[tuple[str, ...]]:
    yield "key", "value", "pushed"
    yield "`return_value`", "the submission id, or the result of the job", "at the end of the task"
    yield "`submission_id`", "the id of the job", "before the submission"
    yield "`job_status`", "the last status that the try has seen", "when it changes, and at the end of the try"
    yield (
        "`progress`",
        "the last progress of the program: `done`, `total`, `text`",
        "every 30 s at most, and at the end of the try",
    )
    yield (
        f"`{links.XCOM_KEY}`",
        'the address behind the button "Ray job"',
        "before the submission, and at the end of the try",
    )
    yield f"`{JOB_REF_KEY}`", "which job is meant; internal", "before the submission"
    yield (
        f"`{log_checkpoint.KEY}`",
        "how far a trigger has shown the log; internal",
        "while the task is deferred (Airflow 3.3)",
    )


TABLES: dict[str, tuple[str, Callable[[], Iterator[tuple[str, ...]]]]] = {
    "retries": ("guides/retries.md", doc_cases.retries),
    "clears": ("guides/retries.md", doc_cases.clears),
    "difficulties": ("guides/retries.md", doc_cases.difficulties),
    "errors": ("guides/errors.md", doc_cases.errors),
    "settings": ("reference/configuration.md", settings),
    "metrics": ("reference/metrics.md", all_metrics),
    "submit_arguments": ("reference/operators.md", partial(arguments, RayJobSubmitOperator)),
    "stop_arguments": ("reference/operators.md", partial(arguments, RayJobStopOperator)),
    "delete_arguments": ("reference/operators.md", partial(arguments, RayJobDeleteOperator)),
    "cleanup_arguments": ("reference/operators.md", partial(arguments, RayJobCleanupOperator)),
    "sensor_arguments": ("reference/sensor.md", partial(arguments, RayJobSensor)),
    "function_options": ("reference/decorator.md", function_options),
    "exceptions": ("reference/exceptions.md", all_exceptions),
    "connection_extras": ("reference/connection.md", connection_extras),
    "metadata": ("reference/metadata.md", metadata),
    "variables": ("reference/metadata.md", variables),
    "xcoms": ("reference/metadata.md", xcoms),
}
# Before Airflow 3.3 a retry finds no job: there is no task state store.
NEEDS_STORE = {"difficulties"}


@pytest.mark.parametrize("name", TABLES)
def test_table_is_that_of_the_code(name: str):
    """The table in the documentation is the one that the code generates."""
    if name in NEEDS_STORE and not HAS_STORE:
        pytest.skip("Airflow 3.3 introduced the task state store")
    page, rows = TABLES[name]
    path = DOCS / page
    header, *body = (f"| {' | '.join(cells)} |" for cells in rows())
    table = "\n".join([header, re.sub(r"[^|]+", "---", header), *body, ""])
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- table {name}: generated by tests/test_doc_tables.py -->\n", "<!-- end of the table -->"
    assert begin in text
    before, _, rest = text.partition(begin)
    written, _, after = rest.partition(end)
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(before + begin + table + end + after, encoding="utf-8")
        written = table

    assert written == table
