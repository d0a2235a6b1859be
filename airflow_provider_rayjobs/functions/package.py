"""The files of the package that calls a function on the cluster. The same call has the same files on every worker."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_rayjobs import in_job
from airflow_provider_rayjobs.functions.source import FunctionSource
from airflow_provider_rayjobs.in_job import ResultError, to_json, type_name

# The name of the package on the cluster: ``python -m ray_job_function``.
MODULE = "ray_job_function"
JSON = "json"
CLOUDPICKLE = "cloudpickle"


@dataclass(frozen=True)
class Call:
    """
    A call of a function.

    :param source: of the function; ``None`` if it has none and is pickled.
    :param serializer: of function and arguments.
    :param result_serializer: of the return value.
    :param context_names: of the arguments in ``kwargs`` that are values of Airflow's context.
    :param storage: a URI, with a final slash, to which the job may write a result that is too large for its log.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    source: FunctionSource | None
    serializer: str = JSON
    result_serializer: str = JSON
    storage: str = ""
    context_names: Collection[str] = ()

    def files(self) -> dict[str, bytes]:
        """
        Return the files of the package by name.

        :raises ValueError: an argument cannot be sent.
        """
        function = inspect.unwrap(self.function)
        args, kwargs = [_plain(each) for each in self.args], {key: _plain(each) for key, each in self.kwargs.items()}
        call: dict[str, Any] = {
            "version": 1,
            "name": function.__code__.co_name,  # that of its source, as __name__ may be changed
            "filename": function.__code__.co_filename,
            "source": self.source.text if self.source else "",
            "serializer": self.serializer,
            "result_serializer": self.result_serializer,
            "storage": self.storage,
            "python": list(sys.version_info[:2]),
        }
        files = {f"{MODULE}/{name}": Path(in_job.__file__).with_name(name).read_bytes() for name in _PROGRAM}
        if self.serializer == CLOUDPICKLE:
            files[f"{MODULE}/call.pickle"] = self._pickle(args, kwargs)
        else:
            if self.source is None:
                raise ValueError(f"The source of {function.__name__} is unknown. Use serializer='cloudpickle'.")
            self._check_arguments(function.__name__, args, kwargs)
            call |= {
                "args": args,
                "kwargs": kwargs,
                "statements": self.source.statements,
                "future_annotations": self.source.future_annotations,
            }
        return files | {f"{MODULE}/call.json": json.dumps(call).encode()}

    def _check_arguments(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            bound = inspect.signature(self.function).bind(*args, **kwargs).arguments
        except TypeError as error:
            advice = "A run without a logical date has no ds, ts or data interval in its context."
            raise ValueError(f"{name}: {error}. {advice}") from None
        for argument, value in bound.items():
            try:
                to_json(value, f"argument {argument}")
            except ResultError as error:
                if argument in self.context_names:
                    fact = f"{name}: {argument} is Airflow's {type_name(value)}, which JSON cannot hold"
                    advice = "Pass the parts that the function needs as arguments: '{{ ti.try_number }}', '{{ ts }}'."
                    raise ValueError(f"{fact}. {advice}") from None
                message = f"{name}: {error} Or use serializer='cloudpickle', which sends every type."
                raise ValueError(message) from None

    def _pickle(self, args: list[Any], kwargs: dict[str, Any]) -> bytes:
        try:
            cloudpickle = importlib.import_module(CLOUDPICKLE)
        except ImportError:
            raise ValueError(
                "serializer='cloudpickle' needs the package cloudpickle on the workers of Airflow. Install it."
            ) from None
        # the cluster does not have the DAG file
        module = sys.modules.get(inspect.unwrap(self.function).__module__)
        is_by_value = module is None or module.__name__ in cloudpickle.list_registry_pickle_by_value()
        if not is_by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            pickled: bytes = cloudpickle.dumps((self.function, args, kwargs))
        except Exception as error:
            raise ValueError(f"The call of {self.function.__name__} cannot be pickled: {error}") from error
        finally:
            if not is_by_value:
                cloudpickle.unregister_pickle_by_value(module)
        return pickled


_PROGRAM = ("__init__.py", "__main__.py")


def _plain(value: Any) -> Any:
    """Return the collections of Airflow, such as ``params`` and the XComs of a mapped task, as plain ones."""
    kind = type(value)
    is_airflows = kind.__module__.startswith("airflow.")
    if kind is dict or (is_airflows and isinstance(value, Mapping)):
        return {key: _plain(value[key]) for key in value}
    if kind is tuple:
        return tuple(_plain(each) for each in value)
    if kind is list or (is_airflows and isinstance(value, Sequence)):
        return [_plain(each) for each in value]
    return value
