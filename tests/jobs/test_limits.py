"""How long a job may wait and run, and what is said of one that finds no place."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import RayJobTimeoutError
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.limits import NO_LIMITS, UNANSWERED_TIMEOUT, Limits, describe_shortage
from airflow_provider_rayjobs.jobs.models import ClusterResources

GIB = 1024**3


def job(status: str, age: float | None = 60.0) -> JobDetails:
    """Return a job that was submitted so many seconds before it was seen; ``None`` where Ray does not say when."""
    times = {} if age is None else {"start_time": 1_000_000, "seen_at": 1_000_000 + int(age * 1000)}
    return JobDetails(JobType.SUBMISSION, JobStatus(status), submission_id="nightly-1", **times)


@pytest.mark.parametrize(
    ("limits", "details", "limit"),
    [
        pytest.param(Limits(pending_timeout=60), job("PENDING"), "pending_timeout", id="waited for too long"),
        pytest.param(Limits(pending_timeout=60), job("PENDING", 59.9), None, id="may wait on"),
        pytest.param(Limits(pending_timeout=60), job("RUNNING", 9e9), None, id="started, whenever"),
        pytest.param(Limits(pending_timeout=60), job("PAUSED", 9e9), None, id="no longer PENDING, as a newer Ray says"),
        pytest.param(Limits(job_timeout=60), job("RUNNING"), "job_timeout", id="ran for too long"),
        pytest.param(Limits(job_timeout=60), job("RUNNING", 59.9), None, id="may run on"),
        pytest.param(Limits(job_timeout=60), job("PENDING"), "job_timeout", id="waited for longer than it may run"),
        pytest.param(Limits(job_timeout=60), job("PAUSED"), "job_timeout", id="a status of a newer Ray"),
        pytest.param(Limits(execution_timeout=60), job("RUNNING"), "execution_timeout", id="Airflow's own limit"),
        pytest.param(Limits(execution_timeout=60), job("PENDING"), "execution_timeout", id="Airflow's, waiting"),
        pytest.param(Limits(is_confirmed=False), job("PENDING", 1200), "lost_answer", id="a record nobody starts"),
        pytest.param(Limits(is_confirmed=False), job("PENDING", 1199), None, id="a record somebody may start"),
        pytest.param(Limits(is_confirmed=False), job("RUNNING", 9e9), None, id="a record somebody started"),
        pytest.param(Limits(job_timeout=0), job("RUNNING", 0), "job_timeout", id="no time at all"),
        pytest.param(Limits(job_timeout=60, execution_timeout=30), job("RUNNING", 40), "execution_timeout", id="both"),
        pytest.param(NO_LIMITS, job("PENDING", 9e9), None, id="no limit, waiting"),
        pytest.param(NO_LIMITS, job("RUNNING", 9e9), None, id="no limit, running"),
        *(
            pytest.param(Limits(job_timeout=60), job(status, 9e9), None, id=f"{status}, however late")
            for status in ("SUCCEEDED", "FAILED", "STOPPED")
        ),
        pytest.param(Limits(job_timeout=0), job("RUNNING", None), None, id="Ray does not say when it was submitted"),
    ],
)
def test_limits(limits: Limits, details: JobDetails, limit: str | None) -> None:
    """A job that has not ended is given up when a limit for its status is over, and not before."""
    if limit is None:
        limits.check(details)
    else:
        with pytest.raises(RayJobTimeoutError) as caught:
            limits.check(details)
        assert (caught.value.limit, caught.value.details) == (limit, details)


@pytest.mark.parametrize(
    ("limits", "details", "words"),
    [
        pytest.param(Limits(pending_timeout=45), job("PENDING"), "pending_timeout is 45 s.", id="pending_timeout"),
        pytest.param(Limits(job_timeout=0.5), job("RUNNING"), "job_timeout is 0.5 s.", id="job_timeout"),
        pytest.param(Limits(execution_timeout=60.0), job("RUNNING"), "execution_timeout is 60 s.", id="execution"),
        pytest.param(
            Limits(job_timeout=14 * 86400), job("RUNNING", 15 * 86400), "job_timeout is 1209600 s.", id="two weeks"
        ),
        pytest.param(
            Limits(is_confirmed=False),
            job("PENDING", 1300),
            "the answer to its submission was lost, so it may be a record that nothing will ever start, and is given "
            "up after 1200 s.",
            id="lost answer",
        ),
    ],
)
def test_words(limits: Limits, details: JobDetails, words: str) -> None:
    """The error says which job, in which status, for how long, and which limit that is over how long it is."""
    with pytest.raises(RayJobTimeoutError) as caught:
        limits.check(details)

    assert str(caught.value) == (
        f"Ray job nightly-1 is still {details.status} {details.age:.0f} s after its submission; {words}"
    )


@pytest.mark.parametrize(
    ("limits", "details", "seconds"),
    [
        pytest.param(Limits(job_timeout=100), job("RUNNING"), 40, id="one"),
        pytest.param(Limits(job_timeout=100, execution_timeout=90), job("RUNNING"), 30, id="the next of two"),
        pytest.param(Limits(pending_timeout=70, job_timeout=100), job("PENDING"), 10, id="waiting"),
        pytest.param(Limits(pending_timeout=70, job_timeout=100), job("RUNNING"), 40, id="no longer waiting"),
        pytest.param(Limits(is_confirmed=False), job("PENDING"), UNANSWERED_TIMEOUT - 60, id="answer lost"),
        pytest.param(Limits(is_confirmed=False), job("RUNNING"), math.inf, id="answer lost, and found"),
        pytest.param(Limits(job_timeout=50), job("RUNNING"), -10, id="over"),
        pytest.param(Limits(job_timeout=50), job("RUNNING", None), 50, id="unknown start"),
        pytest.param(NO_LIMITS, job("PENDING"), math.inf, id="none"),
    ],
)
def test_remaining(limits: Limits, details: JobDetails, seconds: float) -> None:
    """What remains is the time until the first limit is over that counts for the job's status."""
    assert limits.remaining(details) == seconds


