"""
What templates leave behind, as the types that Ray wants.

Jinja turns ``"{{ params.cpus }}"`` into the text ``"2"``; with native rendering it turns ``"{{ ds_nodash
}}"`` into the number 20260101. Ray wants a number in the first place and text in the second. Each function
here knows one such place, and names the field when nothing fits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import yaml

from airflow_provider_rayjobs.masking import RedactedText, looks_like_runtime_env_text

_FETCH_LOGS = ("live", "on_completion", "never")
# What native rendering makes of a text that looks like one of these; str() gives back what a person would
# write.
_SCALARS = (str, int, float, Decimal, date, time, UUID, PurePath)


def as_text(field: str, value: Any) -> str:
    """Return a scalar as text."""
    if not isinstance(value, _SCALARS):
        # its kind only: what it holds may be a secret
        raise ValueError(f"{field} must be text, not {type(value).__name__}")
    return str(value)


def as_optional_text(field: str, value: Any) -> str | None:
    """Return a scalar as text; ``None`` and what renders to nothing mean "not given"."""
    return None if is_unset(value) else as_text(field, value)


def as_number(field: str, value: Any) -> float | None:
    """Return a number, whole where it can be; ``None`` and what renders to nothing mean "not given"."""
    if is_unset(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        number = float(as_text(field, value))
    except ValueError:
        raise ValueError(f"{field} must be a number, not {value!r}") from None
    return int(number) if number.is_integer() else number


def as_bool(field: str, value: Any) -> bool:
    """Return a yes or no."""
    if isinstance(value, bool):
        return value
    match str(value).strip().lower():
        case "true" | "yes" | "1":
            return True
        case "false" | "no" | "0":
            return False
    raise ValueError(f"{field} must be True or False, not {value!r}")


def as_seconds(field: str, value: Any) -> float:
    """Return a duration in seconds; a ``timedelta`` is one as well."""
    number = value.total_seconds() if isinstance(value, timedelta) else as_number(field, value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"{field} must be a number of seconds, 0 or more, not {value!r}")
    return number


def as_optional_seconds(field: str, value: Any) -> float | None:
    """Return a duration in seconds; ``None`` and what renders to nothing mean "no limit"."""
    return None if is_unset(value) else as_seconds(field, value)


def as_positive_int(field: str, value: Any) -> int | None:
    """Return a whole number above 0; ``None`` and what renders to nothing mean "no limit"."""
    if is_unset(value):
        return None
    number = as_number(field, value)
    if number is None or not float(number).is_integer() or number < 1:
        raise ValueError(f"{field} must be a whole number, 1 or more, not {value!r}")
    return int(number)


def as_exit_codes(field: str, value: Any) -> frozenset[int]:
    """Return exit codes; ``None`` means none, a number means one, a list means each of them."""
    if is_unset(value):
        return frozenset()
    codes = value if isinstance(value, Collection) and not isinstance(value, str) else [value]
    return frozenset(_as_whole(field, code) for code in codes)


def _as_whole(field: str, value: Any) -> int:
    number = as_number(field, value)
    if number is None or not float(number).is_integer():
        raise ValueError(f"{field} must be a whole number or a list of them, not {value!r}")
    return int(number)


def as_fetch_logs(value: Any) -> str:
    """Return a way to fetch logs: ``live``, ``on_completion`` or ``never``."""
    if value not in _FETCH_LOGS:
        raise ValueError(f"fetch_logs must be one of {', '.join(_FETCH_LOGS)}, not {value!r}")
    return str(value)


def as_text_dict(field: str, value: Any) -> dict[str, str] | None:
    """Return a dictionary of text to text."""
    if value is None:
        return None
    return {str(key): as_text(f"{field}[{key!r}]", text) for key, text in _mapping(field, value).items()}


def as_number_dict(field: str, value: Any) -> dict[str, float] | None:
    """Return a dictionary of text to numbers; an entry that renders to nothing is left out."""
    if value is None:
        return None
    numbers = {str(key): as_number(f"{field}[{key!r}]", number) for key, number in _mapping(field, value).items()}
    return {key: number for key, number in numbers.items() if number is not None}


def as_entrypoint(value: Any) -> str | list[str]:
    """Return an entrypoint: a command, or the list of its arguments."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [as_text(f"entrypoint[{number}]", argument) for number, argument in enumerate(value)]
    return as_text("entrypoint", value)


def as_runtime_env(value: Any, folders: Sequence[Path]) -> dict[str, Any] | None:
    """
    Return a runtime environment with its env_vars as text.

    :param value: a dictionary, or the path of a YAML file that holds one.
    :param folders: where a relative path is looked for, in this order.
    """
    if is_unset(value):
        return None
    if isinstance(value, RedactedText) or looks_like_runtime_env_text(value):
        raise ValueError(
            "runtime_env is the text of a dictionary; a template makes a dictionary only with native rendering "
            "(render_template_as_native_obj)"
        )
    if isinstance(value, str | PurePath):
        value = _read_yaml(Path(value), folders)
    runtime_env = dict(_mapping("runtime_env", value))
    if runtime_env.get("env_vars") is not None:
        runtime_env["env_vars"] = as_text_dict("runtime_env['env_vars']", runtime_env["env_vars"])
    return runtime_env


def as_folders(value: Any, folders: Sequence[Path]) -> list[Path]:
    """
    Return where relative paths in a runtime environment are looked for: those of a YAML file beside it.

    :param value: the runtime environment, as for :func:`as_runtime_env`.
    :param folders: where other relative paths are looked for.
    """
    return [_find_yaml(Path(value), folders).parent] if isinstance(value, str | PurePath) and value else list(folders)


def as_package_secrets(value: Any) -> bool | list[str]:
    """Return which files that look like secrets are packed: all, none, or those that patterns name."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [as_text(f"package_secrets[{number}]", pattern) for number, pattern in enumerate(value)]
    return False if is_unset(value) else as_bool("package_secrets", value)


def _read_yaml(path: Path, folders: Sequence[Path]) -> Any:
    place = _find_yaml(path, folders)
    try:
        return yaml.safe_load(place.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # not their own words: they quote the lines around the mistake, and those may hold a secret
        raise ValueError(f"runtime_env: {place} is not readable as YAML: {_about_yaml(error)}") from None


def _about_yaml(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Return what is wrong with a file, and where, without what stands there."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8"
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{type(error).__name__}{place}"


def _find_yaml(path: Path, folders: Sequence[Path]) -> Path:
    # os.path, as Path.expanduser() breaks at the name of a user that there is not
    path = Path(os.path.expanduser(os.path.expandvars(path)))  # noqa: PTH111
    places = [path] if path.is_absolute() else [folder / path for folder in folders]
    if any(sign in str(path) for sign in ("\n", "{", ": ")):
        # not what it is: somebody's environment may hold a secret
        raise ValueError("runtime_env is the text of an environment; give a dictionary, or the path of a YAML file")
    for place in places:
        # os.path, as Path.is_file() raises for the long name that a rendered dictionary makes
        if os.path.isfile(place):  # noqa: PTH113
            return place
    raise ValueError(
        f"runtime_env: no such file: {path}; looked for {', '.join(str(place) for place in places)}. Give a "
        "dictionary, or the path of a YAML file."
    )


def is_unset(value: Any) -> bool:
    """Tell whether a template had nothing to say: without native rendering None becomes the text "None"."""
    return value is None or (isinstance(value, str) and value in ("", "None"))


def _mapping(field: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be a dictionary, not {type(value).__name__}")
    return value
