"""The settings in the section ``[ray_jobs]`` of Airflow's configuration."""

from __future__ import annotations

import time
from configparser import InterpolationSyntaxError
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred, conf
from airflow.sdk.bases.decorator import XComArg
from stand_in_head import StandInHead
from test_operators import Store, context, defer, deferrable, fire, try_from
from test_sensors import context as sensor_context
from test_sensors import sensor

from airflow_provider_rayjobs import config, log_budget, triggers
from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.get_provider_info import get_provider_info
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.task.kill_switch import KillSwitch
from airflow_provider_rayjobs.triggers import RayJobTrigger

OPTIONS = get_provider_info()["config"][config.SECTION]["options"]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch):
    def set_all(**settings: str) -> None:
        for option, value in settings.items():
            monkeypatch.setenv(config.variable(option), value)

    return set_all


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)
    with StandInHead() as head:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
        yield head


def operator(**arguments: Any) -> RayJobSubmitOperator:
    return RayJobSubmitOperator(**{"task_id": "t", "entrypoint": "true"} | arguments)


def test_declared_defaults_are_those_of_the_code():
    """Airflow lists the defaults that the code uses without a setting."""
    settings = operator().settings()

    assert {name: option["default"] for name, option in OPTIONS.items() if option["default"]} == {
        "poll_interval": str(settings.poll_interval),
        "unreachable_timeout": str(settings.unreachable_timeout),
        "first_contact_timeout": str(settings.first_contact_timeout),
        "stop_on_kill": str(settings.stop_on_kill),
        "log_budget": str(log_budget.RATE),
    }
    assert (settings.poll_interval, settings.unreachable_timeout) == (follow.POLL_INTERVAL, follow.UNREACHABLE_TIMEOUT)


def test_settings_are_read_when_the_task_runs(configure):
    """A setting counts for an operator that was created before it was set, and for the metadata of its job."""
    task = operator()

    @ray_job
    def function() -> None: ...

    decorated: XComArg = function()
    configure(poll_interval="30", unreachable_timeout="1800", stop_on_kill="False")

    for each in (task, decorated.operator):
        settings = each.settings()
        assert (settings.poll_interval, settings.unreachable_timeout) == (30, 1800)
        assert settings.stop_on_kill is False
    assert task.new_submission(context(), "job-1").metadata["airflow_may_outlive_task"] == "true"


def test_arguments_take_precedence(configure):
    """An argument of an operator takes precedence, also if it equals the default."""
    configure(poll_interval="30", unreachable_timeout="1800", stop_on_kill="False")
    settings = operator(poll_interval=5.0, unreachable_timeout=timedelta(minutes=10), stop_on_kill="true").settings()

    assert (settings.poll_interval, settings.unreachable_timeout) == (5, 600)
    assert settings.stop_on_kill is True


def test_kill_before_the_arguments_are_read(head: StandInHead, configure):
    """``stop_on_kill`` of the configuration also counts for a kill switch that is set before the arguments are."""
    configure(stop_on_kill="False")
    task = deferrable()
    switch = task._kill_switch = KillSwitch()
    defer(task, try_from(0, Store()))

    assert switch.is_enabled is False


def test_sensor_polls_at_the_configured_interval(head: StandInHead, configure):
    """A sensor without an interval polls at the configured one, before and after a log flush."""
    head.add("job-1", "RUNNING")
    configure(poll_interval="30", unreachable_timeout="1800")
    waiting = sensor(submission_id="job-1", deferrable=True, fetch_logs="never", poke_interval=None)
    job = {"type": "SUBMISSION", "status": "RUNNING"}

    for wait in (
        lambda: waiting.execute(sensor_context()),
        lambda: waiting.execute_complete(sensor_context(), {"submission_id": "job-1", "job": job}),
    ):
        waiting.poke_interval = 5.0
        with pytest.raises(TaskDeferred) as deferred:
            wait()
        assert deferred.value.trigger.poll_interval == 30
        assert deferred.value.trigger.options.unreachable_timeout == 1800


