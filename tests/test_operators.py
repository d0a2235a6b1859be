"""Arguments of the operators, and their deferral; test_end_to_end.py runs them in Airflow."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout, TaskDeferred
from airflow.sdk import DAG, Asset
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.sdk.execution_time.timeout import timeout
from airflow.sdk.log import mask_secret
from stand_in_head import StandInHead

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator
from airflow_provider_rayjobs.exceptions import (
    RayApiUnreachableError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobStoppedError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.jobs.steps import Interrupted, interruptible
from airflow_provider_rayjobs.jobs.submission import SubmissionOptions
from airflow_provider_rayjobs.operators import RayJobDeleteOperator, RayJobStopOperator, RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.task.attempts import HAS_STORE, new_submission_id
from airflow_provider_rayjobs.task.kill_switch import KillSwitch
from airflow_provider_rayjobs.triggers import RayJobTrigger

needs_store = pytest.mark.skipif(not HAS_STORE, reason="Airflow 3.3 introduced the task state store")


def context(**changes: Any) -> Any:
    """Return the keys of a context that a submission reads."""
    ti = SimpleNamespace(
        **{"dag_id": "nightly", "task_id": "train", "run_id": "run-1", "map_index": -1, "try_number": 2, "max_tries": 3}
        | changes
    )
    date = datetime(2026, 1, 2, tzinfo=UTC)
    return {
        "ti": ti,
        "task_instance": ti,
        "dag_run": SimpleNamespace(run_id="run-1", logical_date=date, start_date=date),
        "logical_date": date,
    }


def test_operator_has_every_option_of_a_submission():
    """Every option of a submission is an argument of the operator with the same name, and is templated."""
    parameters = inspect.signature(RayJobSubmitOperator.__init__).parameters
    operator = RayJobSubmitOperator(task_id="t", entrypoint="true")

    assert {"entrypoint", *SubmissionOptions.__annotations__} <= set(parameters)
    assert {"entrypoint", *SubmissionOptions.__annotations__} <= set(operator.template_fields)
    assert operator.template_ext == ()


@pytest.mark.parametrize(
    "operator",
    [
        RayJobSubmitOperator(task_id="t", entrypoint="true"),
        RayJobSensor(task_id="s", submission_id="job-1"),
        RayJobStopOperator(task_id="o", submission_id="job-1"),
        RayJobDeleteOperator(task_id="d", submission_id="job-1"),
        RayJobCleanupOperator(task_id="c"),
    ],
)
def test_template_fields_are_attributes(operator: Any):
    """Airflow can render every template field."""
    assert [name for name in operator.template_fields if not hasattr(operator, name)] == []


def test_generated_submission_id():
    """A generated id names dag, task, map index and try, is unique, and is valid for Ray."""
    plain = new_submission_id(context())
    mapped = new_submission_id(context(map_index=3))
    unusual = new_submission_id(context(dag_id="nächtlich/" * 25, task_id="gruppe.aufgabe" * 17, map_index=12345))

    assert plain.startswith("nightly.train-try2-")
    assert mapped.startswith("nightly.train-m3-try2-")
    assert plain != new_submission_id(context())
    assert len(unusual) <= 200
    assert unusual.isascii()
    assert "/" not in unusual
    assert ".gruppe.aufgabe" in unusual


def test_job_name():
    """``job_name`` takes precedence over metadata; without it the name is made of dag and task."""
    named = RayJobSubmitOperator(task_id="t", entrypoint="true", job_name="mine", metadata={"job_name": "other"})
    unnamed = RayJobSubmitOperator(task_id="t", entrypoint="true", job_name="None")

    assert named.new_submission(context(), "job-1").metadata["job_name"] == "mine"
    assert unnamed.new_submission(context(), "job-1").metadata["job_name"] == "nightly.train"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "false"),
        ({"wait_for_completion": "False"}, "true"),
        ({"stop_on_kill": False}, "true"),
    ],
)
def test_metadata_tells_whether_the_job_may_outlive_its_task(arguments: dict[str, Any], expected: str):
    """Only a job whose task waits for it, and stops it on a kill, must not run on after its task."""
    submission = RayJobSubmitOperator(task_id="t", entrypoint="true", **arguments).new_submission(context(), "job-1")

    assert submission.metadata["airflow_may_outlive_task"] == expected


@pytest.mark.parametrize(("setting", "expected"), [(" production ", "production"), (None, "")])
def test_metadata_names_the_deployment(monkeypatch: pytest.MonkeyPatch, setting: str | None, expected: str):
    """The metadata has the setting ``[ray_jobs] deployment_name``."""
    if setting is not None:
        monkeypatch.setenv("AIRFLOW__RAY_JOBS__DEPLOYMENT_NAME", setting)
    submission = RayJobSubmitOperator(task_id="t", entrypoint="true").new_submission(context(), "job-1")

    assert submission.metadata["airflow_deployment"] == expected


def test_rendered_values_have_the_types_that_ray_expects():
    """Text from templates becomes numbers, and numbers become text, as Ray expects."""
    submission = RayJobSubmitOperator(
        task_id="t",
        entrypoint=["python", "train.py", 20260102],
        entrypoint_num_cpus="2",
        entrypoint_num_gpus="0.5",
        entrypoint_memory="1KiB",
        entrypoint_resources={"TPU": "4"},
        entrypoint_label_selector={"zone": 1},
        metadata={"day": 20260102},
        job_name=20260102,
    ).new_submission(context(), "job-1")

    assert submission.entrypoint == "python train.py 20260102"
    assert (submission.entrypoint_num_cpus, submission.entrypoint_num_gpus) == (2, 0.5)
    assert submission.entrypoint_memory == 1024
    assert submission.entrypoint_resources == {"TPU": 4}
    assert submission.entrypoint_label_selector == {"zone": "1"}
    assert (submission.metadata["day"], submission.metadata["job_name"]) == ("20260102", "20260102")


def rendered(**arguments: Any) -> RayJobSubmitOperator:
    """Return an operator whose templates have rendered to these arguments."""
    operator = RayJobSubmitOperator(task_id="t", entrypoint="true")
    for field, value in arguments.items():
        setattr(operator, field, value)
    return operator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"entrypoint": " "}, "entrypoint is empty", id="nothing to run"),
        pytest.param({"entrypoint": None}, "entrypoint must be text", id="None"),
        pytest.param({"entrypoint_num_cpus": "many"}, "entrypoint_num_cpus must be a number", id="cpus"),
        pytest.param({"entrypoint_memory": "1.5"}, "entrypoint_memory must be a whole number", id="memory"),
        pytest.param({"entrypoint_resources": {"TPU": "x"}}, r"entrypoint_resources\['TPU'\]", id="resources"),
        pytest.param({"metadata": {"airflow_dag_id": "x"}}, "metadata must not contain airflow_dag_id", id="taken key"),
        pytest.param({"metadata": {"a": None}}, r"metadata\['a'\] must be text", id="metadata"),
        pytest.param({"runtime_env": {"working_dir": "./here"}}, "cannot read a local path", id="local path"),
        pytest.param({"runtime_env": {"env_var": {}}}, "did you mean 'env_vars'", id="misspelt key"),
        pytest.param({"runtime_env": "none.yaml"}, "file not found: none.yaml", id="no file"),
    ],
)
def test_wrong_submission_argument(arguments: dict[str, Any], message: str):
    """A wrong argument is an error that names the field, before anything is sent."""
    operator = rendered(**arguments)

    with pytest.raises(ValueError, match=message):
        operator.new_submission(context(), "job-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fetch_logs": "sometimes"}, "fetch_logs must be one of live, on_completion, never"),
        ({"poll_interval": "-1"}, "poll_interval must be a number of seconds"),
        ({"unreachable_timeout": "x"}, "unreachable_timeout must be a number"),
        ({"first_contact_timeout": "x"}, "first_contact_timeout must be a number"),
        ({"wait_for_completion": "maybe"}, "wait_for_completion must be True or False"),
        ({"stop_on_kill": "perhaps"}, "stop_on_kill must be True or False"),
        ({"stop_timeout": None}, "stop_timeout must be a number of seconds"),
        ({"pending_timeout": "soon"}, "pending_timeout must be a number"),
        ({"job_timeout": -1}, "job_timeout must be a number of seconds"),
        ({"fail_on_exit_code": [1, "x"]}, "fail_on_exit_code must be a number"),
        ({"skip_on_exit_code": 1.5}, "skip_on_exit_code must be a whole number"),
    ],
)
def test_wrong_wait_argument(arguments: dict[str, Any], message: str):
    """Arguments about waiting are checked before the job is submitted."""
    operator = rendered(**arguments)

    with pytest.raises(ValueError, match=message):
        operator.execute(context())


@pytest.mark.parametrize("runtime_env", [None, {"working_dir": str(Path(__file__).parent / "golden")}])
def test_wrong_address_ends_the_try_soon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runtime_env: dict[str, Any] | None
):
    """If no connection can be made before the submission, the try ends after first_contact_timeout."""
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", '{"conn_type": "ray_jobs", "host": "127.0.0.1", "port": 9}')
    operator = RayJobSubmitOperator(
        task_id="t", entrypoint="true", ray_conn_id="away", runtime_env=runtime_env, first_contact_timeout="1"
    )

    with pytest.raises(RayApiUnreachableError, match=r"Retried for 1 s \(first_contact_timeout\)"):
        operator.execute(context())
    assert "Retrying for 1 s." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (RayJobStopOperator, {"submission_id": "job-1"}),
        (RayJobDeleteOperator, {"submission_id": "job-1"}),
        (RayJobCleanupOperator, {}),
    ],
)
def test_mistake_in_the_connection_fails_at_once(
    operator: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """A mistake ends the retries of the operators for existing jobs, too."""
    given = {"conn_type": "ray_jobs", "host": "127.0.0.1", "extra": {"tokn": "x"}}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(given))
    monkeypatch.setenv("AIRFLOW__RAY_JOBS__DEPLOYMENT_NAME", "test")

    with pytest.raises(ValueError, match="unknown extra tokn") as caught:
        operator(task_id="t", **arguments).execute(context())
    assert isinstance(caught.value, AirflowFailException)


def named(operator: RayJobSubmitOperator) -> Any:
    with RayJobsClient("http://127.0.0.1:9") as client:
        return client.run(operator.resolve_local_code(context()))


def test_relative_paths_of_local_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A path is searched next to the DAG file, then in the working directory; in a YAML file only next to it."""
    for folder in ("dags/code", "here/code", "here/other", "dags/envs/code"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "where.txt").write_text(folder)
    (tmp_path / "dags" / "envs" / "env.yaml").write_text("working_dir: code\nexcludes: ['*.log']\n")
    monkeypatch.chdir(tmp_path / "here")

    def source(runtime_env: Any) -> str:
        with DAG("nightly") as dag:
            operator = RayJobSubmitOperator(task_id="t", entrypoint="true", runtime_env=runtime_env)
        dag.fileloc = str(tmp_path / "dags" / "nightly.py")
        [package] = named(operator).packages
        return str(package.source.relative_to(tmp_path))

    assert source({"working_dir": "code"}) == "dags/code"
    assert source({"working_dir": "other"}) == "here/other"
    assert source("envs/env.yaml") == "dags/envs/code"
    with pytest.raises(ValueError, match=f"Searched: {tmp_path}/dags/nowhere, {tmp_path}/here/nowhere"):
        source({"working_dir": "nowhere"})
    with pytest.raises(ValueError, match="did you mean 'py_modules'"):
        source({"py_module": ["code"], "working_dir": "code"})


