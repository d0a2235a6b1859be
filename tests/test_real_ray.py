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
from airflow_provider_rayjobs.jobs.setup_failure import is_refused
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


def test_succeeded_job_has_exit_code_and_log(client: RayJobsClient):
    """A job with exit code 0 is SUCCEEDED, and its times are Unix milliseconds."""
    details, log = follow(client, client.submit_job("echo hello"))

    assert (details.status, details.driver_exit_code) == (JobStatus.SUCCEEDED, 0)
    assert abs(details.end_time / 1000 - time.time()) < 60
    assert details.duration > 0
    assert "hello" in log.splitlines()


def test_failed_job_has_exit_code(client: RayJobsClient):
    """A job with exit code 3 is FAILED, with that exit code and its whole log."""
    details, log = follow(client, client.submit_job("echo so; sleep 2; echo long; exit 3"))

    assert (details.status, details.driver_exit_code) == (JobStatus.FAILED, 3)
    assert {"so", "long"} <= set(log.splitlines())


@pytest.mark.needs_ray("error types")
def test_failed_entrypoint_has_its_own_error_type(client: RayJobsClient):
    """A job with exit code 3 is FAILED because of its entrypoint."""
    details, _ = follow(client, client.submit_job("exit 3"))

    assert details.error_type == JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR


def test_job_that_fails_immediately_has_status_and_log(client: RayJobsClient):
    """A job that fails immediately is reported as FAILED, with its last line."""
    details, log = follow(client, client.submit_job("printf gone; exit 1"))

    assert details.status == JobStatus.FAILED
    assert "gone" in log


def test_stopped_job_keeps_log(client: RayJobsClient):
    """A stopped job is STOPPED and keeps its log. Stopping it again returns False."""
    job = client.submit_job("echo started; sleep 600")
    _wait_until(lambda: "started\n" in client.get_job_logs(job))

    assert client.stop_job(job) is True
    details, log = follow(client, job)
    assert details.status == JobStatus.STOPPED
    assert "started" in log.splitlines()
    assert client.stop_job(job) is False


def test_env_vars_are_set_for_the_driver(client: RayJobsClient):
    """The driver sees the ``env_vars`` of its runtime environment."""
    _, log = follow(client, client.submit_job('echo "<$GREETING>"', runtime_env={"env_vars": {"GREETING": "hi there"}}))

    assert "<hi there>" in log.splitlines()


@pytest.mark.needs_ray("error types")
def test_runtime_env_setup_failure_has_its_own_error_type(client: RayJobsClient):
    """A failed setup of the runtime environment has its own error type."""
    job = client.submit_job("echo never", runtime_env={"working_dir": "gcs://_ray_pkg_00000000.zip"})

    assert follow(client, job)[0].error_type == JobErrorType.RUNTIME_ENV_SETUP_FAILURE


@pytest.mark.needs_ray("refusals")
@pytest.mark.parametrize("runtime_env", [{"pip": ["six"], "conda": "base"}, {"pip": {"packages": [], "pip_check": 1}}])
def test_refused_runtime_env_is_recognised(client: RayJobsClient, runtime_env: dict[str, Any]):
    """Ray refuses a runtime environment that contradicts itself, and its message tells that from other failures."""
    details, _ = follow(client, client.submit_job("echo never", runtime_env=runtime_env))

    assert is_refused(details.message or "")


def test_runtime_env_setup_failure_has_a_message_and_no_log(client: RayJobsClient):
    """A failed setup of the runtime environment fails the job, with Ray's message and no log."""
    job = client.submit_job("echo never", runtime_env={"working_dir": "gcs://_ray_pkg_00000000.zip"})
    details, log = follow(client, job)

    assert details.status == JobStatus.FAILED
    assert "_ray_pkg_00000000.zip" in details.message
    assert log == client.get_job_logs(job) == ""


def test_growing_log_arrives_once_and_in_order(client: RayJobsClient):
    """A log that grows while it is read arrives completely, each line once."""
    code = "import time\nfor i in range(10_000):\n print('line', i)\n if not i % 2500: time.sleep(1)"
    job = client.submit_job(["python", "-c", code])
    _, log = follow(client, job)

    assert [line for line in log.splitlines() if line.startswith("line ")] == [f"line {i}" for i in range(10_000)]
    assert log == client.get_job_logs(job).removesuffix("\n")


@pytest.mark.needs_ray("log files")
def test_invalid_utf8_is_replaced(client: RayJobsClient):
    """Invalid UTF-8 in a log is replaced, both while following the job and when reading the log afterwards."""
    job = client.submit_job(["python", "-c", r"import sys; sys.stdout.buffer.write(b'a\xff\xfeb\r\nc\rd\n')"])
    details, log = follow(client, job)

    assert details.status == JobStatus.SUCCEEDED
    assert log.endswith("a\ufffd\ufffdb\r\nd"), "text before a carriage return is an overwritten progress bar"
    assert client.get_job_logs(job).endswith("a\ufffd\ufffdb\r\nc\rd\n")


