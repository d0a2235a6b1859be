"""The provider in a real Airflow against a real Ray head."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_rayjobs.connection import EXTRAS
from airflow_provider_rayjobs.exceptions import RayJobNotFoundError
from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from sandbox.local_airflow import LocalAirflow
from sandbox.processes import clean_environment
from sandbox.ray_head import RayHead
from tests.matrix.ray_features import version_of_heads

pytestmark = [pytest.mark.airflow, pytest.mark.ray]
MODES = ["worker", "deferred"]
JOB_LOGGER = "airflow.task.ray_job"


@dataclass
class DagRun:
    """A DAG run with its states, logs, XComs and links."""

    airflow: LocalAirflow
    dag_id: str
    run_id: str

    def state(self, task_id: str, map_index: int = -1) -> str:
        return self.airflow.task_instance(self.dag_id, self.run_id, task_id, map_index)["state"]

    def log(self, task_id: str, map_index: int = -1) -> str:
        return self.airflow.log_text(self.dag_id, self.run_id, task_id, map_index=map_index)

    def job_log(self, task_id: str, map_index: int = -1) -> str:
        """The records of the job's log in the task's log, in the order of the web UI."""
        records = self.airflow.log_records(self.dag_id, self.run_id, task_id, map_index=map_index)
        return "\n".join(str(record["event"]) for record in records if record.get("logger") == JOB_LOGGER)

    def logs(self) -> str:
        """The logs of all tasks, for the message of a failed assertion."""
        tasks = self.airflow.task_instances(self.dag_id, self.run_id)
        return "\n".join(f"{task['task_id']}: {self.log(task['task_id'], task['map_index'])}" for task in tasks)

    def xcoms(self, task_id: str, map_index: int = -1) -> dict[str, Any]:
        return self.airflow.xcoms(self.dag_id, self.run_id, task_id, map_index)

    def map_names(self, task_id: str) -> list[str]:
        """What the web UI shows for the instances of a mapped task."""
        tasks = [task for task in self.airflow.task_instances(self.dag_id, self.run_id) if task["task_id"] == task_id]
        return [task["rendered_map_index"] for task in sorted(tasks, key=lambda task: task["map_index"])]

    def links(self, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        return self.airflow.links(self.dag_id, self.run_id, task_id, map_index)


@pytest.fixture(scope="module")
def client(ray_head: RayHead) -> RayJobsClient:
    with RayJobsClient(ray_head.address) as client:
        yield client


@pytest.fixture(scope="module")
def run(airflow: LocalAirflow, client: RayJobsClient) -> DagRun:
    """A finished run of the DAG ``end_to_end``. The jobs of ``is_stopped_*`` were stopped through the client."""
    run_id = airflow.trigger("end_to_end", logical_date="2026-01-02T03:04:05Z")
    run = DagRun(airflow, "end_to_end", run_id)
    links_while_running = {}
    for mode, waiting_state in (("worker", "running"), ("deferred", "deferred")):
        task_id = f"is_stopped_{mode}"
        airflow.wait_for_task("end_to_end", run_id, task_id, states=(waiting_state,), timeout=300)
        try:
            submission_id = _wait_for(lambda task_id=task_id: run.xcoms(task_id).get("submission_id"))
        except AssertionError as error:
            raise AssertionError(airflow.log_text("end_to_end", run_id, task_id)) from error
        _wait_for(lambda job=submission_id: _is_running(client, job))
        links_while_running[task_id] = run.links(task_id)
        client.stop_job(submission_id)
    airflow.wait_for_run("end_to_end", run_id, timeout=600)
    run.links_while_running = links_while_running
    return run


@pytest.fixture(scope="module")
def nightly(airflow: LocalAirflow, tmp_path_factory: pytest.TempPathFactory) -> tuple[DagRun, Any]:
    report = tmp_path_factory.mktemp("report") / "report.json"
    run_id = airflow.trigger("ray_jobs_nightly", conf={"report": str(report)})
    airflow.wait_for_run("ray_jobs_nightly", run_id)
    return DagRun(airflow, "ray_jobs_nightly", run_id), report


@pytest.mark.parametrize("mode", MODES)
def test_succeeded_job_succeeds_task_and_its_whole_log_is_shown(run: DagRun, client: RayJobsClient, mode: str):
    """The task's log contains the driver's log unchanged: order, indentation, blank lines, no newline at the end."""
    task_id = f"succeeds_{mode}"
    submission_id = run.xcoms(task_id)["submission_id"]

    assert run.state(task_id) == "success"
    assert run.xcoms(task_id)["return_value"] == submission_id
    log = run.job_log(task_id)
    assert client.get_job_logs(submission_id) == log
    assert log.endswith("\n  indented\n\nafter a blank line\nno newline at the end")
    assert log.splitlines().count("first") == 1


@pytest.mark.parametrize("task_id", ["flushes_log", "waits_and_flushes_log"])
def test_log_flush_interval_shows_log_while_the_job_runs(run: DagRun, client: RayJobsClient, task_id: str):
    """With ``log_flush_interval`` a worker writes the new part of the log at each interval, and each line once."""
    job = run.xcoms("flushes_log" if task_id == "flushes_log" else "submits_line_per_second")["submission_id"]
    times = {
        datetime.fromisoformat(record["timestamp"])
        for record in run.airflow.log_records(run.dag_id, run.run_id, task_id)
        if record.get("logger") == JOB_LOGGER
    }

    assert run.state(task_id) == "success"
    assert run.job_log(task_id) == client.get_job_logs(job).removesuffix("\n")
    assert max(times) - min(times) > timedelta(seconds=8), "the log came all at once"


@pytest.mark.parametrize("mode", MODES)
def test_failed_job_fails_task_with_exit_code_and_end_of_log(run: DagRun, mode: str):
    """A FAILED job fails its task. The error contains exit code, address, Ray's message and the end of the log."""
    log = run.log(f"fails_{mode}")

    assert run.state(f"fails_{mode}") == "failed"
    assert "RayJobEntrypointError" in log
    assert re.search(r"FAILED with exit code 3 after \d+\.\d s, at http://127\.0\.0\.1:\d+\.\n", log)
    assert "Error type JOB_ENTRYPOINT_COMMAND_ERROR.\n" in log
    assert "Ray says: Job entrypoint command failed with exit code 3\n" in log
    assert "before the end" in log.rpartition("The log ends with:")[2]


