"""What a connection says about a cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_rayjobs.connection import Cluster, read_connection
from airflow_provider_rayjobs.hooks import RayJobsHook


def connection(**fields: Any) -> Connection:
    extra = fields.pop("extra", None)
    return Connection(conn_id="mine", conn_type="ray_jobs", extra=json.dumps(extra) if extra else None, **fields)


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        pytest.param({"host": "head"}, "http://head:8265", id="a name alone"),
        pytest.param({"host": "head", "port": 80}, "http://head:80", id="port"),
        pytest.param({"host": "head", "schema": "https"}, "https://head", id="https has the port that browsers know"),
        pytest.param({"host": "head", "schema": "https", "port": 8443}, "https://head:8443", id="https and port"),
        pytest.param({"host": "https://ray.example.com/team-a/"}, "https://ray.example.com/team-a", id="whole address"),
        pytest.param({"host": "http://head:1234"}, "http://head:1234", id="port in the host"),
        pytest.param({"host": "head", "extra": {"base_path": "/ray/"}}, "http://head:8265/ray", id="base path"),
        pytest.param({"host": "::1", "port": 8265}, None, id="an IPv6 address needs brackets"),
        pytest.param({"host": "head", "schema": "HTTPS"}, "https://head", id="schema in capitals"),
        pytest.param({"host": "[::1]"}, "http://[::1]:8265", id="IPv6"),
        pytest.param(
            {"host": "head", "extra": {"base_path": "", "dashboard_url": None}}, "http://head:8265", id="empty"
        ),
    ],
)
def test_a_connections_fields_make_an_address(fields: dict[str, Any], address: str | None):
    """Host, port, schema and base path make the address; a whole address in the host field does as well."""
    if address is None:
        with pytest.raises(ValueError, match="connection mine: "):
            read_connection(connection(**fields))
    else:
        assert read_connection(connection(**fields)) == Cluster(address, dashboard_url=address)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({}, "host is empty", id="no host"),
        pytest.param(
            {"host": "https://head", "schema": "http"},
            "host says schema https, the field for it says http",
            id="two schemas",
        ),
        pytest.param({"host": "head", "schema": "ray"}, "not the address of a Ray dashboard", id="Ray Client's schema"),
        pytest.param({"host": "ray://head:10001"}, "not the address of a Ray dashboard", id="Ray Client's address"),
        pytest.param({"host": "http://me:secret@head"}, "holds more than an address", id="credentials in the host"),
        pytest.param({"host": "head:1", "port": 2}, "host says port 1, the field for it says 2", id="two ports"),
        pytest.param({"host": "head/a", "extra": {"base_path": "b"}}, "host says base path a", id="two paths"),
        pytest.param({"host": "head..example.com"}, "is no address", id="no host's name"),
        pytest.param({"host": "head", "extra": {"base_pth": "x"}}, "nobody reads the extra base_pth", id="unknown"),
        pytest.param({"host": "head", "extra": {"base_path": 1}}, "extra base_path must be text, not int", id="text"),
        pytest.param({"host": "head:nine"}, "Port could not be cast", id="port is no number"),
        pytest.param({"host": "head", "extra": {"dashboard_url": "x"}}, "'x' is not the address", id="dashboard_url"),
        pytest.param(
            {"host": "head", "extra": {"agent_log_access": "si"}}, "agent_log_access is one of no", id="agent"
        ),
    ],
)
def test_a_connection_that_cannot_be_used_is_named(fields: dict[str, Any], message: str):
    """The error names the connection and the field, and never a secret."""
    with pytest.raises(ValueError, match="connection mine: ") as caught:
        read_connection(connection(**fields))

    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_password_is_the_token_and_in_no_repr():
    """The token travels in the cluster's settings, and shows nowhere."""
    cluster = read_connection(connection(host="head", password="marked-secret"))

    assert cluster.token == "marked-secret"
    assert "marked-secret" not in repr(cluster) + repr(RayJobsHook().client_of(cluster))


def test_the_dashboard_may_have_another_address_for_browsers():
    """The link to a job uses the address that browsers reach."""
    cluster = read_connection(connection(host="10.0.0.5", extra={"dashboard_url": "https://ray.example.com/a/"}))

    assert cluster.job_url("job-1") == "https://ray.example.com/a/#/jobs/job-1"


@pytest.mark.parametrize(
    ("given", "may_ask"), [(None, False), ("no", False), ("yes", True), ("with_credentials", True)]
)
def test_agents_are_asked_only_where_the_connection_says_so(given: str | None, may_ask: bool):
    """Off by default; their addresses come from the cluster."""
    extra = {"agent_log_access": given} if given else None

    assert read_connection(connection(host="head", extra=extra)).may_ask_agents is may_ask
