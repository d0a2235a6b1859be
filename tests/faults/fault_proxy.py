"""A proxy between Airflow and Ray that fails on demand; every case has a lane of its own through it."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# What a lane may do to a request. "drop" loses it, "cut" loses its answer, a number answers with that status after Ray
# has done what was asked, or, for 401, before it was.
Fault = str | int | None


class Lane:
    """
    One way to a head: a port of its own, one request for each connection.

    :param say: takes what happens, for the timeline.
    """

    def __init__(self, head: str, say: Callable[[str], None]) -> None:
        self.head = head
        self.say = say
        # chooses what becomes of a request, by method, path and how many there were before
        self.fault: Callable[[str, str, int], Fault] = lambda method, path, number: None
        # called when Ray has answered a submission, before anybody else hears of it
        self.on_submitted: Callable[[], Any] = lambda: None
        self._count = 0
        self._lock = threading.Lock()
        lane = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lane.pass_on(self)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  (http.server's form)

            def log_message(self, *_: object) -> None:
                """Leave standard error alone."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def be_away(self, seconds: float) -> None:
        """Drop every request for a while."""
        until = time.monotonic() + seconds
        self.say(f"the head is away for {seconds:g} s")
        self.fault = lambda method, path, number: "drop" if time.monotonic() < until else None

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        """Forward one request and its answer, or do to them what the case asks for."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            number = self._count
            self._count += 1
        is_submission = request.command == "POST" and request.path == "/api/jobs/"
        fault = self.fault(request.command, request.path, number)
        request.close_connection = True
        if fault in ("drop", 401):
            self.say(f"{request.command} {request.path}: {fault}")
            if fault == 401:
                self._answer(request, 401, b"Unauthorized: Missing authentication token", "text/plain")
            return
        try:
            status, answer, kind = self._ask(request, body)
        except OSError as error:
            self.say(f"{request.command} {request.path}: {error}")
            return
        if is_submission or request.path.endswith("/stop") or fault:
            self.say(f"{request.command} {request.path}: {status}{f', then {fault}' if fault else ''}")
        if is_submission:
            self.on_submitted()
        if fault == "cut":
            return
        if isinstance(fault, int):
            status, answer, kind = fault, b"<html>Bad Gateway</html>", "text/html"
        self._answer(request, status, answer, kind)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection(urlsplit(self.head).netloc, timeout=60)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
            connection.request(request.command, request.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers.get("Content-Type", "text/plain")
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def _answer(self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
        try:
            request.send_response(status)
            request.send_header("Content-Type", kind)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
        except OSError:
            self.say("whoever asked has gone")

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