@pytest.mark.parametrize("mode", MODES)
def test_runtime_env_setup_failure_fails_task_with_message_of_ray(run: DagRun, mode: str):
    """A failed setup of the runtime environment fails the task, and the log contains Ray's message."""
    log = run.log(f"fails_runtime_env_setup_{mode}")

    assert run.state(f"fails_runtime_env_setup_{mode}") == "failed"
    assert "Error type RUNTIME_ENV_SETUP_FAILURE" in log
    assert "Failed to download runtime_env file package gcs://_ray_pkg_0123456789abcdef.zip" in log


@pytest.mark.parametrize("mode", MODES)
def test_stopped_job_fails_task(run: DagRun, mode: str):
    """A job that was stopped outside Airflow ends STOPPED, which fails its task."""
    log = run.log(f"is_stopped_{mode}")

    assert run.state(f"is_stopped_{mode}") == "failed"
    assert "RayJobStoppedError" in log
    assert re.search(r" STOPPED after \d+\.\d s, at http://127\.0\.0\.1", log)


@pytest.mark.parametrize("mode", MODES)
def test_link_and_status(run: DagRun, client: RayJobsClient, mode: str):
    """The link leads to the job's page in the dashboard, and after the end to ``history_url``. XCom has the status."""
    task_id = f"is_stopped_{mode}"
    job, session = run.xcoms(task_id)["submission_id"], client.get_version().session_name

    assert run.links_while_running[task_id] == {"Ray job": f"{client.address}/#/jobs/{job}"}
    assert run.links(task_id) == {"Ray job": f"https://history.example.com/{session}/#/jobs/{job}"}
    assert run.xcoms(task_id)["job_status"] == "STOPPED"


