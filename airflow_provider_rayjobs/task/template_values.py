"""
Convert rendered templates to the types that Ray expects.

Jinja renders ``"{{ params.cpus }}"`` to the text ``"2"``. Native rendering turns ``"{{ ds_nodash }}"`` into the number
20260101. Ray expects a number in the first case and text in the second. Every error names the field.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import yaml

from airflow_provider_rayjobs import config
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.packages.paths import file_mode, unreadable
from airflow_provider_rayjobs.jobs.redaction import describe_yaml_error, raise_unchained
from airflow_provider_rayjobs.masking import RedactedValue, looks_like_runtime_env_text

_FETCH_LOGS = ("live", "on_completion", "never")
# Types that native rendering creates from text. ``str`` converts them back.
_SCALARS = (str, int, float, Decimal, date, time, UUID, PurePath)
# Not "512m", which is half a byte in Kubernetes and 512 MiB elsewhere.
_BYTES = re.compile(r"\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGTkgt]|m(?=[iIbB]))(?P<binary>[iI])?[bB]?\s*", re.ASCII)
_RUNTIME_ENV_TEXT = (
    "runtime_env is the text of a dictionary. Pass a dictionary, or the path of a YAML file. A template renders to a "
    "dictionary only with render_template_as_native_obj=True."
)


def is_unset(value: Any) -> bool:
    """Tell whether a value is ``None``, or was rendered to "" or "None"."""
    return value is None or (isinstance(value, str) and value in ("", "None"))


def as_text(field: str, value: Any) -> str:
    """Return a scalar as text."""
    if not isinstance(value, _SCALARS):
        # The message has the type alone, because the value may contain a secret.
        raise ValueError(f"{field} must be text, not {type(value).__name__}.")
    if isinstance(value, float) and not math.isfinite(value):
        # Python reads the git SHA 5e12345 as infinity, and the digits are lost.
        raise ValueError(f"{field} must be text, not the number {value}. Write the text in quotes.")
    return str(value)


def as_optional_text(field: str, value: Any) -> str | None:
    """Return a scalar as text, or ``None`` if it is unset."""
    return None if is_unset(value) else as_text(field, value)


def as_submission_id(value: Any) -> str:
    """Return the submission id of a job that another task submitted."""
    if is_unset(value):
        raise ValueError("submission_id is empty. Did the task that submits the job push its id to XCom?")
    return as_text("submission_id", value)


def as_number(field: str, value: Any) -> float | None:
    """Return a number, as an integer if possible, or ``None`` if the value is unset."""
    if is_unset(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        number = float(as_text(field, value))
    except ValueError:
        raise ValueError(f"{field} must be a number, not {value!r}.") from None
    return int(number) if number.is_integer() else number


def as_bytes(field: str, value: Any) -> float | None:
    """
    Return a number of bytes, or ``None`` if the value is unset.

    Text may have a unit, as in Kubernetes: ``K``, ``M``, ``G``, ``T`` are powers of 1000, ``Ki``, ``Mi``, ``Gi``,
    ``Ti`` of 1024. A ``B`` may follow. Small letters are the same, but a lone ``m`` is an error.
    """
    if isinstance(value, str) and (found := _BYTES.fullmatch(value)):
        base = 1024 if found["binary"] else 1000
        # a Decimal, as 4.1 * 10**9 is no whole number otherwise
        number = Decimal(found["number"]) * base ** ("KMGT".index(found["unit"].upper()) + 1)
        return int(number) if number == int(number) else float(number)
    try:
        return as_number(field, value)
    except ValueError:
        raise ValueError(f"{field} must be a number of bytes, or text such as 2GB or 1.5GiB, not {value!r}.") from None


def _as_int(field: str, value: Any, expected: str, minimum: float = -math.inf) -> int:
    number = as_number(field, value)
    if number is None or not float(number).is_integer() or number < minimum:
        raise ValueError(f"{field} must be {expected}, not {value!r}.")
    return int(number)


def as_exit_codes(field: str, value: Any) -> frozenset[int]:
    """Return one exit code or a list of them as a set; unset means an empty set."""
    if is_unset(value):
        return frozenset()
    codes = value if isinstance(value, Collection) and not isinstance(value, str) else [value]
    return frozenset(_as_int(field, code, "a whole number or a list of them") for code in codes)


def as_bool(field: str, value: Any) -> bool:
    """Return a flag. Its text may be true, yes, 1, false, no or 0."""
    match str(value).strip().lower():
        case "true" | "yes" | "1":
            return True
        case "false" | "no" | "0":
            return False
    raise ValueError(f"{field} must be True or False, not {value!r}.")


def as_return_result(value: Any, *, waits: bool) -> bool:
    """Return ``return_result`` of a task that waits for its job, or does not."""
    return_result = as_bool("return_result", value)
    if return_result and not waits:
        raise ValueError("return_result needs wait_for_completion=True: a task that does not wait has no result.")
    return return_result


def as_seconds(field: str, value: Any) -> float:
    """Return a number or a ``timedelta`` as seconds."""
    try:
        number = value.total_seconds() if isinstance(value, timedelta) else as_number(field, value)
    except ValueError:
        number = None
    if number is None or not 0 <= number < math.inf:
        raise ValueError(
            f"{field} must be a number of seconds, 0 or more, such as 7200, or a timedelta, such as "
            f"timedelta(hours=2), not {value!r}."
        )
    return number


def as_configured_seconds(field: str, value: Any, default: float) -> float:
    """Return a number or a ``timedelta`` as seconds. ``None`` stands for the setting of that name, or its default."""
    return config.seconds(field, default) if value is None else as_seconds(field, value)


def as_stop_on_kill(value: Any) -> bool:
    """Return ``stop_on_kill``. ``None`` stands for the setting of that name, which is on by default."""
    return config.flag("stop_on_kill", default=True) if value is None else as_bool("stop_on_kill", value)


def as_optional_seconds(field: str, value: Any) -> float | None:
    """Return a number or a ``timedelta`` as seconds, or ``None`` if it is unset."""
    return None if is_unset(value) else as_seconds(field, value)


def as_log_options(fetch_logs: Any, log_lines_limit: Any, log_flush_interval: Any) -> LogOptions:
    """Return the log options of a task."""
    if fetch_logs not in _FETCH_LOGS:
        raise ValueError(f"fetch_logs must be one of {', '.join(_FETCH_LOGS)}, not {fetch_logs!r}.")
    limit = None
    if not is_unset(log_lines_limit):
        limit = _as_int("log_lines_limit", log_lines_limit, "a whole number, 1 or more", minimum=1)
    return LogOptions(str(fetch_logs), limit, as_optional_seconds("log_flush_interval", log_flush_interval))


def as_text_dict(field: str, value: Any) -> dict[str, str] | None:
    """Return a dictionary with keys and values as text."""
    if value is None:
        return None
    return {str(key): as_text(f"{field}[{key!r}]", text) for key, text in _as_mapping(field, value).items()}


def as_number_dict(field: str, value: Any) -> dict[str, float] | None:
    """Return a dictionary with keys as text and values as numbers, without the entries that are unset."""
    if value is None:
        return None
    numbers = {str(key): as_number(f"{field}[{key!r}]", number) for key, number in _as_mapping(field, value).items()}
    return {key: number for key, number in numbers.items() if number is not None}


def as_entrypoint(value: Any) -> str | list[str]:
    """Return a command, or the list of its arguments."""
    return _as_text_list("entrypoint", value) if _is_list(value) else as_text("entrypoint", value)


def as_package_secrets(value: Any) -> bool | list[str]:
    """Return which files with sensitive names are packed: all, none, or those that match patterns."""
    if _is_list(value):
        return _as_text_list("package_secrets", value)
    return False if is_unset(value) else as_bool("package_secrets", value)


def as_runtime_env(value: Any, folders: Sequence[Path]) -> dict[str, Any] | None:
    """
    Return a runtime environment with ``env_vars`` as text.

    :param value: a dictionary, or the path of a YAML file.
    :param folders: the folders in which a relative path is searched, in this order.
    :raises RayPackageError: the file cannot be read.
    """
    if is_unset(value):
        return None
    if isinstance(value, RedactedValue):
        value = value.hidden
    if looks_like_runtime_env_text(value):
        raise ValueError(_RUNTIME_ENV_TEXT)
    if isinstance(value, str | PurePath):
        value = _read_yaml(_find_yaml(value, folders))
    runtime_env = dict(_as_mapping("runtime_env", value))
    if runtime_env.get("env_vars") is not None:
        runtime_env["env_vars"] = as_text_dict("runtime_env['env_vars']", runtime_env["env_vars"])
    return runtime_env


def search_folders(value: Any, folders: Sequence[Path]) -> list[Path]:
    """Return the folders for relative paths in a runtime environment. In a YAML file they are relative to that file."""
    return [_find_yaml(value, folders).parent] if isinstance(value, str | PurePath) and value else list(folders)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise unreadable(str(path), error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            problem = f"byte {error.start} is not UTF-8"
        else:
            problem = describe_yaml_error(error)
        raise_unchained(ValueError(f"runtime_env: {path} is not valid YAML: {problem}."))


def _find_yaml(value: str | PurePath, folders: Sequence[Path]) -> Path:
    # Functions of os.path: those of Path raise for an unknown user (~name) and for very long names.
    path = Path(os.path.expanduser(os.path.expandvars(value)))  # noqa: PTH111
    if any(sign in str(path) for sign in ("\n", "{", ": ")):
        raise ValueError(_RUNTIME_ENV_TEXT)
    candidates = [path] if path.is_absolute() else [folder / path for folder in folders]
    for candidate in candidates:
        if stat.S_ISREG(file_mode(candidate)):
            return candidate
    raise ValueError(
        f"runtime_env: file not found: {path}. Searched: {', '.join(map(str, candidates))}. Pass a dictionary, or the "
        "path of a YAML file."
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _as_text_list(field: str, values: Sequence[Any]) -> list[str]:
    return [as_text(f"{field}[{number}]", value) for number, value in enumerate(values)]


def _as_mapping(field: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be a dictionary, not {type(value).__name__}.")
    return value
