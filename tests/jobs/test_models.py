"""Jobs, submissions and resources: Ray's values, Ray's JSON, and what may be stored of them."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import RayApiResponseError
from airflow_provider_rayjobs.jobs import (
    JobDetails,
    JobErrorType,
    JobStatus,
    JobSubmission,
    JobType,
    RayVersion,
    endpoints,
)
from airflow_provider_rayjobs.jobs.models import ClusterResources
from airflow_provider_rayjobs.jobs.requests import Answer

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
        pytest.param("SUSPENDED", False, id="unknown"),
        pytest.param("", False, id="empty"),
    ],
)
def test_three_statuses_are_terminal(status: str, terminal: bool) -> None:
    """Three statuses are terminal, and an unknown status is not."""
    assert JobStatus(status).is_terminal() is terminal
    assert JobStatus(status) == status


@pytest.mark.parametrize("enum", [JobStatus, JobType, JobErrorType])
def test_unknown_enum_value_is_kept(enum: type[JobStatus] | type[JobType] | type[JobErrorType]) -> None:
    """Unknown values are kept, through pickles and copies too, and are marked as unknown."""
    unknown = enum("BRAND_NEW")

    assert (unknown.value, str(unknown), unknown.is_known) == ("BRAND_NEW", "BRAND_NEW", False)
    assert "BRAND_NEW" in repr(unknown)
    assert unknown == enum("BRAND_NEW") == pickled(unknown) == copy.deepcopy(unknown)
    assert {unknown: 1}["BRAND_NEW"] == 1
    assert "BRAND_NEW" not in enum.__members__
    assert all(member.is_known and pickled(member) is member for member in enum)
    with pytest.raises(ValueError, match="7 is not a valid"):
        enum(7)


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
def test_recorded_job_is_read(name: str, facts: tuple[object, ...]) -> None:
    """A recorded answer becomes details with our enumerations, named by the id that Ray knows."""
    details = job(name)

    assert (details.type, details.status, details.error_type, details.driver_exit_code, details.name) == facts
    assert details.type.is_known
    assert details.status.is_known
    assert details.error_type is None or details.error_type.is_known


def test_details_have_rays_fields() -> None:
    """Details have Ray's fields under Ray's own names."""
    details = job("succeeded")

    assert details.entrypoint == "echo one; echo 'zwei ü'; printf three"
    assert details.metadata == {"submission_nonce": "5a3c"}
    assert details.runtime_env == {"env_vars": {"API_KEY": "hunter2"}}
    assert details.message == "Job finished successfully."
    assert details.duration == pytest.approx(1.913)
    assert details.driver_node_id == "a87fa57498476b2c1e6aae7ffde1bedf0e3643332c009805c1626622"
    assert details.driver_agent_http_address == "http://192.0.2.2:43827"
    assert job("driver").driver_info == {"id": "03000000", "node_ip_address": "192.0.2.2", "pid": "11993"}


def test_fields_of_other_ray_versions() -> None:
    """Unknown fields of a newer Ray are dropped; missing fields of an older Ray are unset."""
    details = JobDetails.from_json({"type": "SUBMISSION", "status": "RUNNING", "colour": "red"})

    assert details == JobDetails(JobType.SUBMISSION, JobStatus.RUNNING)
    assert details.name == "?"
    assert details.duration is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_time", "2026"), ("start_time", 1.5), ("end_time", 10**400), ("driver_exit_code", "1"),
        ("metadata", ["a"]), ("runtime_env", "a"), ("message", {"a": 1}), ("driver_node_id", 5), ("entrypoint", ["a"]),
    ],
)  # fmt: skip
def test_value_of_another_type_is_an_error(name: str, value: object) -> None:
    """A value that Ray does not send is an error at once, and not where the value is used."""
    with pytest.raises((TypeError, ValueError), match=name):
        JobDetails.from_json({"type": "SUBMISSION", "status": "RUNNING", name: value})


@pytest.mark.parametrize("name", JOBS)
def test_details_repr_hides_secrets(name: str) -> None:
    """No repr shows the runtime environment, the entrypoint or the metadata."""
    shown = repr(job(name))

    for secret in ("hunter2", "API_KEY", "runtime_env=", "entrypoint=", "echo one", "metadata", "5a3c", "driver_info"):
        assert secret not in shown
    assert job(name).status in shown


@pytest.mark.parametrize("name", JOBS)
def test_event_has_no_secrets_and_can_be_read_back(name: str) -> None:
    """An event is plain JSON without the job's secrets, and keeps all facts about the job's end."""
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


def test_event_keeps_unknown_enum_values() -> None:
    """An event keeps a status and an error type of a newer Ray."""
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
        pytest.param("nightly", (0, 0), id="no number"),
        pytest.param("2.x", (0, 0), id="a placeholder"),
        pytest.param("", (0, 0), id="nothing"),
    ],
)
def test_release(version: str, release: tuple[int, int]) -> None:
    """A release is the version's first two numbers, and ``(0, 0)`` for any other form."""
    assert RayVersion("4", version).release() == release


def test_submission_json_has_the_set_fields() -> None:
    """The JSON of a submission has the set fields under Ray's names, and no others."""
    submission = JobSubmission("a", "true", metadata={"b": "c"}, entrypoint_num_gpus=0, entrypoint_memory=5)

    assert submission.to_json() == {
        "submission_id": "a",
        "entrypoint": "true",
        "metadata": {"b": "c"},
        "entrypoint_num_gpus": 0,
        "entrypoint_memory": 5,
    }


