"""
Faults in a real Airflow on a real Ray head: each try has exactly one Ray job, no matter which process dies.

Each case is one DAG with one connection, through a fault proxy of its own. The cases run side by side, because they
spend most of their time waiting. The tests then compare the result of each case with the table below.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from airflow import __version__ as airflow_version
from fault_harness import (
    DEFERRED,
    ENDLESS_IN_FIRST_TRY,
    MODES,
    NO_RETRY,
    RETRY,
    TAKES_RESULT,
    UNTIL_RELEASED,
    FaultCase,
    FaultHarness,
)
from packaging.version import Version
from production_cases import PRODUCTION_WAVES

from sandbox.production_airflow import IS_PRODUCTION

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        Version(airflow_version) < Version("3.3"),
        reason="the task state store and a trigger's on_kill came with Airflow 3.3",
    ),
]

SLOW = "echo start; sleep 20; echo end"
ENDLESS = "echo start; sleep 600"
HEAVY_LOGGING = [
    "python", "-uc", "import time\nfor _ in range(1500): print('\\n'.join(['x' * 99] * 2000)); time.sleep(0.1)",
]  # fmt: skip
# A custom resource that no node has. Only the first try asks for it.
MISSING_RESOURCE_IN_FIRST_TRY = {"nowhere": "{{ 1 if ti.try_number == 1 else '' }}"}


def wait_for_second_try(case: FaultCase) -> None:
    """Wait for the second try. The process of the first try kills itself, see ``crash`` in the DAG file."""
    case.wait_until("the task has a second try", lambda: case.task_instance["try_number"] == 2)


def release_when_followed(case: FaultCase) -> None:
    case.wait_for_following_try()
    case.release()


def kill_before_submission_response(case: FaultCase) -> None:
    def kill_once() -> None:
        case.proxy.on_submitted = lambda: None
        case.kill()

    case.proxy.on_submitted = kill_once
    release_when_followed(case)


def kill_while_following(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.kill()
    release_when_followed(case)


def kill_supervisor(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.kill(supervisor=True)
    release_when_followed(case)


def kill_supervisor_in_last_try(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.kill(supervisor=True)


def terminate_supervisor(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.kill(signal.SIGTERM, supervisor=True)


def clear_while_running(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.clear()


def clear_while_pending(case: FaultCase) -> None:
    case.wait_for_job("PENDING")
    case.clear()


def clear_after_end(case: FaultCase) -> None:
    case.wait_for_end()
    case.clear()


def clear_without_the_run(case: FaultCase) -> None:
    case.wait_for_state("success")
    case.clear(reset_dag_runs=False)
    case.wait_until(
        "the second try has ended", lambda: len(case.ray_jobs) == 2 and case.task_instance["state"] == "success"
    )
    case.release()


def clear_with_fewer_retries(case: FaultCase) -> None:
    case.wait_for_state("success")
    task_path = f"/dags/{case.name}/tasks/job"
    case.task["retries"] = 1
    case.harness.write_cases()
    case.wait_until("Airflow has the new retries", lambda: case.harness.airflow.api("GET", task_path)["retries"] == 1)
    before = case.harness.airflow.task_instance(case.name, case.run_id, "job")["max_tries"]
    case.clear(reset_dag_runs=False)
    case.wait_until(
        "the second try has ended",
        lambda: case.task_instance["try_number"] == 2 and case.task_instance["state"] == "success",
    )
    assert case.task_instance["max_tries"] == before, "Clear changed max_tries, so that this case tests nothing"
    case.release()


def mark_failed(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.mark("failed")


def mark_success(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.mark("success")


def mark_during_heavy_logging(state: str):
    def script(case: FaultCase) -> None:
        case.wait_for_job("RUNNING")
        time.sleep(8)
        case.mark(state)

    return script


def stop_outside_airflow(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.ray("POST", f"/api/jobs/{case.ray_jobs[0]['submission_id']}/stop")


def delete_outside_airflow(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    case.kill()
    case.wait_until("the job has ended", lambda: case.ray_jobs[0]["status"] == "SUCCEEDED")
    time.sleep(5)  # Ray writes a job's end more than once: a record deleted in between would come back without content
    case.ray("DELETE", f"/api/jobs/{case.ray_jobs[0]['submission_id']}")


def make_head_unreachable_until(description: str, condition: Callable[[FaultCase], bool], seconds: float = 0.0):
    """
    Return a script: the head is unreachable until a condition is true, and some seconds longer.

    No fixed time, because a busy triggerer may pause for longer than any outage here.
    """

    def script(case: FaultCase) -> None:
        case.wait_for_job("RUNNING")
        case.proxy.drop_requests()
        case.wait_until(description, lambda: condition(case))
        time.sleep(seconds)
        case.proxy.forward_requests()

    return script


def make_head_unreachable_for_20_s(case: FaultCase) -> None:
    make_head_unreachable_until("a request was dropped", lambda case: has_dropped(case, "GET"), 20)(case)
    time.sleep(2)
    case.release()


def make_head_unreachable_until_retry(case: FaultCase) -> None:
    make_head_unreachable_until("the first try has ended", has_failed_once)(case)
    release_when_followed(case)


def make_head_unreachable_for_stop(case: FaultCase) -> None:
    make_head_unreachable_until("a stop was tried", lambda case: STOPPING in case.log(1), 10)(case)


def has_failed_once(case: FaultCase) -> bool:
    return case.task_instance["state"] == "up_for_retry" or case.task_instance["try_number"] == 2


def has_dropped(case: FaultCase, method: str) -> bool:
    return any(text.startswith(method) and text.endswith(": drop") for _, text in case.timeline)


def drop_every_second_request(case: FaultCase) -> None:
    case.proxy.fault = lambda method, path, number: "drop" if number % 2 == 0 else None


def replace_submission_response(fault: str | int):
    def script(case: FaultCase) -> None:
        submissions = []

        def choose_fault(method: str, path: str, number: int) -> str | int | None:
            if method == "POST" and path == "/api/jobs/" and not submissions:
                submissions.append(number)
                return fault
            return None

        case.proxy.fault = choose_fault

    return script


def reject_credentials_for_8_s(case: FaultCase) -> None:
    case.wait_for_job("RUNNING")
    until = time.monotonic() + 8
    case.proxy.fault = lambda method, path, number: 401 if time.monotonic() < until else None
    time.sleep(10)
    case.release()


def wait_for_head_restart(case: FaultCase) -> None:
    """Wait until ``restart_head`` has restarted the head of all these cases."""
    case.wait_for_job("RUNNING")
    case.wait_until("the head was restarted", lambda: case.harness.folder.joinpath("head-restarted").exists())


def wait_for_airflow_restart(case: FaultCase) -> None:
    """Wait until ``restart_triggerer_and_api_server`` is done, then end the job."""
    case.wait_for_job("RUNNING")
    case.wait_until(
        "triggerer and API server were restarted",
        lambda: case.harness.folder.joinpath("airflow-restarted").exists(),
    )
    case.release()


# Two cores and SQLite run a third of the cases at once.
WAVES = 3
STOPPING = "no further try follows it. Stopping it"
CASES = [
    FaultCase("worker_killed_before_job_record_is_stored",
              "A process that dies before it stores the job record has submitted no job.",
              {"entrypoint": "true", "crash": "before storing the job record", **RETRY}, wait_for_second_try, tries=2),
    FaultCase("worker_killed_before_submission",
              "A job that was recorded and not submitted is submitted under its recorded id.",
              {"entrypoint": "true", "crash": "before submission", **RETRY}, wait_for_second_try, tries=2,
              log_contains=("its submission was never confirmed. Submitting it again under the same id",)),
    FaultCase("worker_killed_before_submission_response",
              "The next try follows the job of a process that died before it got Ray's response.",
              {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_before_submission_response, tries=2),
    FaultCase("worker_killed_while_following",
              "The next try follows the job of a process that died, and logs all of its output.",
              {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_while_following, tries=2,
              log_contains=("start\n", "end\n")),
    FaultCase("worker_killed_before_success_is_delivered",
              "The next try succeeds with the job whose success the killed process did not deliver.",
              {"entrypoint": "echo done", "crash": "before delivery", **RETRY}, wait_for_second_try, tries=2,
              log_contains=(TAKES_RESULT,)),
    FaultCase("supervisor_killed", "The next try follows the job of a killed supervisor's task.",
              {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_supervisor, tries=2),
    FaultCase("supervisor_killed_in_last_try", "The job is stopped when the supervisor dies in the last try.",
              {"entrypoint": "for i in $(seq 600); do echo $i; sleep 0.5; done", **NO_RETRY},
              kill_supervisor_in_last_try, state="failed", jobs=("STOPPED",)),
    FaultCase("worker_killed_before_deferred_success_is_delivered",
              "The next try succeeds with the job of a deferred task whose success was not delivered.",
              {"entrypoint": "echo done", "crash": "before delivery", **RETRY, **DEFERRED}, wait_for_second_try,
              tries=2, log_contains=(TAKES_RESULT,)),
    FaultCase("supervisor_terminated", "A worker that gets SIGTERM stops its job, and the next try submits another.",
              {"entrypoint": ENDLESS_IN_FIRST_TRY, **RETRY}, terminate_supervisor, jobs=("STOPPED", "SUCCEEDED"),
              log_contains=("Airflow ended this task",)),
    *(
        case
        for mode, options in MODES
        for case in (
            FaultCase(f"cleared_while_job_runs_{mode}", "Clear stops the running job, and the task submits another.",
                      {"entrypoint": ENDLESS_IN_FIRST_TRY, **NO_RETRY, **options}, clear_while_running,
                      jobs=("STOPPED", "SUCCEEDED")),
            FaultCase(f"cleared_while_job_is_pending_{mode}",
                      "Clear stops a job that waits for resources, and the task submits another.",
                      {"entrypoint": "true", "entrypoint_resources": MISSING_RESOURCE_IN_FIRST_TRY, **NO_RETRY,
                       **options},
                      clear_while_pending, jobs=("PENDING", "SUCCEEDED")),
            FaultCase(f"cleared_after_success_{mode}", "Clear after success submits another job.",
                      {"entrypoint": "true", **NO_RETRY, **options}, clear_after_end, jobs=("SUCCEEDED", "SUCCEEDED"),
                      log_contains=("ended SUCCEEDED, and the task was cleared",)),
            FaultCase(f"marked_failed_{mode}", "The job of a task that is marked as failed is stopped.",
                      {"entrypoint": ENDLESS, **RETRY, **options}, mark_failed, state="failed", jobs=("STOPPED",),
                      log_contains=("unless another triggerer follows it now",) if options else ()),
            FaultCase(f"marked_success_{mode}", "The job of a task that is marked as success is stopped.",
                      {"entrypoint": ENDLESS, **RETRY, **options}, mark_success, jobs=("STOPPED",)),
            *(
                FaultCase(f"marked_{state}_during_heavy_logging_{mode}",
                          "The job of a marked task is stopped, even while it logs at full speed.",
                          {"entrypoint": HEAVY_LOGGING, **RETRY, **options}, mark_during_heavy_logging(state),
                          state=state, jobs=("STOPPED",))
                for state in ("failed", "success")
            ),
            FaultCase(f"job_pending_too_long_{mode}",
                      "A job that does not start in time is stopped, and the error names the missing resource.",
                      {"entrypoint": "true", "entrypoint_resources": {"nowhere": 1}, "pending_timeout": 5, **NO_RETRY,
                       **options},
                      state="failed", jobs=("PENDING",),
                      log_contains=("RayJobTimeoutError", "pending_timeout is 5 s", "No node has enough nowhere")),
            FaultCase(f"job_runs_too_long_{mode}",
                      "A job that does not end in time is stopped, and a retry submits another.",
                      {"entrypoint": ENDLESS_IN_FIRST_TRY, "job_timeout": 30, **RETRY, **options},
                      jobs=("STOPPED", "SUCCEEDED"), tries=2,
                      log_contains=("RayJobTimeoutError", "job_timeout is 30 s")),
            FaultCase(f"task_runs_too_long_{mode}",
                      "Airflow's execution_timeout stops the job, whether or not the task is deferred.",
                      {"entrypoint": ENDLESS, "execution_timeout": 40, **NO_RETRY, **options}, state="failed",
                      jobs=("STOPPED",), log_contains=("RayJobTimeoutError", "execution_timeout")),
            FaultCase(f"head_unreachable_for_20_s_{mode}", "An outage of 20 s is tolerated.",
                      {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **options}, make_head_unreachable_for_20_s, tries=1),
            FaultCase(f"head_unreachable_too_long_{mode}",
                      "An outage longer than unreachable_timeout ends the try, and the next try follows the job.",
                      {"entrypoint": UNTIL_RELEASED, "unreachable_timeout": 4, **RETRY, "retry_delay": 10, **options},
                      make_head_unreachable_until_retry, tries=2,
                      log_contains=("RayApiUnreachableError", "It is not stopped: the next try follows it")),
            FaultCase(f"head_unreachable_too_long_in_last_try_{mode}",
                      "In the last try, a job that cannot be followed any more is stopped.",
                      {"entrypoint": ENDLESS, "unreachable_timeout": 4, "stop_timeout": 60, **NO_RETRY, **options},
                      make_head_unreachable_for_stop, state="failed", jobs=("STOPPED",),
                      log_contains=("RayApiUnreachableError", STOPPING)),
            FaultCase(f"credentials_rejected_for_8_s_{mode}",
                      "HTTP 401 is tolerated for a while, as when a token is rotated.",
                      {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **options}, reject_credentials_for_8_s, tries=1),
            FaultCase(f"every_second_request_dropped_{mode}", "The job succeeds though every second request is lost.",
                      {"entrypoint": SLOW, **NO_RETRY, **options}, drop_every_second_request, tries=1),
            FaultCase(f"job_stopped_outside_airflow_{mode}",
                      "A job that another user stops fails its task, and a retry submits another.",
                      {"entrypoint": ENDLESS_IN_FIRST_TRY, **RETRY, **options}, stop_outside_airflow,
                      jobs=("STOPPED", "SUCCEEDED"), tries=2, log_contains=("RayJobStoppedError",)),
        )
    ),
    FaultCase("cleared_without_the_run",
              "Clear after success submits another job, even if the run is not reset.",
              {"entrypoint": "true", **RETRY}, clear_without_the_run, dag={"hold": True},
              jobs=("SUCCEEDED", "SUCCEEDED")),
    FaultCase("cleared_with_fewer_retries",
              "A Clear for which Airflow changes neither max_tries nor clear_number is a retry: it takes the result.",
              {"entrypoint": "true", **RETRY, "retries": 2}, clear_with_fewer_retries, dag={"hold": True}, tries=2,
              log_contains=(TAKES_RESULT,)),
    FaultCase("cleared_after_failure", "Clear after failure submits another job.",
              {"entrypoint": "test {{ ti.try_number }} -gt 1 || exit 3", **NO_RETRY}, clear_after_end,
              jobs=("FAILED", "SUCCEEDED"), log_contains=("RayJobEntrypointError",)),
    FaultCase("job_deleted_outside_airflow",
              "After another user deleted the job, the next try submits a new one and logs why.",
              {"entrypoint": "sleep 8", **RETRY, "retry_delay": 40}, delete_outside_airflow, tries=2,
              log_contains=("was deleted from the cluster",)),
    FaultCase("http_502_after_submission", "HTTP 502 for a submission that Ray accepted leads to no second job.",
              {"entrypoint": "true", **NO_RETRY}, replace_submission_response(502), tries=1),
    FaultCase("connection_cut_after_submission",
              "A connection that is cut before Ray's response leads to no second job.",
              {"entrypoint": "true", **NO_RETRY}, replace_submission_response("cut"), tries=1),
    FaultCase("connection_cut_after_submission_not_durable",
              "A lost response leads to no second job, even without a job record.",
              {"entrypoint": "true", "durable": False, **NO_RETRY}, replace_submission_response("cut"), tries=1),
]  # fmt: skip
HEAD_RESTART_CASES = [
    FaultCase(f"head_restarted_{mode}", "A job that died with its cluster raises RayJobLostError, and is retried.",
              {"entrypoint": ENDLESS_IN_FIRST_TRY, **RETRY, **options}, wait_for_head_restart, uses_second_head=True,
              tries=2, log_contains=("RayJobLostError", "was lost: the head was restarted"))
    for mode, options in MODES
]  # fmt: skip
# These run after all others: a DAG run's time limit counts from the run's start, not from the task's.
AIRFLOW_RESTART_CASES = [
    case
    for mode, options in MODES
    for case in (
        FaultCase(f"dag_run_takes_too_long_{mode}", "Airflow's dagrun_timeout stops the job.",
                  {"entrypoint": ENDLESS, **NO_RETRY, **options}, dag={"dagrun_timeout": 60}, state="skipped",
                  jobs=("STOPPED",)),
        FaultCase(f"triggerer_and_api_server_restarted_{mode}",
                  "A killed triggerer or API server neither stops the job nor repeats its log lines.",
                  {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **options}, wait_for_airflow_restart, tries=1,
                  logged_once=("start", "end"),
                  log_contains=("The triggerer that followed job",) if mode == "deferred" else ()),
    )
]  # fmt: skip
ALL_CASES = [*CASES, *HEAD_RESTART_CASES, *AIRFLOW_RESTART_CASES]
if IS_PRODUCTION:
    ALL_CASES += [case for cases, _ in PRODUCTION_WAVES for case in cases]


def restart_head(cases: list[FaultCase]) -> None:
    harness = cases[0].harness
    cases = [case for case in cases if case.uses_second_head]
    wait_for_running_jobs(cases)
    harness.second_head.stop()
    harness.second_head.start()
    harness.folder.joinpath("head-restarted").touch()


def restart_triggerer_and_api_server(cases: list[FaultCase]) -> None:
    harness = cases[0].harness
    for case in (case for case in cases if case.dag.get("dagrun_timeout")):
        case.wait_until("the task is skipped", lambda case=case: case.task_instance["state"] == "skipped")
    cases = [case for case in cases if case.script is wait_for_airflow_restart]
    wait_for_running_jobs(cases)
    airflow = harness.airflow
    for component, start in (
        ("triggerer", lambda: airflow.start_component("triggerer")),
        ("api-server", airflow.start_api_servers),
    ):
        for case in cases:
            case.add_event(f"{component} is killed and restarted")
        airflow.kill(component)
        start()
        time.sleep(15)
    harness.folder.joinpath("airflow-restarted").touch()


def wait_for_running_jobs(cases: list[FaultCase]) -> None:
    for case in cases:
        case.wait_until("its job runs", lambda case=case: any(job["status"] == "RUNNING" for job in case.ray_jobs))
    time.sleep(8)


@pytest.fixture(scope="module")
def ended_cases(
    request: pytest.FixtureRequest, needs_deployment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, FaultCase]]:
    """All selected cases by name, after each of them has ended."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    cases = [case["case"] for case in parameters if isinstance(case.get("case"), FaultCase)]
    harness = FaultHarness(cases, tmp_path_factory.mktemp("faults"))
    try:
        harness.start()
        harness.run([*CASES[::WAVES], *HEAD_RESTART_CASES], restart_head)
        for wave in range(1, WAVES):
            harness.run(CASES[wave::WAVES])
        for wave_cases, fault in PRODUCTION_WAVES:
            harness.run(wave_cases, fault)
        harness.run(AIRFLOW_RESTART_CASES, restart_triggerer_and_api_server)
        yield {case.name: case for case in harness.cases}
    finally:
        harness.close()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL_CASES])
def test_task_and_ray_jobs_end_as_expected(ended_cases: dict[str, FaultCase], case: FaultCase):
    """The task ends as its case says, with the value of the right job, no job is left, and the log says why."""
    result = ended_cases[case.name].result
    logs = "\n".join(result.get("logs", ()))

    assert "error" not in result, case.report()
    assert (result["state"], result["jobs"]) == (case.state, case.jobs), case.report()
    if result["state"] == "success" and result["jobs"][-1] == "SUCCEEDED":
        assert result["value"] == result["last_job"], case.report()
    assert case.tries in (None, result["tries"]), case.report()
    if "PENDING" in result["jobs"]:  # Ray accepted the stop, but its list shows such a job as PENDING
        assert any(text.endswith("/stop: 200") for _, text in case.timeline), case.report()
    assert [text for text in case.log_contains if text not in logs] == [], case.report()
    assert [line for line in case.logged_once if logs.splitlines().count(line) != 1] == [], case.report()
