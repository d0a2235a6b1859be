"""What a job is: Ray's words, Ray's JSON, and what of it may leave a worker."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rayjobs.jobs import JobDetails, JobErrorType, JobStatus, JobSubmission, JobType, RayVersion
from airflow_provider_rayjobs.jobs.models import ClusterResources

SAMPLES = Path(__file__).parents[1] / "samples" / "2.60.0"
JOBS = ["driver", "failed", "pending", "running", "runtime_env_failure", "stopped", "succeeded"]


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def job(name: str) -> JobDetails:
    return JobDetails.from_json(json.loads((SAMPLES / f"job_{name}.json").read_text()))


@pytest.mark.parametrize(
    ("status", "terminal"),
    [
        pytest.param("PENDING", False, id="waits for the cluster"),
        pytest.param("RUNNING", False, id="runs"),
        pytest.param("STOPPED", True, id="was stopped"),
        pytest.param("SUCCEEDED", True, id="is done"),
        pytest.param("FAILED", True, id="has failed"),
        pytest.param("SUSPENDED", False, id="a word of a newer Ray"),
        pytest.param("", False, id="no word at all"),
    ],
)
def test_status_is_terminal(status: str, terminal: bool) -> None:
    """Three statuses are final; a word that we do not know is not."""
    assert JobStatus(status).is_terminal() is terminal
    assert JobStatus(status) == status


@pytest.mark.parametrize("words", [JobStatus, JobType, JobErrorType])
def test_ray_words(words: type[JobStatus] | type[JobType] | type[JobErrorType]) -> None:
    """Words that we do not know are kept as they are, through pickles and copies too, and say that they are unknown."""
    unknown = words("BRAND_NEW")

    assert (unknown.value, str(unknown), unknown.is_known) == ("BRAND_NEW", "BRAND_NEW", False)
    assert "BRAND_NEW" in repr(unknown)
    assert unknown == words("BRAND_NEW") == pickled(unknown) == copy.deepcopy(unknown)
    assert {unknown: 1}["BRAND_NEW"] == 1
    assert "BRAND_NEW" not in words.__members__
    assert all(word.is_known and pickled(word) is word for word in words)
    with pytest.raises(ValueError, match="7 is not a valid"):
        words(7)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        pytest.param("pending", ("SUBMISSION", "PENDING", None, None, "sample-succeeded"), id="pending"),
        pytest.param("running", ("SUBMISSION", "RUNNING", None, None, "sample-stopped"), id="running"),
        pytest.param("succeeded", ("SUBMISSION", "SUCCEEDED", None, 0, "sample-succeeded"), id="succeeded"),
        pytest.param(
            "failed", ("SUBMISSION", "FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 3, "sample-failed"), id="failed"
        ),
        pytest.param("stopped", ("SUBMISSION", "STOPPED", None, None, "sample-stopped"), id="stopped"),
        pytest.param(
            "runtime_env_failure",
            ("SUBMISSION", "FAILED", "RUNTIME_ENV_SETUP_FAILURE", None, "sample-badenv"),
            id="environment failed",
        ),
        pytest.param("driver", ("DRIVER", "SUCCEEDED", None, None, "03000000"), id="interactive"),
    ],
)
def test_details_of_recorded_jobs(name: str, facts: tuple[object, ...]) -> None:
    """A recorded answer becomes details with Ray's words as our types, called by the id that Ray knows it by."""
    details = job(name)

    assert (details.type, details.status, details.error_type, details.driver_exit_code, details.name) == facts
    assert details.type.is_known
    assert details.status.is_known
    assert details.error_type is None or details.error_type.is_known


def test_details_keep_what_ray_says() -> None:
    """Everything that a caller may ask for is read from Ray's answer under Ray's own names."""
    details = job("succeeded")

    assert details.entrypoint == "echo one; echo 'zwei ü'; printf three"
    assert details.metadata == {"submission_nonce": "5a3c"}
    assert details.runtime_env == {"env_vars": {"API_KEY": "hunter2"}}
    assert details.message == "Job finished successfully."
    assert details.duration == pytest.approx(1.913)
    assert details.driver_node_id == "a87fa57498476b2c1e6aae7ffde1bedf0e3643332c009805c1626622"
    assert details.driver_agent_http_address == "http://192.0.2.2:43827"
    assert job("driver").driver_info == {"id": "03000000", "node_ip_address": "192.0.2.2", "pid": "11993"}


def test_details_of_other_rays() -> None:
    """Fields that a newer Ray adds are left out, and those that an older Ray does not have yet are unset."""
    details = JobDetails.from_json({"type": "SUBMISSION", "status": "RUNNING", "colour": "red"})

    assert details == JobDetails(JobType.SUBMISSION, JobStatus.RUNNING)
    assert details.name == "?"
    assert details.duration is None


@pytest.mark.parametrize("name", JOBS)
def test_details_repr(name: str) -> None:
    """What may hold secrets is in no repr: environment, entrypoint, metadata."""
    shown = repr(job(name))

    for secret in ("hunter2", "API_KEY", "runtime_env=", "entrypoint=", "echo one", "metadata", "5a3c", "driver_info"):
        assert secret not in shown
    assert job(name).status in shown


@pytest.mark.parametrize("name", JOBS)
def test_details_as_event(name: str) -> None:
    """An event is plain JSON without the job's secrets, and from it the job's end can be told just as well."""
    details = job(name)

    event = details.to_event()
    again = JobDetails.from_json(json.loads(json.dumps(event)))

    assert {type(value) for value in event.values()} <= {str, int}
    assert not event.keys() & {"runtime_env", "metadata", "entrypoint", "driver_info"}
    kept = (
        "type", "status", "submission_id", "job_id", "error_type", "driver_exit_code", "start_time", "end_time",
        "driver_node_id", "driver_agent_http_address", "name", "duration",
    )  # fmt: skip
    assert [getattr(again, field) for field in kept] == [getattr(details, field) for field in kept]
    assert (again.runtime_env, again.metadata, again.entrypoint) == ({}, {}, "")
    assert again.message == (details.message and details.message.partition(", last available logs")[0])
    assert "before\n" not in str(event)


