"""A try whose head restarts, and loses its packages, while the job is submitted; against a scripted head."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_execution import Store, context

from airflow_provider_rayjobs.operators import RayJobSubmitOperator


class Head:
    """A head that restarts without its packages at the first submission, which it does not answer."""

    def __init__(self) -> None:
        self.packages: set[str] = set()
        self.requests: list[str] = []
        # each submission's working_dir, and whether the head has the package
        self.submitted: list[tuple[str, bool]] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/api/version":
                    self.answer({"version": "4", "ray_version": "2.60.0", "session_name": "session_1"})
                    return
                head.requests.append(self.command)
                name = self.path.rpartition("/")[2]
                if self.command == "PUT":
                    head.packages.add(name)
                    self.answer("")
                elif self.command == "GET":
                    is_known = name in head.packages
                    self.answer("" if is_known else f"Package gcs://{name} does not exist", 200 if is_known else 404)
                elif head.requests.count("POST") == 1:
                    head.packages.clear()
                    self.close_connection = True
                else:
                    given = json.loads(body)
                    uri = given["runtime_env"]["working_dir"]
                    head.submitted.append((uri, uri.removeprefix("gcs://") in head.packages))
                    self.answer({"submission_id": given["submission_id"]})

            do_PUT = do_POST = do_GET  # noqa: N815  (names of http.server)

            def answer(self, content: Any, code: int = 200) -> None:
                is_text = isinstance(content, str)
                body = (content if is_text else json.dumps(content)).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if is_text else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    head = Head()
    threading.Thread(target=head.server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
    yield head
    head.server.shutdown()
    head.server.server_close()


def test_repeated_submission_has_its_package(head: Head, tmp_path: Path):
    """A try that repeats its submission uploads the package again if the cluster has lost it."""
    (tmp_path / "main.py").write_text("print(1)\n")
    operator = RayJobSubmitOperator(
        task_id="train",
        entrypoint="python main.py",
        runtime_env={"working_dir": str(tmp_path)},
        wait_for_completion=False,
    )

    operator.execute(context(Store()))

    assert head.requests == ["GET", "PUT", "GET", "POST", "GET", "PUT", "GET", "POST"]
    [(uri, has_package)] = head.submitted
    assert uri.startswith("gcs://_ray_pkg_")
    assert has_package
