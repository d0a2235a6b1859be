"""The error that the page about errors shows is the one that a real job gives."""

from __future__ import annotations

import re

import pytest
from doc_files import DOCS, EXAMPLES
from test_operators import Store, try_from

from airflow_provider_rayjobs.exceptions import RayJobEntrypointError
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from sandbox.ray_head import RayHead


@pytest.mark.ray
def test_error_of_a_failed_job(docs_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """Apart from id, duration and address, the error on the page is that of the example's job."""
    page = (DOCS / "guides" / "errors.md").read_text()
    shown = page.partition("```text\n")[2].partition("```")[0]
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", docs_head.address)
    operator = RayJobSubmitOperator(
        task_id="load",
        entrypoint=["python", "load.py", "--day", "2026-11-23"],
        runtime_env={"working_dir": str(EXAMPLES / "loading")},
        poll_interval=1,
    )

    with pytest.raises(RayJobEntrypointError) as failed:
        operator.execute(try_from(0, Store(), dag_id="errors", task_id="load", try_number=1))
    error = re.sub(r"try1-\w+ FAILED", "try1-5f0c9a1b7d3e2468 FAILED", f"RayJobEntrypointError: {failed.value}")
    error = re.sub(r"after \S+ s, at \S+\.", "after 5.2 s, at http://ray-head:8265.", error)
    assert error.startswith(shown)
