"""The runner of the tests on several versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import __main__ as matrix
from tests.matrix.cells import CELLS, LOCKS, SHORT, SUITES
from tests.matrix.environments import CONSTRAINTS
from tests.matrix.results import TABLE, Result, count, failures, load, save, table

RESULT = Result("airflow-3.3", "unit", "3.3.2", "3.11.7", "2.60.0", "2026-11-27", 2, 0, 1, may_fail=False)
TESTS = """
import pytest

def test_passes(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("no reason")

@pytest.fixture
def broken(): raise OSError

def test_has_an_error(broken): pass
"""


def test_errors_count_as_failures(tmp_path: Path):
    """A test whose fixture fails has failed, as one whose assertion fails."""
    (tmp_path / "test_all.py").write_text(TESTS)
    report = tmp_path / "report.xml"
    arguments = ["--rootdir", str(tmp_path), "-c", "/dev/null", f"--junitxml={report}", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pytest", *arguments], stdout=subprocess.DEVNULL, check=False)

    assert count(report) == {"passed": 1, "failed": 2, "skipped": 1}


def test_result_replaces_that_of_the_same_tests(tmp_path: Path):
    """Only the last result of a cell and suite is kept, in the order of the cells."""
    path = tmp_path / "results.json"
    path.write_text("[]")
    other = RESULT._replace(cell="airflow-3.1")
    for result in (RESULT, other, RESULT._replace(failed=3)):
        save(result, path)

    assert load(path) == [other, RESULT._replace(failed=3)]


def test_run_of_all_tests_replaces_runs_of_some(tmp_path: Path):
    """What was known about parts of a cell is out of date after all its tests ran."""
    path = tmp_path / "results.json"
    path.write_text("[]")
    whole, other = RESULT._replace(suite="all"), RESULT._replace(cell="airflow-3.1")
    for result in (RESULT, other, whole):
        save(result, path)

    assert load(path) == [other, whole]


@pytest.mark.parametrize(
    ("cell", "result", "failed"),
    [
        pytest.param("airflow-3.3", RESULT, [], id="success"),
        pytest.param("airflow-3.3", RESULT._replace(failed=1), ["airflow-3.3 (unit)"], id="failure"),
        pytest.param("airflow-3.3", None, ["airflow-3.3 (unit)"], id="no result"),
        pytest.param("airflow-3.4", RESULT._replace(failed=1), [], id="failure that is allowed"),
        pytest.param("airflow-3.4", None, [], id="no result is allowed"),
    ],
)
def test_failures_of_a_run(cell: str, result: Result | None, failed: list[str]):
    """A run fails with a cell that may not fail, also if that cell has no result."""
    assert failures([(CELLS[cell], "unit", result)]) == failed


def test_run_without_a_test_has_no_result(monkeypatch: pytest.MonkeyPatch):
    """What pytest could not run is not recorded."""
    monkeypatch.setitem(SUITES, "unit", SUITES["unit"]._replace(arguments=("no/such/test.py",)))

    assert matrix.run(CELLS["airflow-3.3"], "unit") is None


def test_each_lock_has_constraints_that_pin_its_version():
    """The file of each environment exists, and every file belongs to an environment."""
    assert {path.stem for path in CONSTRAINTS.iterdir()} == set(LOCKS)
    for name, lock in LOCKS.items():
        pins = (CONSTRAINTS / f"{name}.txt").read_text().splitlines()
        assert lock.requirements[0].replace("[default]", "") in pins


def test_cells_name_locks_and_suites_that_exist():
    """The tables of cells, locks and suites fit together."""
    assert {cell.suite for cell in CELLS.values()} <= set(SUITES)
    assert {name for cell in CELLS.values() for name in (cell.lock, cell.head) if name} == set(LOCKS)
    assert all(cell in CELLS and suite in SUITES for cell, suite in SHORT)


def test_table_is_that_of_the_results():
    """The page in the documentation shows the stored results and the table of Ray's features."""
    if os.environ.get("UPDATE_DOCS"):
        TABLE.write_text(table(load()), encoding="utf-8")

    assert TABLE.read_text(encoding="utf-8") == table(load())
