"""The cluster in memory for tests of DAGs: its answers are Ray's, and its jobs do what a test says."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import DAG
from test_operators import Store, defer, deferrable, fire, try_from

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.exceptions import (
    RayApiBusyError,
    RayApiConnectionError,
    RayJobEntrypointError,
    RayJobFunctionError,
    RayJobLostError,
    RayJobRuntimeEnvError,
    RayJobTimeoutError,
    RayJobUnschedulableError,
)
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.in_job import ResultError
from airflow_provider_rayjobs.jobs import RayJobsClient, exchange
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.testing import FakeRay, Plan, Reply

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "tests" / "samples" / "2.60.0"
PLUGIN = "airflow_provider_rayjobs.pytest_plugin"


@pytest.fixture
def fake() -> Iterator[FakeRay]:
    with FakeRay() as fake:
        yield fake


def run(task: str = "train", **arguments: Any) -> Any:
    """Run a task with one job on a worker."""
    operator = RayJobSubmitOperator(**{"task_id": task, "entrypoint": "true"} | arguments)
    return operator.execute(try_from(0, Store(), task_id=task))


# -- the answers --------------------------------------------------------------------------------------------------


# What differs between two clusters, two jobs and two moments.
_VARIABLE = {"ray_commit", "session_name", "job_id", "start_time", "end_time", "driver_agent_http_address"}


def comparable(text: str) -> Any:
    """Return what is the same in the answers of two clusters; of a traceback it is the last line."""
    if text[0] not in "{[":
        is_traceback, last_line = text.startswith("Traceback"), text.strip("\n.").rpartition("\n")[2]
        return is_traceback, re.sub(r" /.*/", " ", last_line)
    content = json.loads(text)
    if isinstance(content, list):
        return [each.keys() for each in content[:1]]
    same = {name: value for name, value in content.items() if name not in _VARIABLE}
    if "message" in same:
        same["message"] = same["message"].partition("\n")[0]
    return content.keys(), same


def test_answers_are_those_of_ray(fake: FakeRay) -> None:
    """Status, fields and words of the answers are those that Ray 2.60 gave."""

    def check(sample: str, method: str, path: str, body: bytes = b"", **query: str) -> None:
        reply = fake._cluster.handle(method, path, query, body)
        expected = (SAMPLES / sample).read_text()
        assert reply.status == int((re.findall(r"\.(\d+)\.txt", sample) or [200])[0])
        assert reply.content_type.startswith("application/json" if sample.endswith(".json") else "text/plain")
        assert comparable(reply.body.decode()) == comparable(expected)

    def submit(name: str, plan: Plan) -> str:
        sample = json.loads((SAMPLES / f"job_{name}.json").read_text())
        fake.submit(f"sample-{name}", plan, **{key: sample[key] for key in ("entrypoint", "metadata", "runtime_env")})
        return f"/api/jobs/sample-{name}"

    succeeded = submit("succeeded", Plan())
    check("job_pending.json", "GET", succeeded)
    failed, stopped = submit("failed", Plan(exit_code=3)), submit("stopped", Plan(runs=math.inf))
    while fake._clock.step():
        pass
    check("job_succeeded.json", "GET", succeeded)
    check("job_failed.json", "GET", failed)
    check("job_running.json", "GET", stopped)
    check("delete_running.500.txt", "DELETE", stopped)
    check("stopped.json", "POST", f"{stopped}/stop")
    fake._clock.step()
    check("job_stopped.json", "GET", stopped)
    check("stop_ended.json", "POST", f"{stopped}/stop")
    check("jobs_list.json", "GET", "/api/jobs/")
    check("duplicate_id.500.txt", "POST", "/api/jobs/", b'{"submission_id": "sample-failed"}')
    check("deleted.json", "DELETE", succeeded)
    check("submitted.json", "POST", "/api/jobs/", b'{"submission_id": "sample-succeeded"}')
    check("version.json", "GET", "/api/version")
    check("unknown_job.404.txt", "GET", "/api/jobs/unknown-1")
    check("no_such_path.404.txt", "GET", "/api/nothing")
    check("no_log_file.500.txt", "GET", "/api/v0/logs/file", filename="job-driver-nobody.log")


# -- the jobs -----------------------------------------------------------------------------------------------------


def test_job_succeeds_without_a_plan(fake: FakeRay) -> None:
    """A job without a plan succeeds at once, and its result is ``None``."""
    job = run()

    assert [each.submission_id for each in fake.jobs_of("train")] == [job]
    assert fake.jobs[0].status == "SUCCEEDED"
    assert run(return_result=True) is None


def test_result_and_submission(fake: FakeRay) -> None:
    """A job prints and pushes what its plan says, and the test sees what was submitted."""
    fake.plan("train", Plan(result={"loss": "#1"}, log="one line"))

    assert run(entrypoint=["python", "train.py"], entrypoint_num_gpus=1, return_result=True) == {"loss": "#1"}
    [job] = fake.jobs
    assert (job.entrypoint, job.submission["entrypoint_num_gpus"]) == ("python train.py", 1)
    shown: list[str] = []
    RayJobsHook().follow_job(job.submission_id, on_log=shown.append)
    assert shown == ["one line"]


def test_plans_of_a_task_count_one_after_the_other(fake: FakeRay) -> None:
    """The first job of a task follows the first plan, and the last plan counts for all later ones."""
    progress = {"done": 3, "total": 10, "text": "epoch 3"}
    failing = Plan(exit_code=3, log="Traceback (most recent call last):\nValueError: no data", progress=progress)
    fake.plan("train", failing, Plan())
    with pytest.raises(RayJobEntrypointError, match=r"(?s)exit code 3.*ValueError: no data") as failed:
        run()
    assert "3 of 10 (30%): epoch 3" in str(failed.value)

    run()
    run()
    run("other")
    assert [job.status for job in fake.jobs] == ["FAILED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED"]


@pytest.mark.parametrize(
    ("raised", "expected", "exit_code"),
    [
        (UnicodeError("no data #1"), RayJobFunctionError, 1),
        (AirflowSkipException("no data #1"), AirflowSkipException, 99),
        (AirflowFailException("no data #1"), AirflowFailException, 98),
    ],
)
def test_function_that_raises(fake: FakeRay, raised: Exception, expected: type[Exception], exit_code: int) -> None:
    """A plan may be a function that raises: the task has the error and the exit code of the real program."""
    fake.default_plan = Plan(raises=raised)

    @ray_job(poll_interval=0.05)
    def train() -> None:
        pass

    with DAG("functions", schedule=None) as dag:
        train()
    [operator] = dag.tasks
    with pytest.raises(expected, match=rf"^train raised [\w.]*{type(raised).__name__}: no data #1\n") as caught:
        operator.execute(try_from(0, Store(), task_id="train"))
    assert fake.jobs[0].exit_code == exit_code
    if isinstance(caught.value, RayJobFunctionError):
        assert caught.value.is_a(type(raised).__name__)
        assert caught.value.is_a("Exception")


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (UnreadableError(), r"\(its message cannot be shown: RuntimeError\('no text'\)\)"),
        (ValueError("x" * 3_000_000), "x+"),
        (ValueError("half \udc80"), r"half \\udc80"),
    ],
    ids=["without text", "long", "half a surrogate pair"],
)
def test_function_that_raises_something_odd(fake: FakeRay, raised: Exception, message: str) -> None:
    """The task has the message that the real program sends."""
    fake.default_plan = Plan(raises=raised)

    @ray_job(poll_interval=0.05, fetch_logs="on_completion", log_lines_limit=5)
    def train() -> None:
        pass

    with DAG("functions", schedule=None) as dag:
        train()
    [operator] = dag.tasks
    with pytest.raises(RayJobFunctionError, match=rf"^train raised [\w.]*{type(raised).__name__}: {message}\n"):
        operator.execute(try_from(0, Store(), task_id="train"))


def test_command_that_raises(fake: FakeRay) -> None:
    """A plan that raises also suits a command that no shell could read."""
    fake.default_plan = Plan(raises=ValueError("x"))

    with pytest.raises(RayJobEntrypointError, match="ValueError: x"):
        run(entrypoint="echo it's")


def test_failure_in_words_of_ray(fake: FakeRay) -> None:
    """A plan may name Ray's error type and message."""
    fake.default_plan = Plan(exit_code=None, error_type="RUNTIME_ENV_SETUP_FAILURE", message="no torch==99")

    with pytest.raises(RayJobRuntimeEnvError, match=r"no torch==99"):
        run()


