"""What the guides quote from programs: error messages, log lines, names and numbers are those of the code."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.execution_time.context import AIRFLOW_VAR_NAME_FORMAT_MAPPING
from doc_files import DOCS, EXAMPLES

from airflow_provider_rayjobs import in_job, log_budget, masking
from airflow_provider_rayjobs.connection import parse_connection
from airflow_provider_rayjobs.event_triggers import RayJobEventTrigger
from airflow_provider_rayjobs.exceptions import RayApiConnectionError, RayApiUnreachableError, RayJobTimeoutError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.in_job import FAIL_EXIT_CODE, NONCE_VARIABLE, SKIP_EXIT_CODE
from airflow_provider_rayjobs.jobs import (
    Access,
    JobDetails,
    JobStatus,
    JobType,
    RayJobsClient,
    diagnosis,
    endpoints,
    watch,
)
from airflow_provider_rayjobs.jobs.ended import find_ended
from airflow_provider_rayjobs.jobs.first_contact import FIRST_CONTACT_TIMEOUT
from airflow_provider_rayjobs.jobs.follow import UNREACHABLE_TIMEOUT, Outage
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import NO_LIMITS, UNCONFIRMED_TIMEOUT, Limits, describe_shortage
from airflow_provider_rayjobs.jobs.logs.cursor import LAST_LINES
from airflow_provider_rayjobs.jobs.logs.messages import FunctionFailure, JobMessages, Progress
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.logs.tail import TAIL_LINES
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobErrorType
from airflow_provider_rayjobs.jobs.packages.local_code import Package, resolve_local_code, too_large
from airflow_provider_rayjobs.jobs.packages.secret_names import PATTERN, SECRET_NAMES
from airflow_provider_rayjobs.jobs.packages.tree import Entry, Tree
from airflow_provider_rayjobs.jobs.pending import RAY_START_LIMIT, _describe_limit, explain
from airflow_provider_rayjobs.jobs.redaction import MIN_SECRET_LENGTH
from airflow_provider_rayjobs.jobs.steps import LogMessage, Sleep, raising_unreachable
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, StopResult, _summarize, stop_and_wait
from airflow_provider_rayjobs.jobs.submission import NONCE
from airflow_provider_rayjobs.lineage import PARENT, ROOT
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task import boundary, execution
from airflow_provider_rayjobs.task.attempts import numbered_id
from airflow_provider_rayjobs.task.outcomes import error_for_outcome
from airflow_provider_rayjobs.task.results import MAX_STORED
from airflow_provider_rayjobs.task.template_values import as_bytes
from airflow_provider_rayjobs.tracing import VARIABLE
from sandbox.ray_head import RayHead

JOB = "nightly.train-try1-5f0c9a1b7d3e2468"
HEAD = "http://ray-head:8265"


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


def job(status: str, **fields: Any) -> JobDetails:
    return JobDetails(JobType.SUBMISSION, JobStatus(status), submission_id=JOB, **fields)


def stopped(details: JobDetails) -> StopResult:
    """Return the result of a stop that Ray accepts, of a job that does not change."""
    engine, answer, now = stop_and_wait(JobRef(HEAD, JOB)), None, 0.0
    try:
        while True:
            step = engine.send(answer)
            if isinstance(step, Sleep):
                now += step.seconds
                answer = now
            else:
                answer = True if step.request.path.endswith("/stop") else details
    except StopIteration as end:
        return end.value


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


def test_value_that_is_not_json():
    """The error for a value that JSON cannot hold, and what to use instead, are as the guide says."""
    number = type("float32", (), {"__module__": "numpy"})()
    with pytest.raises(in_job.ResultError) as raised:
        in_job.to_json({"model": [1, 2, 3, number]}, "result")
    hints = inspect.getsource(in_job._hint) + " ".join(hint for _, hint in in_job._HINTS)
    advised = {call.partition("(")[0] for row in rows("functions", "Type | Send") for call in in_code(row[1])}

    assert f"train raised ResultError: {raised.value}\n" in printed("functions")
    assert len(advised) == 8
    assert {call for call in advised if f"{call.removeprefix('value').removeprefix('frame')}(" not in hints} == set()


def test_limits_of_results():
    """The limits in the guide are those of the code."""
    limits = [row[1] for row in rows("functions", "Limit | Value")]
    sizes = {in_job.MAX_RESULT_SIZE >> 20: limits[0], MAX_STORED >> 20: limits[1]}

    assert all(text.startswith(f"{size} MiB") for size, text in sizes.items())
    assert limits[3] == f"{in_job._MAX_DEPTH} levels"
    assert f"at most {in_job._PROGRESS_TEXT} characters" in guide("functions")
    assert f"at most {in_job.MAX_EXTRA_SIZE >> 10} KiB" in guide("functions")
    assert f"exit code {in_job.SKIP_EXIT_CODE} for a skip, {in_job.FAIL_EXIT_CODE} for" in guide("functions")


def test_error_of_a_function():
    """The error of a function that raises is the one that the guide quotes."""
    quoted = printed("functions").partition("RayJobFunctionError: ")[2].partition("\nProgress")[0]
    progress = Progress(30, 100, "epoch 30")
    traceback = quoted.partition("epoch 30\n")[2]
    failure = FunctionFailure("train", ("ValueError",), "no data for 2026-11-23", traceback)
    job = JobDetails.from_json({
        "submission_id": "training.train-m0-try1-5f0c9a1b7d3e2468", "type": "SUBMISSION", "status": "FAILED",
        "driver_exit_code": 1, "start_time": 1000, "end_time": 6200, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR",
    })  # fmt: skip

    error = error_for_outcome(job, "http://ray-head:8265", messages=JobMessages(progress=progress, failure=failure))

    assert type(error).__name__ == "RayJobFunctionError"
    assert str(error).rstrip() == quoted.rstrip()
    assert f"Progress: {Progress(30, 100, 'loss 0.120')}\n" in printed("functions")


def test_reason_of_a_pending_job():
    """The message about a job that waits is the one that the guide quotes, and so are the reasons in its table."""
    job = JobDetails.from_json({"submission_id": JOB, "type": "SUBMISSION", "status": "PENDING", "start_time": 1000})
    node = {"CPU": 2.0, "memory": 21.2 * 2**30}
    alone = ClusterResources(((node, 1),))
    installing = replace(job, runtime_env={"pip": ["x"], "working_dir": "gcs://a.zip"})
    reasons = [
        explain(job, {"GPU": 1.0}, alone),
        explain(job, {"CPU": 2.0, "GPU": 1.0}, ClusterResources((({"CPU": 2.0}, 1), ({"GPU": 1.0}, 1)))),
        explain(job, {"CPU": 1.0}, replace(alone, waiting=(({"CPU": 1.0}, 1),))),
        explain(installing, {}, alone),
        explain(job, {"CPU": 1.0}, None),
    ]
    fact = f"Ray job {JOB} is PENDING, 31 s after its submission."

    assert f"{fact} {reasons[0].text} {_describe_limit(NO_LIMITS)}\n" in printed("waiting")
    table = [row[0].strip("`") for row in rows("waiting", "The message says")]
    assert [said for said, reason in zip(table, reasons, strict=True) if said not in reason.text] == []


def test_error_of_the_first_contact():
    """The error about a host that does not exist is the one that the guide quotes."""
    quoted = printed("waiting").partition("RayApiUnreachableError: ")[2].partition("\n")[0]
    label = "connection ray_jobs_default"
    with RayJobsClient("http://ray-haed:8265", label=label) as client, pytest.raises(RayApiConnectionError) as raised:
        client.send(endpoints.get_version())
    raised.value.retry_for = FIRST_CONTACT_TIMEOUT
    with (
        pytest.raises(RayApiUnreachableError) as unreachable,
        raising_unreachable(UNREACHABLE_TIMEOUT, f"Job {JOB} was not submitted."),
    ):
        raise raised.value

    # the words of the resolver depend on the machine and its network
    cause = re.compile(r"(?<=Cause: ConnectError: ).*?(?= Retried)")
    assert cause.sub("", str(unreachable.value)) == cause.sub("", quoted)


def test_log_of_an_outage():
    """The start and the end of an outage are logged as the guide says."""
    outage = Outage(JOB, UNREACHABLE_TIMEOUT)
    messages = [*outage.record_failure(RayApiConnectionError("..."), 100), *outage.record_success(142)]

    assert len(messages) == 2
    for message in messages:
        assert isinstance(message, LogMessage)
        assert f"{message.message}\n" in printed("waiting")


def test_list_of_secret_files():
    """The files with secrets in the guide are those of the code."""
    names = [name for row in rows("local-code", "Files | Of") for name in re.findall(r"`([^`]+)`", row[0])]

    assert sorted(names) == sorted([*SECRET_NAMES, PATTERN])


def test_requirements_of_a_yaml_file():
    """The files that the guide shows become lists of packages, and a package with the constraints."""
    folder = EXAMPLES / "forecast"
    runtime_env = yaml.safe_load((folder / "runtime_env.yaml").read_text())

    code = resolve_local_code(runtime_env, folders=[folder])

    constraints, *packages = code.runtime_env["pip"]
    [path] = re.findall(r"^-c \$\{RAY_RUNTIME_ENV_CREATE_WORKING_DIR\}/(\S+)$", constraints)
    assert packages == ["pandas", "pyarrow"]
    assert path in [entry.name for entry in code.packages[0].tree.entries]
    assert [package.owner for package in code.packages] == ["working_dir", "py_modules[0]"]


@pytest.mark.parametrize("line", ["./wheels/a.whl", "-e .", "--find-links=wheels"])
def test_requirement_on_the_disk_of_the_worker(line: str):
    """A line that means the disk of the worker is an error."""
    assert f"`{line}`" in guide("local-code")
    with pytest.raises(ValueError, match="Path of this machine in requirements"):
        resolve_local_code({"pip": [line]})


def test_package_that_is_too_large():
    """The error for a package over the limit is the one that the guide quotes."""
    sizes = {"data/trips.parquet": 210 << 20, "predict.py": 100}
    entries = tuple(Entry(name, "", 0o644, size) for name, size in sizes.items())

    error = too_large(Package("working_dir", Path("/opt/airflow/dags/forecast"), Tree(entries)))

    assert f"ValueError: {error}\n" in printed("local-code")


@pytest.mark.ray
def test_log_line_of_a_package(docs_head: RayHead, caplog: pytest.LogCaptureFixture):
    """The log line of an uploaded package has the form of the one in the guide."""
    caplog.set_level(logging.INFO)
    runtime_env = {"working_dir": str(EXAMPLES / "forecast"), "py_modules": [str(EXAMPLES / "forecast_tools")]}
    with RayJobsClient(docs_head.address) as client:
        job = client.submit_job("python predict.py today", runtime_env=runtime_env)
        assert client.follow_job(job, poll_interval=1).status == "SUCCEEDED"
    number = r"[\d.]+ \w+"
    line = re.compile(
        rf"working_dir \S+: package _ray_pkg_[0-9a-f]{{40}}\.zip, \d+ files, {number}; named in [\d.]+ s, uploaded "
        rf"\({number}\) in [\d.]+ s\."
    )
    already = re.compile(r"working_dir \S+: package .*, already on the cluster\.")  # an example was run before

    assert line.search(printed("local-code"))
    assert line.search(caplog.text) or already.search(caplog.text)


def test_notice_of_a_large_log():
    """The notice about a large log is the one that the guide quotes."""
    reader = LogReader()
    reader.log.offset, reader.rest = 100_000_000, 15.0
    job = JobDetails.from_json({"submission_id": JOB, "type": "SUBMISSION", "status": "RUNNING"})

    [notice] = reader._notify_of_delay(job, is_large=True)

    assert isinstance(notice, LogMessage)
    assert f"{notice.message}\n" in printed("logs")


def test_numbers_about_logs():
    """The budget of deferred tasks and the last lines of an unreadable log are as the guide says."""
    text = guide("logs")

    assert f"So they show {log_budget.RATE >> 10} KiB a second together." in text
    assert f"At most one turn ({log_budget.BURST >> 10} KiB) appears twice" in text
    assert f"the last {TAIL_LINES:,} lines follow" in text
    assert f"values of less than {_letters(MIN_SECRET_LENGTH)} characters" in text
    assert f"numbers of less than {_letters(masking._MIN_SECRET_DIGITS)} digits" in text


def _letters(number: int) -> str:
    return {5: "five", 6: "six"}[number]


def test_names_of_quantities():
    """The words that keep a number in the log are those of the code."""
    [row] = rows("logs", "Quantity | Time")

    words = in_code(" ".join(row))

    assert len(words) == 19
    assert "|".join(sorted(words)).lower() == "|".join(sorted(masking._QUANTITY.pattern.split(")(")[1].split("|")))


def test_address_of_a_history_server(monkeypatch: pytest.MonkeyPatch):
    """The connection that the guide shows has a template for pages that outlive the cluster."""
    script = f'. {EXAMPLES / "history_url.sh"}; printf %s "$AIRFLOW_CONN_RAY_JOBS_DEFAULT"'
    exported = subprocess.run(["sh", "-e", "-c", script], check=True, capture_output=True, text=True).stdout
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", exported)

    cluster = RayJobsHook().get_cluster()

    assert cluster.job_history_url("job-1", None) == "https://history.example.com/#/jobs/job-1"


def test_arguments_of_a_watcher():
    """The arguments of the event trigger and their defaults are as the guide says."""
    parameters = inspect.signature(RayJobEventTrigger.__init__).parameters
    table = {row[0].strip("`"): row[2].strip("`") for row in rows("event-triggers", "Argument | Meaning | Default")}

    assert table == {
        name: "none" if each.default is None else each.default for name, each in parameters.items() if name != "self"
    }


@pytest.mark.ray
def test_job_of_a_notebook(docs_head: RayHead):
    """The program that the guide shows is a job that the watcher of the guide wants."""
    environment = {**os.environ, "RAY_ADDRESS": docs_head.gcs_address}
    program = EXAMPLES / "training" / "label.py"
    subprocess.run([sys.executable, program], env=environment, check=True, capture_output=True, timeout=120)
    with RayJobsClient(docs_head.address) as client:
        records = client.send(endpoints.list_records())
        jobs = {job.details().job_id: job for job in asyncio.run(find_ended(records))}
        [found] = [job for job in client.list_jobs() if job.metadata.get("purpose") == "labelling"]

    wanted = RayJobEventTrigger(metadata={"purpose": "labelling"})._match(jobs[found.job_id])

    assert wanted is not None
    payload = {"ray_conn_id", "address", *wanted.to_event()} - {"message"}
    [line] = [line for line in guide("event-triggers").splitlines() if line.startswith("`event.extra[")]
    # an interactive job has no submission id
    assert in_code(line) - payload == {'event.extra["payload"]', "submission_id"}


def test_logged_sentences():
    """The sentences that a try logs are in its code."""
    code = inspect.getsource(boundary) + inspect.getsource(execution)
    for name, sentences in (
        ("retries", printed("retries").splitlines()),
        ("stopping", [line for line in printed("stopping").splitlines() if "may still be running" in line]),
    ):
        quoted = [re.sub(r"nightly\.\S+", "%s", line) for line in sentences if not line.startswith("The end of")]
        assert quoted, name
        assert [line for line in quoted if line not in code] == []


def test_stop_that_could_not_be_confirmed():
    """The guide quotes the result of a stop after which the job still runs."""
    assert STOP_TIMEOUT == 30
    assert f"{stopped(job('RUNNING')).summary}\n" in printed("stopping")


def test_expired_limit():
    """The guide quotes the error of a job that has not started in time."""
    details = job("PENDING", start_time=0, seen_at=61_000)
    nodes = (({"CPU": 4, "GPU": 2, "memory": 30 * 1024**3}, 3),)
    cluster = ClusterResources(nodes, {"CPU": 1, "GPU": 0, "memory": 2.1 * 1024**3})
    with pytest.raises(RayJobTimeoutError) as late:
        Limits(pending_timeout=60).check(details)

    shown = [
        f"RayJobTimeoutError: {late.value}",
        f"Its stop was requested at {HEAD}, because this limit expired.",
        describe_shortage({"GPU": 4}, cluster),
        _summarize(JobRef(HEAD, JOB), details, is_accepted=True),
    ]
    assert "\n".join(map(str, shown)) in printed("stopping")


def test_numbers_about_stops_and_errors():
    """Limits in the guides are those of the code."""
    assert f"PENDING for {UNCONFIRMED_TIMEOUT / 60:.0f} minutes" in guide("stopping")
    assert f"not started after {RAY_START_LIMIT / 60:.0f} minutes" in guide("stopping")
    assert f"The last {LAST_LINES} lines of the job's log follow." in guide("errors")
    assert f"uses {SKIP_EXIT_CODE} for a skip, {FAIL_EXIT_CODE} for a failure of the task at once" in guide("errors")


def test_parts_of_an_error():
    """The error of a runtime environment and the hint at a kill are as the guide says."""
    message = "x\nERROR: No matching distribution found for pandsa==2.2\n"
    setup = error_for_outcome(job("FAILED", error_type=JobErrorType.RUNTIME_ENV_SETUP_FAILURE, message=message), HEAD)
    killed = error_for_outcome(job("FAILED", driver_exit_code=137), HEAD)

    assert f"`{str(setup).splitlines()[0]}`" in guide("errors")
    assert "killed (often out of memory)" in str(killed)
    assert "`killed (often out of memory)`" in guide("errors")


def test_access_errors():
    """The guide quotes the errors of a file without permission, and of a proxy that removes the token."""
    connection: Any = SimpleNamespace(
        conn_id="ray_jobs_default", host="ray-head", port=None, schema=None, login=None, password=None,
        extra='{"token_file": "/token"}', extra_dejson={"token_file": "/token"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="may not use") as forbidden:
        parse_connection(connection)

    assert f"ValueError: {forbidden.value}\n" in printed("secured-clusters")
    assert "token missing, although it was sent" in inspect.getsource(diagnosis)


def test_long_interval():
    """The guide quotes what a task logs when its job is polled rarely."""
    said: list[Any] = []
    follower: Any = SimpleNamespace(
        _watch=SimpleNamespace(interval=12.0),
        _has_told=False,
        _poll_interval=5.0,
        _client=SimpleNamespace(log=said.append),
    )
    [kind] = [each for each in vars(watch).values() if hasattr(each, "_tell_long_interval")]
    kind._tell_long_interval(follower, "nightly.train-m17-try1-5f0c9a1b7d3e2468")

    assert f"{said[0].message}\n" in printed("many-jobs")


def test_header_of_the_token():
    """The table of headers is what a client sends."""
    for fields, header in (
        ({}, "Authorization"),
        ({"login": "me", "password": "secret"}, "X-Ray-Authorization"),
        ({"headers": {"Authorization": "Bearer other"}}, "X-Ray-Authorization"),
        ({"token_header": "X-Ray-Authorization"}, "X-Ray-Authorization"),
    ):
        assert Access(token="the-token", **fields).request_headers()[header] == "Bearer the-token"
