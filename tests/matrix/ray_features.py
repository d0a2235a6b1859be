"""What Ray heads can do, and since which release. Tests that need it have the mark ``needs_ray(feature)``."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

# Read from the wheels of each release, and seen on heads before and after it.
FEATURES = {
    "constraints": ((2, 10), "Requirements files of `pip` with constraints"),
    "cloudpickle": ((2, 10), "Functions and results of `cloudpickle`, as the cluster has another cloudpickle before"),
    "refusals": ((2, 12), "A refused runtime environment fails the task at once, and is no cluster failure"),
    "sessions": ((2, 32), "The head tells its session, which shows a restart"),
    "uv": ((2, 39), "`uv` in a runtime environment"),
    "log files": ((2, 47), "Invalid UTF-8 and carriage returns of a log arrive unchanged"),
    "error types": ((2, 50), "The error type names the cause of a failure: entrypoint, runtime environment, resources"),
    "token authentication": ((2, 52), "The head requires a token"),
    "executable bits": ((2, 53), "Files of a package keep their executable bits"),
    "label selectors": ((2, 54), "`entrypoint_label_selector` chooses a node by its labels"),
    "tar archives": ((2, 56), "A working directory or module can be a `.tar.gz`"),
    "xz archives": ((2, 60), "A working directory or module can be a `.tar.xz`"),
}


@cache
def version_of_heads() -> str:
    """Return the version of Ray that the heads of this session have."""
    python = os.environ.get("RAY_HEAD_PYTHON", sys.executable)
    code = "from importlib.metadata import version; print(version('ray'))"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def lacks(version: str, feature: str) -> bool:
    """Tell whether a release of Ray is older than a feature."""
    since, _ = FEATURES[feature]
    major, minor, *_ = version.split(".")
    return (int(major), int(minor)) < since