@pytest.mark.parametrize(
    ("plan", "limit"),
    [
        (Plan(pending=math.inf), {"pending_timeout": 600}),
        (Plan(runs=math.inf), {"job_timeout": 7200}),
        (Plan(runs=math.inf, stop_takes=math.inf), {"job_timeout": 7200, "stop_timeout": 1}),
        (Plan(pending=610), {"pending_timeout": 600, "job_timeout": 7200}),
        (Plan(pending=610, runs=7000), {"job_timeout": 7200, "pending_timeout": 620}),
        (Plan(runs=7201.5), {"job_timeout": 7200}),
    ],
    ids=["pending", "running", "not stopping", "starts later", "started, ends later", "ends later"],
)
@pytest.mark.parametrize("is_deferrable", [False, True], ids=["worker", "deferrable"])
def test_limits_of_hours_expire_at_once(fake: FakeRay, plan: Plan, limit: dict[str, Any], is_deferrable: bool) -> None:
    """A job that starts or ends too late, or never, exceeds its time limit, and is stopped, without a wait."""
    seconds = next(iter(limit.values()))
    fake.default_plan = plan
    if is_deferrable:
        trigger = defer(deferrable(**limit), try_from(0, Store()))
        event = fire(trigger)
        with pytest.raises(RayJobTimeoutError, match=f"is {seconds} s"):
            deferrable(**limit).execute_complete(try_from(0, Store()), event)
    else:
        with pytest.raises(RayJobTimeoutError, match=f"is {seconds} s"):
            run(**limit)

    [job] = fake.jobs
    assert job.stop_accepted is not None


