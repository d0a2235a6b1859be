"""Many processes submit jobs to one overloaded head at the same moment."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import pytest
from stand_in_head import ServerThread

from airflow_provider_rayjobs.jobs import RayJobsClient

PROCESSES, SUBMISSIONS = 10, 50
# Requests that the head serves at the same time. It refuses the others.
CAPACITY = 8
RETRY_AFTER = 1


class Server(ThreadingHTTPServer):
    request_queue_size = PROCESSES * SUBMISSIONS
    daemon_threads = True


class OverloadedHead(ServerThread):
    """A head that refuses what it cannot serve, and loses every tenth answer."""

    def __init__(self) -> None:
        self.metadata: dict[str, dict[str, str]] = {}
        self.creations: Counter[str] = Counter()
        self.refusals: Counter[int] = Counter()
        self.lost_answers = 0
        # when each id was refused, and asked for again: seconds between the two
        self.waits: dict[str, list[float]] = defaultdict(list)
        self._refused_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._active = 0
        self._random = random.Random(7)  # noqa: S311  (no secret)
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                if name == "version":
                    self.answer(200, {"version": "4", "ray_version": "2.60.0", "session_name": "session_1"})
                else:
                    job = {"type": "SUBMISSION", "submission_id": name, "status": "PENDING"}
                    self.answer(200, job | {"metadata": head.metadata[name]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = head.begin(body["submission_id"])
                if status:
                    self.answer(status, "try again later", {"Retry-After": str(RETRY_AFTER)})
                    return
                time.sleep(0.02)
                head.end(self, body)

            def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
                is_text = isinstance(content, str)
                data = content.encode() if is_text else json.dumps(content).encode()
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Type", "text/plain" if is_text else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{server.server_address[1]}"

    def begin(self, name: str) -> int:
        """Return the status with which a submission is refused; 0 if it is served."""
        with self._lock:
            if (refused_at := self._refused_at.pop(name, None)) is not None:
                self.waits[name].append(time.monotonic() - refused_at)
            if self._active < CAPACITY:
                self._active += 1
                return 0
            status = self._random.choice((429, 503))
            self.refusals[status] += 1
            self._refused_at[name] = time.monotonic()
            return status

    def end(self, handler: BaseHTTPRequestHandler, body: dict[str, object]) -> None:
        name = str(body["submission_id"])
        with self._lock:
            self._active -= 1
            is_new = name not in self.metadata
            if is_new:
                self.metadata[name] = body["metadata"]
                self.creations[name] += 1
            if is_lost := self._random.random() < 0.1:
                self.lost_answers += 1
        if is_lost:
            handler.close_connection = True
        elif is_new:
            handler.answer(200, {"submission_id": name, "job_id": name})
        else:
            error = f"ValueError: Job with submission_id {name} already exists. Please use a different submission_id."
            handler.answer(500, f"Traceback (most recent call last):\n{error}")


def submit_many(address: str, process: int) -> list[str]:
    """Submit from one process, each job with a client of its own, as tasks do."""

    def submit(number: int) -> str:
        with RayJobsClient(address, retry_timeout=300) as client:
            return client.submit_job("true", submission_id=f"job-{process}-{number}")

    with ThreadPoolExecutor(SUBMISSIONS) as threads:
        return list(threads.map(submit, range(SUBMISSIONS)))


@pytest.mark.timeout(600)
def test_burst_of_submissions():
    """No submission is lost or doubled, and none comes back before ``Retry-After`` is over."""
    with OverloadedHead() as head, ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as processes:
        parts = processes.map(submit_many, [head.address] * PROCESSES, range(PROCESSES))
        submitted = [job for part in parts for job in part]

    assert len(submitted) == len(set(submitted)) == PROCESSES * SUBMISSIONS
    assert head.creations == Counter(submitted)
    assert head.refusals[429] > 0
    assert head.refusals[503] > 0
    assert head.lost_answers > 0
    assert min(min(waits) for waits in head.waits.values()) >= RETRY_AFTER
