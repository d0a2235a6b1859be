"""Functions as jobs of a real Ray head."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.sdk import DAG, task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_execution import Store, context, needs_store, wait_for
from test_runner import JSON

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.exceptions import RayJobFunctionError, RayJobResultError, RayJobStoppedError
from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray
MODES = ["worker", "deferred"]


@pytest.fixture
def client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayJobsClient]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)
    with RayJobsClient(ray_head.address) as client, DAG("nightly", schedule=None):
        yield client


def run(operator: Any, store: Store | None = None, mode: str = "worker", **changes: Any) -> Any:
    """Run one try of a task, through its trigger if it defers."""
    given = context(store, **changes)
    operator.poll_interval, operator.deferrable = 0.5, mode == "deferred"
    operator.render_template_fields(given)
    try:
        return operator.execute(given)
    except TaskDeferred as deferral:
        return operator.execute_complete(given, event=asyncio.run(_event(deferral.trigger)))


async def _event(trigger: triggers.RayJobTrigger) -> dict[str, Any]:
    return (await anext(trigger.run())).payload


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON, max_size=20))
def test_values_round_trip(client: RayJobsClient, values: list[Any]):
    """Arguments reach the function on the cluster, and its value comes back."""

    @task.ray_job
    def echo(values):
        return {"values": values}

    # not rendered: Jinja changes the line ends of a text
    assert _run_with_xcoms(echo(values).operator, {}, "worker") == {"values": values}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fetch_logs", ["live", "on_completion", "never"])
def test_result_does_not_depend_on_the_shown_log(
    client: RayJobsClient, mode: str, fetch_logs: str, capsys: pytest.CaptureFixture[str]
):
    """The value comes back with any setting of the log, and no part of it is shown."""

    @task.ray_job(fetch_logs=fetch_logs, log_lines_limit=10)
    def prints(count):
        for number in range(count):
            print("line", number)
        return "x" * 100_000

    assert run(prints(1000).operator, mode=mode) == "x" * 100_000
    output = capsys.readouterr().out
    assert "##ray_job" not in output
    assert "xxx" not in output
    assert ("line 999" in output) is (fetch_logs != "never")


def test_tasks_and_actors_inside_a_function(client: RayJobsClient, tmp_path: Path):
    """A function uses Ray with functions and classes of its own, beside the user's working_dir and py_modules."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "factor.txt").write_text("3")
    (tmp_path / "shapes.py").write_text("def area(x):\n    return x * x\n")

    @task.ray_job(
        runtime_env={
            "working_dir": str(tmp_path / "work"),
            "py_modules": [str(tmp_path / "shapes.py")],
            "env_vars": {"COLOUR": "{{ ti.task_id }}"},
        }
    )
    def areas(rows: list[int]) -> list[Any]:
        import os

        import ray
        import shapes

        @ray.remote
        def area(x: int) -> int:
            with open("factor.txt") as file:  # noqa: PTH123
                return shapes.area(x) * int(file.read())

        @ray.remote
        class Adder:
            def add(self, values: list[int]) -> int:
                return sum(values)

        found = ray.get([area.remote(row) for row in rows])
        adder = Adder.remote()  # older releases of Ray end an actor that nothing refers to
        return [found, ray.get(adder.add.remote(found)), os.environ["COLOUR"]]

    assert run(areas([1, 2]).operator) == [[3, 12], 15, "train"]


@pytest.mark.parametrize("mode", MODES)
def test_exception_fails_the_task(client: RayJobsClient, mode: str):
    """The task fails with the function's exception and the lines of this file, and names its last progress."""

    @task.ray_job
    def fails(x):
        from airflow_provider_rayjobs.in_job import report_progress

        report_progress(3, 10, "epoch 3")
        raise ValueError(f"no data for {x}")

    given: dict[str, Any] = {}
    operator = fails("2026-01-02").operator
    with pytest.raises(RayJobFunctionError) as raised:
        _run_with_xcoms(operator, given, mode)
    text = str(raised.value)

    assert text.startswith("fails raised ValueError: no data for 2026-01-02\nRay job nightly.train-try1-")
    assert "FAILED with exit code 1" in text
    assert "Its last progress: 3 of 10 (30%): epoch 3\n" in text
    assert re.search(rf'File "{re.escape(__file__)}", line \d+, in fails\n    raise ValueError\(f"no data', text)
    assert "ray_job_function" not in text
    assert raised.value.exception_types[0] == "ValueError"
    assert given["progress"] == {"done": 3, "total": 10, "text": "epoch 3"}