def test_limits_that_do_not_expire(fake: FakeRay) -> None:
    """A job that starts and ends within its time limits succeeds."""
    fake.default_plan = Plan(pending=590, runs=6600)

    run(pending_timeout=600, job_timeout=7200)
    [job] = fake.jobs
    assert (job.run_at, job.end_time, job.stop_accepted) == (590, 7190, None)


@pytest.mark.parametrize("pending", [901, math.inf])
@pytest.mark.parametrize("limit", [{}, {"pending_timeout": 1800}], ids=str)
def test_ray_fails_a_job_that_does_not_start(fake: FakeRay, pending: float, limit: dict[str, Any]) -> None:
    """A job that has not started after 15 minutes fails in words of Ray; a longer pending_timeout does not matter."""
    fake.default_plan = Plan(pending=pending)
    with pytest.raises(RayJobUnschedulableError, match=r"failed to start within 900\.0 seconds"):
        run(**limit)
    [job] = fake.jobs
    assert (job.end_time, job.run_at, job.stop_accepted) == (900, None, None)

    fake.submit("nightly-export")
    assert RayJobsHook().get_job("nightly-export").error_type == "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"


def test_deferred_task_needs_no_wait(fake: FakeRay) -> None:
    """A trigger fires as soon as its job has ended: no scheduler has to notice the end of a process."""
    event = fire(defer(deferrable(), try_from(0, Store())))

    assert event["job"]["status"] == "SUCCEEDED"
    assert triggers.MIN_DEFERRAL == 0


def test_job_of_another_user(fake: FakeRay) -> None:
    """A test can submit a job as another user does, stop it, and restart the head."""
    job = fake.submit("nightly-export", Plan(runs=math.inf), entrypoint="python export.py")
    hook = RayJobsHook()
    assert hook.get_job("nightly-export").entrypoint == "python export.py"
    fake.stop(job)
    assert hook.get_job("nightly-export").status == "STOPPED"

    fake.restart()
    assert hook.list_jobs() == []


