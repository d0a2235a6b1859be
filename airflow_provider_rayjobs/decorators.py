"""``@task.ray_job``: a Python function that runs on a Ray cluster, and whose return value is the task's XCom."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, Unpack, overload
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import BaseOperator, DecoratedOperator
from airflow.sdk.bases.decorator import _TaskDecorator

from airflow_provider_rayjobs import migration
from airflow_provider_rayjobs.functions.options import FunctionOptions, TaskOptions
from airflow_provider_rayjobs.functions.source import FunctionSource, extract_source
from airflow_provider_rayjobs.in_job import FAIL_EXIT_CODE, SKIP_EXIT_CODE
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task.literals import SUBMISSION_CHECKS, find_mistake

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import Task

    from airflow_provider_rayjobs.jobs.packages.local_code import GeneratedModule
    from airflow_provider_rayjobs.task.boundary import Settings

P = ParamSpec("P")
R = TypeVar("R")

_NAME = "@task.ray_job"
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SERIALIZERS = ("json", "cloudpickle")
# Extracted while the decorator is applied: only then it is known which decorators made the task.
_sources: WeakKeyDictionary[Callable[..., Any], FunctionSource] = WeakKeyDictionary()


class _RayJobDecoratedOperator(DecoratedOperator, RayJobSubmitOperator):
    """The task of a function: a Ray job whose package has the function and its arguments."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(each for each in RayJobSubmitOperator.template_fields if each not in ("entrypoint", "return_result")),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **RayJobSubmitOperator.template_fields_renderers,
    }
    custom_operator_name = _NAME

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        serializer: str = "json",
        result_serializer: str = "json",
        **kwargs: Any,
    ) -> None:
        self.serializer = serializer
        self.result_serializer = result_serializer
        name = inspect.unwrap(python_callable).__name__
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            # the name is for people who read the dashboard
            entrypoint=["python", "-m", "ray_job_function", name],
            return_result=False,  # see ``settings``; also if default_args has it for plain operators
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        """Run the function, and return its value, or the submission id if the task does not wait."""
        value = super().execute(context)
        if not self.settings().wait_for_completion:
            self.multiple_outputs = False  # it is about the dictionary of the function
        return value

    def settings(self) -> Settings:
        """Return the rendered arguments, checked."""
        settings = super().settings()
        return replace(
            settings,
            return_result=settings.wait_for_completion,
            may_unpickle=self.result_serializer == "cloudpickle",
            fail_on=settings.fail_on | {FAIL_EXIT_CODE},
            skip_on=settings.skip_on | {SKIP_EXIT_CODE},
        )

    def generated_module(self, context: Context) -> GeneratedModule | None:
        """Return the package of the function."""
        # Imported here, because parsing a DAG file imports this module.
        from airflow_provider_rayjobs.functions.package import Call  # noqa: PLC0415
        from airflow_provider_rayjobs.jobs.packages.local_code import GeneratedModule  # noqa: PLC0415

        function = self.python_callable
        values = _context_values(function, self.op_args, self.op_kwargs, context)
        storage = self._storage()
        call = Call(
            function,
            list(self.op_args),
            {**self.op_kwargs, **values},
            _sources.get(function),
            self.serializer,
            self.result_serializer,
            storage.uri_of("") if storage else "",
            values.keys(),
        )
        return GeneratedModule("function", inspect.unwrap(function).__name__, call.files())


class _RayJobTask(_TaskDecorator[P, R, _RayJobDecoratedOperator]):
    """A decorated function. Airflow checks the options of ``override`` late, and those of a mapped task on a worker."""

    def override(self, **options: Any) -> _TaskDecorator[P, R, _RayJobDecoratedOperator]:
        if error := _find_error(options):
            raise error
        return super().override(**options)


def _context_values(
    function: Callable[..., Any], args: Collection[Any], kwargs: Mapping[str, Any], context: Context
) -> dict[str, Any]:
    """Return the values of the context for parameters that have its names, such as ``ds``, and no argument."""
    signature = inspect.signature(function)
    given = signature.bind_partial(*args, **kwargs).arguments
    values: Any = context
    return {
        name: values[name]
        for name, parameter in signature.parameters.items()
        if name in values and name not in given and parameter.kind not in _VARIADIC
    }


@overload
def ray_job(python_callable: Callable[P, R]) -> Task[P, R]: ...
@overload
def ray_job(
    *, multiple_outputs: bool | None = None, **options: Unpack[FunctionOptions]
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def ray_job(
    python_callable: Callable[..., Any] | None = None, *, multiple_outputs: bool | None = None, **options: Any
) -> Any:
    """
    Run a function as a Ray job. Its return value is the XCom of the task.

    Airflow calls this decorator ``@task.ray_job``. Type checkers know its options if it is imported from here.

    The source of the function goes to the cluster, with the imports of its file that it uses, and its arguments. They
    must be JSON, and so must the return value, of up to 1 MiB. An exception of the function fails the try as a
    :class:`~airflow_provider_rayjobs.exceptions.RayJobFunctionError`. An exception of the class
    ``AirflowSkipException`` skips the task, and one of the class ``AirflowFailException`` fails it at once.

    :param multiple_outputs: whether each item of a returned dictionary also becomes an XCom of its own.
    :param options: see :class:`~airflow_provider_rayjobs.functions.options.FunctionOptions`.
    """
    if error := _find_error(options):
        raise error  # here, as Airflow shows the last two frames of a DAG file's error

    def decorate(function: Callable[..., Any]) -> Any:
        if isinstance(function, _TaskDecorator):
            fact = f"{_NAME} needs a function, and {function.function.__name__} is a task"
            raise TypeError(f"{fact}. Remove one of its decorators, or write {_NAME} below @setup and @teardown.")
        try:
            _sources[function] = extract_source(function, _NAME)
        except ValueError:
            if options.get("serializer") != "cloudpickle":
                raise
        # without a value Airflow infers it from the type hint of the return value
        outputs: dict[str, Any] = {} if multiple_outputs is None else {"multiple_outputs": multiple_outputs}
        return _RayJobTask(function=function, operator_class=_RayJobDecoratedOperator, kwargs=dict(options), **outputs)

    return decorate if python_callable is None else decorate(python_callable)


def _find_error(options: Mapping[str, Any]) -> Exception | None:
    """Return the error for an option that does not exist, or whose literal value cannot work."""
    if "entrypoint" in options:
        return TypeError(f"{_NAME} has no entrypoint: it runs the function. For a command use RayJobSubmitOperator.")
    if "return_result" in options:
        return TypeError(f"{_NAME} has no return_result: the return value of the function is the result. Remove it.")
    known = FunctionOptions.__annotations__.keys() | TaskOptions.__annotations__.keys()
    for name in options.keys() - known - inspect.signature(BaseOperator.__init__).parameters.keys():
        near = difflib.get_close_matches(name, known, n=1) or sorted(each for each in known if name in each)
        origin = migration.origin_of(name)
        guess = origin.arguments[name] if origin else near[0] if near else ""
        page = f" For {origin.name} see {origin.where}." if origin else ""
        return TypeError(f"{_NAME} has no option {name!r}.{f' Did you mean {guess!r}?' if guess else ''}{page}")
    for name in ("serializer", "result_serializer"):
        if options.get(name, "json") not in _SERIALIZERS:
            return ValueError(f"{_NAME}: {name} must be one of {', '.join(_SERIALIZERS)}, not {options[name]!r}.")
    if mistake := find_mistake(options, SUBMISSION_CHECKS):
        return ValueError(f"{_NAME}: {mistake}")
    return None
