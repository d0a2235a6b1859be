"""The DAG files that the documentation shows run, with ``dag.test()``, on a real Ray head."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from doc_files import EXAMPLES
from run_dags import run_dags

from airflow_provider_rayjobs.task.attempts import HAS_STORE

pytestmark = [pytest.mark.airflow, pytest.mark.ray, pytest.mark.timeout(1800)]

# How the tasks of an example end, if not all of them succeed: by task id.
EXPECTED: dict[str, dict[str, str]] = {"errors.py": {"load": "failed"}, "functions.py": {"process": "skipped"}}
# Files that Airflow before 3.3 cannot import.
NEEDS_33 = {"retry_policy.py"}
# Folders below that of the examples have the programs of jobs, but for that of the migration guides.
DAG_FILES = sorted(path.name for pattern in ("*.py", "migration/after_*.py") for path in EXAMPLES.glob(pattern))


@pytest.fixture(scope="module")
def runs(docs_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of each DAG, in one process, so that Airflow is imported once."""
    return run_dags(EXAMPLES, tmp_path_factory.mktemp("runs"), docs_environment)


def test_examples_can_be_imported(runs: dict[str, Any]):
    """No file of the documentation has an import error, but those with what came with Airflow 3.3."""
    assert {Path(file).name for file in runs["import_errors"]} == (set() if HAS_STORE else NEEDS_33), runs


@pytest.mark.parametrize("name", DAG_FILES)
def test_example_runs(runs: dict[str, Any], name: str):
    """Each DAG of the file ends as the documentation says."""
    if name in NEEDS_33 and not HAS_STORE:
        pytest.skip("retry policies came with Airflow 3.3")
    dags = runs["ended"][name]

    assert dags != {}
    for dag_id, states in dags.items():
        log = runs["log"].partition(f"=== {dag_id} ===")[2].partition("\n=== ")[0]
        expected = dict.fromkeys(states, "success") | EXPECTED.get(name, {})
        assert states == expected, log[-8000:]


def test_sweep_names_its_instances_and_ranks_their_results(runs: dict[str, Any]):
    """Each instance of the sweep has the name that the guide promises, and the last task has all results."""
    log = runs["log"].partition("=== sweep ===")[2].partition("\n=== ")[0]

    assert runs["names"]["sweep"] == [f"rate {rate}, depth {depth}" for rate in (0.1, 0.5) for depth in (2, 4)]
    assert len(re.findall(r"^{'rate': 0\.\d, 'depth': \d, 'loss': [\d.]+}$", log, re.MULTILINE)) == 4