def test_restart_under_a_task(fake: FakeRay) -> None:
    """A task whose job is lost with its head fails with the error of a lost job."""
    fake.default_plan = Plan(runs=math.inf)

    def restart(method: str, path: str) -> None:
        if len(fake.requests) == 4:
            fake.restart()

    fake.on_request = restart
    with pytest.raises(RayJobLostError):
        run()


def test_requests_can_fail(fake: FakeRay) -> None:
    """A test can answer instead of the cluster, or cut the connection."""
    fake.on_request = lambda method, path: Reply(503)
    with RayJobsClient(fake.address, retry_timeout=0) as client:
        with pytest.raises(RayApiBusyError):
            client.get_version()

        def cut(method: str, path: str) -> None:
            raise ConnectionError("cut")

        fake.on_request = cut
        with pytest.raises(RayApiConnectionError, match="cut"):
            client.get_version()


def test_every_connection_leads_to_the_cluster(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request leaves the process, whatever the address, and other connections can be defined."""
    monkeypatch.setenv("AIRFLOW_CONN_PRODUCTION", '{"conn_type": "ray_jobs", "host": "https://ray.example.com/team-a"}')
    fake.connect("ray_gpu", "ray_cpu")

    for conn_id in ("production", "ray_gpu", "ray_cpu"):
        run(ray_conn_id=conn_id)
    assert len(fake.jobs) == 3


def test_several_clusters(fake: FakeRay) -> None:
    """With several clusters a request goes to the one with its address, else to the first."""
    with FakeRay("http://other:8265") as other:
        assert run() == other.jobs[0].submission_id
        for address in (fake.address, "http://anywhere:8265"):
            RayJobsClient(address).submit_job("true")

    assert (len(fake.jobs), len(other.jobs)) == (2, 1)


def test_everything_is_restored() -> None:
    """After the block, requests go to the network again, and the connection is undefined."""
    with FakeRay() as fake:
        fake.connect("ray_gpu")

    assert not {"AIRFLOW_CONN_RAY_JOBS_DEFAULT", "AIRFLOW_CONN_RAY_GPU"} & os.environ.keys()
    assert triggers.MIN_DEFERRAL > 0
    with (
        pytest.raises(RayApiConnectionError, match="refused"),
        RayJobsClient("http://127.0.0.1:9", retry_timeout=0) as client,
    ):
        client.get_version()


def test_connection_outside_of_the_block() -> None:
    """A connection that nothing would undefine is an error, before the block and after it."""
    fake = FakeRay()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"is not entered\. Call connect\(\) in its with block"):
            fake.connect("ray_gpu")
        with fake:
            pass
    assert "AIRFLOW_CONN_RAY_GPU" not in os.environ


def test_clusters_that_are_left_out_of_order() -> None:
    """Clusters have to be left in the reverse order; if not, everything is restored nevertheless."""
    first, second, third = FakeRay("http://first"), FakeRay("http://second"), FakeRay("http://third")
    for each in (first, second, third):
        each.__enter__()

    with pytest.raises(RuntimeError, match="FakeRay http://second was left before others"):
        second.__exit__()
    assert json.loads(os.environ["AIRFLOW_CONN_RAY_JOBS_DEFAULT"])["host"] == "http://first"
    third.__exit__()
    first.__exit__()
    assert exchange.process_transport is None
    assert "AIRFLOW_CONN_RAY_JOBS_DEFAULT" not in os.environ
    assert triggers.MIN_DEFERRAL > 0


def test_result_that_is_no_json() -> None:
    """A plan whose result is no JSON is an error at once, in the words of ``push_result``."""
    with pytest.raises(ResultError, match=r"result is of type set"):
        Plan(result={1})


# -- pytest -----------------------------------------------------------------------------------------------------------


def test_plugin_imports_nothing() -> None:
    """pytest loads the plugin at each start: it imports neither Airflow nor httpx, and the cluster needs no pytest."""
    code = (
        "import sys, pytest\n"
        f"import {PLUGIN}\n"
        "assert not {'airflow', 'httpx', 'airflow_provider_rayjobs.testing'} & sys.modules.keys()\n"
        "sys.modules['pytest'] = None\n"
        "import airflow_provider_rayjobs.testing"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
