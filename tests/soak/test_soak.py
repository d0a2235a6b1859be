"""
Airflow's log has the job's log, byte for byte, for every kind of output and despite broken connections.

The jobs run in a real Airflow on a real Ray head, half of them deferred, through a proxy that cuts connections at
random. ``SOAK_JOBS`` is the number of jobs. ``SOAK_SEED`` repeats the random choices of an earlier run.
"""

from __future__ import annotations

import os
import random
import shutil

import pytest
from soak_run import SoakJob, SoakResult, run_soak_jobs

# By default each program of ``job_programs`` runs in both modes.
NUMBER_OF_JOBS = int(os.environ.get("SOAK_JOBS", "40"))
# The processes of one run with pytest-xdist have the same tests. Without it there is no such variable.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID")
SEED = int(os.environ.get("SOAK_SEED") or random.Random(_RUN).randrange(1_000))  # noqa: S311  (no secret)

pytestmark = [pytest.mark.airflow, pytest.mark.ray, pytest.mark.timeout(900 + 20 * NUMBER_OF_JOBS)]
JOB_NUMBERS = [pytest.param(number, id=SoakJob(number, SEED).name) for number in range(NUMBER_OF_JOBS)]


@pytest.fixture(scope="module")
def soak_result(tmp_path_factory: pytest.TempPathFactory) -> SoakResult:
    """The results of all jobs, after each of them has ended."""
    print(f"SOAK_SEED={SEED}")
    result = run_soak_jobs(NUMBER_OF_JOBS, SEED, tmp_path_factory.mktemp("soak"))
    print(f"{result.logs_cut} of {result.log_reads} log reads were cut within the bytes of the log")
    print(f"outcomes of all requests: {result.outcomes}")
    return result


@pytest.mark.parametrize("number", JOB_NUMBERS)
def test_airflow_shows_the_whole_job_log(soak_result: SoakResult, number: int) -> None:
    """No text of the driver's log on the head is lost, repeated or changed in Airflow's log."""
    job = soak_result.jobs[number]

    assert not job.find_difference(), job.find_difference()
    shutil.rmtree(job.folder)  # only the logs of failed tests stay


@pytest.mark.parametrize("number", JOB_NUMBERS)
def test_task_has_one_job_and_ends_as_it_does(soak_result: SoakResult, number: int) -> None:
    """A task submits one job, and succeeds if and only if the job does."""
    job = soak_result.jobs[number]

    assert job.statuses == [job.program.status], job.report()
    assert job.state == ("success" if job.program.status == "SUCCEEDED" else "failed"), job.report()


def test_proxy_cut_enough_connections(soak_result: SoakResult) -> None:
    """The proxy failed often enough, also within logs, for the other tests to mean something."""
    outcomes = soak_result.outcomes
    failures = outcomes["request_lost"] + outcomes["response_lost"] + outcomes["response_cut"]

    assert failures > outcomes["forwarded"] / 10, outcomes
    assert soak_result.logs_cut > soak_result.log_reads / 20, soak_result.logs_cut
