"""
The combinations of versions, and what is tested on each.

All tests of a cell take half an hour or more, so that a version of Airflow and one of Python share a cell if they can.
A new release needs a line in ``LOCKS``, the file that ``--lock`` makes of it, and a cell.
"""

from __future__ import annotations

from typing import NamedTuple


class Suite(NamedTuple):
    """Some of the tests: the arguments of pytest, and what they select."""

    arguments: tuple[str, ...]
    meaning: str


class Lock(NamedTuple):
    """
    The versions of all packages of an environment, in ``constraints/NAME.txt``.

    They are those of the days after a release, as in Airflow's own constraint files: the index is read as of that day.
    """

    requirements: tuple[str, ...]
    day: str


class Cell(NamedTuple):
    """
    A combination of versions.

    :param suite: the tests that run on it by default.
    :param lock: the packages of its environment. Default: those of ``constraints.txt``.
    :param head: the packages of the Ray head, if it has an environment of its own.
    :param may_fail: a failure of this cell does not fail the run.
    """

    name: str
    suite: str = "all"
    lock: str = ""
    python: str = "3.11"
    head: str = ""
    may_fail: bool = False

    @property
    def is_default(self) -> bool:
        """Tell whether the environment is the one of ``make test``."""
        return not self.lock and self.python == "3.11"


_NEEDS_NO_PROGRAMS = (
    "-m", "not ray and not airflow",
    *(f"--ignore=tests/{name}" for name in ("faults", "chaos", "soak", "simulation", "secured", "observed")),
)  # fmt: skip
_MEETS_AIRFLOW = (
    "tests/test_imports.py", "tests/test_provider_info.py", "tests/test_connection.py", "tests/test_operators.py",
    "tests/test_sensors.py", "tests/test_triggers.py", "tests/test_hooks.py", "tests/test_decorators.py",
    "tests/test_masking.py", "tests/task", "-m", "not ray and not airflow", "-k", "not type_checkers",
)  # fmt: skip
SUITES = {
    "all": Suite(
        ("--ignore=tests/chaos", "--deselect=tests/simulation/test_simulation.py::test_campaign"),
        "every test but those in a browser and the random campaigns",
    ),
    "unit": Suite(_NEEDS_NO_PROGRAMS, "every test that needs neither a Ray head nor a running Airflow"),
    "end-to-end": Suite(
        ("tests/test_end_to_end.py",), "operators, sensors and example DAGs in a running Airflow, against a Ray head"
    ),
    "client": Suite(
        (
            "tests/test_real_ray.py",
            "tests/test_packages_on_ray.py",
            "tests/test_functions_on_ray.py",
            "tests/test_hooks.py",
        ),
        "submissions, logs, stops, packages and functions on a Ray head",
    ),
    "api": Suite(_MEETS_AIRFLOW, "the unit tests that meet Airflow's API"),
    "one run": Suite(
        ("tests/test_end_to_end.py", "-k", "not nightly and not example_dag and not interactive and not pool"),
        "one DAG run with each operator and sensor, in a running Airflow",
    ),
    "jobs": Suite(("tests/test_real_ray.py",), "submissions, logs and stops on a Ray head"),
}

# The short run: the cells and suites that find most per minute.
SHORT = (
    ("airflow-3.1", "api"), ("airflow-3.1", "one run"), ("airflow-3.2", "api"), ("python-3.13", "api"),
    ("ray-2.40", "jobs"),
)  # fmt: skip

LOCKS = {
    "airflow-3.1.8": Lock(("apache-airflow==3.1.8",), "2026-03-18"),
    "airflow-3.2.2": Lock(("apache-airflow==3.2.2",), "2026-06-05"),
    "airflow-3.4.0b2": Lock(
        # A pre-release is only used where it is asked for by name.
        ("apache-airflow==3.4.0b2", "apache-airflow-core==3.4.0b2", "apache-airflow-task-sdk==1.4.0b2"),
        "2026-10-27",
    ),
    # Old releases of Ray import pkg_resources, which setuptools had in their time, and 2.8 a module of its tests.
    # Ray 2.7.2 reports no exit codes; 2.4.0 and 2.6.3 reject submissions on Python 3.11.
    "ray-2.40.0": Lock(("ray[default]==2.40.0", "setuptools"), "2024-12-10"),
    "ray-2.8.1": Lock(("ray[default]==2.8.1", "setuptools", "async-timeout"), "2023-12-10"),
}

CELLS = {
    cell.name: cell
    for cell in (
        Cell("airflow-3.1", lock="airflow-3.1.8"),
        Cell("airflow-3.2", lock="airflow-3.2.2", python="3.12"),
        Cell("airflow-3.3"),
        Cell("airflow-3.4", lock="airflow-3.4.0b2", may_fail=True),
        Cell("python-3.13", python="3.13"),
        Cell("ray-2.60", "client"),
        Cell("ray-2.40", "client", head="ray-2.40.0"),
        Cell("ray-2.8", "client", head="ray-2.8.1"),
    )
}
