"""Servers that receive metrics and spans: statsd over UDP, and OTLP over HTTP."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from airflow_provider_rayjobs import metrics


class StatsdServer:
    """Receives the values of all metrics by name and kind, each with its tags."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(("127.0.0.1", 0))
        self.lines: list[str] = []
        self.port = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                self.lines += self._socket.recv(65536).decode().splitlines()
            except OSError:
                return

    def values(self, metric: metrics.Metric) -> list[tuple[dict[str, str], float]]:
        kind = {"counter": "c", "timer": "ms", "gauge": "g"}[metric.kind]
        found = []
        for line in list(self.lines):
            name, _, rest = line.rpartition(":")
            name, *tags = name.removeprefix("airflow.").split(",")
            value, sent_kind = rest.split("|")[:2]
            if name == metric.name:
                assert sent_kind == kind, line
                found.append((dict(tag.split("=") for tag in tags), float(value)))
        return found

    def totals(self, metric: metrics.Metric, *tags: str) -> dict[Any, float]:
        """The sum of a metric's values by one tag or several."""
        sums: dict[Any, float] = defaultdict(float)
        for given, value in self.values(metric):
            sums[given[tags[0]] if len(tags) == 1 else tuple(given[tag] for tag in tags)] += value
        return dict(sums)


class OtlpServer:
    """Receives spans from all processes."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                server.spans += [
                    span
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def parents_of(self, name: str) -> set[str]:
        """The names of the spans under which spans with a name are."""
        names = {span.span_id: span.name for span in self.spans}
        return {names[span.parent_span_id] for span in self.named(name) if span.parent_span_id in names}
