"""
Spans of submissions, waits and log reads under the span of the task, if Airflow's tracing is on.

Airflow creates the span of the task (3.2 and later). OpenTelemetry is imported only if ``[traces] otel_on`` is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import conf

# Adds an attribute to a span.
Note = Callable[[str, str], object]

# The variable in which OpenTelemetry expects the context of a parent process, in W3C's format.
VARIABLE = "TRACEPARENT"


def is_on() -> bool:
    """Tell whether Airflow's tracing is on."""
    return bool(conf.getboolean("traces", "otel_on", fallback=False))


@contextmanager
def span(name: str, **attributes: str) -> Iterator[Note]:
    """Create a span ``ray_jobs.NAME`` under the current one, and yield a function that adds an attribute to it."""
    if not is_on():
        yield lambda *_: None
        return
    from opentelemetry import trace  # noqa: PLC0415

    if not trace.get_current_span().get_span_context().is_valid:  # no task runs here, or Airflow is older than 3.2
        yield lambda *_: None
        return
    given = {f"ray.{key}": value for key, value in attributes.items()}
    tracer = trace.get_tracer(__name__)
    # the text of an exception may have secrets, and nothing masks a span
    with tracer.start_as_current_span(
        f"ray_jobs.{name}",
        kind=trace.SpanKind.CLIENT,
        attributes=given,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield lambda key, value: current.set_attribute(f"ray.{key}", value)
        except Exception as error:
            current.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


def traceparent() -> str:
    """Return the context of the current span for another process; "" if tracing is off."""
    if not is_on():
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def link_to(given: str) -> None:
    """Link the current span to that of an earlier try, given as its :func:`traceparent`."""
    if not given or not is_on():
        return
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    earlier = trace.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": given}))
    trace.get_current_span().add_link(earlier.get_span_context())
