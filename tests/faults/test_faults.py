"""
Whatever dies in between, each try has exactly one Ray job: real faults in a real Airflow on a real Ray head.

Each case is one DAG with one connection through a lane of the proxy. They are played side by side, as waiting is most
of what they do; the tests then look at what came of each.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version
from world import Case, World

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        Version(airflow_version) < Version("3.3"),
        reason="the task state store and a trigger's on_kill came with Airflow 3.3",
    ),
]

# Entrypoints: one that takes its time, one that ends when its script says so, one that never ends, and one that does
# from the second try on.
SLOW = "echo start; sleep 20; echo end"
UNTIL_RELEASED = "echo start; until test -e @RELEASE@; do sleep 0.5; done; echo end"
ENDLESS = "echo start; sleep 600"
ENDLESS_AT_FIRST = "test {{ ti.try_number }} -gt 1 || sleep 600"
TALKATIVE = [
    "python", "-uc", "import time\nfor _ in range(1500): print('\\n'.join(['x' * 99] * 2000)); time.sleep(0.1)",
]  # fmt: skip
NOWHERE = {"nowhere": "{{ 1 if ti.try_number == 1 else '' }}"}
RETRY = {"retries": 1, "retry_delay": 1, "poll_interval": 1}
NO_RETRY = {"retries": 0, "poll_interval": 1}
DEFERRED = {"deferrable": True}
MODES = (("worker", {}), ("deferred", DEFERRED))


def crash(case: Case) -> None:
    """The task's process kills itself, as its DAG file says."""
    case.wait("the second try", lambda: case.instance["try_number"] == 2)


def release_when_followed(case: Case) -> None:
    case.wait("the second try follows the job", lambda: FOLLOWS in case.log(2), timeout=300)
    case.release()


def kill_before_the_answer(case: Case) -> None:
    def now() -> None:
        case.lane.on_submitted = lambda: None
        case.kill()

    case.lane.on_submitted = now
    release_when_followed(case)


