"""The tests that the page about testing shows pass as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from doc_files import EXAMPLES, ROOT

PLUGIN = "airflow_provider_rayjobs.pytest_plugin"


def test_documented_tests(tmp_path: Path):
    """The DAG, its tests and the conftest of the page work together, without Ray."""
    shutil.copytree(EXAMPLES / "testing", tmp_path, dirs_exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RAY_"))}
    environment["PYTHONPATH"] = str(ROOT)

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        env=environment, check=False, capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert "5 passed" in ended.stdout
