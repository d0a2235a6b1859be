"""A program whose span is under the span of its task."""

# START traced
import os

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)

carrier = {"traceparent": os.environ["TRACEPARENT"]}
parent = TraceContextTextMapPropagator().extract(carrier)
with trace.get_tracer("training").start_as_current_span("train", context=parent):
    print("training")
# the span is sent before the program ends
provider.shutdown()
# END traced
