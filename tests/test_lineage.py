"""OpenLineage events of tasks and their jobs, with the real provider, its file transport and a real Ray head."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version
from test_imports import python
from test_operators import context

from airflow_provider_rayjobs import lineage
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from sandbox.processes import clean_environment
from sandbox.ray_head import RayHead, connection_to

PROGRAM = Path(__file__).parents[1] / "docs" / "examples" / "observed" / "lineage.py"
TRANSPORT = '{"type": "file", "log_file_path": "%s", "append": true}'
DAG_FILE = """
import pendulum
from airflow.sdk import DAG, Asset, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

ENVIRONMENT = {"env_vars": {"OPENLINEAGE__TRANSPORT": '%s', "API_TOKEN": "marked-token", "OTHER": "hidden"}}
with DAG("lineage", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")) as dag:
    job = {"poll_interval": 1, "runtime_env": ENVIRONMENT}
    for name, deferrable in (("worker", False), ("deferred", True)):
        RayJobSubmitOperator(
            task_id=name, entrypoint=["python", %r], deferrable=deferrable, outlets=[Asset("file:///m/" + name)], **job
        )
    RayJobSubmitOperator(task_id="fails", entrypoint="echo ftp://me:marked-password@host marked-token; exit 3", **job)

    @task.ray_job(**job)
    def function():
        pass

    function()

if __name__ == "__main__":
    run = dag.test()
    print("STATES", {ti.task_id: str(ti.state) for ti in run.get_task_instances()})
"""


@pytest.mark.skipif(
    Version(airflow_version).release < (3, 3), reason="before Airflow 3.3 dag.test() calls no listeners"
)
@pytest.mark.airflow
@pytest.mark.ray
def test_tasks_and_their_jobs(ray_head: RayHead, tmp_path: Path):
    """
    The last event of a task names its job, and the run of the job's program is a child of the task's run.

    With all arguments of the operator (``include_full_task_info``), events do not have the values of ``env_vars``.
    """
    dag_file, program = tmp_path / "dags" / "lineage.py", tmp_path / "train.py"
    of_airflow, of_jobs = tmp_path / "airflow.jsonl", tmp_path / "jobs.jsonl"
    dag_file.parent.mkdir()
    dag_file.write_text(DAG_FILE % (TRANSPORT % of_jobs, str(program)))
    shutil.copy(PROGRAM, program)
    environment = clean_environment("AIRFLOW", "RAY_") | {
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dag_file.parent),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_RAY_JOBS_DEFAULT": json.dumps(connection_to(ray_head)["ray_jobs_default"]),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": TRANSPORT % of_airflow,
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "company/airflow",
        "AIRFLOW__OPENLINEAGE__INCLUDE_FULL_TASK_INFO": "True",
    }
    airflow = Path(sys.executable).with_name("airflow")
    subprocess.run([airflow, "db", "migrate"], env=environment, check=True, capture_output=True, timeout=300)
    ended = subprocess.run(
        [sys.executable, dag_file], env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    states = dict(eval((ended.stdout + ended.stderr).rpartition("STATES ")[2].splitlines()[0]))  # noqa: S307
    assert states == {"worker": "success", "deferred": "success", "fails": "failed", "function": "success"}

    events: dict[str, list[Any]] = defaultdict(list)
    for line in of_airflow.read_text().splitlines():
        event = json.loads(line)
        events[event["job"]["name"].removeprefix("lineage.")].append(event)
    last = {name: of_task[-1] for name, of_task in events.items() if name in states}
    facets = {name: event["run"]["facets"]["rayJob"] for name, event in last.items()}
    for name, facet in facets.items():
        assert facet["submissionId"].startswith(f"lineage.{name}-try1"), facet
        assert facet["address"] == ray_head.address
        assert facet["dashboardUrl"] == f"{ray_head.address}/#/jobs/{facet['submissionId']}"
    assert facets["worker"]["entrypoint"] == f"python {program}"
    assert facets["function"]["entrypoint"] == "python -m ray_job_function function"
    assert facets["fails"]["entrypoint"] == "echo ftp://me:***@host ***; exit 3"
    assert {name: event["eventType"] for name, event in last.items()}["fails"] == "FAIL"
    assert [output["name"] for output in last["worker"]["outputs"]] == ["/m/worker"]
    assert "runtime_env" in of_airflow.read_text()
    assert "hidden" not in of_airflow.read_text()

    children = [json.loads(line)["run"]["facets"]["parent"] for line in of_jobs.read_text().splitlines()]
    assert {(child["run"]["runId"], child["job"]["name"], child["job"]["namespace"]) for child in children} == {
        (last[name]["run"]["runId"], f"lineage.{name}", "company/airflow") for name in ("worker", "deferred")
    }


@pytest.fixture
def lineage_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", '{"type": "console"}')


def task_instance() -> Any:
    given = context()
    given["dag_run"].clear_number, given["dag_run"].conf = 0, None
    given["ti"].get_template_context = lambda: given
    return given["ti"]


def variables_of(operator: RayJobSubmitOperator) -> dict[str, str]:
    given = context()
    given["ti"] = task_instance()
    env_vars = operator.new_submission(given, "job-1").runtime_env["env_vars"]
    return {name: value for name, value in env_vars.items() if name.startswith("OPENLINEAGE")}


@pytest.mark.parametrize("name", [lineage.PARENT, lineage.ROOT, lineage.CONTEXT])
def test_variables_of_the_user_take_precedence(lineage_is_on: None, name: str):
    """A parent in ``env_vars`` is the only one that the program has."""
    operator = RayJobSubmitOperator(task_id="t", entrypoint="true", runtime_env={"env_vars": {name: "mine"}})

    assert variables_of(operator) == {name: "mine"}
    assert variables_of(RayJobSubmitOperator(task_id="t", entrypoint="true")).keys() == {lineage.PARENT, lineage.ROOT}


@pytest.mark.parametrize(("option", "value"), [("DISABLED", "True"), ("TRANSPORT", ""), ("TRANSPORT", "{broken")])
def test_no_variables(lineage_is_on: None, monkeypatch: pytest.MonkeyPatch, option: str, value: str):
    """With lineage off or its configuration broken, the driver has no parent, and the submission goes on."""
    monkeypatch.setenv(f"AIRFLOW__OPENLINEAGE__{option}", value)

    assert variables_of(RayJobSubmitOperator(task_id="t", entrypoint="true")) == {}


def test_source_code_is_disabled(monkeypatch: pytest.MonkeyPatch):
    """The facet has no command if Airflow's OpenLineage is told to send no source code."""
    job = ("job-1", "http://head:8265", "http://head:8265/#/jobs/job-1")
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__DISABLE_SOURCE_CODE", "True")

    assert lineage.describe_job("true", job).run_facets["rayJob"].entrypoint is None
    assert lineage.describe_job("true", None).run_facets == {}


@pytest.mark.parametrize("is_installed", [True, False])
def test_nothing_is_imported(is_installed: bool):
    """Without the provider nothing of OpenLineage is imported; with a provider that is off, only its configuration."""
    # Airflow 3.3 itself imports the provider's package, to read what it says about its configuration
    hide = "" if is_installed else "sys.modules['airflow.providers.openlineage'] = None\n"
    found = python(
        "import sys\n"
        "from airflow_provider_rayjobs import decorators, lineage, operators\n"
        f"{hide}before = set(sys.modules)\n"
        "assert lineage.parent_variables(None, {}) == {}\n"
        "before.add('airflow.providers.openlineage')\n"
        "print([name for name in set(sys.modules) - before if 'openlineage' in name])"
    )

    assert found == repr(["airflow.providers.openlineage.conf"] if is_installed else [])
