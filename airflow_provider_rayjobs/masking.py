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
from typing import Any, TypeVar

# Not from common.compat: our minimum version of it has no mask_secret. This path is the same since Airflow 3.1.
from airflow.sdk import log

from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.redaction import MIN_SECRET_LENGTH
from airflow_provider_rayjobs.jobs.steps import Engine, Step, map_steps

T = TypeVar("T")

# Everyday values. Masking them would make logs unreadable.
_FLAGS = ("true", "false", "yes", "no", "none", "null", "on", "off")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
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
    Register the ``env_vars`` of a job whose names Airflow considers sensitive, such as ``API_TOKEN``.

    ``[core] sensitive_var_conn_names`` adds names. Masking every value would mask dates and team names in the log.
    """
    env_vars = runtime_env.get("env_vars") if isinstance(runtime_env, Mapping) else None
    if not isinstance(env_vars, Mapping):
        return
    if secrets := {name: value for name, value in env_vars.items() if not _is_trivial(str(value))}:
        mask(secrets)


def _is_trivial(value: str) -> bool:
    """Tell whether a value cannot be secret, despite its name: ``USE_TOKEN=false``, ``MAX_TOKENS=100000``."""
    return len(value) < MIN_SECRET_LENGTH or value.lower() in _FLAGS or _NUMBER.fullmatch(value) is not None


def masking_env_vars(engine: Engine[T], mask: Callable[[Any], object] = mask_secret) -> Engine[T]:
    """
    Run an engine and register the secret ``env_vars`` of its job before any of the job's log is shown.

    Another task or an earlier try may have submitted the job: Ray returns its ``env_vars`` with its status. On an event
    loop pass :func:`mask_soon`.
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
    A runtime environment that hides the values of its ``env_vars`` when it is printed or serialized.

    Airflow's template view shows only their names. It would show the values of a plain ``dict``.
    """

    def serialize(self) -> dict[str, Any]:
        """Return the dictionary that Airflow may show and store."""
        shown = dict(self.data)
        if env_vars := shown.get("env_vars"):
            # Any other type is the user's mistake. It may be a dictionary as text, with its values.
            shown["env_vars"] = dict.fromkeys(env_vars, "***") if isinstance(env_vars, Mapping) else "***"
        return shown

    def __repr__(self) -> str:
        return repr(self.serialize())


class RedactedText:
    """Replaces a runtime environment that a template rendered as text: it is unusable and may contain secrets."""

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
    """Return a rendered runtime environment that hides its ``env_vars``, or all of itself if it is text."""
    if isinstance(runtime_env, Mapping):
        return runtime_env if isinstance(runtime_env, RedactedRuntimeEnv) else RedactedRuntimeEnv(runtime_env)
    return RedactedText() if looks_like_runtime_env_text(runtime_env) else runtime_env
