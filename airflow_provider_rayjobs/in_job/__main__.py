"""
Run the function of a ``@task.ray_job`` task: the entrypoint of its job.

The directory of this file is a package of the job (``py_modules``). Beside this file it has ``call.json``, the source
of the function or ``call.pickle``, and the module of the messages (``__init__.py``). It needs Python 3.8 or later and
the standard library; cloudpickle only if the user chose it.

Exit codes: 0 after the result was sent, 99 if the function raised an ``AirflowSkipException``, 98 if a retry is
useless (``AirflowFailException``, or a return value that cannot be sent), its own code after ``sys.exit(code)``, and
otherwise 1.
"""

from __future__ import annotations
import __future__

import ast
import base64
import contextlib
import hashlib
import importlib.util
import inspect
import json
import linecache
import os
import pickle
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import (
    FAIL_EXIT_CODE,
    MAX_RESULT_SIZE,
    NONCE_VARIABLE,
    SKIP_EXIT_CODE,
    ResultError,
    open_log,
    send,
    send_result,
    stored_name,
    to_json,
)

# Characters of an error message and of a traceback that are sent.
_MESSAGE_SIZE = 16 * 1024
_TRACEBACK_SIZE = 48 * 1024
_HERE = Path(__file__).parent
# The module of the messages on the workers of Airflow.
_MESSAGES = "airflow_provider_rayjobs.in_job"
# Modules that the cluster may lack, and the names in them for which this package has a substitute. Its own module is
# always imported from here: the cluster may have an older release.
_EXCEPTIONS = frozenset({"AirflowSkipException", "AirflowFailException"})
_SUBSTITUTES: dict[str, frozenset[str] | None] = {
    _MESSAGES: None,
    "airflow.exceptions": _EXCEPTIONS,
    "airflow.sdk": _EXCEPTIONS,
    "airflow.sdk.exceptions": _EXCEPTIONS,
    "airflow.providers.common.compat.sdk": _EXCEPTIONS,
}


def main() -> NoReturn:
    """Call the function, send its return value or its exception, and exit."""
    open_log()
    nonce, process = os.environ[NONCE_VARIABLE], os.getpid()
    call = json.loads((_HERE / "call.json").read_text(encoding="utf-8"))
    linecache.cache[call["filename"]] = _lines_for_tracebacks(call)
    try:
        try:
            value = _call(call)
        finally:
            os.environ[NONCE_VARIABLE] = nonce  # the function may have removed it
        if os.getpid() == process:  # a process that the function has forked has no result
            _send_result(call, value)
    except BaseException as error:  # noqa: BLE001  (the task raises it)
        sys.exit(_send_error(call, error))
    sys.exit(0)


def _call(call: dict[str, Any]) -> Any:
    """Return the value of the function."""
    function, args, kwargs = _load(call)
    value = function(*args, **kwargs)
    if inspect.iscoroutine(value):
        import asyncio  # noqa: PLC0415  (few functions need it)

        value = asyncio.run(value)
    return value


def _lines_for_tracebacks(call: dict[str, Any]) -> tuple[int, None, list[str], str]:
    """Return the entry of linecache for the user's file, which the cluster does not have."""
    lines = [line + "\n" for line in call["source"].split("\n")]
    return len(call["source"]), None, lines, call["filename"]


def _load(call: dict[str, Any]) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """Return the function and its arguments."""
    if call["serializer"] == "json":
        return _define(call), call["args"], call["kwargs"]
    if call["python"] != list(sys.version_info[:2]):
        versions = "{}.{} and {}.{}".format(*call["python"], *sys.version_info[:2])
        raise RuntimeError(
            f"A pickled function needs the same Python on the worker of Airflow and on the cluster, and these are "
            f"{versions}. Use serializer='json', or an image with the same version."
        )
    _find_cloudpickle()
    sys.modules[_MESSAGES] = sys.modules[str(__package__)]
    with (_HERE / "call.pickle").open("rb") as file:
        loaded: tuple[Callable[..., Any], list[Any], dict[str, Any]] = _Unpickler(file).load()
    return loaded


