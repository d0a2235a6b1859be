"""Where a recorded job is, whatever has become of its connection since."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_states import Head

from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.jobs import Access
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.task.targets import Target, find_target


class Connections:
    """Airflow's connections, as environment variables."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def define(self, conn_id: str, host: str, **fields: Any) -> None:
        given = {"conn_type": "ray_jobs", "host": host} | fields
        self.patch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(given))

    def target(self, conn_id: str, host: str, **fields: Any) -> Target:
        """Define a connection, and return its target."""
        self.define(conn_id, host, **fields)
        return Target.of_connection(conn_id)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    return Connections(monkeypatch)


@pytest.fixture
def head() -> Iterator[Head]:
    with Head("session_1") as head:
        yield head


@pytest.fixture
def other_head() -> Iterator[Head]:
    with Head("session_2") as head:
        yield head


def is_with(target: Target) -> tuple[str, str, str | None]:
    """Return the address, the connection and the token of a target."""
    return target.cluster.address, target.hook.ray_conn_id, target.cluster.access.token


AWAY = "http://127.0.0.1:9"


def test_unchanged_connection(connections: Connections) -> None:
    """With an unchanged address nothing is asked, and the whole connection is used."""
    own = connections.target("ray_1", AWAY, password="secret-1", extra={"dashboard_url": "https://ray.example.com"})

    assert find_target(JobRef(AWAY, "a", "session_1"), "ray_1", own) is own


def test_unchanged_address_of_a_head_without_session_names(connections: Connections) -> None:
    """An old head has no session names. Its address is enough."""
    own = connections.target("ray_1", AWAY)

    assert find_target(JobRef(AWAY, "a"), "ray_1", own) is own


def test_connection_with_another_name_of_the_cluster(connections: Connections, head: Head) -> None:
    """The same session at another address is the same cluster."""
    own = connections.target("ray_1", head.address, password="secret-1")

    assert find_target(JobRef("http://alias:8265", "a", "session_1"), "ray_1", own) is own


@pytest.mark.parametrize("session", ["session_1", None], ids=["session", "session unknown"])
def test_connection_of_another_cluster(connections: Connections, other_head: Head, session: str | None) -> None:
    """The job is at the address of its record. The connection supplies the credentials, but not its dashboard."""
    own = connections.target(
        "ray_1", other_head.address, password="secret-1", extra={"dashboard_url": "https://ray.example.com"}
    )
    target = find_target(JobRef("http://recorded:8265", "a", session), "ray_1", own)

    assert is_with(target) == ("http://recorded:8265", "ray_1", "secret-1")
    assert target.cluster.job_url("a") == "http://recorded:8265/#/jobs/a"


def test_connection_that_does_not_answer(connections: Connections) -> None:
    """A cluster that does not tell its session is not taken for that of the job."""
    own = connections.target("ray_1", AWAY)

    assert is_with(find_target(JobRef("http://recorded:8265", "a", "session_1"), "ray_1", own)) == (
        "http://recorded:8265",
        "ray_1",
        None,
    )


def test_task_with_another_connection(connections: Connections, other_head: Head) -> None:
    """If the task has another connection now, the one that the job was submitted with is used."""
    connections.define("ray_1", "http://recorded:8265", password="secret-1")
    own = connections.target("ray_2", other_head.address, password="secret-2")

    assert is_with(find_target(JobRef("http://recorded:8265", "a", "session_1"), "ray_1", own)) == (
        "http://recorded:8265",
        "ray_1",
        "secret-1",
    )


def test_task_with_another_connection_to_the_same_cluster(connections: Connections, head: Head) -> None:
    """Of two connections to the job's cluster, the task's own one is used."""
    connections.define("ray_1", head.address, password="secret-1")
    by_address = connections.target("ray_2", head.address, password="secret-2")
    by_session = connections.target("ray_3", head.address.replace("127.0.0.1", "localhost"), password="secret-3")

    assert find_target(JobRef(head.address, "a", "session_1"), "ray_1", by_address) is by_address
    assert find_target(JobRef("http://alias:8265", "a", "session_1"), "ray_1", by_session) is by_session


def test_both_connections_were_edited(connections: Connections, head: Head, other_head: Head) -> None:
    """The connection of the record may lead to the job's session, although the task's does not."""
    connections.define("ray_1", head.address, password="secret-1")
    own = connections.target("ray_2", other_head.address, password="secret-2")

    assert is_with(find_target(JobRef("http://alias:8265", "a", "session_1"), "ray_1", own)) == (
        head.address,
        "ray_1",
        "secret-1",
    )


def test_connection_of_the_task_cannot_be_read(connections: Connections) -> None:
    """The connection of the record is used."""
    connections.define("ray_1", AWAY, password="secret-1")

    assert is_with(find_target(JobRef(AWAY, "a", "session_1"), "ray_1", None)) == (AWAY, "ray_1", "secret-1")


@pytest.mark.parametrize("conn_id", ["deleted", ""])
def test_no_connection_can_be_read(conn_id: str) -> None:
    """The job's cluster is asked without credentials, which some require none."""
    assert is_with(find_target(JobRef("http://recorded:8265", "a", "session_1"), conn_id, None)) == (
        "http://recorded:8265",
        conn_id,
        None,
    )


def test_record_without_an_address(connections: Connections) -> None:
    """Of an unreadable record only the id is left. The job is looked for where the task's connection leads."""
    own = connections.target("ray_1", AWAY)

    assert find_target(JobRef("", "a"), "", own) is own


def test_record_without_an_address_and_no_connection() -> None:
    """Without an address there is nothing to ask."""
    with pytest.raises(ValueError, match="The address of Ray job a is unknown: its connection cannot be read"):
        find_target(JobRef("", "a"), "deleted", None)


def test_missing_token_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token file that is missing for a moment is an outage, unless a new job is to be submitted."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", AWAY)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/such/file")

    assert Target.of_connection("ray_jobs_default").cluster.address == AWAY
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN_PATH"):
        Target.of_connection("ray_jobs_default", check_token_file=True)


def test_client(connections: Connections, head: Head) -> None:
    """The client of a target has its address and its credentials."""
    target = connections.target("ray_1", AWAY, password="secret-1").at(head.address)

    with target.client() as client, target.client(is_quiet=True) as quiet:
        assert {client.get_version().session_name, quiet.get_version().session_name} == {"session_1"}
    assert head.authorizations == ["Bearer secret-1"] * 2


def test_token_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, head: Head) -> None:
    """The token of a head on this machine is sent to that head, and not to the address of a recorded job."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("local-secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
    own = Target.of_connection("ray_jobs_default")
    target = find_target(JobRef("http://recorded:8265", "a", "session_2"), "ray_jobs_default", own)

    assert head.authorizations == ["Bearer local-secret"]
    assert target.cluster == Cluster("http://recorded:8265", dashboard_url="http://recorded:8265")
    assert own.at("http://localhost:9").cluster.access.current_token() == "local-secret"
    assert target.at(head.address).cluster.access == Access()
