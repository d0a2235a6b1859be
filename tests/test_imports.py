"""The modules that imports of the package load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Packages that importing the operators may load, beyond those of DAG and BaseOperator and the standard library.
EXPECTED = {"airflow_provider_rayjobs", "airflow", "pydantic"}


def python(code: str) -> str:
    """Run code in a new interpreter and return the last line that it prints."""
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


def test_package_imports_nothing():
    """Airflow imports the package at every start, which loads one module."""
    assert (
        python(
            "import sys; before = set(sys.modules)\n"
            "import airflow_provider_rayjobs\n"
            "print(sorted(set(sys.modules) - before))"
        )
        == "['airflow_provider_rayjobs']"
    )


def test_operators_import_nothing_heavy():
    """Beyond what each DAG file loads, operators and sensors load this package and a few modules of Airflow."""
    added = eval(  # noqa: S307  (our own print)
        python(
            "import sys\n"
            "from airflow.sdk import DAG, BaseOperator\n"
            "before = set(sys.modules)\n"
            "from airflow_provider_rayjobs import cleanup, operators, sensors\n"
            "print(sorted(set(sys.modules) - before))"
        )
    )

    assert {name.partition(".")[0] for name in added} - sys.stdlib_module_names - EXPECTED == set()
    assert len([name for name in added if name.startswith("airflow.")]) < 25


PACKAGE = ROOT / "airflow_provider_rayjobs"


def test_no_circular_imports() -> None:
    """No two modules import each other, not even indirectly or for type checkers."""
    TopologicalSorter(_graph()).prepare()  # raises CycleError, which lists the cycle


def test_client_imports_nothing_of_airflow() -> None:
    """The modules of ``jobs`` import each other, the exceptions, and the messages of a job's program."""
    wrong = {
        (module, imported)
        for module, imports in _graph().items()
        for imported in imports
        if module.startswith("jobs") and not imported.startswith("jobs") and imported not in ("exceptions", "in_job")
    }

    assert wrong == set()


def test_only_operators_and_sensors_and_retries_import_task() -> None:
    """Only the modules with operators, the decorator, the sensors and the retry policy import ``task``."""
    users = {
        module
        for module, imports in _graph().items()
        if any(imported.startswith("task") for imported in imports) and not module.startswith("task")
    }

    assert users <= {"operators", "decorators", "cleanup", "sensors", "retries"}


def _graph() -> dict[str, set[str]]:
    """Return the imports of every module of the package, type-only and late imports included."""
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    return {
        module: {
            found
            for statement in ast.walk(ast.parse(path.read_text()))
            if isinstance(statement, ast.Import | ast.ImportFrom)
            for name in _imported(statement)
            if name.startswith(f"{PACKAGE.name}.")
            for found in [_module_of(name.removeprefix(f"{PACKAGE.name}."), modules)]
            if found and found != module
        }
        for module, path in modules.items()
    }


def _module_of(name: str, modules: Mapping[str, Path]) -> str | None:
    """Return the module that contains an imported name."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def _imported(statement: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in statement.names]
    return names if isinstance(statement, ast.Import) else [f"{statement.module}.{name}" for name in names]