def test_submission_has_package_uris(tmp_path: Path):
    """The submission has the URIs of the packages; one of 100 MiB or more goes to the storage."""
    (tmp_path / "code").mkdir()
    with (tmp_path / "code" / "large").open("wb") as file:
        file.truncate(100 * 2**20)
    (tmp_path / "small.py").touch()
    (tmp_path / ".env").touch()
    operator = RayJobSubmitOperator(
        task_id="t",
        entrypoint="true",
        runtime_env={"working_dir": str(tmp_path / "code"), "py_modules": [str(tmp_path / "small.py")]},
        package_storage=f"file://{tmp_path}/storage",
        package_secrets="True",
    )

    code = named(operator)
    planned = operator.new_submission(context(), "job-1", runtime_env=code.runtime_env).runtime_env

    large, small = (package.name for package in code.packages)
    assert planned["working_dir"] == f"file://{tmp_path}/storage/{large}"
    assert planned["py_modules"] == [f"gcs://{small}"]
    assert planned["env_vars"]["RAY_JOB_SUBMISSION_ID"] == "job-1"
    assert named(RayJobSubmitOperator(task_id="t", entrypoint="true")) is None


@pytest.mark.parametrize("storage", ["", "None", None])
def test_unset_package_storage(tmp_path: Path, storage: str | None):
    """A package_storage that renders to an empty text or None is unset."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(100 * 2**20)
    operator = RayJobSubmitOperator(
        task_id="t", entrypoint="true", runtime_env={"working_dir": str(tmp_path)}, package_storage=storage
    )
    assert named(operator).runtime_env["working_dir"].startswith("gcs://")


class CountedSwitch(KillSwitch):
    """A kill switch that is triggered after a number of checks."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.checks = checks

    @property
    def is_triggered(self) -> bool:
        self.checks -= 1
        return self.checks < 0


