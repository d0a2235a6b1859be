"""The provider in a real Airflow, against a real Ray head."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version

from airflow_provider_rayjobs.connection import EXTRAS
from airflow_provider_rayjobs.exceptions import RayJobNotFoundError
from airflow_provider_rayjobs.jobs import RayJobsClient
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

pytestmark = [pytest.mark.airflow, pytest.mark.ray]
MODES = ["worker", "deferred"]
JOB_LOGGER = "airflow.task.ray_job"


@dataclass
class Run:
    """One run of a DAG, and what can be asked of it."""

    airflow: LocalAirflow
    dag_id: str
    run_id: str

    def state(self, task_id: str, map_index: int = -1) -> str:
        return self.airflow.task_instance(self.dag_id, self.run_id, task_id, map_index)["state"]

    def log(self, task_id: str, map_index: int = -1) -> str:
        return self.airflow.log_text(self.dag_id, self.run_id, task_id, map_index=map_index)

    def job_log(self, task_id: str, map_index: int = -1) -> str:
        """What the task's log holds of the job's own log, in the order of the web UI."""
        records = self.airflow.log_records(self.dag_id, self.run_id, task_id, map_index=map_index)
        return "\n".join(str(record["event"]) for record in records if record.get("logger") == JOB_LOGGER)

    def logs(self) -> str:
        """The logs of all tasks, for a failure's message."""
        tasks = self.airflow.task_instances(self.dag_id, self.run_id)
        return "\n".join(f"{task['task_id']}: {self.log(task['task_id'], task['map_index'])}" for task in tasks)

    def xcoms(self, task_id: str, map_index: int = -1) -> dict[str, Any]:
        return self.airflow.xcoms(self.dag_id, self.run_id, task_id, map_index)

    def links(self, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        return self.airflow.links(self.dag_id, self.run_id, task_id, map_index)


@pytest.fixture(scope="module")
def client(ray_head: RayHead) -> RayJobsClient:
    with RayJobsClient(ray_head.address) as client:
        yield client


@pytest.fixture(scope="module")
def run(airflow: LocalAirflow, client: RayJobsClient) -> Run:
    """One run of all tasks of the DAG ``end_to_end``; what is to be stopped is stopped by hand."""
    run_id = airflow.trigger("end_to_end", logical_date="2026-01-02T03:04:05Z")
    run = Run(airflow, "end_to_end", run_id)
    links_while_running = {}
    for mode, waiting in (("worker", "running"), ("deferred", "deferred")):
        task_id = f"is_stopped_{mode}"
        airflow.wait_for_task("end_to_end", run_id, task_id, states=(waiting,), timeout=300)
        submission_id = _eventually(lambda task_id=task_id: run.xcoms(task_id).get("submission_id"))
        _eventually(lambda job=submission_id: _is_running(client, job))
        links_while_running[task_id] = run.links(task_id)
        client.stop_job(submission_id)
    airflow.wait_for_run("end_to_end", run_id, timeout=600)
    run.links_while_running = links_while_running
    return run


@pytest.fixture(scope="module")
def nightly(airflow: LocalAirflow, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Any]:
    report = tmp_path_factory.mktemp("report") / "report.json"
    run_id = airflow.trigger("ray_jobs_nightly", conf={"report": str(report)})
    airflow.wait_for_run("ray_jobs_nightly", run_id)
    return Run(airflow, "ray_jobs_nightly", run_id), report


@pytest.mark.parametrize("mode", MODES)
def test_a_job_that_succeeds_makes_a_green_task_with_the_whole_log(run: Run, client: RayJobsClient, mode: str):
    """The task's log holds the driver's log as it is: order, indentation, blank lines, a last line without newline."""
    task_id = f"succeeds_{mode}"
    submission_id = run.xcoms(task_id)["submission_id"]

    assert run.state(task_id) == "success"
    assert run.xcoms(task_id)["return_value"] == submission_id
    log = run.job_log(task_id)
    assert client.get_job_logs(submission_id) == log
    assert log.endswith("\n  indented\n\nafter a blank line\nno newline at the end")
    assert log.splitlines().count("first") == 1


@pytest.mark.parametrize("task_id", ["is_flushed", "waits_and_is_flushed"])
def test_a_deferred_task_comes_back_to_show_its_jobs_log(run: Run, client: RayJobsClient, task_id: str):
    """With ``log_flush_interval`` a worker shows what has gathered, again and again, and every line once."""
    job = run.xcoms("is_flushed" if task_id == "is_flushed" else "submits_by_and_by")["submission_id"]
    times = {
        datetime.fromisoformat(record["timestamp"])
        for record in run.airflow.log_records(run.dag_id, run.run_id, task_id)
        if record.get("logger") == JOB_LOGGER
    }

    assert run.state(task_id) == "success"
    assert run.job_log(task_id) == client.get_job_logs(job).removesuffix("\n")
    assert max(times) - min(times) > timedelta(seconds=8), "it came in parts, while the job ran"


@pytest.mark.parametrize("mode", MODES)
def test_a_job_that_fails_fails_its_task_and_says_why(run: Run, mode: str):
    """A job that ends FAILED, however fast, makes a red task whose log ends in what, where, and why."""
    log = run.log(f"fails_{mode}")

    assert run.state(f"fails_{mode}") == "failed"
    assert "RayJobEntrypointError" in log
    assert re.search(r"FAILED with exit code 3 after \d+\.\d s, at http://127\.0\.0\.1:\d+\.\n", log)
    assert "Error type JOB_ENTRYPOINT_COMMAND_ERROR.\n" in log
    assert "Ray says: Job entrypoint command failed with exit code 3\n" in log
    assert "before the end" in log.rpartition("The log ends in:")[2]


@pytest.mark.parametrize("mode", MODES)
def test_a_runtime_environment_that_cannot_be_set_up_fails_the_task_and_says_so(run: Run, mode: str):
    """The task's log names the runtime environment's failure, in Ray's words."""
    log = run.log(f"has_no_environment_{mode}")

    assert run.state(f"has_no_environment_{mode}") == "failed"
    assert "Error type RUNTIME_ENV_SETUP_FAILURE" in log
    assert "Failed to download runtime_env file package gcs://_ray_pkg_0123456789abcdef.zip" in log


@pytest.mark.parametrize("mode", MODES)
def test_a_job_that_somebody_stops_fails_its_task(run: Run, mode: str):
    """STOPPED is not success."""
    log = run.log(f"is_stopped_{mode}")

    assert run.state(f"is_stopped_{mode}") == "failed"
    assert "RayJobStoppedError" in log
    assert re.search(r" STOPPED after \d+\.\d s, at http://127\.0\.0\.1", log)


@pytest.mark.parametrize("mode", MODES)
def test_the_link_works_while_the_job_runs_and_stays_the_same(run: Run, ray_head: RayHead, mode: str):
    """The button leads to the job's page in the dashboard, before and after the job's end."""
    task_id = f"is_stopped_{mode}"
    address = f"{ray_head.address}/#/jobs/{run.xcoms(task_id)['submission_id']}"

    assert run.links_while_running[task_id] == {"Ray job": address}
    assert run.links(task_id) == {"Ray job": address}


def test_the_driver_and_the_job_know_which_task_instance_they_belong_to(run: Run, client: RayJobsClient):
    """Metadata and environment name dag, run, task, try and date, beside what the user gave."""
    task_id = "knows_where_it_comes_from"
    job = client.get_job(run.xcoms(task_id)["submission_id"])
    log = run.log(task_id)

    assert run.state(task_id) == "success"
    changing = {"submission_nonce", "airflow_run_start_date"}
    assert job.submission_id.startswith("end_to_end.knows_where_it_comes_from-try1-")
    assert {name: value for name, value in job.metadata.items() if name not in changing} == {
        "job_name": "end_to_end.knows_where_it_comes_from",
        "team": "end_to_end",
        "airflow_dag_id": "end_to_end",
        "airflow_run_id": run.run_id,
        "airflow_task_id": task_id,
        "airflow_map_index": "-1",
        "airflow_try_number": "1",
        "airflow_max_tries": "0",
        "airflow_logical_date": "2026-01-02T03:04:05+00:00",
    }
    assert f"RAY_JOB_SUBMISSION_ID={job.submission_id}" in log
    assert f"MINE={task_id}" in log
    for name, value in {
        "DAG_ID": "end_to_end", "TASK_ID": task_id, "DAG_RUN_ID": run.run_id, "TRY_NUMBER": "1",
        "LOGICAL_DATE": "2026-01-02T03:04:05+00:00",
    }.items():  # fmt: skip
        assert f"AIRFLOW_CTX_{name}={value}" in log
    assert 'it\'s; $(a) "quoted" value' in log.splitlines()


def test_a_runtime_environment_may_be_a_yaml_file_beside_the_dag(run: Run, client: RayJobsClient):
    """A relative path is looked for beside the DAG file; names, links and connections can be chosen."""
    task_id = "reads_its_environment_from_a_file"
    submission_id = run.xcoms(task_id)["submission_id"]

    assert run.state(task_id) == "success"
    assert "from the file: 1" in run.log(task_id).splitlines()
    assert client.get_job(submission_id).metadata["job_name"] == f"named by {task_id}"
    assert run.links(task_id) == {"Ray job": f"https://ray.example.com/team-a/#/jobs/{submission_id}"}


def test_a_task_may_be_mapped_over_environments(run: Run):
    """``.expand(runtime_env=...)`` makes one job of each."""
    for map_index, colour in enumerate(("red", "green")):
        assert run.state("is_mapped_over_environments", map_index) == "success"
        assert f"mapped: {colour}" in run.log("is_mapped_over_environments", map_index).splitlines()


def test_an_entrypoint_that_ends_in_yaml_is_no_template_file(run: Run):
    """The command is run as it is; with ``fetch_logs="never"`` its output stays on the cluster."""
    assert run.state("runs_a_file.yaml") == "success"
    assert "config.yaml\n" not in run.log("runs_a_file.yaml")


def test_ten_thousand_lines_arrive_in_order_and_once(run: Run):
    """Every line of a long log is in the task's log, once, in few records."""
    lines = [line for line in run.log("prints_ten_thousand_lines").splitlines() if line.startswith("line ")]
    records = run.airflow.log_records("end_to_end", run.run_id, "prints_ten_thousand_lines")

    assert lines == [f"line {number:05d}" for number in range(10_000)]
    assert sum("line 0" in str(record["event"]) for record in records) <= 15


def test_what_can_never_work_is_said_before_anything_is_sent(run: Run):
    """A number that is none fails the task with the field's name, and no submission id was made known."""
    assert run.state("refuses_nonsense") == "failed"
    assert "entrypoint_num_cpus must be a number, not 'many'" in run.log("refuses_nonsense")
    assert "submission_id" not in run.xcoms("refuses_nonsense")


def test_a_head_that_cannot_be_reached_is_an_error_that_says_where(run: Run):
    """The error names the address, and what to check."""
    log = run.log("finds_nobody")

    assert run.state("finds_nobody") == "failed"
    assert "Connection refused: could not " in log
    assert " at http://127.0.0.1:9 (connection ray_jobs_nobody). " in log
    assert "Cause: ConnectError" in log
    assert "Check that the Ray head runs" in log


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
def test_a_sensor_waits_for_somebody_elses_job_and_shows_its_log(run: Run, mode: str):
    """In each mode the sensor succeeds with the job and its log has every line once."""
    lines = run.log(f"waits_good_{mode}").splitlines()

    assert run.state(f"waits_good_{mode}") == "success"
    assert [line for line in lines if line.startswith("step ")] == ["step 1", "step 2", "step 3"]


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
def test_a_sensor_fails_with_the_job(run: Run, mode: str):
    """In each mode the sensor fails at once with the operator's error."""
    log = run.log(f"waits_bad_{mode}")

    assert run.state(f"waits_bad_{mode}") == "failed"
    assert "RayJobEntrypointError" in log
    assert "FAILED with exit code 7" in log
    assert "oh" in log.splitlines()


def test_a_sensor_gives_up_on_a_job_that_does_not_exist(run: Run):
    """After a short grace an unknown job is an error, or a skip where the sensor is told to fail softly."""
    assert run.state("waits_for_nothing") == "failed"
    assert "Job no-such-job does not exist" in run.log("waits_for_nothing")
    assert run.state("waits_for_nothing_deferred") == "skipped"


def test_the_nightly_example_writes_its_report(nightly: tuple[Run, Any]):
    """The nightly example reads its data file, works in Ray tasks and leaves a report."""
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
        "native",
    ],
)
def test_each_example_runs(airflow: LocalAirflow, client: RayJobsClient, dag_id: str):
    """Each example DAG, and one with native rendering, ends in success."""
    run = Run(airflow, dag_id, airflow.trigger(dag_id))

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
        case "ray_jobs_local_code":
            log = run.log("report")
            [line] = [line for line in log.splitlines() if "package _ray_pkg_" in line]
            assert re.search(r"working_dir \S+/example_dags: package _ray_pkg_[0-9a-f]{40}\.zip, 2 files, ", line)
            assert "Job ray_jobs_local_code.report-try1-" in log
        case "ray_jobs_deferrable":
            assert "trained" in run.log("train").splitlines()
        case "ray_jobs_retry":
            jobs = [job for job in client.list_jobs() if job.metadata.get("airflow_run_id") == run.run_id]
            assert sorted(job.metadata["airflow_try_number"] for job in jobs) == ["1", "2"]
            assert "try 2" in airflow.log_text(dag_id, run.run_id, "train", 2).splitlines()
        case "native":
            job = client.get_job(run.xcoms("native")["submission_id"])
            assert "day 20260102 try 1" in run.log("native").splitlines()
            assert (job.metadata["day"], job.metadata["job_name"]) == ("20260102", "20260102")
            assert job.runtime_env["env_vars"]["DAY"] == "20260102"


