"""Time limits of a job, and the description of a job that does not start."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import RayJobTimeoutError
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.limits import NO_LIMITS, UNCONFIRMED_TIMEOUT, Limits, describe_shortage
from airflow_provider_rayjobs.jobs.models import ClusterResources

GIB = 1024**3


def job(status: str, age: float | None = 60.0) -> JobDetails:
    """Return a job of this age in seconds; ``None`` if Ray reports no time of submission."""
    times = {} if age is None else {"start_time": 1_000_000, "seen_at": 1_000_000 + int(age * 1000)}
    return JobDetails(JobType.SUBMISSION, JobStatus(status), submission_id="nightly-1", **times)


@pytest.mark.parametrize(
    ("limits", "details", "limit"),
    [
        pytest.param(Limits(pending_timeout=60), job("PENDING"), "pending_timeout", id="PENDING too long"),
        pytest.param(Limits(pending_timeout=60), job("PENDING", 59.9), None, id="PENDING within the limit"),
        pytest.param(Limits(pending_timeout=60), job("RUNNING", 9e9), None, id="started"),
        pytest.param(Limits(pending_timeout=60), job("PAUSED", 9e9), None, id="status of a newer Ray is not PENDING"),
        pytest.param(Limits(job_timeout=60), job("RUNNING"), "job_timeout", id="RUNNING too long"),
        pytest.param(Limits(job_timeout=60), job("RUNNING", 59.9), None, id="RUNNING within the limit"),
        pytest.param(Limits(job_timeout=60), job("PENDING"), "job_timeout", id="PENDING longer than job_timeout"),
        pytest.param(Limits(job_timeout=60), job("PAUSED"), "job_timeout", id="status of a newer Ray"),
        pytest.param(Limits(is_confirmed=False), job("PENDING", 1200), "unconfirmed", id="unconfirmed, limit expired"),
        pytest.param(Limits(is_confirmed=False), job("PENDING", 1199), None, id="unconfirmed, within the limit"),
        pytest.param(Limits(is_confirmed=False), job("RUNNING", 9e9), None, id="unconfirmed, but started"),
        pytest.param(Limits(job_timeout=0), job("RUNNING", 0), "job_timeout", id="limit of 0"),
        pytest.param(
            Limits(job_timeout=60, pending_timeout=30),
            job("PENDING", 40),
            "pending_timeout",
            id="first limit",
        ),
        pytest.param(NO_LIMITS, job("PENDING", 9e9), None, id="no limit, PENDING"),
        pytest.param(NO_LIMITS, job("RUNNING", 9e9), None, id="no limit, RUNNING"),
        *(
            pytest.param(Limits(job_timeout=60), job(status, 9e9), None, id=f"{status} after the limit")
            for status in ("SUCCEEDED", "FAILED", "STOPPED")
        ),
        pytest.param(Limits(job_timeout=0), job("RUNNING", None), None, id="start time unknown"),
    ],
)
def test_job_is_abandoned_when_a_limit_expires(limits: Limits, details: JobDetails, limit: str | None) -> None:
    """A job that has not ended is abandoned when a limit for its status expires, and not before."""
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
        pytest.param(
            Limits(job_timeout=14 * 86400), job("RUNNING", 15 * 86400), "job_timeout is 1209600 s.", id="two weeks"
        ),
        pytest.param(
            Limits(is_confirmed=False),
            job("PENDING", 1300),
            "Ray did not confirm it and may never start it. The limit is 1200 s.",
            id="unconfirmed",
        ),
    ],
)
def test_error_names_job_status_age_and_limit(limits: Limits, details: JobDetails, words: str) -> None:
    """The error names the job, its status, its age and the limit."""
    with pytest.raises(RayJobTimeoutError) as caught:
        limits.check(details)

    assert str(caught.value) == (
        f"Ray job nightly-1 is still {details.status} {details.age:.0f} s after its submission. {words}"
    )


@pytest.mark.parametrize(
    ("limits", "details", "seconds"),
    [
        pytest.param(Limits(job_timeout=100), job("RUNNING"), 40, id="one"),
        pytest.param(Limits(job_timeout=100, pending_timeout=90), job("PENDING"), 30, id="first of two"),
        pytest.param(Limits(pending_timeout=70, job_timeout=100), job("PENDING"), 10, id="PENDING"),
        pytest.param(Limits(pending_timeout=70, job_timeout=100), job("RUNNING"), 40, id="no longer PENDING"),
        pytest.param(Limits(is_confirmed=False), job("PENDING"), UNCONFIRMED_TIMEOUT - 60, id="unconfirmed"),
        pytest.param(Limits(is_confirmed=False), job("RUNNING"), math.inf, id="unconfirmed, but started"),
        pytest.param(Limits(job_timeout=50), job("RUNNING"), -10, id="expired"),
        pytest.param(Limits(job_timeout=50), job("RUNNING", None), 50, id="start time unknown"),
        pytest.param(NO_LIMITS, job("PENDING"), math.inf, id="none"),
    ],
)
def test_remaining_time_until_the_next_limit(limits: Limits, details: JobDetails, seconds: float) -> None:
    """The remaining time ends with the first limit that applies to the job's status."""
    assert limits.remaining(details) == seconds