@pytest.mark.parametrize("checks", [0, 4])
def test_kill_interrupts_the_reading_of_local_code(
    tmp_path: Path, checks: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A kill ends the reading of local code at once; until then the task's log shows the progress."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(2**20))
    operator = RayJobSubmitOperator(task_id="t", entrypoint="true", runtime_env={"working_dir": str(tmp_path)})
    for name in ("_INTERVAL", "_SLICE"):
        monkeypatch.setattr(f"airflow_provider_rayjobs.jobs.progress.{name}", 0.0)
    switch = CountedSwitch(checks)
    logger = logging.getLogger("airflow.task.local_code")
    engine = interruptible(operator.resolve_local_code(context()), lambda: switch.is_triggered)

    with (
        RayJobsClient("http://127.0.0.1:9", logger=logger) as client,
        caplog.at_level(logging.INFO),
        pytest.raises(Interrupted),
    ):
        client.run(engine)

    assert ("Hashing local code: 0 MiB." in caplog.text) == (checks > 0)


class Store(dict):
    """The methods of Airflow's task state store that a try calls."""

    def set(self, key: str, value: Any, **_: Any) -> None:
        self[key] = json.loads(json.dumps(value))


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)
    with StandInHead() as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        yield head


def deferrable(**arguments: Any) -> RayJobSubmitOperator:
    given = {"task_id": "t", "entrypoint": "true", "deferrable": True, "poll_interval": 0.2, "fetch_logs": "never"}
    return RayJobSubmitOperator(**given | arguments)


