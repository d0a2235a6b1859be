"""The messages and numbers in the guides about retries, stops, errors, access and many jobs are those of the code."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
from doc_files import DOCS

from airflow_provider_rayjobs.connection import parse_connection
from airflow_provider_rayjobs.exceptions import RayJobTimeoutError
from airflow_provider_rayjobs.in_job import FAIL_EXIT_CODE, SKIP_EXIT_CODE
from airflow_provider_rayjobs.jobs import Access, JobDetails, JobStatus, JobType, diagnosis, watch
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import UNCONFIRMED_TIMEOUT, Limits, describe_shortage
from airflow_provider_rayjobs.jobs.logs.cursor import LAST_LINES
from airflow_provider_rayjobs.jobs.models import ClusterResources, JobErrorType
from airflow_provider_rayjobs.jobs.pending import RAY_START_LIMIT
from airflow_provider_rayjobs.jobs.steps import Sleep
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, StopResult, _summarize, stop_and_wait
from airflow_provider_rayjobs.task import boundary, execution
from airflow_provider_rayjobs.task.outcomes import error_for_outcome

JOB = "nightly.train-try1-5f0c9a1b7d3e2468"
HEAD = "http://ray-head:8265"


def guide(name: str) -> str:
    return (DOCS / "guides" / f"{name}.md").read_text(encoding="utf-8")


def printed(name: str) -> str:
    """Return all that programs print, as a guide shows it."""
    return "\n".join(re.findall(r"^```text\n(.*?)^```$", guide(name), re.MULTILINE | re.DOTALL))


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


def test_numbers():
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
