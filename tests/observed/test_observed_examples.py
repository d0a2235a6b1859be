"""The programs that the documentation shows about traces and lineage send what it says."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from receivers import OtlpServer

from sandbox.processes import clean_environment

OBSERVED = Path(__file__).parents[2] / "docs" / "examples" / "observed"


def run(name: str, variables: dict[str, str]) -> None:
    environment = clean_environment("AIRFLOW", "OTEL_", "OPENLINEAGE") | variables
    subprocess.run([sys.executable, OBSERVED / name], env=environment, check=True, timeout=120)


def test_program_continues_the_trace():
    """The span of the program is in the trace of its task, under the span that ``TRACEPARENT`` names."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with OtlpServer() as spans:
        run(
            "traced.py",
            {"TRACEPARENT": f"00-{trace}-{span}-01", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": spans.endpoint},
        )

    [sent] = spans.named("train")
    assert (sent.trace_id.hex(), sent.parent_span_id.hex()) == (trace, span)


def test_program_is_below_its_task(tmp_path: Path):
    """The events of the program have the run of the task as their parent."""
    pytest.importorskip("openlineage.client")
    run_id = "0197b2f4-0000-7000-8000-000000000001"
    events = tmp_path / "events"
    run(
        "lineage.py",
        {
            "OPENLINEAGE_PARENT_ID": f"airflow/nightly.train/{run_id}",
            "OPENLINEAGE__TRANSPORT__TYPE": "file",
            "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(events),
            "OPENLINEAGE__TRANSPORT__APPEND": "true",
        },
    )

    sent = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["eventType"] for event in sent] == ["START", "COMPLETE"]
    for event in sent:
        parent = event["run"]["facets"]["parent"]
        assert parent["run"]["runId"] == run_id
        assert (parent["job"]["namespace"], parent["job"]["name"]) == ("airflow", "nightly.train")


def test_settings_are_those_of_a_test():
    """The settings of the page are those with which another test receives metrics and spans."""
    parser = configparser.ConfigParser()
    parser.read(OBSERVED / "airflow.cfg")
    given = {f"AIRFLOW__{section}__{option}".upper() for section in parser.sections() for option in parser[section]}
    tested = set(re.findall(r'"(AIRFLOW__\w+)":', Path(__file__).with_name("test_observed_run.py").read_text()))

    assert given == tested