def test_unknown_words_as_event() -> None:
    """A status and an error type of a newer Ray go through an event as they are."""
    details = JobDetails(JobType("NEW"), JobStatus("NEWER"), error_type=JobErrorType("NEWEST"))

    event = details.to_event()

    assert event == {"type": "NEW", "status": "NEWER", "error_type": "NEWEST"}
    assert {type(value) for value in event.values()} == {str}
    assert JobDetails.from_json(event) == details


@pytest.mark.parametrize(
    ("version", "release"),
    [
        pytest.param("2.60.0", (2, 60), id="release"),
        pytest.param("2.9.3", (2, 9), id="old release"),
        pytest.param("3.0.0.dev0", (3, 0), id="development"),
        pytest.param("2.47", (2, 47), id="two numbers"),
        pytest.param("2", (0, 0), id="one number"),
        pytest.param("nightly", (0, 0), id="a word"),
        pytest.param("2.x", (0, 0), id="a placeholder"),
        pytest.param("", (0, 0), id="nothing"),
    ],
)
def test_release(version: str, release: tuple[int, int]) -> None:
    """A release is the version's first two numbers, and older than all when there are none."""
    assert RayVersion("4", version).release() == release


def test_submission_as_json() -> None:
    """A submission's body has what was set, under Ray's names, and nothing that was not."""
    submission = JobSubmission("a", "true", metadata={"b": "c"}, entrypoint_num_gpus=0, entrypoint_memory=5)

    assert submission.to_json() == {
        "submission_id": "a",
        "entrypoint": "true",
        "metadata": {"b": "c"},
        "entrypoint_num_gpus": 0,
        "entrypoint_memory": 5,
    }


def test_submission_repr() -> None:
    """A submission's repr does not show what may hold secrets either."""
    submission = JobSubmission("a", "run --key hunter1", {"env_vars": {"K": "hunter2"}}, {"m": "hunter3"})

    assert "hunter" not in repr(submission)
    assert "'a'" in repr(submission)


@pytest.mark.parametrize(
    ("start_time", "seen_at", "age"),
    [
        pytest.param(1_795_406_831_854, 1_795_406_834_000, 2.146, id="seconds"),
        pytest.param(1_795_406_831_854, 1_795_406_831_000, 0, id="within the second, which is all a date tells"),
        pytest.param(None, 1_795_406_834_000, None, id="no start"),
        pytest.param(1_795_406_831_854, None, None, id="not seen"),
    ],
)
def test_age(start_time: int | None, seen_at: int | None, age: float | None) -> None:
    """A job's age runs from its submission to when the head described it, is never negative, and may be unknown."""
    details = JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, start_time=start_time, seen_at=seen_at)

    assert details.age == age


def test_cluster_of_the_recorded_answer() -> None:
    """What a cluster has, and what of it is in use, is told by Ray's names, however the dashboard spells them."""
    answer = json.loads((SAMPLES / "cluster_status.json").read_text())

    cluster = ClusterResources.from_json(answer)
    (node,) = cluster.nodes
    assert {name: node[name] for name in ("CPU", "special_chip")} == {"CPU": 4, "special_chip": 2}
    assert {name: cluster.used[name] for name in ("CPU", "special_chip", "memory")} == {
        "CPU": 2,
        "special_chip": 1,
        "memory": 0,
    }
    assert cluster.used.keys() == node.keys()


def test_nodes_of_one_shape() -> None:
    """Nodes that are alike are told one by one, each with all that it has."""
    small, large = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}
    report = {"nodeTypes": [[small, 2], [large, 1]], "usage": {"CPU": [3.0, 16.0]}}

    cluster = ClusterResources.from_json({"data": {"clusterStatus": {"loadMetricsReport": report}}})
    assert cluster == ClusterResources((small, small, large), {"CPU": 3.0})


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"result": True, "data": {"clusterStatus": None}}, id="no autoscaler"),
        pytest.param({"data": {"clusterStatus": {}}}, id="no report"),
        pytest.param({"data": {"clusterStatus": {"loadMetricsReport": {"usage": {}, "nodeTypes": []}}}}, id="not yet"),
        pytest.param({"data": {"clusterStatus": {"loadMetricsReport": {"usage": None, "nodeTypes": None}}}}, id="null"),
        pytest.param({"result": False, "data": None}, id="no data"),
        pytest.param({}, id="nothing"),
    ],
)
def test_cluster_without_a_report(answer: dict[str, Any]) -> None:
    """A head that does not say what its cluster has is no error: nothing is known then."""
    assert ClusterResources.from_json(answer) == ClusterResources()


@pytest.mark.parametrize(
    ("fields", "demand"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"entrypoint_num_cpus": 0, "entrypoint_resources": {"a": 0}}, {}, id="nothing of something"),
        pytest.param(
            {
                "entrypoint_num_cpus": 0.5,
                "entrypoint_num_gpus": 1,
                "entrypoint_memory": 10,
                "entrypoint_resources": {"special_chip": 2},
            },
            {"CPU": 0.5, "GPU": 1, "memory": 10, "special_chip": 2},
            id="everything",
        ),
    ],
)
def test_demand(fields: dict[str, Any], demand: dict[str, float]) -> None:
    """What a submission needs on one node is told by the names by which Ray tells what a node has."""
    assert JobSubmission("a", "true", **fields).demand() == demand
