"""
Check the arguments of an operator while its DAG file is parsed, as far as they are literals.

So an import test of DAG files finds a mistake before a task runs. A template, an XCom or a function has its value only
when the task runs, and is checked then. No check reads a file, the network, or Airflow's configuration, which may be in
a secrets backend.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow_provider_rayjobs import migration
from airflow_provider_rayjobs.jobs.submission import build_submission, check_runtime_env_keys
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.attempts import numbered_id

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    _Base = BaseOperator
else:
    _Base = object

# Checks an argument by its name and value, and returns it as the type that Ray or a try expects.
Check = Callable[[str, Any], Any]
Checks = Mapping[str, Check]

# Text without signs of a template. A DAG may have delimiters of its own, such as "[[ ]]", "<% %>" or "(( ))".
_PLAIN_TEXT = re.compile(r"[\w\s.,:/+-]*")
# The index of a mapped task instance, which is not known yet, is in its submission id.
_MAP_SUFFIX = "-m0"
_PACKAGE = __name__.partition(".")[0]


def _unless_none(check: Check) -> Check:
    """Return a check of an argument whose ``None`` stands for a setting. The check reads no setting."""
    return lambda field, value: None if value is None else check(field, value)


_SECONDS = ("defer_after", "stop_timeout", "missing_timeout", "grace_period", "recheck_delay")
_OPTIONAL_SECONDS = ("log_flush_interval", "pending_timeout", "job_timeout", "delete_older_than")
_CONFIGURED_SECONDS = ("poll_interval", "unreachable_timeout", "first_contact_timeout")
CHECKS: Checks = {
    "submission_id": lambda _, value: template_values.as_submission_id(value),
    "fetch_logs": lambda _, value: template_values.as_log_options(value, None, None),
    "log_lines_limit": lambda _, value: template_values.as_log_options("live", value, None),
    "missing_ok": template_values.as_bool,
    # its name as an argument, and as a field
    **dict.fromkeys(("dry_run", "is_dry_run"), lambda _, value: template_values.as_bool("dry_run", value)),
    **dict.fromkeys(_SECONDS, template_values.as_seconds),
    **dict.fromkeys(_OPTIONAL_SECONDS, template_values.as_optional_seconds),
    **dict.fromkeys(_CONFIGURED_SECONDS, _unless_none(template_values.as_seconds)),
}
_SUBMISSION: Checks = {
    "entrypoint": lambda _, value: template_values.as_entrypoint(value),
    "submission_id": template_values.as_optional_text,
    "metadata": template_values.as_text_dict,
    "entrypoint_num_cpus": template_values.as_number,
    "entrypoint_num_gpus": template_values.as_number,
    "entrypoint_memory": template_values.as_bytes,
    "entrypoint_resources": template_values.as_number_dict,
    "entrypoint_label_selector": template_values.as_text_dict,
}
SUBMISSION_CHECKS: Checks = {
    **CHECKS,
    **_SUBMISSION,
    "package_secrets": lambda _, value: template_values.as_package_secrets(value),
    "stop_on_kill": _unless_none(template_values.as_bool),
    **dict.fromkeys(("wait_for_completion", "deferrable", "return_result"), template_values.as_bool),
    **dict.fromkeys(("fail_on_exit_code", "skip_on_exit_code"), template_values.as_exit_codes),
}


def is_literal(value: Any) -> bool:
    """Tell whether a value is certain to be the same when the task runs."""
    if isinstance(value, str):
        return _PLAIN_TEXT.fullmatch(value) is not None
    if isinstance(value, Mapping):
        return all(map(is_literal, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_literal, value))
    return value is None or isinstance(value, int | float | timedelta)


def find_mistake(arguments: Mapping[str, Any], checks: Checks, *, may_be_mapped: bool = True) -> str:
    """Return the error of the first literal argument that cannot work; "" if there is none."""
    try:
        if isinstance(runtime_env := arguments.get("runtime_env"), Mapping | list):
            _check_runtime_env(runtime_env)
        checked = {
            field: check(field, arguments[field])
            for field, check in checks.items()
            if field in arguments and is_literal(arguments[field])
        }
        if checks is SUBMISSION_CHECKS:
            template_values.as_return_result(
                checked.get("return_result", False), waits=checked.get("wait_for_completion", True)
            )
            options = {field: checked[field] for field in _SUBMISSION if field in checked}
            if submission_id := options.get("submission_id"):
                options["submission_id"] = numbered_id(submission_id, _MAP_SUFFIX if may_be_mapped else "", 1)
            build_submission(options.pop("entrypoint", "true"), **options)
    except ValueError as error:
        return str(error)
    return ""


def _check_runtime_env(runtime_env: Any) -> None:
    """Check the keys, which are no templates, and the types of ``env_vars``."""
    check_runtime_env_keys(runtime_env)
    env_vars = runtime_env.get("env_vars")
    if isinstance(env_vars, Mapping):  # one of many is often a template
        env_vars = {name: value for name, value in env_vars.items() if is_literal(value)}
    if is_literal(env_vars):
        template_values.as_text_dict("runtime_env['env_vars']", env_vars)


@cache
def _arguments_of(operator: type) -> Collection[str]:
    """Return the names of all arguments, with those of the constructors that it passes arguments to."""
    constructors = [vars(each)["__init__"] for each in operator.__mro__ if "__init__" in vars(each)]
    return {name for each in constructors for name in inspect.signature(each).parameters} - {"self", "args", "kwargs"}


def _is_ours(code: Any) -> bool:
    return str(code.__module__).partition(".")[0] == _PACKAGE


class ChecksLiterals(_Base):
    """Mixin of operators and sensors: checks literal arguments at the end of the constructor, and in ``partial``."""

    literal_checks: ClassVar[Checks] = CHECKS

    def __new__(cls, *_: Any, **kwargs: Any) -> Self:
        """Check the names before Airflow does, which would only miss the argument that has another name."""
        cls._check_names(kwargs)
        return super().__new__(cls)

    def _check_literals(self) -> None:
        # A mapped task is created on the worker, where an error of the constructor would be retried. ``execute`` raises
        # the same error.
        if not getattr(self, "_BaseOperator__from_mapped", False):
            # a subclass may set its arguments later
            arguments = {field: getattr(self, field) for field in self.template_fields if hasattr(self, field)}
            is_mapped = self.get_closest_mapped_task_group() is not None
            self._raise_mistake(self.task_id, arguments, may_be_mapped=is_mapped)

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Return a task to be mapped. Airflow's own method creates it."""
        cls._check_names(kwargs)
        cls._raise_mistake(kwargs.get("task_id"), kwargs, may_be_mapped=True)
        return super().partial(**kwargs)

    @classmethod
    def _check_names(cls, arguments: Mapping[str, Any]) -> None:
        if _is_ours(cls):  # a subclass of a user may take other arguments
            migration.check_arguments(cls.__name__, arguments, _arguments_of(cls))

    @classmethod
    def _raise_mistake(cls, task_id: str | None, arguments: Mapping[str, Any], *, may_be_mapped: bool) -> None:
        mistake = find_mistake(arguments, cls.literal_checks, may_be_mapped=may_be_mapped)
        # The constructor of a subclass may replace arguments after ours has checked them, or when it runs.
        if mistake and _is_ours(cls.__init__):
            raise ValueError(f"Task {task_id}: {mistake}")
