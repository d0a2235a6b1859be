"""The client against a real Ray head."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    RayApiAuthError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayJobExistsError,
    RayJobNotFoundError,
    RayJobNotTerminalError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobErrorType, JobStatus, JobType, RayJobsClient
from sandbox.ray_head import RayHead

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def client(ray_head: RayHead) -> Iterator[RayJobsClient]:
    with RayJobsClient(ray_head.address) as client:
        yield client


def follow(client: RayJobsClient, job: str) -> tuple[JobDetails, str]:
    records: list[str] = []
    details = client.follow_job(job, poll_interval=1, on_log=records.append)
    return details, "\n".join(records)


def test_a_job_succeeds(client: RayJobsClient):
    """A job that ends with 0 has SUCCEEDED, and its times are by the head's clock."""
    details, log = follow(client, client.submit_job("echo hello"))

    assert (details.status, details.driver_exit_code) == (JobStatus.SUCCEEDED, 0)
    assert abs(details.end_time / 1000 - time.time()) < 60
    assert details.duration > 0
    assert "hello" in log.splitlines()


def test_a_job_fails_with_its_exit_code(client: RayJobsClient):
    """A job that ends with 3 has FAILED, by its own command."""
    details, log = follow(client, client.submit_job("echo so; sleep 2; echo long; exit 3"))

    assert (details.status, details.driver_exit_code) == (JobStatus.FAILED, 3)
    assert details.error_type == JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR
    assert {"so", "long"} <= set(log.splitlines())


def test_a_job_that_fails_at_once_is_seen_to_have_failed_with_its_log(client: RayJobsClient):
    """However fast a job fails, its status and its last line arrive."""
    details, log = follow(client, client.submit_job("printf gone; exit 1"))

    assert details.status == JobStatus.FAILED
    assert "gone" in log


def test_a_job_is_stopped(client: RayJobsClient):
    """A stopped job has STOPPED, and what it printed before is there."""
    job = client.submit_job("echo started; sleep 600")
    _eventually(lambda: "started\n" in client.get_job_logs(job))

    assert client.stop_job(job) is True
    details, log = follow(client, job)
    assert details.status == JobStatus.STOPPED
    assert "started" in log.splitlines()
    assert client.stop_job(job) is False


def test_env_vars_reach_the_driver(client: RayJobsClient):
    """What ``runtime_env`` sets the driver finds."""
    _, log = follow(client, client.submit_job('echo "<$GREETING>"', runtime_env={"env_vars": {"GREETING": "hi there"}}))

    assert "<hi there>" in log.splitlines()


def test_a_runtime_environment_that_cannot_be_set_up_is_told_from_failed_code(client: RayJobsClient):
    """The job FAILED before its entrypoint ran; there is no log, and Ray says why."""
    job = client.submit_job("echo never", runtime_env={"working_dir": "gcs://_ray_pkg_00000000.zip"})
    details, log = follow(client, job)

    assert details.error_type == JobErrorType.RUNTIME_ENV_SETUP_FAILURE
    assert "_ray_pkg_00000000.zip" in details.message
    assert log == client.get_job_logs(job) == ""


def test_ten_thousand_lines_arrive_once_and_in_order(client: RayJobsClient):
    """A log that grows while it is read arrives whole."""
    code = "import time\nfor i in range(10_000):\n print('line', i)\n if not i % 2500: time.sleep(1)"
    job = client.submit_job(["python", "-c", code])
    _, log = follow(client, job)

    assert [line for line in log.splitlines() if line.startswith("line ")] == [f"line {i}" for i in range(10_000)]
    assert log == client.get_job_logs(job).removesuffix("\n")


def test_bytes_that_are_no_text_arrive_replaced(client: RayJobsClient):
    """A driver that prints bytes breaks neither the follower nor the reading afterwards."""
    job = client.submit_job(["python", "-c", r"import sys; sys.stdout.buffer.write(b'a\xff\xfeb\r\nc\rd\n')"])
    details, log = follow(client, job)

    assert details.status == JobStatus.SUCCEEDED
    assert log.endswith("a\ufffd\ufffdb\r\nd"), "what a carriage return overwrites is a bar's past state"
    assert client.get_job_logs(job).endswith("a\ufffd\ufffdb\r\nc\rd\n")


