"""Run every DAG of a folder once with ``dag.test()`` in a process of its own: ``run_dags.py FOLDER RESULTS``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_dags(dags: Path, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return how the tasks of the DAGs ended, the import errors, and the log. All are files of ``folder`` too."""
    log, results = folder / "log", folder / "results.json"
    with log.open("w") as output:
        process = subprocess.run(
            [sys.executable, __file__, dags, results],
            env=environment, check=False, stdout=output, stderr=subprocess.STDOUT, timeout=1500,
        )  # fmt: skip
    assert process.returncode == 0, log.read_text()[-8000:]
    return {**json.loads(results.read_text()), "log": log.read_text()}


def main(folder: Path, results: Path) -> None:
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before Airflow 3.2
        from airflow.models.dagbag import DagBag

    bag = DagBag(folder)
    ended: dict[str, dict[str, dict[str, str]]] = {}
    names: dict[str, list[str]] = {}
    for dag_id, dag in sorted(bag.dags.items()):
        print(f"=== {dag_id} ===", flush=True)
        tasks = dag.test().get_task_instances()
        states = {ti.task_id + (f"[{ti.map_index}]" if ti.map_index >= 0 else ""): str(ti.state) for ti in tasks}
        names[dag_id] = sorted(ti.rendered_map_index for ti in tasks if ti.rendered_map_index)
        ended.setdefault(Path(dag.fileloc).name, {})[dag_id] = states
    results.write_text(json.dumps({"ended": ended, "names": names, "import_errors": bag.import_errors}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