def test_interval_of_a_sensor_takes_precedence(head: StandInHead, configure):
    """An interval of the sensor takes precedence, also if it equals the default."""
    head.add("job-1", "RUNNING")
    configure(poll_interval="30")

    with pytest.raises(TaskDeferred) as deferred:
        RayJobSensor(task_id="s", submission_id="job-1", deferrable=True, poke_interval=5).execute(sensor_context())
    assert deferred.value.trigger.poll_interval == 5


def test_triggers_share_the_configured_log_budget(head: StandInHead, configure, monkeypatch: pytest.MonkeyPatch):
    """``log_budget`` is the rate of all triggers of a triggerer."""
    monkeypatch.setattr(triggers, "_log_budget", log_budget.LogBudget())
    configure(log_budget="1000")
    head.add("job-1", "SUCCEEDED")

    assert fire(RayJobTrigger("job-1", logs=LogOptions().to_json()))["job"]["status"] == "SUCCEEDED"
    assert triggers._log_budget.rate == 1000


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("poll_interval", "often", "a number of seconds, 0 or more, not 'often'"),
        ("unreachable_timeout", "-1", "a number of seconds, 0 or more, not '-1'"),
        ("unreachable_timeout", "inf", "a number of seconds, 0 or more, not 'inf'"),
        ("stop_on_kill", "perhaps", "true or false, not 'perhaps'"),
    ],
)
def test_wrong_setting(configure, option: str, value: str, expected: str):
    """A wrong setting is an error that names section, option and environment variable."""
    configure(**{option: value})

    with pytest.raises(ValueError, match=rf"^\[ray_jobs\] {option} must be {expected}\. .*RAY_JOBS__{option.upper()}"):
        operator().settings()


def test_wrong_setting_while_a_task_is_deferred(head: StandInHead, configure, caplog: pytest.LogCaptureFixture):
    """A wrong setting ends no job that runs: the triggerer and the resumed task warn, and use the default."""
    given = try_from(time.time(), Store())
    trigger = defer(deferrable(fetch_logs="live", poll_interval=None), given)
    [job] = head.jobs.values()
    job |= {"status": "SUCCEEDED", "driver_node_id": "node-1", "end_time": job["start_time"] + 1}
    configure(log_budget="0", poll_interval="often", stop_on_kill="perhaps", unreachable_timeout="10m")

    event = fire(trigger)
    assert event["job"]["status"] == "SUCCEEDED"
    deferrable(fetch_logs="live", poll_interval=None).execute_complete(given, event)
    for option in ("log_budget", "poll_interval", "stop_on_kill", "unreachable_timeout"):
        assert f"[ray_jobs] {option} must be" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(InterpolationSyntaxError("poll_interval", "ray_jobs", "30%"), ValueError, id="percent sign"),
        pytest.param(OSError("no secrets backend"), OSError, id="secrets backend"),
    ],
)
def test_setting_that_cannot_be_read(error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch):
    """A setting that Airflow cannot read is no mistake if it may be readable again, and ends no job that runs."""

    def get(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(config, "conf", SimpleNamespace(get=get))
    with pytest.raises(kind):
        config.seconds("poll_interval", 5.0)
    with config.falling_back():
        assert config.seconds("poll_interval", 5.0) == 5.0


@pytest.mark.parametrize("value", ["True", "t", "1", "False", "F", "0"])
def test_flags_are_those_of_airflow(configure, value: str):
    """A flag is written as Airflow's own."""
    configure(stop_on_kill=value)

    assert config.flag("stop_on_kill", default=True) is conf.getboolean(config.SECTION, "stop_on_kill")


def test_empty_setting_is_none(configure):
    """An empty setting is the default."""
    configure(poll_interval=" ")

    assert operator().settings().poll_interval == follow.POLL_INTERVAL