def test_job_metadata_and_driver_environment_identify_task_instance(run: DagRun, client: RayJobsClient):
    """Metadata and environment contain DAG, run, task, try and logical date, in addition to the user's values."""
    task_id = "prints_its_airflow_context"
    job = client.get_job(run.xcoms(task_id)["submission_id"])
    log = run.log(task_id)

    assert run.state(task_id) == "success"
    varying = {"submission_nonce", "airflow_run_start_date"}
    assert job.submission_id.startswith("end_to_end.prints_its_airflow_context-try1-")
    assert {name: value for name, value in job.metadata.items() if name not in varying} == {
        "job_name": "end_to_end.prints_its_airflow_context",
        "team": "end_to_end",
        "airflow_dag_id": "end_to_end",
        "airflow_run_id": run.run_id,
        "airflow_task_id": task_id,
        "airflow_map_index": "-1",
        "airflow_try_number": "1",
        "airflow_max_tries": "0",
        "airflow_clear_number": "0",
        "airflow_logical_date": "2026-01-02T03:04:05+00:00",
        "airflow_deployment": "sandbox",
        "airflow_may_outlive_task": "false",
    }
    assert f"RAY_JOB_SUBMISSION_ID={job.submission_id}" in log
    assert f"MINE={task_id}" in log
    for name, value in {
        "DAG_ID": "end_to_end", "TASK_ID": task_id, "DAG_RUN_ID": run.run_id, "TRY_NUMBER": "1",
        "LOGICAL_DATE": "2026-01-02T03:04:05+00:00",
    }.items():  # fmt: skip
        assert f"AIRFLOW_CTX_{name}={value}" in log
    assert 'it\'s; $(a) "quoted" value' in log.splitlines()


def test_runtime_env_is_read_from_yaml_file_relative_to_dag_file(run: DagRun, client: RayJobsClient):
    """A relative path is resolved against the folder of the DAG file. Job name, link and connection can be set."""
    task_id = "takes_runtime_env_from_file"
    submission_id = run.xcoms(task_id)["submission_id"]

    assert run.state(task_id) == "success"
    assert "from the file: 1" in run.log(task_id).splitlines()
    assert client.get_job(submission_id).metadata["job_name"] == f"named by {task_id}"
    assert run.links(task_id) == {"Ray job": f"https://ray.example.com/team-a/#/jobs/{submission_id}"}


def test_task_mapped_over_runtime_envs_submits_one_job_each(run: DagRun):
    """``.expand(runtime_env=...)`` submits one job per runtime environment."""
    for map_index, colour in enumerate(("red", "green")):
        assert run.state("is_mapped_over_runtime_envs", map_index) == "success"
        assert f"mapped: {colour}" in run.log("is_mapped_over_runtime_envs", map_index).splitlines()


def test_entrypoint_ending_in_yaml_is_not_a_template_file(run: DagRun):
    """The entrypoint runs unchanged. With ``fetch_logs="never"`` its output does not get into the task's log."""
    assert run.state("entrypoint_ends_in.yaml") == "success"
    assert "config.yaml\n" not in run.log("entrypoint_ends_in.yaml")


def test_ten_thousand_lines_arrive_once_in_order_in_few_records(run: DagRun):
    """The task's log contains each line of a long log once and in order, in at most 15 records."""
    lines = [line for line in run.log("prints_ten_thousand_lines").splitlines() if line.startswith("line ")]
    records = run.airflow.log_records("end_to_end", run.run_id, "prints_ten_thousand_lines")

    assert lines == [f"line {number:05d}" for number in range(10_000)]
    assert sum("line 0" in str(record["event"]) for record in records) <= 15