def try_from(start: float, store: Store, **changes: Any) -> Any:
    """Return the context of a try that began at a time, Unix seconds."""
    given = context(start_date=datetime.fromtimestamp(start, UTC), xcom_push=lambda key, value: None, **changes)
    return given | {"task_state_store": store}


def defer(operator: RayJobSubmitOperator, given: Any) -> RayJobTrigger:
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(given)
    return RayJobTrigger(**json.loads(json.dumps(deferred.value.trigger.serialize()[1])))


def fire(trigger: RayJobTrigger) -> dict[str, Any]:
    async def run() -> list[Any]:
        return [event async for event in trigger.run()]

    [event] = asyncio.run(run())
    return json.loads(json.dumps(event.payload))


@pytest.mark.parametrize("waits", [True, False])
def test_extra_of_asset_events(head: StandInHead, waits: bool):
    """The event of each outlet that is an asset has the submission id, and what the program has added."""
    added = ({"submission_id": "mine", "rows": 3}, {"day": "x"})

    def end(_: int) -> None:
        for job in head.jobs.values():
            job |= {"status": "SUCCEEDED", "driver_node_id": "node-1", "end_time": job["start_time"] + 1}
            lines = [f"##ray_job {job['metadata']['submission_nonce']} extra {json.dumps(each)}\n" for each in added]
            head.log = "".join(lines).encode()

    head.on_poll = end
    first, second = Asset("first"), Asset("second")
    events: Any = OutletEventAccessors()
    events[first].extra["earlier"] = 1  # as ``pre_execute`` may do
    operator = RayJobSubmitOperator(
        task_id="t", entrypoint="true", outlets=[first, second, "no asset"], wait_for_completion=waits
    )
    job = operator.execute(try_from(0, Store()) | {"outlet_events": events})

    extra = {"submission_id": job} | ({"rows": 3, "day": "x"} if waits else {})
    assert (events[first].extra, events[second].extra) == (extra | {"earlier": 1}, extra)
    assert len(events) == 2


