"""Read the section ``[ray_jobs]`` of Airflow's configuration, each time that a setting is needed."""

from __future__ import annotations

import configparser
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from airflow.providers.common.compat.sdk import conf

T = TypeVar("T")

_log = logging.getLogger(__name__)
_falls_back = ContextVar("_falls_back", default=False)
SECTION = "ray_jobs"
# those of ``conf.getboolean()``, and two more
_FLAGS = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}


@contextmanager
def falling_back() -> Iterator[None]:
    """Replace a wrong setting by its default, with a warning: a job that runs must not end because of it."""
    token = _falls_back.set(True)
    try:
        yield
    finally:
        _falls_back.reset(token)


def text(option: str) -> str:
    """Return a setting; "" if it is unset."""
    return str(conf.get(SECTION, option, fallback=None) or "").strip()


def names(option: str) -> list[str]:
    """Return a list that is separated by commas."""
    # not conf.getlist(), which has no fallback before Airflow 3.2
    return [each.strip() for each in text(option).split(",") if each.strip()]


def seconds(option: str, default: float) -> float:
    """Return a duration."""
    return _read(option, default, _as_seconds, "a number of seconds, 0 or more")


def flag(option: str, default: bool) -> bool:
    """Return a flag."""
    return _read(option, default, lambda given: _FLAGS[given.lower()], "true or false")


def count(option: str, default: int) -> int:
    """Return a number of things, 1 or more."""
    return _read(option, default, _as_count, "a whole number, 1 or more")


def variable(option: str) -> str:
    """Return the environment variable of a setting."""
    return f"AIRFLOW__{SECTION.upper()}__{option.upper()}"


def _read(option: str, default: T, convert: Callable[[str], T], expected: str) -> T:
    given = ""
    try:
        given = text(option)
        return convert(given) if given else default
    except (ValueError, KeyError, configparser.Error) as error:
        fact = f"not {given!r}" if given else f"but it cannot be read: {error}"
    except Exception as error:  # a command or a secrets backend fails
        if not _falls_back.get():
            raise
        fact = f"but it cannot be read: {error}"
    problem = (
        f"[{SECTION}] {option} must be {expected}, {fact}. Correct it in Airflow's configuration (environment variable "
        f"{variable(option)})."
    )
    if not _falls_back.get():
        raise ValueError(problem)
    _log.warning("%s Until then the default is used: %s.", problem, default)
    return default


def _as_seconds(given: str) -> float:
    number = float(given)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def _as_count(given: str) -> int:
    number = int(given)
    if number < 1:
        raise ValueError
    return number