def test_concurrent_jobs_have_separate_exit_codes_and_logs(client: RayJobsClient):
    """Two jobs that run at the same time have their own exit codes and logs."""
    jobs = [client.submit_job(f"sleep 1; echo this is {name}; exit {code}") for name, code in (("a", 0), ("b", 5))]
    with ThreadPoolExecutor() as pool:
        (first, log_a), (second, log_b) = pool.map(lambda job: follow(client, job), jobs)

    assert (first.driver_exit_code, second.driver_exit_code) == (0, 5)
    assert "this is a" in log_a.splitlines()
    assert "this is b" in log_b.splitlines()
    assert "this is b" not in log_a.splitlines()


def test_driver_job_is_found_by_its_job_id(client: RayJobsClient, driver: JobDetails):
    """A job of type DRIVER has a Ray Core job id and no submission id."""
    assert client.get_job(driver.job_id).type == JobType.DRIVER
    assert driver.submission_id is None
    assert driver.name == driver.job_id


def test_stop_logs_and_delete_are_rejected_for_driver_job(client: RayJobsClient, driver: JobDetails):
    """Ray supports no stop, logs or delete for a DRIVER job, and the error says that the job is interactive."""
    for refused in (client.stop_job, client.get_job_logs, client.delete_job):
        with pytest.raises(RayApiRejectedError, match=r"HTTP 400, not possible for an interactive job \(type DRIVER\)"):
            refused(driver.job_id)


def test_driver_job_can_be_followed(client: RayJobsClient, driver: JobDetails, ray_head: RayHead):
    """Following a DRIVER job returns when its driver exits, and shows no log."""
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(follow, client, driver.job_id)
        time.sleep(2)
        assert not waiting.done()
        os.kill(int(driver.driver_info["pid"]), signal.SIGKILL)
        details, log = waiting.result(timeout=60)

    assert details.status.is_terminal()
    assert log == ""


def test_entrypoint_list_is_quoted(client: RayJobsClient):
    """Each item of an entrypoint list arrives as one unchanged argument."""
    arguments = ["$(echo x)", "a b", "'", '"', "\\", ";exit 3", "a\nb", "", "*", "ä😀"]
    _, log = follow(client, client.submit_job(["python", "-c", "import sys; print(sys.argv[1:])", *arguments]))

    assert repr(arguments) in log.splitlines()


def test_submission_id_of_another_job_is_rejected(client: RayJobsClient):
    """A submission with the id of another job raises an error and does not affect that job."""
    job = client.submit_job("sleep 1", submission_id=f"taken-{time.time_ns()}")

    with pytest.raises(RayJobExistsError, match="HTTP 500, the submission id is taken"):
        client.submit_job("sleep 1", submission_id=job)
    assert follow(client, job)[0].status == JobStatus.SUCCEEDED


def test_running_job_is_not_deleted(client: RayJobsClient):
    """Only a job with a terminal status can be deleted. Afterwards the cluster does not know its id, for good."""
    job = client.submit_job("sleep 2")

    with pytest.raises(RayJobNotTerminalError, match="has not ended"):
        client.delete_job(job)
    follow(client, job)
    assert client.delete_job(job)
    time.sleep(3)  # in which Ray restores a record that is deleted too early
    with pytest.raises(RayJobNotFoundError):
        client.get_job(job)


@pytest.mark.needs_ray("token authentication")
def test_token_is_sent_and_missing_or_wrong_token_is_reported():
    """A head in token mode accepts the right token. A missing or wrong token raises an error without the token."""
    token = "marked-secret-0123456789abcdef"
    with RayHead(num_cpus=1, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}) as head:
        with RayJobsClient(head.address, token=token) as client:
            assert follow(client, client.submit_job("true"))[0].status == JobStatus.SUCCEEDED
        for wrong, problem in (
            (None, "missing, Ray requires one"),
            ("marked-secret-that-is-wrong-0123", "rejected by Ray"),
        ):
            with (
                RayJobsClient(head.address, token=wrong) as client,
                pytest.raises(RayApiAuthError, match=f"token {problem}: could not submit job ") as caught,
            ):
                client.submit_job("true")
            assert "marked-secret" not in str(caught.value)


def test_unreachable_head_error_names_address():
    """A refused connection raises an error with the address once ``retry_timeout`` has passed."""
    with RayJobsClient("http://127.0.0.1:9", retry_timeout=0) as client, pytest.raises(RayApiConnectionError) as caught:
        client.get_version()

    assert "Connection refused: could not connect to Ray at http://127.0.0.1:9. " in str(caught.value)


def _wait_until(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"no result within {timeout:g} s"
        time.sleep(0.3)