def test_what_xcom_tells_of_a_job(head: StandInHead, monkeypatch: pytest.MonkeyPatch):
    """A flush of the log pushes status and progress; the end pushes them again, and the link of ``history_url``."""
    extra = {"history_url": "https://history/{session}/{submission_id}"}
    fields = {"conn_type": "ray_jobs", "host": head.address, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(fields))
    pushed: dict[str, Any] = {}
    store, arguments = Store(), {"log_flush_interval": 0.1, "fetch_logs": "live"}
    given = try_from(0, store)
    given["ti"].xcom_push = given["ti"].xcom_pull = lambda key, value=None, **_: pushed.update({key: value}) or value

    def advance(status: str, done: int) -> None:
        [job] = head.jobs.values()
        job |= {"status": status, "driver_node_id": "node-1", "end_time": job["start_time"] + 1}
        head.log += f'line\n##ray_job {job["metadata"]["submission_nonce"]} progress {{"done": {done}}}\n'.encode()

    trigger = defer(deferrable(**arguments), given)
    [job] = head.jobs
    page = f"{head.address}/#/jobs/{job}"
    assert (pushed.pop("ray_job_link"), "job_status" in pushed) == (page, False)

    advance("RUNNING", 3)
    event = fire(trigger)
    with pytest.raises(TaskDeferred):
        deferrable(**arguments).execute_complete(given, event)
    assert (pushed["job_status"], pushed["progress"]["done"], "ray_job_link" in pushed) == ("RUNNING", 3, False)

    advance("SUCCEEDED", 5)
    event = fire(RayJobTrigger(**trigger.serialize()[1]))
    deferrable(**arguments).execute_complete(given, event)
    assert (pushed["job_status"], pushed["progress"]["done"]) == ("SUCCEEDED", 5)
    assert pushed["ray_job_link"] == f"https://history/session_1/{job}"


@needs_store
@pytest.mark.parametrize("interval", [3600.0, 0.0])
def test_xcoms_while_a_job_runs(head: StandInHead, monkeypatch: pytest.MonkeyPatch, interval: float):
    """A worker pushes each change of the status at once, and progress from time to time. A failed push is repeated."""

    def advance(number: int) -> None:
        [job] = head.jobs.values()
        status = "PENDING" if number < 4 else "RUNNING" if number < 8 else "SUCCEEDED"
        job |= {"status": status, "driver_node_id": "node-1", "end_time": job["start_time"] + 1}
        head.log += f'##ray_job {job["metadata"]["submission_nonce"]} progress {{"done": {number}}}\n'.encode()

    def push(key: str, value: Any) -> None:
        if key in ("job_status", "progress"):
            pushed.append(value["done"] if key == "progress" else value)
        if len(pushed) == 1:
            raise ConnectionError

    head.on_poll, pushed = advance, []
    given = try_from(time.time(), Store())
    given["ti"].xcom_push = push
    monkeypatch.setattr("airflow_provider_rayjobs.task.execution._PUSH_INTERVAL", interval)
    RayJobSubmitOperator(task_id="t", entrypoint="true", poll_interval=0.2).execute(given)

    progress = [each for each in pushed if isinstance(each, int)]
    assert progress == sorted({*progress})
    assert progress[-1] == 8
    if interval:
        assert [each for each in pushed if each not in progress] == ["PENDING", "RUNNING", "SUCCEEDED"]
        assert len(progress) <= 2
    else:
        assert [each for each in pushed if each not in progress] == ["PENDING", "PENDING", "RUNNING", "SUCCEEDED"]
        assert len(progress) > 2


