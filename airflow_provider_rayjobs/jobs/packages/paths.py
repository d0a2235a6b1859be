"""Where a path that a user gives leads on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

# What is no path: with anything before "://", it is an address.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_uri(value: Any) -> bool:
    """Tell whether a value is an address instead of a path."""
    return isinstance(value, str) and _URI.match(value) is not None


def is_path(value: Any) -> bool:
    """Tell whether a value is what a user may mean as a path on this machine."""
    return isinstance(value, PathLike) or (isinstance(value, str) and bool(value.strip()) and not is_uri(value))


def expand_uri(value: Any) -> Any:
    """Return the address that a text of environment variables stands for; everything else as it is."""
    if isinstance(value, str) and "$" in value and not is_uri(value) and is_uri(text := os.path.expandvars(value)):
        return text
    return value


def has_local_code(runtime_env: Any) -> bool:
    """Tell whether a runtime environment may name files of this machine, so that it is worth a look."""
    if not isinstance(runtime_env, Mapping):
        return False
    modules = runtime_env.get("py_modules")
    return (
        is_path(runtime_env.get("working_dir"))
        or (isinstance(modules, Sequence) and any(map(is_path, modules)))
        or any(runtime_env.get(key) for key in ("pip", "uv", "conda"))
    )


def find_path(field: str, value: str | PathLike[str], folders: Sequence[Path]) -> Path:
    """
    Return where a path leads, with ``~`` and environment variables filled in.

    :param folders: where a relative one is looked for, in this order.
    :raises ValueError: for one that does not exist, with the places.
    """
    text = os.fspath(value)
    # os.path, as Path.expanduser() breaks at the name of a user that there is not; a directory may be called "~x"
    path = Path(os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111
    # without a look at links: a package is called what the user calls it
    places = list(dict.fromkeys(os.path.abspath(folder / path) for folder in folders))  # noqa: PTH100
    for place in places:
        try:
            if Path(place).exists():
                return Path(place)
        except (OSError, ValueError):  # a name that is too long, or holds a NUL
            continue
    unset = [name for name in re.findall(r"\$\{?(\w+)", text) if name not in os.environ]
    raise ValueError(
        f"{field} is {text!r}, and there is no such file or directory; looked for {', '.join(places)}. "
        + (f"No environment variable is called {', '.join(unset)} here. " if unset else "")
        + "Give a path on this machine, or a URI that the cluster can read."
    )
