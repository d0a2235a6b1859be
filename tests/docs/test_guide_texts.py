"""What the guides quote from programs: error messages, log lines, names and numbers are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.context import AIRFLOW_VAR_NAME_FORMAT_MAPPING
from doc_files import DOCS

from airflow_provider_rayjobs.in_job import NONCE_VARIABLE
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.lineage import PARENT, ROOT
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task.attempts import numbered_id
from airflow_provider_rayjobs.task.template_values import as_bytes
from airflow_provider_rayjobs.tracing import VARIABLE


def guide(name: str) -> str:
    return (DOCS / "guides" / f"{name}.md").read_text(encoding="utf-8")


def printed(name: str) -> str:
    """Return all that programs print, as a guide shows it."""
    return "\n".join(re.findall(r"^```text\n(.*?)^```$", guide(name), re.MULTILINE | re.DOTALL))


def rows(name: str, header: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the table whose header begins with a text."""
    lines = iter(guide(name).partition(f"\n| {header}")[2].splitlines()[2:])
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def in_code(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def context(**changes: Any) -> Any:
    ti = SimpleNamespace(
        **{"dag_id": "nightly", "task_id": "train", "run_id": "run-1", "map_index": -1, "try_number": 1, "max_tries": 0}
        | changes
    )
    date = datetime(2026, 1, 2, tzinfo=UTC)
    run = SimpleNamespace(run_id="run-1", logical_date=date, start_date=date)
    return {"ti": ti, "task_instance": ti, "dag_run": run, "logical_date": date}


@pytest.mark.parametrize(
    "arguments",
    [{"runtime_env": {"pips": ["a"]}}, {"entrypoint_memory": "2 gigs"}, {"fetch_logs": "always"}],
)
def test_mistakes_at_parse_time(arguments: dict[str, Any]):
    """The errors that the guide quotes are raised while a DAG file is parsed."""
    with pytest.raises(ValueError, match="Task train: ") as raised:
        RayJobSubmitOperator(task_id="train", entrypoint="true", **arguments)

    assert f"ValueError: {raised.value}\n" in printed("running-jobs")


def test_memory_units():
    """The text of an amount of memory means as many bytes as the guide says."""
    table = list(rows("running-jobs", "Text | Bytes"))

    assert len(table) == 4
    for texts, number in table:
        assert {as_bytes("entrypoint_memory", text) for text in in_code(texts)} == {int(number.replace(",", ""))}


def test_submission_ids():
    """A generated id, and those after the first one of an id of the user, look as the guide says."""
    text = guide("running-jobs")
    suffixed = [f"`{numbered_id('nightly', '-m3', 2)}`", f"`{numbered_id('', '', 2)}`", f"`{numbered_id('', '', 3)}`"]

    assert [each for each in suffixed if each not in text] == []


def test_metadata_and_environment_of_a_job():
    """The keys and variables in the guide are those that a job has."""
    submission = RayJobSubmitOperator(task_id="train", entrypoint="true").new_submission(context(), "job-1")
    keys = set().union(*(in_code(row[0]) for row in rows("running-jobs", "Metadata key")))
    variables = set().union(*(in_code(row[0]) for row in rows("running-jobs", "Environment variable")))
    of_airflow = {each["env_var_format"] for each in AIRFLOW_VAR_NAME_FORMAT_MAPPING.values()}

    assert keys == submission.metadata.keys() - {"job_name"}
    assert NONCE in keys
    assert submission.metadata["job_name"] == "nightly.train"
    # Airflow before 3.3 knows fewer of its own
    assert variables >= of_airflow | {"RAY_JOB_SUBMISSION_ID", NONCE_VARIABLE, VARIABLE, PARENT, ROOT}
    assert variables >= (submission.runtime_env or {})["env_vars"].keys()
