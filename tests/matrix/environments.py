"""The environments of the cells: which packages they have, and how they are made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .cells import LOCKS, Cell

ROOT = Path(__file__).parents[2]
CONSTRAINTS = Path(__file__).parent / "constraints"
_UV = Path(sys.executable).with_name("uv")
_VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name, package in (("airflow", "apache-airflow-core"), ("ray", "ray")):
    try:
        found[name] = version(package)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def python_of_tests(cell: Cell) -> Path:
    """Return the Python that runs the tests of a cell. Its environment is made first, if it needs another one."""
    if cell.is_default:
        return Path(sys.executable)
    return _make(cell.lock, cell.python, ["--requirement", "requirements-dev.txt", "--editable", ".[ray]"])


def python_of_head(cell: Cell) -> Path:
    """Return the Python that runs the Ray head of a cell."""
    return _make(cell.head, cell.python, LOCKS[cell.head].requirements) if cell.head else python_of_tests(cell)


def versions(python: Path) -> dict[str, str]:
    """Return the versions of Python and, where they are installed, of Airflow and Ray."""
    return dict(json.loads(subprocess.check_output([python, "-c", _VERSIONS], text=True)))


def write_lock(name: str) -> None:
    """Write the constraints of an environment again, with the packages that the index had on its day."""
    lock = LOCKS[name]
    sources = ["pyproject.toml", "--extra=ray", "requirements-dev.txt"] if name.startswith("airflow") else []
    subprocess.run(
        [
            _UV, "pip", "compile", "--quiet", "--upgrade", "--no-header", "--no-annotate", "--python-version=3.11",
            f"--exclude-newer={lock.day}", f"--output-file={CONSTRAINTS / name}.txt", "-", *sources,
        ],
        cwd=ROOT, input="\n".join(lock.requirements), text=True, check=True,
    )  # fmt: skip


def _make(lock: str, python: str, packages: Sequence[str]) -> Path:
    """Make an environment, or bring an existing one up to date, and return its Python."""
    constraints = CONSTRAINTS / f"{lock}.txt" if lock else ROOT / "constraints.txt"
    environment = ROOT / ".venv-matrix" / f"{lock or 'default'}-py{python}"
    # uv downloads no Python, so that a cell runs on a Python that its user has chosen.
    options = ["--quiet", "--seed", "--allow-existing", "--no-python-downloads", f"--python={python}"]
    subprocess.run([_UV, "venv", *options, environment], check=True)
    subprocess.run(
        [
            _UV, "pip", "install", "--quiet", f"--python={environment}", f"--constraints={constraints}",
            f"--build-constraints={constraints}", *packages,
        ],
        cwd=ROOT, check=True,
    )  # fmt: skip
    return environment / "bin" / "python"
