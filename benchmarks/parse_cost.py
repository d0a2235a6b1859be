"""
Measure the CPU time to parse a DAG file with 100 submit operators, and what the checks of their arguments add.

Airflow parses each DAG file every 30 s by default, and once more for each task that it starts. Each round runs the file
with the checks and without them, and a file of 100 BashOperators with as many arguments. The results are medians, of
the times and of their differences. Target: the checks add at most 10 ms, 0.1 ms for each operator.
"""

from __future__ import annotations

import runpy
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from airflow_provider_rayjobs.task.literals import ChecksLiterals
from benchmarks.results import Result, Target

ROUNDS = 30
TASKS = 100
LIMIT = 10.0
DAG_FILE = f"""
from datetime import timedelta
from airflow.sdk import DAG
from {{module}} import {{operator}} as Operator

with DAG("parse_cost", schedule=None):
    for number in range({TASKS}):
        Operator(task_id=f"task_{{{{number}}}}", retries=2, execution_timeout=timedelta(hours=6), {{arguments}})
"""
SUBMIT = """
    entrypoint=["python", "train.py", "--day", "{{ ds }}"], ray_conn_id="ray_team", job_name="{{ task.task_id }}",
    runtime_env={"working_dir": "./training", "pip": "requirements.txt", "env_vars": {"TEAM": "a", "DAY": "{{ ds }}"}},
    metadata={"team": "a"}, entrypoint_num_cpus=2, entrypoint_num_gpus=1, entrypoint_memory="2GB",
    job_timeout=timedelta(hours=3), pending_timeout=600, fetch_logs="on_completion", fail_on_exit_code=[3, 4],
"""
BASH = """
    bash_command="python train.py --day {{ ds }}", env={"TEAM": "a", "DAY": "{{ ds }}"}, append_env=True,
    skip_on_exit_code=[3, 4], cwd="/tmp", output_encoding="utf-8", do_xcom_push=True, pool_slots=2, queue="ray",
"""


def measure() -> list[Result]:
    """Parse the files."""
    with tempfile.TemporaryDirectory() as folder:
        submit = _write(Path(folder, "submit.py"), "airflow_provider_rayjobs.operators", "RayJobSubmitOperator", SUBMIT)
        bash = _write(Path(folder, "bash.py"), "airflow.providers.standard.operators.bash", "BashOperator", BASH)
        rounds = [_measure_round(submit, bash) for _ in range(ROUNDS + 3)][3:]
    checked, unchecked, others = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
    added = 1000 * statistics.median(with_checks - without for with_checks, without, _ in rounds)
    return [
        Result(f"parse {TASKS} submit operators, vs without checks", checked, "ms", unchecked),
        Result(f"parse {TASKS} submit operators, vs BashOperators", checked, "ms", others),
        Result(f"checks of {TASKS} operators' arguments", added, "ms", target=Target("value", "<=", LIMIT)),
    ]


def _write(file: Path, module: str, operator: str, arguments: str) -> Path:
    file.write_text(DAG_FILE.format(module=module, operator=operator, arguments=arguments))
    return file


def _measure_round(submit: Path, bash: Path) -> tuple[float, float, float]:
    checked = _cpu_seconds(submit)
    with mock.patch.object(ChecksLiterals, "_check_literals"):
        unchecked = _cpu_seconds(submit)
    return checked, unchecked, _cpu_seconds(bash)


def _cpu_seconds(file: Path) -> float:
    began = time.process_time()
    runpy.run_path(str(file))
    return time.process_time() - began
