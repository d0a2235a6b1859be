"""
Keep secrets out of what Airflow shows: logs, rendered templates.

Airflow masks what it was told of, in the records that reach a task's log (the supervisor does it, for the lines of a
Ray job as well) and in the template view. It knows passwords of connections, and values with telling names. What else
is secret here it has to be told.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

# Not from the compatibility layer, which has it only since a later version than we ask for; it has not moved since 3.1.
from airflow.sdk.log import mask_secret

from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.redaction import MIN_SECRET_LENGTH
from airflow_provider_rayjobs.jobs.steps import Engine, Step, map_steps

T = TypeVar("T")

# Values that would be blotted out of every line of a log, and that nobody keeps secret.
_FLAGS = ("true", "false", "yes", "no", "none", "null", "on", "off")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)


def mask_cluster(cluster: Cluster) -> None:
    """Tell Airflow what of a connection must be seen nowhere. It asks the supervisor: nothing for a signal handler."""
    mask_secret([*cluster.secrets()])


async def amask_cluster(cluster: Cluster) -> None:
    """Do what :func:`mask_cluster` does on the triggerer's event loop."""
    await _amask([*cluster.secrets()])


class TokenMasker:
    """Tells Airflow of each token that a token's file turns out to hold, once."""

    def __init__(self) -> None:
        self._last = ""
        self._telling: set[asyncio.Future[None]] = set()

    def mask(self, token: str) -> None:
        """Tell of a token that is about to be shown to the cluster."""
        if token != self._last:
            self._last = token
            mask_secret([token])

    def mask_soon(self, token: str) -> None:
        """Do what :meth:`mask` does from an event loop: this process knows before the answer comes."""
        if token != self._last:
            self._last = token
            telling = asyncio.ensure_future(_amask([token]))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)


def mask_env_vars(runtime_env: Any) -> None:
    """
    Tell Airflow which of a job's ``env_vars`` are secret: those with telling names, such as ``API_TOKEN``.

    Not all of them: a date or a team's name would be blotted out of every line of the log. Which names tell is
    Airflow's to say (``[core] sensitive_var_conn_names`` adds to them).
    """
    if env_vars := _env_vars_of(runtime_env):
        mask_secret(env_vars)


async def amask_env_vars(runtime_env: Any) -> None:
    """Do what :func:`mask_env_vars` does on the triggerer's event loop."""
    if env_vars := _env_vars_of(runtime_env):
        await _amask(env_vars)


def _env_vars_of(runtime_env: Any) -> dict[str, Any]:
    env_vars = runtime_env.get("env_vars") if isinstance(runtime_env, Mapping) else None
    if not isinstance(env_vars, Mapping):
        return {}
    return {name: value for name, value in env_vars.items() if not _is_trivial(str(value))}


def _is_trivial(value: str) -> bool:
    """Tell whether a value cannot be secret, whatever its name: ``USE_TOKEN=false``, ``MAX_TOKENS=100000``."""
    return len(value) < MIN_SECRET_LENGTH or value.lower() in _FLAGS or _NUMBER.fullmatch(value) is not None


async def _amask(secret: Any) -> None:
    try:
        from airflow.sdk.log import amask_secret  # noqa: PLC0415  (not in the first versions of Airflow 3)
    except ImportError:
        mask_secret(secret)
    else:
        await amask_secret(secret)


def masking_env_vars(engine: Engine[T], note: Callable[[Any], object] = mask_env_vars) -> Engine[T]:
    """
    Run an engine, and tell Airflow of the ``env_vars`` of the job that it sees before it shows any of its log.

    They may be another task's, or another try's: Ray returns them with the job.

    :param note: called with the job's runtime environment.
    """
    is_noted = False

    def take(step: Step) -> Engine[Any]:
        nonlocal is_noted
        answer = yield step
        if isinstance(answer, JobDetails) and not is_noted:
            note(answer.runtime_env)
            is_noted = True
        return answer

    return map_steps(engine, take)


class RedactedRuntimeEnv(Mapping[str, Any]):
    """
    A runtime environment whose ``env_vars`` are for the cluster alone: Airflow's template view shows their names.

    No dictionary, as Airflow would show what that holds.
    """

    def __init__(self, runtime_env: Mapping[str, Any]) -> None:
        self._runtime_env = runtime_env

    def __getitem__(self, key: str) -> Any:
        return self._runtime_env[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runtime_env)

    def __len__(self) -> int:
        return len(self._runtime_env)

    def serialize(self) -> dict[str, Any]:
        """Return what Airflow may show, and keep."""
        shown = dict(self._runtime_env)
        if env_vars := shown.get("env_vars"):
            # what is no dictionary is a mistake, and may be the text of one
            shown["env_vars"] = dict.fromkeys(env_vars, "***") if isinstance(env_vars, Mapping) else "***"
        return shown

    def copy(self) -> RedactedRuntimeEnv:
        """Return another of these, as a dictionary's ``copy`` would."""
        return RedactedRuntimeEnv(dict(self._runtime_env))

    def __or__(self, other: Any) -> RedactedRuntimeEnv:
        return RedactedRuntimeEnv({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    def __repr__(self) -> str:
        return repr(self.serialize())


class RedactedText:
    """What takes the place of the text of a runtime environment: that cannot be used, and Airflow would show it."""

    def serialize(self) -> str:
        """Return what Airflow may show, and keep."""
        return "***"

    def __repr__(self) -> str:
        return "***"


def looks_like_runtime_env_text(value: Any) -> bool:
    """Tell whether a value is the text of a runtime environment, as JSON, Python or YAML has it, and no path."""
    if not isinstance(value, str):
        return False
    return value.lstrip().startswith("{") or ("env_vars" in value and (":" in value or "\n" in value))


def redact_env_vars(runtime_env: Any) -> Any:
    """
    Return a rendered runtime environment in the form that hides its ``env_vars``; what is none, as it is.

    The text of one, which execute refuses, is hidden whole.
    """
    if isinstance(runtime_env, Mapping):
        return runtime_env if isinstance(runtime_env, RedactedRuntimeEnv) else RedactedRuntimeEnv(runtime_env)
    return RedactedText() if looks_like_runtime_env_text(runtime_env) else runtime_env