@pytest.mark.parametrize("mode", MODES)
def test_invalid_argument_fails_task_before_submission(run: DagRun, mode: str):
    """An invalid number fails the task at once, with the name of the argument. No submission id is pushed."""
    task_id = f"rejects_invalid_num_cpus_{mode}"

    assert run.state(task_id) == "failed"
    assert "ValueError: entrypoint_num_cpus must be a number, not 'many'" in run.log(task_id)
    assert run.airflow.task_instance(run.dag_id, run.run_id, task_id)["try_number"] == 1
    assert "submission_id" not in run.xcoms(task_id)


def test_invalid_argument_fails_sensor(run: DagRun):
    """A wrong word fails the sensor at once, and ``soft_fail`` does not hide it."""
    sensor = run.airflow.task_instance(run.dag_id, run.run_id, "rejects_invalid_fetch_logs")

    assert (sensor["state"], sensor["try_number"]) == ("failed", 1)
    assert "fetch_logs must be one of live, on_completion, never, not 'often'" in run.log("rejects_invalid_fetch_logs")


def test_unreachable_head_fails_task_with_address_and_advice(run: DagRun):
    """The error names the address of the head and what to check."""
    log = run.log("cannot_reach_head")

    assert run.state("cannot_reach_head") == "failed"
    assert "Connection refused: could not " in log
    assert " at http://127.0.0.1:9 (connection ray_jobs_unreachable). " in log
    assert "Cause: ConnectError" in log
    assert "Check that the Ray head runs" in log


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
def test_sensor_succeeds_with_job_and_shows_its_log(run: DagRun, mode: str):
    """In each mode the sensor succeeds when the job succeeds, and its log contains each line once."""
    lines = run.log(f"waits_success_{mode}").splitlines()

    assert run.state(f"waits_success_{mode}") == "success"
    assert [line for line in lines if line.startswith("step ")] == ["step 1", "step 2", "step 3"]


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
def test_sensor_fails_with_job(run: DagRun, mode: str):
    """In each mode the sensor fails when the job fails, with the same error as the operator."""
    log = run.log(f"waits_failure_{mode}")

    assert run.state(f"waits_failure_{mode}") == "failed"
    assert "RayJobEntrypointError" in log
    assert "FAILED with exit code 7" in log
    assert "oh" in log.splitlines()


def test_sensor_fails_for_unknown_job_after_missing_timeout(run: DagRun):
    """After ``missing_timeout`` an unknown job fails the sensor, or skips it with ``soft_fail``."""
    assert run.state("waits_for_unknown_job") == "failed"
    assert "Job no-such-job does not exist" in run.log("waits_for_unknown_job")
    assert run.state("waits_for_unknown_job_deferred") == "skipped"


def test_nightly_example_writes_report(nightly: tuple[DagRun, Any]):
    """The nightly example reads its data file, runs Ray tasks and writes a report."""
    run, report = nightly

    assert run.state("report") == "success"
    assert "Busiest station:" in run.log("report")
    assert '"station"' in report.read_text()


