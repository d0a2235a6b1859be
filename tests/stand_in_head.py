"""Local HTTP servers that stand in for a head. ``FakeRay`` of the package does so without a socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from types import TracebackType
from typing import Any, Self

from airflow_provider_rayjobs.testing import Reply

DATE = "Fri, 02 Jan 2026 00:01:00 GMT"
# Unix milliseconds; one minute before DATE.
START = 1_767_312_000_000


class ServerThread:
    """Lets a server run in a thread while it is entered."""

    _server: BaseServer

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class HttpHead(ServerThread):
    """
    A server whose answers a subclass gives.

    :cvar date: the header ``Date`` of each answer; ``None`` for the time.
    :ivar authorizations: the header ``Authorization`` of each request.
    """

    date: str | None = None

    def __init__(self) -> None:
        self.authorizations: list[str | None] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                head.authorizations.append(self.headers.get("Authorization"))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = head.answer(self.command, self.path, body)
                if reply is not None:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", reply.content_type)
                    self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    with suppress(OSError):  # the client did not wait
                        self.wfile.write(reply.body)

            do_PUT = do_POST = do_GET  # noqa: N815  (names of http.server)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return head.date or super().date_time_string(timestamp)

            def log_message(self, *_: object) -> None:
                pass

        server = self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{server.server_address[1]}"

    def answer(self, method: str, path: str, body: bytes) -> Reply | None:
        """Return the answer to a request; ``None`` hangs up."""
        raise NotImplementedError


class StandInHead(HttpHead):
    """
    A head whose jobs have the status that a test gives them. A stop ends a running job at once.

    :ivar jobs: the jobs by id, as Ray's JSON.
    :ivar requests: method and path of each request.
    :ivar on_poll: called with the number of polls of jobs so far, before each of them is answered.
    :ivar is_busy: tells whether a GET of a path is answered with a 503.
    :ivar packages: the uploaded packages by name.
    """

    date = DATE

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.on_poll: Callable[[int], object] = lambda number: None
        self.is_busy: Callable[[str], bool] = lambda path: False
        self.packages: dict[str, bytes] = {}
        self.session = "session_1"
        self.log = b""

    def answer(self, method: str, path: str, body: bytes) -> Reply:
        self.requests.append(f"{method} {path}")
        name = path.rpartition("/")[2]
        if method == "PUT":
            self.packages[name] = body
            return Reply(200)
        if method == "POST" and name == "stop":
            self.stop(path.split("/")[-2])
            return Reply.json({"stopped": True})
        if method == "POST":
            given = json.loads(body)
            job = given["submission_id"]
            self.add(job, "RUNNING", **{key: given[key] for key in ("metadata", "runtime_env") if key in given})
            return Reply.json({"job_id": job, "submission_id": job})
        if self.is_busy(path):
            return Reply(503)
        if path.startswith("/api/packages/"):
            return Reply(200) if name in self.packages else Reply(404, b"Package x does not exist")
        if path == "/api/version":
            return Reply.json({"version": "4", "ray_version": "2.60.0", "session_name": self.session})
        if path.startswith("/api/v0/logs/file"):
            return Reply(200, self.log)
        self.on_poll(self.polls)
        if path == "/api/jobs/":
            return Reply.json([*self.jobs.values()])
        return Reply.json(self.jobs[name]) if name in self.jobs else Reply(404, b"Job does not exist")

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