def kill_while_watching(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.kill()
    release_when_followed(case)


def kill_supervisor(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.kill(supervisor=True)
    release_when_followed(case)


def kill_supervisor_for_good(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.kill(supervisor=True)


def evict(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.kill(signal.SIGTERM, supervisor=True)


def clear_while_waiting(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.clear()


def clear_while_pending(case: Case) -> None:
    case.wait_for_job("PENDING")
    case.clear()


def clear_after_the_end(case: Case) -> None:
    case.wait_for_the_end()
    case.clear()


def clear_with_fewer_retries(case: Case) -> None:
    case.wait_for_state("success")
    tasks = f"/dags/{case.name}/tasks/job"
    case.task["retries"] = 1
    case.world.write_cases()
    case.wait("the new number of retries", lambda: case.world.airflow.api("GET", tasks)["retries"] == 1)
    before = case.world.airflow.task_instance(case.name, case.run_id, "job")["max_tries"]
    case.clear(reset_dag_runs=False)
    case.wait("the end of the second try", lambda: len(case.ray_jobs) == 2 and case.instance["state"] == "success")
    assert case.instance["max_tries"] == before, "the round did not stay the same: the case proves nothing"
    case.release()


def mark_failed(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.mark("failed")


def mark_success(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.mark("success")


def mark_while_it_logs(state: str):
    def script(case: Case) -> None:
        case.wait_for_job("RUNNING")
        time.sleep(8)
        case.mark(state)

    return script


def stop_by_hand(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.ray("POST", f"/api/jobs/{case.ray_jobs[0]['submission_id']}/stop")


def delete_by_hand(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.kill()
    case.wait("the job's end", lambda: case.ray_jobs[0]["status"] == "SUCCEEDED")
    time.sleep(5)  # Ray writes a job's end more than once, and a record that is deleted in between comes back empty
    case.ray("DELETE", f"/api/jobs/{case.ray_jobs[0]['submission_id']}")


def away_for(seconds: float):
    def script(case: Case) -> None:
        case.wait_for_job("RUNNING")
        case.lane.be_away(seconds)
        time.sleep(seconds + 2)
        case.release()

    return script


def away_for_too_long(case: Case) -> None:
    case.wait_for_job("RUNNING")
    case.lane.be_away(12)
    release_when_followed(case)


def every_second_is_dropped(case: Case) -> None:
    case.lane.fault = lambda method, path, number: "drop" if number % 2 == 0 else None


def no_answer_to_the_submission(fault: str | int):
    def script(case: Case) -> None:
        answered = []

        def choose(method: str, path: str, number: int) -> str | int | None:
            if method == "POST" and path == "/api/jobs/" and not answered:
                answered.append(number)
                return fault
            return None

        case.lane.fault = choose

    return script


def credentials_are_rotated(case: Case) -> None:
    case.wait_for_job("RUNNING")
    until = time.monotonic() + 8
    case.lane.fault = lambda method, path, number: 401 if time.monotonic() < until else None
    time.sleep(10)
    case.release()


def await_the_head(case: Case) -> None:
    """The head is started anew by what happens to all of these cases."""
    case.wait_for_job("RUNNING")
    case.wait("the restart of the head", lambda: case.world.folder.joinpath("head-restarted").exists())


def await_the_parts(case: Case) -> None:
    """Triggerer and API server are killed by what happens to all of these cases."""
    case.wait_for_job("RUNNING")
    case.wait("the restart of Airflow's parts", lambda: case.world.folder.joinpath("parts-restarted").exists())
    case.release()


# So many rounds of cases: two cores and SQLite take about so many tasks at once.
WAVES = 3
FOLLOWS = "This try follows it"
TAKES = "This try takes its result"
CASES = [
    Case("k_remember", "A process that dies before it remembers a job has sent none.",
         {"entrypoint": "true", "crash": "before remembering", **RETRY}, crash, tries=2),
    Case("k_send", "A job that was remembered and not sent is sent under its own id.",
         {"entrypoint": "true", "crash": "before sending", **RETRY}, crash, tries=2,
         says=("its submission was never confirmed. Submitting it again under the same id",)),
    Case("k_answer", "A process that dies before Ray's answer leaves its job to the next try.",
         {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_before_the_answer, tries=2),
    Case("k_watch", "A process that dies while it watches leaves job and log to the next try.",
         {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_while_watching, tries=2, says=("start\n", "end\n")),
    Case("k_deliver", "A success that was seen and not delivered is taken by the next try.",
         {"entrypoint": "echo done", "crash": "before delivery", **RETRY}, crash, tries=2, says=(TAKES,)),
    Case("k_supervisor", "A supervisor that dies leaves the job to the next try.",
         {"entrypoint": UNTIL_RELEASED, **RETRY}, kill_supervisor, tries=2),
    Case("k_last", "A supervisor that dies on the last try takes with it the job whose log nobody takes any more.",
         {"entrypoint": "for i in $(seq 600); do echo $i; sleep 0.5; done", **NO_RETRY}, kill_supervisor_for_good,
         state="failed", jobs=("STOPPED",)),
    Case("k_deliver_deferred", "A deferred success that was not delivered is taken by the next try.",
         {"entrypoint": "echo done", "crash": "before delivery", **RETRY, **DEFERRED}, crash, tries=2, says=(TAKES,)),
    Case("evicted", "A worker that has to go stops its job, and the next try submits another.",
         {"entrypoint": ENDLESS_AT_FIRST, **RETRY}, evict, jobs=("STOPPED", "SUCCEEDED"),
         says=("Airflow ended this task",)),
    *(
        case
        for mode, how in MODES
        for case in (
            Case(f"c_running_{mode}", "A Clear stops the job that runs and submits another.",
                 {"entrypoint": ENDLESS_AT_FIRST, **NO_RETRY, **how}, clear_while_waiting,
                 jobs=("STOPPED", "SUCCEEDED")),
            Case(f"c_pending_{mode}", "A Clear stops a job that finds no place and submits another.",
                 {"entrypoint": "true", "entrypoint_resources": NOWHERE, **NO_RETRY, **how}, clear_while_pending,
                 jobs=("PENDING", "SUCCEEDED")),
            Case(f"c_success_{mode}", "A Clear after success submits another job.",
                 {"entrypoint": "true", **NO_RETRY, **how}, clear_after_the_end, jobs=("SUCCEEDED", "SUCCEEDED"),
                 says=("ended SUCCEEDED, and the task was cleared",)),
            Case(f"m_failed_{mode}", "A task that is marked failed takes its job with it.",
                 {"entrypoint": ENDLESS, **RETRY, **how}, mark_failed, state="failed", jobs=("STOPPED",)),
            Case(f"m_success_{mode}", "A task that is marked success takes its job with it.",
                 {"entrypoint": ENDLESS, **RETRY, **how}, mark_success, jobs=("STOPPED",)),
            *(
                Case(f"t_{state}_{mode}", "A task that is marked while it logs at full speed takes its job with it.",
                     {"entrypoint": TALKATIVE, **RETRY, **how}, mark_while_it_logs(state), state=state,
                     jobs=("STOPPED",))
                for state in ("failed", "success")
            ),
            Case(f"l_pending_{mode}", "A job that does not start in time is stopped; what the cluster lacks is said.",
                 {"entrypoint": "true", "entrypoint_resources": {"nowhere": 1}, "pending_timeout": 5, **NO_RETRY,
                  **how},
                 state="failed", jobs=("PENDING",),
                 says=("RayJobTimeoutError", "pending_timeout is 5 s", "No node has enough nowhere")),
            Case(f"l_job_{mode}", "A job that does not end in time is stopped; a retry submits another.",
                 {"entrypoint": ENDLESS_AT_FIRST, "job_timeout": 12, **RETRY, **how},
                 jobs=("STOPPED", "SUCCEEDED"), tries=2, says=("RayJobTimeoutError", "job_timeout is 12 s")),
            Case(f"l_execution_{mode}", "Airflow's execution_timeout stops the job, deferred or not.",
                 {"entrypoint": ENDLESS, "execution_timeout": 15, **NO_RETRY, **how}, state="failed",
                 jobs=("STOPPED",), says=("RayJobTimeoutError", "execution_timeout")),
            Case(f"away_{mode}", "A head that is away for 20 s is waited for.",
                 {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **how}, away_for(20), tries=1),
            Case(f"given_up_{mode}", "A head that is away for too long ends the try; the next one follows the job.",
                 {"entrypoint": UNTIL_RELEASED, "unreachable_timeout": 4, **RETRY, "retry_delay": 10, **how},
                 away_for_too_long,
                 tries=2, says=("RayApiUnreachableError", "It is not stopped: the next try follows it")),
            Case(f"orphan_{mode}", "On the last try a job that cannot be followed any more is stopped.",
                 {"entrypoint": ENDLESS, "unreachable_timeout": 4, "stop_timeout": 60, **NO_RETRY, **how},
                 away_for(25), state="failed", jobs=("STOPPED",),
                 says=("RayApiUnreachableError", "no further try follows it. Stopping it")),
            Case(f"rotated_{mode}", "Credentials that are wrong for a while are waited for.",
                 {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **how}, credentials_are_rotated, tries=1),
            Case(f"drops_{mode}", "Every second request may be lost.",
                 {"entrypoint": SLOW, **NO_RETRY, **how}, every_second_is_dropped, tries=1),
            Case(f"by_hand_{mode}", "A job that somebody stops fails its task; a retry submits another.",
                 {"entrypoint": ENDLESS_AT_FIRST, **RETRY, **how}, stop_by_hand, jobs=("STOPPED", "SUCCEEDED"),
                 tries=2, says=("RayJobStoppedError",)),
        )
    ),
    Case("c_lowered", "A Clear after success submits another job, also where it looks like a retry.",
         {"entrypoint": "true", **RETRY, "retries": 2}, clear_with_fewer_retries, dag={"hold": True},
         jobs=("SUCCEEDED", "SUCCEEDED")),
    Case("c_failure", "A Clear after failure submits another job.",
         {"entrypoint": "test {{ ti.try_number }} -gt 1 || exit 3", **NO_RETRY}, clear_after_the_end,
         jobs=("FAILED", "SUCCEEDED"), says=("RayJobEntrypointError",)),
    Case("deleted", "A job that somebody deleted is submitted anew, and that is said.",
         {"entrypoint": "sleep 8", **RETRY, "retry_delay": 40}, delete_by_hand, tries=2,
         says=("was deleted from the cluster",)),
    Case("bad_gateway", "A 502 to a submission that Ray accepted makes no second job.",
         {"entrypoint": "true", **NO_RETRY}, no_answer_to_the_submission(502), tries=1),
    Case("reset", "A connection that is cut before Ray's answer makes no second job.",
         {"entrypoint": "true", **NO_RETRY}, no_answer_to_the_submission("cut"), tries=1),
    Case("not_durable", "Without a memory a lost answer makes no second job either.",
         {"entrypoint": "true", "durable": False, **NO_RETRY}, no_answer_to_the_submission("cut"), tries=1),
]  # fmt: skip
LOST = [
    Case(f"lost_{mode}", "A job that died with its cluster is said to be lost, and a retry submits another.",
         {"entrypoint": ENDLESS_AT_FIRST, **RETRY, **how}, await_the_head, own_head=True, tries=2,
         says=("RayJobLostError", "was lost with its cluster"))
    for mode, how in MODES
]  # fmt: skip
# Played on their own, when little else goes on: a dag run's time counts from its beginning.
PARTS = [
    case
    for mode, how in MODES
    for case in (
        Case(f"l_run_{mode}", "A dagrun_timeout takes the job with it.",
             {"entrypoint": ENDLESS, **NO_RETRY, **how}, dag={"dagrun_timeout": 60}, state="skipped",
             jobs=("STOPPED",)),
        Case(f"parts_{mode}",
             "A triggerer that is killed and an API server that is started anew stop and repeat nothing.",
             {"entrypoint": UNTIL_RELEASED, **NO_RETRY, **how}, await_the_parts, tries=1, once=("start", "end"),
             says=("The triggerer that followed job",) if mode == "deferred" else ()),
    )
]  # fmt: skip


def restart_the_head(cases: list[Case]) -> None:
    world = cases[0].world
    for case in cases:
        case.wait("its job runs", lambda case=case: any(job["status"] == "RUNNING" for job in case.ray_jobs))
    time.sleep(8)
    world.second_head.stop()
    world.second_head.start()
    world.folder.joinpath("head-restarted").touch()


def restart_the_parts(cases: list[Case]) -> None:
    world = cases[0].world
    for case in (case for case in cases if case.dag.get("dagrun_timeout")):
        case.wait("its end", lambda case=case: case.instance["state"] == "skipped")
    cases = [case for case in cases if case.script is await_the_parts]
    for case in cases:
        case.wait("its job runs", lambda case=case: any(job["status"] == "RUNNING" for job in case.ray_jobs))
    time.sleep(8)
    airflow = world.airflow
    for part, commands in (
        ("triggerer", [("triggerer",)]),
        ("api-server", [("api-server",), ("api-server", "--apps", "execution", "--port", str(airflow.execution_port))]),
    ):
        for case in cases:
            case.say(f"{part} is killed and started anew")
        airflow.kill(part)
        for command in commands:
            airflow.add(*command)
        time.sleep(15)
    world.folder.joinpath("parts-restarted").touch()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """All cases, each of them over."""
    world = World([*CASES, *LOST, *PARTS], tmp_path_factory.mktemp("faults"))
    try:
        world.start()
        world.play([*CASES[::WAVES], *LOST], lambda cases: restart_the_head(cases[-len(LOST) :]))
        for wave in range(1, WAVES):
            world.play(CASES[wave::WAVES])
        world.play(PARTS, restart_the_parts)
        yield {case.name: case for case in world.cases}
    finally:
        world.close()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in (*CASES, *LOST, *PARTS)])
def test_each_try_has_one_job(played: dict[str, Case], case: Case):
    """The task ends as it should, Ray ran exactly the jobs that the table says, none is left, and the log says why."""
    found = played[case.name].found
    logs = "\n".join(found.get("logs", ()))

    assert "trouble" not in found, case.story()
    assert (found["state"], found["jobs"]) == (case.state, case.jobs), case.story()
    assert case.tries in (None, found["tries"]), case.story()
    if "PENDING" in found["jobs"]:  # it counts as stopped if Ray took the stop
        assert any(text.endswith("/stop: 200") for _, text in case.timeline), case.story()
    assert [words for words in case.says if words not in logs] == [], case.story()
    assert [line for line in case.once if logs.splitlines().count(line) != 1] == [], case.story()