def test_the_connection_form_has_our_fields_and_its_test_button_works(airflow: LocalAirflow, ray_head: RayHead):
    """Airflow offers the connection type with its fields, and "Test" says what it reached or why not."""
    [form] = [
        hook for hook in airflow._http.get("/ui/connections/hook_meta").json() if hook["connection_type"] == "ray_jobs"
    ]
    fields = {"connection_id": "tried", "conn_type": "ray_jobs", "host": "127.0.0.1"}
    good = airflow.api("POST", "/connections/test", json=fields | {"port": ray_head.port})
    bad = airflow.api("POST", "/connections/test", json=fields | {"port": 9})

    if Version(airflow_version) >= Version("3.2"):  # 3.1 passes over the named fields and shows its plain form
        assert set(form["extra_fields"]) == EXTRAS.keys()
        assert form["standard_fields"]["password"]["title"] == "Token, or the login's password"
    assert good["status"]
    assert good["message"].startswith(f"Ray 2.60.0 at {ray_head.address}, session session_")
    assert not bad["status"]
    assert "Connection refused: could not get the Ray version at http://127.0.0.1:9 (connection " in bad["message"]


def _is_running(client: RayJobsClient, submission_id: str) -> bool:
    try:
        return client.get_job(submission_id).status == "RUNNING"
    except RayJobNotFoundError:
        return False  # its id is pushed before it is sent


def _eventually(answer: Callable[[], Any], timeout: float = 60.0) -> Any:
    import time

    deadline = time.monotonic() + timeout
    while not (value := answer()):
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.3)
    return value
