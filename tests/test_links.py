"""The address behind the button, as Airflow asks for it when a process of a task has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.comms import GetXCom, XComResult

from airflow_provider_rayjobs.links import RayJobLink, push_link


class Supervisor:
    """Answers the request for the link, and counts the requests."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def send(self, msg: Any) -> Any:
        self.requests.append(msg)
        return XComResult(key="ray_job_link", value="http://head:8265/#/jobs/a")


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    supervisor = Supervisor()
    monkeypatch.setattr("airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


def instance(next_method: str | None = None, reschedules: int | None = 0) -> Any:
    given = SimpleNamespace(next_method=next_method, task_reschedule_count=reschedules)
    key = SimpleNamespace(task_id="a", dag_id="d", run_id="r", map_index=-1, xcom_push=lambda key, value: None)
    key._ti_context_from_server = given
    return key


def test_no_request_for_a_link_that_was_not_pushed(supervisor: Supervisor):
    """A task that fails before it pushes a link asks for none, as Airflow logs an error for an XCom that is missing."""
    assert RayJobLink().get_link(SimpleNamespace(), ti_key=instance()) == ""
    assert supervisor.requests == []


@pytest.mark.parametrize(
    ("is_pushed", "task_instance"),
    [
        pytest.param(True, instance(), id="pushed by this process"),
        pytest.param(False, instance("execute_complete"), id="resumed"),
        pytest.param(False, instance(reschedules=2), id="rescheduled"),
        pytest.param(False, SimpleNamespace(task_id="a", dag_id="d", run_id="r", map_index=-1), id="unknown"),
    ],
)
def test_link_that_may_have_been_pushed_is_read(supervisor: Supervisor, is_pushed: bool, task_instance: Any):
    """A link that this process or an earlier one of the try has pushed is read."""
    task = SimpleNamespace()
    if is_pushed:
        push_link(task, task_instance, "http://head:8265/#/jobs/a")

    assert RayJobLink().get_link(task, ti_key=task_instance) == "http://head:8265/#/jobs/a"
    assert [type(request) for request in supervisor.requests] == [GetXCom]