class _Unpickler(pickle.Unpickler):
    """Takes from this package what the cluster may lack, as :class:`_Substitution` does."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(str(__package__) if _is_substituted(module, [name]) else module, name)


def _find_cloudpickle() -> Any:
    """Import cloudpickle, or the copy in Ray under its name."""
    if "cloudpickle" not in sys.modules and importlib.util.find_spec("cloudpickle") is None:
        for name in ("cloudpickle", "cloudpickle.cloudpickle"):
            sys.modules[name] = importlib.import_module(f"ray.{name}")
    return importlib.import_module("cloudpickle")


def _define(call: dict[str, Any]) -> Callable[..., Any]:
    """
    Define the function as its file does, with the same line numbers.

    Its module is ``__main__``, so that Ray pickles the functions and classes inside it by value.
    """
    body: list[ast.stmt] = []
    lines = call["source"].split("\n")
    for first, last in call["statements"]:
        text = "\n".join(lines[first - 1 : last])
        is_indented = text[:1].isspace()
        tree = ast.parse(f"if 1:\n{text}" if is_indented else text, call["filename"])
        ast.increment_lineno(tree, first - 1 - is_indented)
        body += tree.body[0].body if is_indented else tree.body  # type: ignore[attr-defined]
    *imports, function = body
    if not function.decorator_list:  # type: ignore[attr-defined]
        _remove_annotations(function)
    tree = _Substitution().visit(ast.Module([*imports, function], []))
    flags = __future__.annotations.compiler_flag if call["future_annotations"] else 0
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(tree, call["filename"], "exec", flags, dont_inherit=True), vars(module))  # noqa: S102
    defined: Callable[..., Any] = vars(module)[call["name"]]
    return defined


def _remove_annotations(function: Any) -> None:
    """Remove the annotations of the signature: they may name what exists only for type checkers."""
    function.returns = None
    arguments = function.args
    each: list[Any] = [*getattr(arguments, "posonlyargs", ()), *arguments.args, *arguments.kwonlyargs]
    for argument in [*each, arguments.vararg, arguments.kwarg]:
        if argument is not None:
            argument.annotation = None


class _Substitution(ast.NodeTransformer):
    """Imports from this package what the cluster lacks: the messages, and two exceptions of Airflow."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if not node.level and _is_substituted(str(node.module), [each.name for each in node.names]):
            node.module = __package__
        return node


def _is_substituted(module: str, names: Sequence[str]) -> bool:
    if module not in _SUBSTITUTES:
        return False
    known = _SUBSTITUTES[module]
    return known is None or (known.issuperset(names) and importlib.util.find_spec(module.partition(".")[0]) is None)


def _send_result(call: dict[str, Any], value: Any) -> None:
    kind, text = "result", ""
    if call["result_serializer"] == "json":
        text = to_json(value, "result")
    else:
        kind, text = "pickle", json.dumps(base64.b64encode(_find_cloudpickle().dumps(value)).decode())
    if len(text) <= MAX_RESULT_SIZE or not call["storage"]:
        send_result(kind, text)
        return
    data = text.encode()
    _store(f"{call['storage']}{stored_name(os.environ[NONCE_VARIABLE])}", data)
    send("stored", json.dumps({"kind": kind, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}))


def _store(uri: str, data: bytes) -> None:
    """Write a file at a URI, as a whole."""
    if uri.startswith("file://"):
        path = Path(uri[len("file://") :])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(data)
        part.replace(path)
        return
    try:
        with importlib.import_module("smart_open").open(uri, "wb") as file:
            file.write(data)
    except (ImportError, NotImplementedError) as error:
        raise ResultError(
            f"the result has {len(data)} bytes, and is stored at {uri}, for which the job needs the Python package "
            f"smart_open. Add it to pip in the runtime_env, with its extra for this storage. It says: {error}"
        ) from None


def _send_error(call: dict[str, Any], error: BaseException) -> int:
    """Send an exception, print its traceback, and return the exit code."""
    lines, content = describe_error(call["name"], error, _users_frames(call, error))
    # the function may have closed its output
    with contextlib.suppress(Exception):
        sys.stderr.write(lines)
        sys.stderr.flush()
    with contextlib.suppress(OSError):  # the exit code tells the most important
        send("error", json.dumps(content))
    return exit_code_of(error)


def describe_error(function: str, error: BaseException, frames: Any) -> tuple[str, dict[str, Any]]:
    """Return the traceback of an exception, and the content of its message to the task."""
    names = class_names(error)
    try:
        message = str(error)
    except BaseException as failure:  # noqa: BLE001
        message = f"(its message cannot be shown: {failure!r})"
    try:
        lines = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # noqa: BLE001  (Python 3.8 fails at a long chain of exceptions)
        lines = f"{names[0]}: {message}\n"
    return lines, {
        "function": function,
        "types": names,
        "message": message[:_MESSAGE_SIZE],
        "traceback": lines[-_TRACEBACK_SIZE:],
    }


def class_names(error: BaseException) -> list[str]:
    """Return the names of the class of an exception and of its base classes."""
    return [_class_name(each) for each in type(error).__mro__ if each is not object]


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a function that raised an exception."""
    last_parts = {name.rpartition(".")[2] for name in class_names(error)}
    if "AirflowSkipException" in last_parts:
        return SKIP_EXIT_CODE
    if "AirflowFailException" in last_parts or isinstance(error, ResultError):
        return FAIL_EXIT_CODE
    # the system keeps eight bits of an exit code
    return (error.code & 255 or 1) if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def _class_name(kind: type) -> str:
    has_module = kind.__module__ not in ("builtins", "__main__", __package__)
    return f"{kind.__module__}.{kind.__qualname__}" if has_module else kind.__qualname__


def _users_frames(call: dict[str, Any], error: BaseException) -> Any:
    """Return the traceback from the first frame of the user's file on, without frames of this file."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename != call["filename"]:
        found = found.tb_next
    return found


if __name__ == "__main__":
    main()