@needs_store
def test_status_of_a_job_that_vanished(head: StandInHead):
    """A try that ends with an error pushes the last status that it has seen of the job."""

    def vanish(number: int) -> None:
        for job in head.jobs.values():
            job |= {"status": "RUNNING", "driver_node_id": "node-1"}
        if number > 3:
            head.jobs.clear()

    head.on_poll, pushed = vanish, {}
    given = try_from(time.time(), Store())
    given["ti"].xcom_push = lambda key, value: pushed.update({key: value})
    operator = RayJobSubmitOperator(task_id="t", entrypoint="true", poll_interval=0.2, fetch_logs="never")
    with pytest.raises((RayJobLostError, RayJobNotFoundError)):
        operator.execute(given)
    assert pushed["job_status"] == "RUNNING"


@needs_store
def test_kill_during_the_pushes_before_a_deferral(head: StandInHead):
    """A kill while a task that is about to be deferred pushes its XComs stops the job."""

    def advance(number: int) -> None:
        [job] = head.jobs.values()
        if number == 1:
            job |= {"status": "RUNNING", "driver_node_id": "node-1"}
            head.log += f'##ray_job {job["metadata"]["submission_nonce"]} progress {{"done": 1}}\n'.encode()

    head.on_poll = advance
    operator, given = deferrable(defer_after=0.5, fetch_logs="live"), try_from(time.time(), Store())
    given["ti"].xcom_push = lambda key, value: operator.on_kill() if key == "progress" else None

    with pytest.raises(RayJobStoppedError):
        operator.execute(given)
    assert [job["status"] for job in head.jobs.values()] == ["STOPPED"]


@needs_store
def test_execution_timeout_during_the_last_writes(head: StandInHead):
    """An ``execution_timeout`` does not expire any more when the try stores the success of its job, and pushes it."""

    class Noting(Store):
        def set(self, key: str, value: Any, **options: Any) -> None:
            super().set(key, value, **options)
            note()

    def note(*_: Any, **__: Any) -> None:
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])

    head.on_poll = lambda _: [job.update(status="SUCCEEDED", driver_node_id="node-1") for job in head.jobs.values()]
    given, left = try_from(time.time(), Noting()), []
    given["ti"].xcom_push = note
    operator = RayJobSubmitOperator(
        task_id="t", entrypoint="true", poll_interval=0.2, fetch_logs="never", execution_timeout=timedelta(hours=1)
    )
    with timeout(3600):
        operator.execute(given)
    assert left[0] > 0
    assert left[-2:] == [0, 0], "the store, and the status"


@needs_store
def test_execution_timeout_of_a_deferred_task(head: StandInHead):
    """``execution_timeout`` counts from the start of the try. At its end the worker stops the job."""
    store, start = Store(), time.time() - 60
    operator = deferrable(execution_timeout=timedelta(seconds=60.5))
    trigger = defer(operator, try_from(start, store))
    [job] = head.jobs

    assert trigger.options.execution_deadline == pytest.approx(start + 60.5)
    with pytest.raises(RayJobTimeoutError, match="did not end within the execution_timeout of this try") as caught:
        operator.execute_complete(try_from(start, store), fire(trigger))
    assert isinstance(caught.value, AirflowTaskTimeout)
    assert head.jobs[job]["status"] == "STOPPED"


