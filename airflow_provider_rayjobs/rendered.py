"""The type of an argument that has its value only when the task runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    # A function that gets the context of the task and returns the value, or the output of another task.
    Rendered: TypeAlias = Callable[[Context], Any] | XComArg
