"""Tell paths from URIs in a runtime environment, and find the files on this machine."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.redaction import redact_urls

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Errors of a path at which nothing can be. Any other may be a momentary fault of a shared disk, such as ESTALE.
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def is_uri(value: Any) -> bool:
    """Tell whether a value is a URI."""
    return isinstance(value, str) and _URI.match(value) is not None


def is_path(value: Any) -> bool:
    """Tell whether a value may be a path on this machine."""
    return isinstance(value, PathLike) or (isinstance(value, str) and bool(value.strip()) and not is_uri(value))


def expand_uri(value: Any) -> Any:
    """Expand environment variables if the result is a URI. Return every other value unchanged."""
    if isinstance(value, str) and "$" in value and not is_uri(value) and is_uri(text := os.path.expandvars(value)):
        return text
    return value


def has_local_code(runtime_env: Any) -> bool:
    """Tell whether a runtime environment may refer to files on this machine."""
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
    Expand ``~`` and environment variables, and return the absolute path of an existing file or directory.

    :param folders: searched for a relative path, in this order.
    :raises ValueError: if it does not exist.
    :raises RayPackageError: if its disk cannot be read.
    """
    text = os.fspath(value)
    # os.path, as Path.expanduser() fails for an unknown user, and a directory may be called "~x"
    path = Path(os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111
    # do not resolve links: a module keeps the name that the user gives it
    candidates = list(dict.fromkeys(os.path.abspath(folder / path) for folder in folders))  # noqa: PTH100
    for candidate in candidates:
        if file_mode(candidate):
            return Path(candidate)
    unset = [name for name in re.findall(r"\$\{?(\w+)", text) if name not in os.environ]
    # The text may be a URL with a password.
    found = redact_urls(f"file not found: {text!r}. Searched: {', '.join(candidates)}.")
    raise ValueError(
        f"{field}: {found} "
        + (f"Unset environment variables: {', '.join(unset)}. " if unset else "")
        + "Give a path on this machine, or a URI that the cluster can read."
    )


def file_mode(path: str | PathLike[str]) -> int:
    """
    Return the type and the permissions of a file or directory, as ``st_mode``; 0 if it does not exist.

    :raises RayPackageError: if its disk cannot be read. The functions of ``os.path`` take that for a missing file.
    """
    try:
        return os.stat(path).st_mode  # noqa: PTH116  (a Path for each file would take longer than its listing)
    except OSError as error:
        if error.errno in _NO_SUCH_PATH:
            return 0
        raise unreadable(os.fspath(path), error) from error
    except ValueError:  # a NUL in its name
        return 0


def unreadable(path: str, error: OSError) -> RayPackageError:
    """Return the error for a file or directory that cannot be read."""
    return RayPackageError(
        f"Could not read {path!r}: {error.strerror or error}. The package was not uploaded. Make it readable for the "
        "user of this process, or exclude it."
    )
