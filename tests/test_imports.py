"""What importing the package costs, and does not bring in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What importing the operators may add to an Airflow that has its BaseOperator, besides the standard library.
EXPECTED = {"airflow_provider_rayjobs", "airflow", "pydantic"}


def python(code: str) -> str:
    """Run code in an interpreter of its own and return what it prints."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip().splitlines()[-1]


def test_the_client_needs_neither_airflow_nor_ray():
    """``airflow_provider_rayjobs.jobs`` works where neither Airflow nor Ray can be imported."""
    assert (
        python(
            "import sys; sys.modules['airflow'] = sys.modules['ray'] = None\n"
            "from airflow_provider_rayjobs.jobs import RayJobsClient, AsyncRayJobsClient\n"
            "print(RayJobsClient('http://127.0.0.1:8265'))"
        )
        == "RayJobsClient('http://127.0.0.1:8265')"
    )


def test_the_package_itself_imports_nothing():
    """Airflow loads the package at every start; that loads one module."""
    assert (
        python(
            "import sys; before = set(sys.modules)\n"
            "import airflow_provider_rayjobs\n"
            "print(sorted(set(sys.modules) - before))"
        )
        == "['airflow_provider_rayjobs']"
    )


def test_importing_the_operators_brings_in_nothing_heavy():
    """Operators, sensors and triggers add our modules and a few of Airflow's own; no ray, no pandas, nobody else."""
    added = eval(  # noqa: S307  (our own print)
        python(
            "import sys\n"
            "from airflow.sdk import BaseOperator\n"
            "before = set(sys.modules)\n"
            "import airflow_provider_rayjobs.operators, airflow_provider_rayjobs.sensors\n"
            "print(sorted(set(sys.modules) - before))"
        )
    )

    assert {name.partition(".")[0] for name in added} - sys.stdlib_module_names - EXPECTED == set()
    assert len([name for name in added if name.startswith("airflow.")]) < 25


def test_nobody_imports_against_the_architecture():
    """Each module imports only from rooms that ARCHITECTURE.md puts before it."""
    before = {
        "exceptions": set(), "jobs": {"exceptions"}, "rendered": set(), "links": set(), "get_provider_info": set(),
        "package_storage": {"exceptions", "jobs"},
        "connection": {"jobs", "exceptions"}, "masking": {"jobs", "exceptions", "connection", "rendered"},
        "hooks": {"jobs", "exceptions", "connection", "masking"},
        "outcomes": {"jobs", "exceptions"}, "attempts": {"jobs", "exceptions"},
        "kills": {"jobs", "exceptions"}, "retries": {"exceptions", "outcomes", "rendered"},
        "bookmarks": {"jobs"}, "triggers": {"jobs", "exceptions", "connection", "hooks", "masking", "bookmarks"},
        "execution": {
            "jobs", "exceptions", "hooks", "attempts", "outcomes", "kills", "triggers", "links", "masking",
        },
        "operators": {
            "jobs", "exceptions", "hooks", "attempts", "outcomes", "kills", "execution", "links", "masking", "rendered",
            "package_storage",
        },
        "sensors": {
            "jobs", "exceptions", "connection", "hooks", "outcomes", "triggers", "links", "masking", "rendered",
        },
    }  # fmt: skip
    package = ROOT / "airflow_provider_rayjobs"
    wrong = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for statement in ast.parse(path.read_text()).body:
            # what only type checkers import is inside an "if", and no business of the running program
            if isinstance(statement, ast.Import | ast.ImportFrom):
                for name in _imported(statement):
                    parts = name.split(".")
                    if room == "jobs" and parts[0] in ("airflow", "ray"):
                        wrong.append((room, name))
                    if room in before and parts[0] == package.name and parts[1] in before:
                        wrong += [(room, parts[1])] * (parts[1] not in before[room] | {room})

    assert wrong == []


def _imported(statement: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in statement.names]
    return names if isinstance(statement, ast.Import) else [f"{statement.module}.{name}" for name in names]