@pytest.mark.parametrize(
    "dag_id",
    [
        "ray_jobs_submit_and_wait",
        "ray_jobs_sweep",
        "ray_jobs_deferrable",
        "ray_jobs_retry",
        "ray_jobs_local_code",
        "ray_jobs_cleanup",
        "ray_jobs_functions",
        "ray_jobs_functions_deferred",
        "ray_jobs_progress",
        "ray_jobs_progress_deferred",
        "native",
    ],
)
def test_example_dag_succeeds(airflow: LocalAirflow, client: RayJobsClient, dag_id: str):
    """Each example DAG succeeds, and so does a DAG with native rendering."""
    run = DagRun(airflow, dag_id, airflow.trigger(dag_id))

    state = airflow.wait_for_run(dag_id, run.run_id)
    assert state == "success", run.logs()
    match dag_id:
        case "ray_jobs_submit_and_wait":
            assert "step 3" in run.log("wait").splitlines()
        case "ray_jobs_sweep":
            rates = [
                run.log("train", map_index).count(f"learning rate {rate}\n")
                for map_index, rate in enumerate((0.1, 0.01, 0.001))
            ]
            jobs = [client.get_job(run.xcoms("train", map_index)["submission_id"]) for map_index in range(3)]
            assert rates == [1, 1, 1]
            assert [job.metadata["job_name"] for job in jobs] == ["sweep 0", "sweep 1", "sweep 2"]
            assert "-m2-try1-" in jobs[2].submission_id
            assert run.map_names("train") == ["rate 0.1", "rate 0.01", "rate 0.001"]
        case "ray_jobs_local_code":
            log = run.log("report")
            [line] = [line for line in log.splitlines() if "package _ray_pkg_" in line]
            assert re.search(r"working_dir \S+/example_dags: package _ray_pkg_[0-9a-f]{40}\.zip, 2 files, ", line)
            assert "Job ray_jobs_local_code.report-try1-" in log
        case "ray_jobs_cleanup":
            assert run.xcoms("clean_up")["return_value"]["dry_run"] is True
            assert "Dry run: would stop " in run.log("clean_up")
        case "ray_jobs_deferrable":
            assert "trained" in run.log("train").splitlines()
        case "ray_jobs_retry":
            jobs = [job for job in client.list_jobs() if job.metadata.get("airflow_run_id") == run.run_id]
            assert sorted(job.metadata["airflow_try_number"] for job in jobs) == ["1", "2"]
            assert "try 2" in airflow.log_text(dag_id, run.run_id, "train", 2).splitlines()
        case "ray_jobs_functions" | "ray_jobs_functions_deferred":
            _check_functions(run, client)
        case "ray_jobs_progress" | "ray_jobs_progress_deferred":
            assert run.xcoms("train")["progress"] == {"done": 5, "total": 5, "text": "loss 0.328"}
            assert abs(run.xcoms("train")["return_value"] - 0.8**5) < 1e-9
            # the trigger may not get a turn to log before such a short job has ended
            shown = re.search(r"^Progress: [1-5] of 5 \(\d+%\): loss 0", run.log("train"), re.MULTILINE)
            assert shown or dag_id.endswith("_deferred")
            assert run.xcoms("count_lines")["return_value"] == {"lines": 1000}
            assert run.xcoms("count_lines")["progress"] == {"done": 1000, "total": None, "text": "lines"}
            assert "##ray_job 0" not in run.log("count_lines")
        case "native":
            job = client.get_job(run.xcoms("native")["submission_id"])
            assert "day 20260102 try 1" in run.log("native").splitlines()
            assert (job.metadata["day"], job.metadata["job_name"]) == ("20260102", "20260102")
            assert job.runtime_env["env_vars"]["DAY"] == "20260102"


def _check_functions(run: DagRun, client: RayJobsClient) -> None:
    models = [run.xcoms("train", map_index) for map_index in range(3)]
    best = min((model["return_value"] for model in models), key=lambda model: model["error"])
    assert [model["alpha"] for model in models] == [0.1, 0.5, 0.9], "a dictionary has several outputs"
    assert run.xcoms("register")["return_value"] == f"smoothing-{best['alpha']}"
    assert f"Registered the model with alpha {best['alpha']}." in run.log("register").splitlines()
    assert "##ray_job" not in run.logs()
    assert run.map_names("train") == ["alpha 0.1", "alpha 0.5", "alpha 0.9"]
    events = run.airflow.api("GET", "/assets/events", params={"source_run_id": run.run_id})["asset_events"]
    registered = run.xcoms("register")["submission_id"]
    assert [event["extra"] for event in events] == [{"submission_id": registered, "alpha": best["alpha"]}]
    job = client.get_job(run.xcoms("train", 1)["submission_id"])
    assert (job.metadata["job_name"], job.runtime_env["env_vars"]["RAY_JOB_NONCE"]) == (
        "train 1", job.metadata["submission_nonce"],
    )  # fmt: skip


