"""
Keep secrets out of task logs and out of the template view.

Airflow masks registered secrets in task logs, including the lines of a Ray job's log. It registers the password of a
connection itself. This module registers the other secrets of a connection and of a job.
"""

from __future__ import annotations

import asyncio
import re
from collections import UserDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import PurePath
from typing import Any, TypeVar

# Not from common.compat: our minimum version of it has no mask_secret. This path is the same since Airflow 3.1.
from airflow.sdk import log

from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.redaction import MIN_SECRET_LENGTH, quoted_forms, redact_urls, url_secrets
from airflow_provider_rayjobs.jobs.steps import Engine, Step, map_steps

T = TypeVar("T")

# Everyday values. Masking them would make logs unreadable.
_FLAGS = ("true", "false", "yes", "no", "none", "null", "on", "off")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
# Digits of the shortest number that may be a password. Shorter ones are ports, PINs of tests and exit codes.
_MIN_SECRET_DIGITS = 6
# Words in the name of a variable that holds a quantity or a date: MAX_TOKENS, TOKEN_TTL, SECRET_VERSION.
_QUANTITY = re.compile(
    r"(?<![a-z])(max|min|num|count|limit|size|len|length|tokens|tokenizer|budget|ttl|timeout|seconds|interval|expiry|"
    r"version|date|day)(?![a-z])",
    re.IGNORECASE,
)
mask_secret = log.mask_secret
_pending: set[asyncio.Future[None]] = set()


async def amask_secret(secret: Any) -> None:
    """Register a secret with Airflow without blocking the event loop."""
    if hasattr(log, "amask_secret"):  # missing in early versions of Airflow 3
        await log.amask_secret(secret)
    else:
        mask_secret(secret)


def mask_soon(secret: Any) -> None:
    """Register a secret from a callback on an event loop. This process masks it from the loop's next iteration on."""
    future = asyncio.ensure_future(amask_secret(secret))
    _pending.add(future)
    future.add_done_callback(_pending.discard)


def token_masker(mask: Callable[[Any], object]) -> Callable[[str], object]:
    """Return a callback that registers a token from a file, unless the token has not changed."""
    return lru_cache(maxsize=1)(lambda token: mask([token]))


def mask_env_vars(runtime_env: Any, mask: Callable[[Any], object] = mask_secret) -> None:
    """
    Register the secrets of a runtime environment: ``env_vars`` by their names, and the credentials in all URLs.

    Airflow decides which names are sensitive, such as ``API_TOKEN``; ``[core] sensitive_var_conn_names`` adds names.
    Masking every value would mask dates and team names in the log.
    """
    if not isinstance(runtime_env, Mapping):
        return
    env_vars = runtime_env.get("env_vars")
    if isinstance(env_vars, Mapping):
        texts = {str(name): str(value) for name, value in env_vars.items()}
        if by_name := {name: forms for name, text in texts.items() if (forms := _shown_forms(text, name))}:
            mask(by_name)
    if by_url := [secret for secret in url_secrets(runtime_env) if not _is_trivial(secret)]:
        mask(by_url)


def _shown_forms(value: str, name: str) -> list[str]:
    """
    Return how a program may print a secret: also without the newline at its end, and quoted by Python or as JSON.

    Ray's errors quote ``env_vars`` as Python writes them. A secret without special characters has one form: Airflow
    searches each line for all forms. Lines of a secret are no forms: many occur elsewhere, such as those of YAML.
    """
    texts = {text for text in (value, value.strip()) if not _is_trivial(text, name)}
    return sorted(texts.union(*map(quoted_forms, texts)))


def _is_trivial(value: str, name: str = "") -> bool:
    """Tell whether a value cannot be secret, despite its name: ``USE_TOKEN=false``, ``MAX_TOKENS=100000``."""
    if len(value) < MIN_SECRET_LENGTH or value.lower() in _FLAGS:
        return True
    is_short = sum(map(str.isdigit, value)) < _MIN_SECRET_DIGITS
    return _NUMBER.fullmatch(value) is not None and (is_short or _QUANTITY.search(name) is not None)


def masking_env_vars(engine: Engine[T], mask: Callable[[Any], object] = mask_secret) -> Engine[T]:
    """
    Run an engine and register the secrets of its job's runtime environment before any of the job's log is shown.

    Another task or an earlier try may have submitted the job: Ray returns the environment with the job's status. On an
    event loop pass :func:`mask_soon`.
    """
    is_masked = False

    def send_and_mask(step: Step) -> Engine[Any]:
        nonlocal is_masked
        answer = yield step
        if isinstance(answer, JobDetails) and not is_masked:
            mask_env_vars(answer.runtime_env, mask)
            is_masked = True
        return answer

    return map_steps(engine, send_and_mask)


class RedactedRuntimeEnv(UserDict[str, Any]):
    """
    A runtime environment that hides the values of its ``env_vars``, and credentials in URLs, when it is printed.

    Airflow's template view shows what :meth:`serialize` returns. It would show all of a plain ``dict``.
    """

    def serialize(self) -> dict[str, Any]:
        """Return the dictionary that Airflow may show and store."""
        shown: dict[str, Any] = _without_credentials(self.data)
        if env_vars := shown.get("env_vars"):
            # Any other type is the user's mistake. It may be a dictionary as text, with its values.
            shown["env_vars"] = dict.fromkeys(env_vars, "***") if isinstance(env_vars, Mapping) else "***"
        return shown

    def __repr__(self) -> str:
        return repr(self.serialize())


def _without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return redact_urls(value)
    if isinstance(value, Mapping):
        return {key: _without_credentials(each) for key, each in value.items()}
    return [_without_credentials(each) for each in value] if isinstance(value, list | tuple | set) else value


class RedactedValue:
    """
    Hides a runtime environment that is neither a dictionary nor a path. It is unusable and may contain secrets.

    :param hidden: the value.
    """

    def __init__(self, hidden: Any) -> None:
        self.hidden = hidden

    def serialize(self) -> str:
        """Return the text that Airflow may show and store."""
        return "***"

    __repr__ = serialize


def looks_like_runtime_env_text(value: Any) -> bool:
    """Tell whether a value is a runtime environment as JSON, Python or YAML text, rather than a path."""
    if not isinstance(value, str):
        return False
    return value.lstrip().startswith("{") or ("env_vars" in value and (":" in value or "\n" in value))


def redact_env_vars(runtime_env: Any) -> Any:
    """Return a rendered runtime environment that hides its secrets. It hides all of an unusable one."""
    if runtime_env is None or isinstance(runtime_env, RedactedRuntimeEnv | RedactedValue):
        return runtime_env
    if isinstance(runtime_env, Mapping):
        return RedactedRuntimeEnv(runtime_env)
    is_path = isinstance(runtime_env, str | PurePath) and not looks_like_runtime_env_text(runtime_env)
    return runtime_env if is_path else RedactedValue(runtime_env)
