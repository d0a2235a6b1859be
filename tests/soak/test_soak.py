"""
The text in Airflow's log is the job's log, byte for byte, whatever a job prints and however often connections break.

Jobs of every kind of output run in a real Airflow on a real Ray head, half of them deferred, through a proxy that cuts
connections at random. ``SOAK_JOBS`` says how many, ``SOAK_SEED`` repeats what was left to chance.
"""

from __future__ import annotations

import os
import random
import shutil

import pytest
from soak_run import Soaked, SoakJob, soak

# Every kind of output in both modes.
NUMBER = int(os.environ.get("SOAK_JOBS", "40"))
SEED = int(os.environ.get("SOAK_SEED") or random.randrange(1_000))  # noqa: S311  (no secret)

pytestmark = [pytest.mark.airflow, pytest.mark.ray, pytest.mark.timeout(900 + 20 * NUMBER)]
JOBS = [pytest.param(number, id=SoakJob(number, SEED).name) for number in range(NUMBER)]


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Soaked:
    """All jobs, each of them over."""
    print(f"SOAK_SEED={SEED}")
    soaked = soak(NUMBER, SEED, tmp_path_factory.mktemp("soak"))
    print(f"{soaked.logs_cut} of {soaked.log_reads} reads of logs were cut in their midst")
    print(f"all requests: {soaked.fates}")
    return soaked


@pytest.mark.parametrize("number", JOBS)
def test_the_log_in_airflow_is_the_log_of_the_job(soaked: Soaked, number: int) -> None:
    """What Airflow wrote of a job's log is what is on the head's disk: nothing lost, nothing twice, nothing changed."""
    job = soaked.jobs[number]

    assert not job.difference(), job.difference()
    shutil.rmtree(job.folder)  # what is left in the end is what went wrong


@pytest.mark.parametrize("number", JOBS)
def test_the_task_ends_as_its_one_job_did(soaked: Soaked, number: int) -> None:
    """A task has one job, and succeeds if and only if that did."""
    job = soaked.jobs[number]

    assert job.statuses == [job.kind.status], job.story()
    assert job.state == ("success" if job.kind.status == "SUCCEEDED" else "failed"), job.story()


def test_connections_were_cut(soaked: Soaked) -> None:
    """The proxy failed often enough, and in the midst of logs, for all this to mean something."""
    fates = soaked.fates

    assert fates["lost"] + fates["unheard"] + fates["cut"] > fates["passed on"] / 10, fates
    assert soaked.logs_cut > soaked.log_reads / 20, soaked.logs_cut