def test_submission_repr_hides_secrets() -> None:
    """No repr shows the entrypoint, the runtime environment or the metadata."""
    submission = JobSubmission("a", "run --key hunter1", {"env_vars": {"K": "hunter2"}}, {"m": "hunter3"})

    assert "hunter" not in repr(submission)
    assert "'a'" in repr(submission)


@pytest.mark.parametrize(
    ("start_time", "seen_at", "age"),
    [
        pytest.param(1_795_406_831_854, 1_795_406_834_000, 2.146, id="seconds"),
        pytest.param(1_795_406_831_854, 1_795_406_831_000, 0, id="within a second, the precision of the answer"),
        pytest.param(None, 1_795_406_834_000, None, id="no start"),
        pytest.param(1_795_406_831_854, None, None, id="not seen"),
    ],
)
def test_age(start_time: int | None, seen_at: int | None, age: float | None) -> None:
    """A job's age runs from its submission to the time of the answer. It is never negative, and may be unknown."""
    details = JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, start_time=start_time, seen_at=seen_at)

    assert details.age == age


def test_recorded_cluster_status_is_read() -> None:
    """Resources have the nodes' names, although the dashboard spells those in use differently."""
    answer = json.loads((SAMPLES / "cluster_status.json").read_text())

    cluster = ClusterResources.from_json(answer)
    ((node, count),) = cluster.nodes
    assert count == 1
    assert {name: node[name] for name in ("CPU", "special_chip")} == {"CPU": 4, "special_chip": 2}
    assert {name: cluster.used[name] for name in ("CPU", "special_chip", "memory")} == {
        "CPU": 2,
        "special_chip": 1,
        "memory": 0,
    }
    assert cluster.used.keys() == node.keys()


def test_requests_that_wait_are_read() -> None:
    """The report counts the requests of one shape, and does not change the names of their resources."""
    report = {"resourceDemand": [[{"CPU": 1.0}, 2], [{"special_chip": 1.0}, 1]]}

    cluster = ClusterResources.from_json({"data": {"clusterStatus": {"loadMetricsReport": report}}})
    assert cluster.waiting == (({"CPU": 1.0}, 2), ({"special_chip": 1.0}, 1))


def test_nodes_of_one_shape_are_counted() -> None:
    """Nodes of the same shape are counted, as the report does it."""
    small, large = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}
    report = {"nodeTypes": [[small, 2], [large, 1]], "usage": {"CPU": [3.0, 16.0]}}

    cluster = ClusterResources.from_json({"data": {"clusterStatus": {"loadMetricsReport": report}}})
    assert cluster == ClusterResources(((small, 2), (large, 1)), {"CPU": 3.0})


@pytest.mark.parametrize(
    ("time", "is_known"),
    [(0.0, False), (1_767_311_939, False), (1_767_311_941, True), (1_767_312_900, True), (None, True)],
)
def test_old_report_is_ignored(time: float | None, is_known: bool) -> None:
    """A report of a dead autoscaler tells nothing: it is more than a minute older than the head's answer."""
    status = {"time": time, "loadMetricsReport": {"nodeTypes": [[{"CPU": 2.0}, 1]]}}
    content = json.dumps({"data": {"clusterStatus": status}}).encode()

    answer = Answer(200, content, "http://a", "application/json", time=1_767_312_000_000)
    cluster = endpoints.parse_answer(endpoints.get_cluster_status(), answer)
    assert bool(cluster.nodes) == is_known


@pytest.mark.parametrize("part", [{"nodeTypes": [[{"CPU": 2}, 10**9]]}, {"resourceDemand": [[{"CPU": 2}, 10**9]]}])
def test_large_counts_take_no_memory(part: dict[str, Any]) -> None:
    """A report may count any number of nodes and requests."""
    cluster = ClusterResources.from_json({"data": {"clusterStatus": {"loadMetricsReport": part}}})

    assert (cluster.nodes or cluster.waiting) == (({"CPU": 2}, 10**9),)


@pytest.mark.parametrize("bad", ["2", None, [2], True, math.nan, math.inf, 10**400], ids=str)
@pytest.mark.parametrize("place", ["node", "count of nodes", "request", "count of requests", "use", "shape"])
def test_odd_resources_are_no_answer_of_ray(place: str, bad: Any) -> None:
    """A quantity that is no finite number, or a shape that is no mapping, makes the whole answer unusable."""
    shape: Any = {"CPU": 2.0}
    report = {
        "nodeTypes": [[{"CPU": bad} if place == "node" else shape, bad if place == "count of nodes" else 1]],
        "resourceDemand": [[{"CPU": bad} if place == "request" else shape, bad if place == "count of requests" else 1]],
        "usage": {"CPU": [bad if place == "use" else 0.0, 2.0]},
    }
    if place == "shape":
        report["resourceDemand"] = [[bad, 1]]
    content = json.dumps({"data": {"clusterStatus": {"loadMetricsReport": report}}}).encode()

    with pytest.raises(RayApiResponseError):
        endpoints.parse_answer(endpoints.get_cluster_status(), Answer(200, content, "http://a", "application/json"))


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
    """A head without an autoscaler report yields empty resources and no error."""
    assert ClusterResources.from_json(answer) == ClusterResources()


@pytest.mark.parametrize(
    ("fields", "demand"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"entrypoint_num_cpus": 0, "entrypoint_resources": {"a": 0}}, {}, id="zero"),
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
    """The demand of a submission has Ray's names for the resources of a node."""
    assert JobSubmission("a", "true", **fields).demand() == demand