@needs_store
def test_progress_in_the_error_of_a_time_limit_is_masked(head: StandInHead):
    """The error of an expired limit names the last progress of the job, without secrets."""
    mask_secret("pr0gressSecret")

    def begin(number: int) -> None:
        for job in head.jobs.values():
            job["driver_node_id"] = "node-1"
            text = b'{"done": 1, "text": "with pr0gressSecret"}'
            head.log = b"##ray_job %s progress %s\n" % (job["metadata"]["submission_nonce"].encode(), text)

    head.on_poll = begin
    with pytest.raises(RayJobTimeoutError, match=r"Its last progress: 1: with \*\*\*"):
        RayJobSubmitOperator(task_id="t", entrypoint="true", job_timeout=30).execute(try_from(time.time(), Store()))


@needs_store
def test_each_try_has_its_own_execution_timeout(head: StandInHead):
    """With ``stop_on_kill=False`` the job survives the timeout of a try, and the next try has the whole time again."""
    store, now = Store(), time.time()
    arguments = {"execution_timeout": timedelta(seconds=60), "stop_on_kill": False}
    expired = defer(deferrable(**arguments), try_from(now - 60, store))
    with pytest.raises(RayJobTimeoutError):
        deferrable(**arguments).execute_complete(try_from(now - 60, store), fire(expired))
    [job] = head.jobs
    assert head.jobs[job]["status"] == "RUNNING"

    trigger = defer(deferrable(**arguments), try_from(now, store, try_number=3))
    polls = head.polls
    head.on_poll = lambda number: number == polls + 3 and head.jobs[job].update(status="SUCCEEDED")

    assert trigger.options.execution_deadline == pytest.approx(now + 60)
    assert deferrable(**arguments).execute_complete(try_from(now, store, try_number=3), fire(trigger)) == job


@pytest.mark.parametrize("is_deferred", [False, True], ids=["worker", "deferred"])
def test_log_says_why_the_job_waits(head: StandInHead, capsys: pytest.CaptureFixture[str], is_deferred: bool):
    """A job that is PENDING for a minute is compared with the cluster in the log, deferred or not."""

    def wait(number: int) -> None:
        for job in head.jobs.values():
            job["status"] = "PENDING" if number < 8 else "SUCCEEDED"

    head.on_poll = wait
    arguments = {"entrypoint_num_gpus": "1", "pending_timeout": 1800}
    given = context(xcom_push=lambda key, value: None)
    if is_deferred:
        fire(defer(deferrable(**arguments), given))
    else:
        RayJobSubmitOperator(
            task_id="t", entrypoint="true", poll_interval=0.2, fetch_logs="never", **arguments
        ).execute(given)

    assert (
        "is PENDING, 60 s after its submission. The job requests 1 GPU on one node. The resources of the cluster are "
        "unknown. pending_timeout is 1800 s, but Ray fails a job that has not started after 15 minutes"
    ) in capsys.readouterr().out


@needs_store
def test_deadline_outlives_a_log_flush(head: StandInHead):
    """A task that resumes to show its log keeps its deadline, although older Airflow sets its start again."""
    store, start = Store(), time.time() - 60
    arguments = {"execution_timeout": timedelta(seconds=100), "fetch_logs": "live", "log_flush_interval": 0}
    trigger = defer(deferrable(**arguments), try_from(start, store))
    [job] = head.jobs.values()
    job["driver_node_id"], head.log = "node", b"one line\n"

    with pytest.raises(TaskDeferred) as deferred:
        deferrable(**arguments).execute_complete(try_from(time.time(), store), fire(trigger))

    assert deferred.value.trigger.options.execution_deadline == pytest.approx(start + 100)
    assert deferred.value.trigger.options.log_state["offset"] == len(head.log)


@needs_store
def test_arguments_of_a_later_version(head: StandInHead):
    """A task that was deferred by a later version of this package resumes."""
    store = Store()
    trigger = defer(deferrable(), try_from(time.time(), store))
    [job] = head.jobs
    head.jobs[job]["status"] = "SUCCEEDED"
    kwargs = {"event": fire(trigger), "colour": "red"}

    assert deferrable().resume_execution("execute_complete", kwargs, try_from(time.time(), store)) == job
