"""The README: its snippets work, and its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from airflow_provider_rayjobs.connection import parse_connection
from airflow_provider_rayjobs.operators import RayJobSubmitOperator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_RELATIVE = re.compile(r"\]\((?!https?://|#)([^)#]+)[^)]*\)")


def metadata_of(folder: Path) -> dict[str, str]:
    """Return the readme in the metadata of a project in this folder."""
    core = ProjectMetadata(str(folder), PluginManager()).core
    return {"text": core.readme, "type": core.readme_content_type}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md"])
def test_relative_links_lead_to_files(page: str):
    """Every relative link of a page leads to a file of the repository."""
    path = ROOT / page
    targets = _RELATIVE.findall(path.read_text(encoding="utf-8"))

    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_dag_of_the_readme_works():
    """The DAG in the README can be parsed, and its task has the arguments that the README shows."""
    [snippet] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    # only the test needs a name for the DAG
    names: dict[str, Any] = {}
    exec(snippet.replace("catchup=False):", "catchup=False) as dag:"), names)  # noqa: S102  (our own README)
    [task] = names["dag"].tasks

    assert isinstance(task, RayJobSubmitOperator)
    assert task.entrypoint == ["python", "train.py", "--day", "{{ ds }}"]


def test_connection_of_the_readme_works():
    """The connection in the README leads to a head on its default port."""
    [fields] = re.findall(r"AIRFLOW_CONN_RAY_JOBS_DEFAULT='(.*?)'", README)
    connection = Connection.from_json(fields, conn_id="ray_jobs_default")

    assert json.loads(fields)["conn_type"] == "ray_jobs"
    assert parse_connection(connection).address == "http://ray-head:8265"


def test_readme_on_a_package_index_has_absolute_links(tmp_path: Path):
    """With an address in [project.urls] the metadata has no relative link; without one it has the README unchanged."""
    (tmp_path / "airflow_provider_rayjobs").mkdir()
    for name in ("README.md", "hatch_build.py", "LICENSE", "airflow_provider_rayjobs/__init__.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = re.sub(r"^\[project\.urls\]\n(.+\n)*", "", project, flags=re.MULTILINE)  # a release may have set it
    (tmp_path / "pyproject.toml").write_text(project)
    assert metadata_of(tmp_path) == {"text": README, "type": "text/markdown"}

    urls = '[project.urls]\nSource = "https://example.com/us/provider"\n\n[project.optional-dependencies]'
    (tmp_path / "pyproject.toml").write_text(project.replace("[project.optional-dependencies]", urls))
    text = metadata_of(tmp_path)["text"]

    assert _RELATIVE.findall(text) == []
    assert "(https://example.com/us/provider/raw/main/docs/images/task-log.png)" in text
    assert "(https://example.com/us/provider/blob/main/docs/quickstart.md)" in text
