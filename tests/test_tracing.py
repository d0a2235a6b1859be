"""Spans and trace context, with OpenTelemetry's SDK and an exporter in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_operators import Store, defer, deferrable, fire, try_from

from airflow_provider_rayjobs import tracing
from airflow_provider_rayjobs.exceptions import RayJobEntrypointError
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.task.attempts import HAS_STORE
from airflow_provider_rayjobs.testing import FakeRay, Plan, Reply
from airflow_provider_rayjobs.triggers import RayJobTrigger

EXPORTER = InMemorySpanExporter()
TRACER = trace.get_tracer("airflow")


@pytest.fixture(scope="module", autouse=True)
def provider() -> None:
    """A process has one provider."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    EXPORTER.clear()
    monkeypatch.setenv("AIRFLOW__TRACES__OTEL_ON", "True")
    with FakeRay() as head:
        yield head


def spans() -> dict[str, ReadableSpan]:
    return {span.name: span for span in EXPORTER.get_finished_spans()}


def traceparent_of(span: Any) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def environment_of(head: FakeRay) -> dict[str, str]:
    [job] = head.jobs
    return job.runtime_env["env_vars"]


def operator(**arguments: Any) -> RayJobSubmitOperator:
    return RayJobSubmitOperator(**{"task_id": "t", "entrypoint": "true", "poll_interval": 0.2} | arguments)


def test_spans_of_a_task_on_a_worker(head: FakeRay):
    """Submit and wait are spans under that of the task, a log read is one under the wait; the driver continues."""
    with TRACER.start_as_current_span("worker.t") as task:
        job = operator().execute(try_from(0, Store()))

    found = spans()
    submit, wait, read = (found[f"ray_jobs.{name}"] for name in ("submit", "wait", "read_log"))
    assert submit.parent == wait.parent == task.get_span_context()
    assert read.parent == wait.context
    for span in (submit, wait):
        assert span.attributes["ray.submission_id"] == job
        assert span.attributes["ray.address"] == head.address
    assert wait.attributes["ray.job.status"] == "SUCCEEDED"
    assert environment_of(head)["TRACEPARENT"] == traceparent_of(submit)


def test_error_in_a_span(head: FakeRay):
    """A span of an error names its class, and not its text, which may have secrets."""
    with (
        TRACER.start_as_current_span("worker.t"),
        pytest.raises(ValueError, match="a secret"),
        tracing.span("submit"),
    ):
        raise ValueError("a secret")

    submit = spans()["ray_jobs.submit"]
    assert (submit.status.status_code, submit.status.description) == (trace.StatusCode.ERROR, "ValueError")
    assert not submit.events


def test_spans_of_a_deferred_task(head: FakeRay):
    """The wait is a span under that of the trigger, and the worker that resumes the task reads the log in one."""
    with TRACER.start_as_current_span("worker.t") as first:
        trigger = defer(deferrable(fetch_logs="on_completion"), try_from(0, Store()))
    assert spans()["ray_jobs.submit"].parent == first.get_span_context()

    with TRACER.start_as_current_span("trigger.t") as parent:
        event = fire(trigger)
    wait = spans()["ray_jobs.wait"]
    assert wait.parent == parent.get_span_context()
    assert wait.attributes["ray.job.status"] == "SUCCEEDED"

    with TRACER.start_as_current_span("worker.t") as resumed:
        deferrable(fetch_logs="on_completion").execute_complete(try_from(0, Store()), event)
    assert spans()["ray_jobs.read_log"].parent == resumed.get_span_context()


def test_log_read_of_a_trigger(head: FakeRay):
    """The reads of a trigger are spans under its wait."""
    job = head.submit("job-1", Plan(log="one", runs=math.inf))
    head.on_request = lambda method, path: head.stop(job) if path.startswith("/api/v0/logs") else None
    with TRACER.start_as_current_span("trigger.t"):
        fire(RayJobTrigger("job-1", poll_interval=0.2, logs=LogOptions().to_json()))

    assert spans()["ray_jobs.read_log"].parent == spans()["ray_jobs.wait"].context


@pytest.mark.skipif(not HAS_STORE, reason="a retry follows the job of the last try since Airflow 3.3")
def test_retry_links_to_the_span_of_the_first_try(head: FakeRay):
    """A retry that follows a job links its span to that of the try that submitted the job."""
    head.default_plan = Plan(runs=math.inf)
    store = Store()
    with TRACER.start_as_current_span("worker.t") as first:
        defer(deferrable(), try_from(0, store))
    EXPORTER.clear()
    with TRACER.start_as_current_span("worker.t") as retry:
        defer(deferrable(), try_from(0, store, try_number=3))

    assert store["ray_job"]["traceparent"] == traceparent_of(first)
    [link] = retry.links
    linked, submitted = link.context, first.get_span_context()
    assert (linked.trace_id, linked.span_id) == (submitted.trace_id, submitted.span_id)
    assert "ray_jobs.submit" not in spans()


def test_error_of_a_span(head: FakeRay):
    """A log read that fails has its error; the end of a failed job is no error of the wait."""
    head.default_plan = Plan(exit_code=3)
    busy = iter([Reply(503)])
    head.on_request = lambda method, path: next(busy, None) if path.startswith("/api/v0/logs") else None
    with TRACER.start_as_current_span("worker.t"), pytest.raises(RayJobEntrypointError):
        operator().execute(try_from(0, Store()))

    first, second = (span for span in EXPORTER.get_finished_spans() if span.name == "ray_jobs.read_log")
    assert (first.status.status_code, second.status.status_code) == (trace.StatusCode.ERROR, trace.StatusCode.UNSET)
    assert (first.status.description, first.events) == ("RayApiBusyError", ())
    assert spans()["ray_jobs.wait"].attributes["ray.job.status"] == "FAILED"
    assert spans()["ray_jobs.wait"].status.status_code is trace.StatusCode.UNSET


def test_variable_of_the_user_takes_precedence(head: FakeRay):
    """A ``TRACEPARENT`` in ``env_vars`` is left as it is."""
    with TRACER.start_as_current_span("worker.t"):
        operator(runtime_env={"env_vars": {"TRACEPARENT": "mine"}}).execute(try_from(0, Store()))

    assert environment_of(head)["TRACEPARENT"] == "mine"


@pytest.mark.parametrize("is_on", [True, False])
def test_without_tracing(head: FakeRay, monkeypatch: pytest.MonkeyPatch, is_on: bool):
    """Without a span of the task, or with tracing off, there are no spans, no variable and no stored context."""
    store = Store()
    if is_on:
        operator().execute(try_from(0, store))
    else:
        monkeypatch.setenv("AIRFLOW__TRACES__OTEL_ON", "False")
        with TRACER.start_as_current_span("worker.t"):
            operator().execute(try_from(0, store))

    assert not [name for name in spans() if name.startswith("ray_jobs.")]
    assert "TRACEPARENT" not in environment_of(head)
    assert not HAS_STORE or store["ray_job"]["traceparent"] == ""