@pytest.mark.parametrize("limits", [NO_LIMITS, Limits(1.5, 2, 3, is_confirmed=False)], ids=["none", "all"])
def test_limits_travel(limits: Limits) -> None:
    """Limits come out of a trigger's stored arguments as they went in, and a trigger without any has none."""
    assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits
    assert Limits.from_json(None) == Limits.from_json({}) == NO_LIMITS


SMALL = {"CPU": 4.0, "memory": 8.0 * GIB, "node:192.0.2.2": 1.0, "object_store_memory": 1e9}
GPU = {"CPU": 2.0, "GPU": 1.0, "memory": 16.0 * GIB, "special_chip": 2.0}


@pytest.mark.parametrize(
    ("demand", "cluster", "summary"),
    [
        pytest.param(
            {"GPU": 2.0},
            ClusterResources((SMALL, GPU), {"CPU": 1.5, "GPU": 1.0, "memory": 0.0}),
            "The job asks for 2 GPU on one node. The cluster has 2 node(s); in use: 1.5 of 6 CPU, 1 of 1 GPU, 0.0 GiB "
            "of 24.0 GiB memory. No node has enough GPU.",
            id="more than any node has",
        ),
        pytest.param(
            {"CPU": 5, "memory": 20 * GIB, "special_chip": 1},
            ClusterResources((SMALL, GPU)),
            "The job asks for 5 CPU, 20.0 GiB memory, 1 special_chip on one node. The cluster has 2 node(s); in use: "
            "0 of 6 CPU, 0 of 1 GPU, 0.0 GiB of 24.0 GiB memory, 0 of 2 special_chip. No node has enough CPU, memory.",
            id="more of two things",
        ),
        pytest.param(
            {"no_such_thing": 1},
            ClusterResources((SMALL,)),
            "The job asks for 1 no_such_thing on one node. The cluster has 1 node(s); in use: 0 of 4 CPU, 0.0 GiB of "
            "8.0 GiB memory, 0 of 0 no_such_thing. No node has enough no_such_thing.",
            id="what there is nowhere",
        ),
        pytest.param(
            {"CPU": 3, "GPU": 1},
            ClusterResources((SMALL, GPU)),
            "The job asks for 3 CPU, 1 GPU on one node. The cluster has 2 node(s); in use: 0 of 6 CPU, 0 of 1 GPU, "
            "0.0 GiB of 24.0 GiB memory. No node has enough of all of them together.",
            id="each on another node",
        ),
        pytest.param(
            {"CPU": 4},
            ClusterResources((SMALL,), {"CPU": 4.0}),
            "The job asks for 4 CPU on one node. The cluster has 1 node(s); in use: 4 of 4 CPU, 0.0 GiB of 8.0 GiB "
            "memory. A node that is large enough is there: others use it.",
            id="what others use",
        ),
        pytest.param(
            {},
            ClusterResources((SMALL,), {"CPU": 1.0}),
            "The job asks for no resources of its own. The cluster has 1 node(s); in use: 1 of 4 CPU, 0.0 GiB of "
            "8.0 GiB memory. Its runtime environment may still be on its way, or a node is short of memory.",
            id="nothing",
        ),
        pytest.param(
            {"CPU": 1},
            None,
            "The job asks for 1 CPU on one node. What the cluster has could not be seen.",
            id="a cluster out of sight",
        ),
        pytest.param(
            {},
            ClusterResources(),
            "The job asks for no resources of its own. What the cluster has could not be seen.",
            id="a head without a report",
        ),
    ],
)
def test_shortage(demand: dict[str, Any], cluster: ClusterResources | None, summary: str) -> None:
    """A job that does not start is described by what it asks for, what the cluster has, and what is missing."""
    assert describe_shortage(demand, cluster) == summary