def _run_with_xcoms(operator: Any, xcoms: dict[str, Any], mode: str) -> Any:
    given = context(Store())
    given["ti"].xcom_push = lambda key, value: xcoms.update({key: value})
    operator.poll_interval, operator.deferrable = 0.5, mode == "deferred"
    try:
        return operator.execute(given)
    except TaskDeferred as deferral:
        return operator.execute_complete(given, event=asyncio.run(_event(deferral.trigger)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [AirflowSkipException, AirflowFailException])
def test_skip_and_fail(client: RayJobsClient, mode: str, kind: type[Exception]):
    """Airflow's exceptions have the same meaning in a function on the cluster."""
    name = kind.__name__

    @task.ray_job
    def stops(name):
        raise type(name, (Exception,), {})("no data")

    with pytest.raises(kind, match=f"stops raised {name}: no data"):
        run(stops(name).operator, mode=mode)


def test_progress_of_ray_tasks(client: RayJobsClient, capsys: pytest.CaptureFixture[str]):
    """Ray tasks of a function report progress as well, and the log shows nothing of their messages."""

    @task.ray_job
    def reports():
        import time

        import ray

        @ray.remote
        def work(number):
            from airflow_provider_rayjobs.in_job import report_progress

            print("working on", number)
            report_progress(number, 2)
            time.sleep(1)

        for number in (1, 2):
            ray.get(work.remote(number))
        time.sleep(3)

    xcoms: dict[str, Any] = {}
    _run_with_xcoms(reports().operator, xcoms, "worker")
    lines = [line for line in capsys.readouterr().out.splitlines() if "(work pid=" in line]

    assert xcoms["progress"] == {"done": 2, "total": 2, "text": ""}
    assert ["working on" in line for line in lines] == [True, True]


def test_exception_of_a_ray_task(client: RayJobsClient):
    """An exception in a Ray task of the function has the class of its cause."""

    @task.ray_job
    def fails():
        import ray

        @ray.remote
        def divide():
            return 1 / 0

        ray.get(divide.remote())

    with pytest.raises(RayJobFunctionError) as raised:
        run(fails().operator)

    assert raised.value.is_a("ZeroDivisionError")


@pytest.mark.needs_ray("cloudpickle")
def test_cloudpickle(client: RayJobsClient):
    """With cloudpickle, functions without source, closures, and values that are not JSON are sent and returned."""
    names: dict[str, Any] = {}
    exec("def add(values, more):\n    return values | {more}", names)  # noqa: S102

    add = ray_job(serializer="cloudpickle", result_serializer="cloudpickle")(names["add"])
    offset = 3

    @task.ray_job(serializer="cloudpickle")
    def shifted(values):
        return sorted(value + offset for value in values)

    assert run(add({1}, 2).operator) == {1, 2}
    assert run(shifted({1, 2}).operator) == [4, 5]


def test_plain_operator_returns_a_result(client: RayJobsClient):
    """A shell script pushes a result with one line, which the task returns."""
    script = 'echo "##ray_job $RAY_JOB_NONCE result [1, null]"; echo after'
    operator = RayJobSubmitOperator(task_id="train", entrypoint=script, return_result=True)

    assert run(operator) == [1, None]


@needs_store
def test_retry_returns_the_value_of_a_job_that_succeeded(client: RayJobsClient):
    """A retry that finds the job SUCCEEDED returns its value, and runs nothing again."""

    @task.ray_job
    def once():
        import os

        return os.environ["RAY_JOB_SUBMISSION_ID"]

    store, operator = Store(), once().operator
    first = run(operator, store)

    assert run(operator, store, try_number=2) == first == store.job["submission_id"]
    assert run(operator, store, try_number=3, max_tries=3) != first, "a Clear runs the function again"


@needs_store
@pytest.mark.parametrize("mode", MODES)
def test_retry_that_reattaches_returns_the_value(client: RayJobsClient, mode: str):
    """A retry follows the running job of a lost worker, and returns its value."""

    @task.ray_job(deferrable=True)
    def slow():
        import time

        time.sleep(5)
        return 7

    store, operator = Store(), slow().operator
    with pytest.raises(TaskDeferred):
        operator.execute(context(store))
    job = store.job["submission_id"]
    wait_for(client, job, "RUNNING")

    assert run(operator, store, mode, try_number=2) == 7
    assert store.job["submission_id"] == job


@needs_store
def test_missing_result_is_an_error_and_the_retry_runs_again(client: RayJobsClient):
    """A job that SUCCEEDED without a result fails the task, and the next try submits a new job."""

    @task.ray_job
    def leaves(code):
        import os

        os._exit(code)

    store, operator = Store(), leaves(0).operator
    with pytest.raises(RayJobResultError, match="SUCCEEDED, but pushed no result"):
        run(operator, store)
    job = store.job["submission_id"]
    with pytest.raises(RayJobResultError):
        run(operator, store, try_number=2)

    assert store.job["submission_id"] != job


@needs_store
@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_job_that_is_killed_around_its_result(client: RayJobsClient, moment: str):
    """A job that is killed before, while or after it writes its result fails the task."""

    @task.ray_job
    def dies(moment):
        import os
        import signal

        import ray_job_function

        if moment == "while":
            write, count = ray_job_function._write, []

            def write_once(line):
                write(line)
                count.append(line)
                if len(count) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

            ray_job_function._write = write_once
        elif moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            import atexit

            atexit.register(os.kill, os.getpid(), signal.SIGKILL)
        return "x" * 50_000

    with pytest.raises(Exception, match="FAILED with exit code (-9|137)"):
        run(dies(moment).operator)


@pytest.mark.parametrize("mode", MODES)
def test_large_result_in_package_storage(client: RayJobsClient, tmp_path: Path, mode: str):
    """A result of more than 1 MiB goes through the package storage, also if only a retry reads it."""

    @task.ray_job(package_storage=f"file://{tmp_path}/storage")
    def large(size):
        return "x" * size

    store = Store()
    operator = large(2_000_000).operator
    assert run(operator, store, mode) == "x" * 2_000_000
    if HAS_STORE:
        assert run(operator, store, mode, try_number=2) == "x" * 2_000_000
    assert len(list((tmp_path / "storage").iterdir())) == 1


def test_stopped_function(client: RayJobsClient):
    """A job that is stopped by another user fails the task, and its last progress is named."""

    @task.ray_job
    def waits():
        import os
        import time
        import urllib.request

        from airflow_provider_rayjobs.in_job import report_progress

        report_progress(1, 2)
        time.sleep(2)
        address = os.environ["DASHBOARD"]
        url = f"{address}/api/jobs/{os.environ['RAY_JOB_SUBMISSION_ID']}/stop"
        urllib.request.urlopen(urllib.request.Request(url, method="POST"))
        time.sleep(60)

    operator = waits.override(runtime_env={"env_vars": {"DASHBOARD": client.address}})().operator

    with pytest.raises(RayJobStoppedError, match="Its last progress: 1 of 2 \\(50%\\)"):
        run(operator)


def test_argument_larger_than_a_command_line(client: RayJobsClient):
    """Arguments are not limited by the command line or the environment."""

    @task.ray_job
    def size(text):
        return len(text)

    assert run(size(os.urandom(2_000_000).hex()).operator) == 4_000_000


def test_failed_package_upload_names_the_function(client: RayJobsClient, capsys: pytest.CaptureFixture[str]):
    """The log names the function's package."""

    @task.ray_job
    def f():
        return 0

    run(f().operator)

    assert re.search(r"function f: package _ray_pkg_[0-9a-f]{40}\.zip, 3 files, ", capsys.readouterr().out)
