"""``dag.test()`` of a small DAG, in a process of its own, against a real Ray head."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow import __version__ as airflow_version
from mail_server import MailServer
from packaging.version import Version

from airflow_provider_rayjobs.jobs import RayJobsClient
from sandbox.processes import clean_environment
from sandbox.ray_head import RayHead, connection_to

pytestmark = [pytest.mark.airflow, pytest.mark.ray]

DAG_FILE = """
    import sys

    import pendulum
    from airflow.sdk import DAG, task

    from airflow_provider_rayjobs.operators import RayJobSubmitOperator
    from airflow_provider_rayjobs.sensors import RayJobSensor

    with DAG("first_contact", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")) as dag:
        for name, deferrable in (("worker", False), ("deferred", True)):
            job = RayJobSubmitOperator(
                task_id=f"job_{name}", entrypoint=f"echo hello from {name}", deferrable=deferrable, poll_interval=1
            )
            wait = RayJobSensor(
                task_id=f"wait_{name}", submission_id=job.output, deferrable=deferrable, poke_interval=1
            )
        RayJobSubmitOperator(
            task_id="bad", entrypoint="exit 3", deferrable=True, poll_interval=1, trigger_rule="all_done"
        ).set_upstream(wait)

        @task.ray_job(poll_interval=1)
        def add(x):
            return x + 1

        @task.ray_job(poll_interval=1, deferrable=True)
        def double(x):
            print("doubling", x)
            return {"twice": 2 * x}

        @task
        def show(value):
            print("VALUE", value)

        @task.ray_job(wait_for_completion="{{ false }}")
        def leave() -> dict:
            return {"a": 1}

        RayJobSubmitOperator(task_id="unsent", entrypoint="true", ray_conn_id="undefined")
        RayJobSensor(task_id="lost", submission_id="no-such-job", ray_conn_id="undefined")

        show(double(add(1)))
        leave()

    if __name__ == "__main__":
        run = dag.test()
        print("STATES", {ti.task_id: str(ti.state) for ti in run.get_task_instances()})
"""


INTERRUPTED = """
    import sys

    import pendulum
    from airflow.sdk import DAG

    from airflow_provider_rayjobs.operators import RayJobSubmitOperator

    with DAG("interrupted", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")) as dag:
        RayJobSubmitOperator(
            task_id="job",
            submission_id=f"interrupted-{sys.argv[-1]}",
            entrypoint="sleep 300",
            deferrable=sys.argv[-1] == "deferred",
            poll_interval=1,
        )

    if __name__ == "__main__":
        dag.test()
"""


TIMED_OUT = """
    from datetime import timedelta

    import pendulum
    from airflow.sdk import DAG

    from airflow_provider_rayjobs.operators import RayJobSubmitOperator

    with DAG("timed_out", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")) as dag:
        RayJobSubmitOperator(
            task_id="job",
            entrypoint="{{ 'sleep 300' if ti.try_number == 1 else 'true' }}",
            execution_timeout=timedelta(seconds=8),
            retries=1,
            retry_delay=timedelta(seconds=1),
            poll_interval=1,
        )

    if __name__ == "__main__":
        print("STATE", *(str(ti.state) for ti in dag.test().get_task_instances()))
"""


def prepare(head: RayHead, folder: Path, name: str, text: str) -> tuple[Path, dict[str, str]]:
    """Write a DAG file, create Airflow's database, and return the file and the environment for its process."""
    dag_file = folder / "dags" / f"{name}.py"
    dag_file.parent.mkdir()
    dag_file.write_text(textwrap.dedent(text))
    environment = clean_environment("AIRFLOW", "RAY_") | {
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dag_file.parent),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_RAY_JOBS_DEFAULT": json.dumps(connection_to(head)["ray_jobs_default"]),
    }
    airflow = Path(sys.executable).with_name("airflow")
    subprocess.run([airflow, "db", "migrate"], env=environment, check=True, capture_output=True, timeout=300)
    return dag_file, environment


def test_dag_test(ray_head: RayHead, tmp_path: Path):
    """``dag.test()`` runs operator, function and sensor in both modes, shows the log, and fails for a failed job."""
    dag_file, environment = prepare(ray_head, tmp_path, "first_contact", DAG_FILE)
    ended = subprocess.run(
        [sys.executable, dag_file], env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    output = ended.stdout + ended.stderr
    states = dict(eval(output.rpartition("STATES ")[2].splitlines()[0]))  # noqa: S307  (our own print)

    assert states == {
        "job_worker": "success", "wait_worker": "success", "job_deferred": "success", "wait_deferred": "success",
        "bad": "failed", "add": "success", "double": "success", "show": "success",
        "leave": "success", "unsent": "failed", "lost": "failed",
    }  # fmt: skip
    assert output.count("hello from worker\n") >= 2
    assert output.count("hello from deferred\n") >= 2
    assert "FAILED with exit code 3" in output
    assert "VALUE {'twice': 4}" in output
    assert "doubling 2" in output
    assert "XCom not found" not in output


def test_retry_after_an_execution_timeout(ray_head: RayHead, tmp_path: Path):
    """Airflow calls ``on_kill`` after the timeout, and ``dag.test()`` runs the next try in the same process."""
    dag_file, environment = prepare(ray_head, tmp_path, "timed_out", TIMED_OUT)
    ended = subprocess.run(
        [sys.executable, dag_file], env=environment, check=False, capture_output=True, text=True, timeout=300
    )

    assert "Stopping the job" in ended.stdout + ended.stderr
    assert "STATE success\n" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.parametrize("mode", ["worker", "deferred"])
def test_interrupted_dag_test(ray_head: RayHead, tmp_path: Path, mode: str):
    """Ctrl-C on ``dag.test()`` stops the job, also while the task is deferred."""
    dag_file, environment = prepare(ray_head, tmp_path, "interrupted", INTERRUPTED)
    log = tmp_path / "log"
    with log.open("w") as output, RayJobsClient(ray_head.address) as client:
        process = subprocess.Popen(
            [sys.executable, dag_file, mode], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            # Worker or trigger shows the log, so it follows the job.
            wait_for(lambda: "Running entrypoint for job" in log.read_text())
            process.send_signal(signal.SIGINT)
            process.wait(120)
        finally:
            process.kill()
            process.wait()

        assert client.get_job(f"interrupted-{mode}").status == "STOPPED", log.read_text()
    assert f"Stopping Ray job interrupted-{mode}" in log.read_text()


@pytest.mark.skipif(
    Version(airflow_version).release < (3, 3), reason="before Airflow 3.3 a callback of dag.test() gets no exception"
)
def test_mail_of_a_failed_job(ray_head: RayHead, tmp_path: Path):
    """The example sends a mail whose text is the error of the job, line by line, and names the job's exception."""
    example = Path(__file__).parents[1] / "example_dags" / "ray_jobs_mail.py"
    _, environment = prepare(ray_head, tmp_path, "ray_jobs_mail", example.read_text())
    with MailServer() as server:
        extra = {"disable_ssl": True, "disable_tls": True}
        server_of_airflow = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.port, "extra": extra}
        environment["AIRFLOW_CONN_SMTP_DEFAULT"] = json.dumps(server_of_airflow)
        subprocess.run(
            [Path(sys.executable).with_name("airflow"), "dags", "test", "ray_jobs_mail"],
            env=environment, check=False, capture_output=True, timeout=300,
        )  # fmt: skip

    [mail] = server.mails
    [part] = [part for part in mail.walk() if part.get_content_type() == "text/html"]
    lines = part.get_content().splitlines()
    assert mail["subject"] == "ray_jobs_mail.train failed"
    assert re.match(r"<pre>Ray job \S+ FAILED with exit code 1 after ", lines[0])
    assert "The last exception in its log: ValueError: no data" in lines
    assert "  File &#34;&lt;string&gt;&#34;, line 1, in &lt;module&gt;" in lines


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.2)
