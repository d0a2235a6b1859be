"""A local HTTP server that stands in for a head, whose jobs and restarts a test controls."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

DATE = "Fri, 02 Jan 2026 00:01:00 GMT"
# Unix milliseconds; one minute before DATE.
START = 1_767_312_000_000


class StandInHead:
    """
    A head whose jobs have the status that a test gives them. A stop ends a running job at once.

    :ivar jobs: the jobs by id, as Ray's JSON.
    :ivar requests: method and path of each request.
    :ivar authorizations: the header ``Authorization`` of each request.
    :ivar on_poll: called with the number of polls of jobs so far, before each of them is answered.
    :ivar is_busy: tells whether a GET of a path is answered with a 503.
    :ivar packages: the uploaded packages by name.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.authorizations: list[str | None] = []
        self.on_poll: Callable[[int], object] = lambda number: None
        self.is_busy: Callable[[str], bool] = lambda path: False
        self.packages: dict[str, bytes] = {}
        self.session = "session_1"
        self.log = b""
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.note()
                package = self.path.rpartition("/")[2] if self.path.startswith("/api/packages/") else None
                if head.is_busy(self.path):
                    self.answer(b"", 503)
                elif package is not None:
                    is_there = package in head.packages
                    self.answer(b"" if is_there else b"Package x does not exist", 200 if is_there else 404)
                elif self.path == "/api/version":
                    self.answer({"version": "4", "ray_version": "2.60.0", "session_name": head.session})
                elif self.path.startswith("/api/v0/logs/file"):
                    self.answer(head.log)
                elif self.path == "/api/jobs/":
                    head.on_poll(head.polls)
                    self.answer(list(head.jobs.values()))
                else:
                    head.on_poll(head.polls)
                    job = head.jobs.get(self.path.rpartition("/")[2])
                    self.answer(job or b"Job does not exist", 200 if job else 404)

            def do_POST(self) -> None:
                self.note()
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                if self.path.endswith("/stop"):
                    head.stop(self.path.split("/")[-2])
                    self.answer({"stopped": True})
                else:
                    given = {name: body[name] for name in ("metadata", "runtime_env") if name in body}
                    head.add(body["submission_id"], "RUNNING", **given)
                    self.answer({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

            def do_PUT(self) -> None:
                self.note()
                head.packages[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(b"")

            def note(self) -> None:
                head.requests.append(f"{self.command} {self.path}")
                head.authorizations.append(self.headers.get("Authorization"))

            def answer(self, content: Any, code: int = 200) -> None:
                is_text = isinstance(content, bytes)
                body = content if is_text else json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if is_text else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return DATE

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def polls(self) -> int:
        return sum(request.startswith("GET /api/jobs/") for request in self.requests)

    @property
    def connection(self) -> str:
        """The connection to this head, as JSON. It has a token."""
        return json.dumps({"conn_type": "ray_jobs", "host": self.address, "password": "marked-token"})

    def add(self, job: str, status: str, **fields: Any) -> None:
        """Add a job, or replace the one with this id."""
        given = {"type": "SUBMISSION", "submission_id": job, "status": status, "start_time": START, "metadata": {}}
        self.jobs[job] = given | fields

    def restart(self) -> None:
        """Lose all jobs, as a head does at its restart."""
        self.jobs.clear()
        self.session = "session_2"

    def stop(self, job: str) -> None:
        if self.jobs[job]["status"] == "RUNNING":
            self.jobs[job]["status"] = "STOPPED"