@pytest.mark.parametrize("limits", [NO_LIMITS, Limits(1.5, 2, is_confirmed=False)], ids=["none", "all"])
def test_limits_survive_json(limits: Limits) -> None:
    """Limits are the same after a round trip through JSON, and no stored limits mean no limits."""
    assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits
    assert Limits.from_json(None) == Limits.from_json({}) == NO_LIMITS


SMALL = {"CPU": 4.0, "memory": 8.0 * GIB, "node:192.0.2.2": 1.0, "object_store_memory": 1e9}
GPU = {"CPU": 2.0, "GPU": 1.0, "memory": 16.0 * GIB, "special_chip": 2.0}


@pytest.mark.parametrize(
    ("demand", "cluster", "summary"),
    [
        pytest.param(
            {"GPU": 2.0},
            ClusterResources(((SMALL, 1), (GPU, 1)), {"CPU": 1.5, "GPU": 1.0, "memory": 0.0}),
            "The job requests 2 GPU on one node. The cluster has 2 node(s); in use: 1.5 of 6 CPU, 1 of 1 GPU, 0.0 GiB "
            "of 24.0 GiB memory. No node has enough GPU.",
            id="more than any node has",
        ),
        pytest.param(
            {"CPU": 5, "memory": 20 * GIB, "special_chip": 1},
            ClusterResources(((SMALL, 1), (GPU, 1))),
            "The job requests 5 CPU, 20.0 GiB memory, 1 special_chip on one node. The cluster has 2 node(s); in use: "
            "0 of 6 CPU, 0 of 1 GPU, 0.0 GiB of 24.0 GiB memory, 0 of 2 special_chip. No node has enough CPU, memory.",
            id="more of two resources",
        ),
        pytest.param(
            {"no_such_thing": 1},
            ClusterResources(((SMALL, 1),)),
            "The job requests 1 no_such_thing on one node. The cluster has 1 node(s); in use: 0 of 4 CPU, 0.0 GiB of "
            "8.0 GiB memory, 0 of 0 no_such_thing. No node has enough no_such_thing.",
            id="unknown resource",
        ),
        pytest.param(
            {"CPU": 3, "GPU": 1},
            ClusterResources(((SMALL, 1), (GPU, 1))),
            "The job requests 3 CPU, 1 GPU on one node. The cluster has 2 node(s); in use: 0 of 6 CPU, 0 of 1 GPU, "
            "0.0 GiB of 24.0 GiB memory. No single node has enough of all of them.",
            id="each on a different node",
        ),
        pytest.param(
            {"CPU": 4},
            ClusterResources(((SMALL, 3),), {"CPU": 12.0}),
            "The job requests 4 CPU on one node. The cluster has 3 node(s); in use: 12 of 12 CPU, 0.0 GiB of 24.0 GiB "
            "memory. A large enough node exists, but other jobs may use it.",
            id="used by other jobs",
        ),
        pytest.param(
            {},
            ClusterResources(((SMALL, 1),), {"CPU": 1.0}),
            "The job requests no resources. The cluster has 1 node(s); in use: 1 of 4 CPU, 0.0 GiB of "
            "8.0 GiB memory. Its runtime environment may still be installing, or a node is short of memory.",
            id="no request",
        ),
        pytest.param(
            {"CPU": 1},
            None,
            "The job requests 1 CPU on one node. The resources of the cluster are unknown.",
            id="cluster not reachable",
        ),
        pytest.param(
            {},
            ClusterResources(),
            "The job requests no resources. The resources of the cluster are unknown.",
            id="head without a report",
        ),
    ],
)
def test_shortage_names_what_is_missing(demand: dict[str, Any], cluster: ClusterResources | None, summary: str) -> None:
    """A job that does not start is described by its request, the cluster's resources, and what is missing."""
    assert describe_shortage(demand, cluster) == summary
