"""
Measure the CPU time of a try with metrics, traces and lineage off, and with everything on.

Each round runs a job that ends at once, against a stand-in for a head in another process: without the calls of
metrics, traces and lineage, with the calls but everything off, and with statsd, OpenTelemetry and OpenLineage on. The
results are medians, of the times and of their differences. Targets: off, at most 1 ms for each try; on, at most 5 ms.
"""

from __future__ import annotations

import logging
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import structlog
from airflow.providers.openlineage import conf as openlineage
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics.stats_utils import get_stats_factory
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from airflow_provider_rayjobs import lineage, metrics, tracing
from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from benchmarks.function_cost import new_context
from benchmarks.results import Result, Target

ROUNDS = 100
OFF_LIMIT, ON_LIMIT = 1.0, 5.0


def measure() -> list[Result]:
    """Run the tries."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    variants = (_absent, _off, _on)
    with _head(), _backends():
        rounds = [[_cpu_seconds(variant) for variant in variants] for _ in range(ROUNDS + 5)][5:]
    absent, off, on = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
    more_off, more_on = (1000 * statistics.median(each[column] - each[0] for each in rounds) for column in (1, 2))
    return [
        Result("CPU time of a try, everything off, vs no calls", off, "ms", absent),
        Result("CPU time of a try, everything on, vs everything off", on, "ms", off),
        Result("additional CPU time of a try, everything off", more_off, "ms", target=Target("value", "<=", OFF_LIMIT)),
        Result("additional CPU time of a try, everything on", more_on, "ms", target=Target("value", "<=", ON_LIMIT)),
    ]


class _NoMeter:
    is_on = False

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def send(self, *_: Any, **__: Any) -> None:
        pass


@contextmanager
def _absent() -> Iterator[None]:
    with (
        mock.patch.object(metrics, "Meter", _NoMeter),
        mock.patch.object(tracing, "is_on", return_value=False),
        mock.patch.object(lineage, "parent_variables", return_value={}),
    ):
        yield


@contextmanager
def _off() -> Iterator[None]:
    yield


@contextmanager
def _on() -> Iterator[None]:
    settings = {"AIRFLOW__METRICS__STATSD_ON": "True", "AIRFLOW__TRACES__OTEL_ON": "True"}
    with (
        mock.patch.dict(os.environ, settings),
        mock.patch.object(openlineage, "is_disabled", return_value=False),
        trace.get_tracer("airflow").start_as_current_span("worker.task"),
    ):
        yield


def _cpu_seconds(variant: Callable[[], Any]) -> float:
    with variant():
        operator: Any = RayJobSubmitOperator(task_id="task", entrypoint="true")
        context = new_context()
        context["dag_run"].conf, context["ti"].get_template_context = None, lambda: context
        began = time.process_time()
        operator.execute(context)
        return time.process_time() - began


@contextmanager
def _head() -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.stand_in_head"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("The stand-in head has no pipes.")
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        with mock.patch.dict(os.environ, {"RAY_API_SERVER_ADDRESS": address}):
            yield
        process.stdin.close()


@contextmanager
def _backends() -> Iterator[None]:
    """Configure a statsd server that only receives, and an exporter of spans that only stores them."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        settings = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(server.getsockname()[1]),
        }
        with mock.patch.dict(os.environ, settings):
            stats.initialize(factory=get_stats_factory(), export_legacy_names=True)
            stats.incr("ti.start", tags={"dag_id": "benchmark", "task_id": "task"})  # as Airflow does before each task
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
        trace.set_tracer_provider(provider)
        yield
        provider.shutdown()