def test_two_jobs_at_once_keep_to_themselves(client: RayJobsClient):
    """Jobs that run side by side have each their own end and log."""
    jobs = [client.submit_job(f"sleep 1; echo this is {name}; exit {code}") for name, code in (("a", 0), ("b", 5))]
    with ThreadPoolExecutor() as pool:
        (first, log_a), (second, log_b) = pool.map(lambda job: follow(client, job), jobs)

    assert (first.driver_exit_code, second.driver_exit_code) == (0, 5)
    assert "this is a" in log_a.splitlines()
    assert "this is b" in log_b.splitlines()
    assert "this is b" not in log_a.splitlines()


def test_an_interactive_job_can_be_listed_and_read(client: RayJobsClient, driver: JobDetails):
    """A job of type DRIVER is known by its Ray Core job id."""
    assert client.get_job(driver.job_id).type == JobType.DRIVER
    assert driver.submission_id is None
    assert driver.name == driver.job_id


def test_what_ray_refuses_for_an_interactive_job_is_one_clear_error(client: RayJobsClient, driver: JobDetails):
    """Stop, logs and delete of a DRIVER job say what such a job is, and whom to turn to."""
    for refused in (client.stop_job, client.get_job_logs, client.delete_job):
        with pytest.raises(RayApiRejectedError, match=r"started interactively \(type DRIVER\)"):
            refused(driver.job_id)


def test_an_interactive_job_can_be_waited_for(client: RayJobsClient, driver: JobDetails, ray_head: RayHead):
    """Following a DRIVER job ends when its driver does; its log stays where it is."""
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(follow, client, driver.job_id)
        time.sleep(2)
        assert not waiting.done()
        os.kill(int(driver.driver_info["pid"]), signal.SIGKILL)
        details, log = waiting.result(timeout=60)

    assert details.status.is_terminal()
    assert log == ""


def test_a_list_of_arguments_stays_what_it_is(client: RayJobsClient):
    """No value breaks out of its place in the command line."""
    nasty = ["$(echo x)", "a b", "'", '"', "\\", ";exit 3", "a\nb", "", "*", "ä😀"]
    _, log = follow(client, client.submit_job(["python", "-c", "import sys; print(sys.argv[1:])", *nasty]))

    assert repr(nasty) in log.splitlines()


def test_a_submission_id_is_taken_once(client: RayJobsClient):
    """A second submission under an id of somebody else is refused; the first job is untouched."""
    job = client.submit_job("sleep 1", submission_id=f"taken-{time.time_ns()}")

    with pytest.raises(RayJobExistsError, match="belongs to another job"):
        client.submit_job("sleep 1", submission_id=job)
    assert follow(client, job)[0].status == JobStatus.SUCCEEDED


def test_a_job_that_has_not_ended_is_not_deleted(client: RayJobsClient):
    """Deleting is for jobs that have ended; afterwards the cluster does not know them."""
    job = client.submit_job("sleep 2")

    with pytest.raises(RayJobNotTerminalError, match="has not ended"):
        client.delete_job(job)
    follow(client, job)
    assert client.delete_job(job)
    with pytest.raises(RayJobNotFoundError):
        client.get_job(job)


def test_a_head_that_asks_for_a_token_gets_it_and_says_when_it_is_wrong():
    """With the token the API works; without it, or with a wrong one, the error says so and shows no token."""
    token = "marked-secret-0123456789abcdef"
    with RayHead(num_cpus=1, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as head:
        with RayJobsClient(head.address, token=token) as client:
            assert follow(client, client.submit_job("true"))[0].status == JobStatus.SUCCEEDED
        for wrong, said in (
            (None, "missing, Ray requires one"),
            ("marked-secret-that-is-wrong-0123", "rejected by Ray"),
        ):
            with (
                RayJobsClient(head.address, token=wrong) as client,
                pytest.raises(RayApiAuthError, match=f"token {said}: could not submit job ") as caught,
            ):
                client.submit_job("true")
            assert "marked-secret" not in str(caught.value)


def test_nobody_there_is_said_with_the_address():
    """A head that is not there is an error that names the address, after the time that was allowed."""
    with RayJobsClient("http://127.0.0.1:9", retry_timeout=0) as client, pytest.raises(RayApiConnectionError) as caught:
        client.get_version()

    assert "Connection refused: could not get the Ray version at http://127.0.0.1:9. " in str(caught.value)


def _eventually(answer: Callable[[], Any], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not answer():
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.3)
