"""A proxy between Airflow and Ray that fails on demand. Each case has a proxy of its own."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# What the proxy may do to a request. "drop": Ray never gets the request. "cut": the client never gets the response.
# "half": the client gets half of the response's body. "delay": Ray gets the request some seconds later. "drip": the
# response takes some seconds, and arrives in small pieces. 401: the proxy responds with 401 and Ray never gets the
# request. Any other number: Ray handles the request, and the client gets this status instead of Ray's response.
Fault = str | int | None
# Seconds of "delay" and "drip", and the number of pieces.
_SLOW = 6.0
_PIECES = 60


class FaultProxy:
    """
    A proxy to one head, on a port of its own. It serves one request for each connection.

    :param add_event: adds a line to the timeline of the case.
    """

    def __init__(self, head: str, add_event: Callable[[str], None]) -> None:
        self.head = head
        self.add_event = add_event
        # chooses the fault of a request by its method, its path and the number of requests before it
        self.fault: Callable[[str, str, int], Fault] = lambda *_: None
        # called when Ray has responded to a submission, before the client gets the response
        self.on_submitted: Callable[[], Any] = lambda: None
        self._count = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.handle(self)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  (http.server's form)

            def log_message(self, *_: object) -> None:
                """Write nothing to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def drop_requests(self) -> None:
        """Drop every request from now on, as an unreachable head would."""
        self.add_event("the head is unreachable")
        self.fault = lambda *_: "drop"

    def forward_requests(self) -> None:
        """Forward every request again."""
        self.add_event("the head is reachable")
        self.fault = lambda *_: None

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Forward one request and its response, or apply the fault that the case chose."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            number = self._count
            self._count += 1
        is_submission = request.command == "POST" and request.path == "/api/jobs/"
        fault = self.fault(request.command, request.path, number)
        request.close_connection = True
        if fault in ("drop", 401):
            self.add_event(f"{request.command} {request.path}: {fault}")
            if fault == 401:
                self._respond(request, 401, b"Unauthorized: Missing authentication token", "text/plain")
            return
        if fault == "delay":
            time.sleep(_SLOW)
        try:
            status, content, content_type = self._forward(request, body)
        except OSError as error:
            self.add_event(f"{request.command} {request.path}: {error}")
            return
        if is_submission or request.path.endswith("/stop") or fault:
            self.add_event(f"{request.command} {request.path}: {status}{f', then {fault}' if fault else ''}")
        if is_submission:
            self.on_submitted()
        if fault == "cut":
            return
        if isinstance(fault, int):
            status, content, content_type = fault, b"<html>Bad Gateway</html>", "text/html"
        self._respond(request, status, content, content_type, fault)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection(urlsplit(self.head).netloc, timeout=60)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            connection.request(request.command, request.path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.read(), response.headers.get("Content-Type", "text/plain")
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def _respond(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, content_type: str, fault: Fault = None
    ) -> None:
        try:
            request.send_response(status)
            request.send_header("Content-Type", content_type)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            if fault == "half":
                request.wfile.write(body[: len(body) // 2])
            elif fault == "drip":
                size = len(body) // _PIECES + 1
                for start in range(0, len(body), size):
                    time.sleep(_SLOW / _PIECES)
                    request.wfile.write(body[start : start + size])
            else:
                request.wfile.write(body)
        except OSError:
            self.add_event("the client closed the connection before it got the response")

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
