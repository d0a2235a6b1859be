"""The cause in Ray's message about a runtime environment that could not be set up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_rayjobs.jobs.setup_failure import find_setup_error

SAMPLES = Path(__file__).parents[1] / "samples" / "2.60.0"
OF_PIP = """\
Last 50 lines of stdout:
    ERROR: Cannot install a==1 and b==2 because these package versions have conflicting dependencies.
    The conflict is caused by:
        a 1 depends on c<1
    ERROR: ResolutionImpossible: for help visit https://pip.example.com/topics
"""
OF_OLDER_UV = """\
Last 50 lines of stdout:
      \N{MULTIPLICATION SIGN} No solution found when resolving dependencies:
      ╰─▶ Because nothing was found, your requirements are unsatisfiable.
"""


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        pytest.param(
            (SAMPLES / "runtime_env_pip.txt").read_text(),
            "ERROR: No matching distribution found for no-such-package-xyz==9.9",
            id="pip",
        ),
        pytest.param(
            OF_PIP,
            "ERROR: Cannot install a==1 and b==2 because these package versions have conflicting dependencies.",
            id="conflict",
        ),
        pytest.param(
            (SAMPLES / "runtime_env_uv.txt").read_text(),
            "error: No solution found when resolving dependencies cause: Because no-such-package-xyz was not found in "
            "the package registry and you require no-such-package-xyz==9.9, we can conclude that your requirements are "
            "unsatisfiable.",
            id="uv",
        ),
        pytest.param(
            OF_OLDER_UV,
            "\N{MULTIPLICATION SIGN} No solution found when resolving dependencies: ╰─▶ Because nothing was found, "
            "your requirements are unsatisfiable.",
            id="older uv",
        ),
        pytest.param("no word about it", "", id="unknown"),
        pytest.param("", "", id="empty"),
    ],
)
def test_setup_error(message: str, cause: str) -> None:
    """The cause is the error of pip or uv, as one line, out of all that Ray quotes."""
    assert find_setup_error(message) == cause


def test_setup_error_without_installer() -> None:
    """Without an installer, the cause is Ray's exception."""
    message = json.loads((SAMPLES / "job_runtime_env_failure.json").read_text())["message"]

    cause = find_setup_error(message)

    assert cause.startswith("OSError: Failed to download runtime_env file package gcs://_ray_pkg_0123.zip from the GCS")
    assert " ".join(message.split()).endswith(cause)


def test_long_setup_error_is_shortened() -> None:
    """A cause of more than 500 characters is shortened, as it is in the first line of a message."""
    assert find_setup_error(f"    ERROR: {'x ' * 500}") == f"ERROR: {'x ' * 246}x ..."