@pytest.mark.skipif(
    not HAS_STORE, reason="the state store of an asset, which came with Airflow 3.3, tells when to begin"
)
def test_interactive_job_starts_a_dag(airflow: LocalAirflow, client: RayJobsClient, ray_head: RayHead):
    """The example runs once, with the id of the job, when a program with its metadata has left the cluster."""

    def is_watching() -> bool:
        [asset] = airflow.api("GET", "/assets", params={"name_pattern": "labels"})["assets"]
        return bool(airflow.api("GET", f"/assets/{asset['id']}/state-store")["total_entries"])

    _wait_for(is_watching, timeout=180)
    for purpose in ("something else", "labelling"):
        program = f"import ray; ray.init(job_config=ray.job_config.JobConfig(metadata={{'purpose': {purpose!r}}}))"
        environment = clean_environment("RAY_", "AIRFLOW") | {"RAY_ADDRESS": ray_head.gcs_address}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, timeout=120)
    [job] = [job.job_id for job in client.list_jobs() if job.metadata.get("purpose") == "labelling"]
    dag_id = "ray_jobs_retrain"
    [started] = _wait_for(lambda: airflow.api("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"], timeout=180)
    run = DagRun(airflow, dag_id, started["dag_run_id"])

    assert airflow.wait_for_run(dag_id, run.run_id) == "success", run.logs()
    assert f"Training with the labels of {job}" in run.log("retrain").splitlines()


def test_pool_limits_the_running_jobs(airflow: LocalAirflow, client: RayJobsClient):
    """A pool that includes deferred tasks limits the jobs that run at the same time."""
    pool = {"name": "ray_cluster", "slots": 2, "description": "", "include_deferred": True}
    airflow.api("POST", "/pools", json=pool)

    run = DagRun(airflow, "ray_jobs_pool", airflow.trigger("ray_jobs_pool"))

    state = airflow.wait_for_run("ray_jobs_pool", run.run_id, timeout=600)
    assert state == "success", run.logs()
    jobs = [job for job in client.list_jobs() if job.metadata.get("airflow_run_id") == run.run_id]
    changes = sorted([(job.start_time, 1) for job in jobs] + [(job.end_time, -1) for job in jobs])
    running = list(accumulate(change for _, change in changes))
    assert len(jobs) == 6
    assert max(running) == 2


def test_connection_form_shows_fields_and_tests_connection(airflow: LocalAirflow, ray_head: RayHead):
    """Airflow's form shows the fields of the connection type, and "Test" reports the Ray version or the error."""
    [form] = [
        hook for hook in airflow._http.get("/ui/connections/hook_meta").json() if hook["connection_type"] == "ray_jobs"
    ]
    fields = {"connection_id": "form_test", "conn_type": "ray_jobs", "host": "127.0.0.1"}
    good = airflow.api("POST", "/connections/test", json=fields | {"port": ray_head.port})
    bad = airflow.api("POST", "/connections/test", json=fields | {"port": 9})

    if Version(airflow_version) >= Version("3.2"):  # Airflow 3.1 ignores the custom fields
        assert set(form["extra_fields"]) == EXTRAS.keys()
        assert form["standard_fields"]["password"]["title"] == "Ray token or password"
    assert good["status"], good["message"]
    assert good["message"].startswith(f"Ray {version_of_heads()} at {ray_head.address}, session session_")
    assert not bad["status"]
    assert "Connection refused: could not connect to Ray at http://127.0.0.1:9 (this connection)" in bad["message"]


def _is_running(client: RayJobsClient, submission_id: str) -> bool:
    try:
        return client.get_job(submission_id).status == "RUNNING"
    except RayJobNotFoundError:
        return False  # the id is pushed to XCom before the job is submitted


def _wait_for(get: Callable[[], Any], timeout: float = 60.0) -> Any:
    import time

    deadline = time.monotonic() + timeout
    while not (value := get()):
        assert time.monotonic() < deadline, f"no result within {timeout:g} s"
        time.sleep(0.3)
    return value
