"""Run every DAG of a folder once with ``dag.test()``, and write how its tasks ended: ``run_dags.py FOLDER RESULTS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag


def main(folder: Path, results: Path) -> None:
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
