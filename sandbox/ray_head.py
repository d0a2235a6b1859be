"""A local Ray head: free ports, a temporary directory, and nothing left of it afterwards."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from sandbox.processes import Program, clean_environment, free_port


class RayHead:
    """
    A Ray cluster of one node on this machine; a context manager.

    :param num_cpus: what the node claims to have. A job's driver itself needs none.
    :param port: of the dashboard and the Jobs API; a free one when not given.
    :param environment: variables for the head, e.g. ``RAY_AUTH_MODE``.
    """

    def __init__(self, num_cpus: int = 4, port: int | None = None, environment: dict[str, str] | None = None) -> None:
        self.num_cpus = num_cpus
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = environment or {}
        # Not below TMPDIR, which may be long: Ray puts sockets there, whose paths have 107 characters at most.
        self.directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.gcs_port = free_port()
        self._program: Program | None = None

    @property
    def ray_address(self) -> str:
        """Where drivers that do without the Jobs API connect (``ray.init(address)``)."""
        return f"127.0.0.1:{self.gcs_port}"

    def start(self, timeout: float = 120.0) -> Self:
        """Start the head and wait until its Jobs API answers."""
        # Ray would take a worker's port range that may hold ours; 0 lets the kernel choose.
        ports = {
            "--port": self.gcs_port, "--dashboard-port": self.port, "--ray-client-server-port": free_port(),
            "--min-worker-port": 0, "--max-worker-port": 0, "--dashboard-agent-listen-port": 0,
            "--dashboard-agent-grpc-port": 0, "--metrics-export-port": 0,
        }  # fmt: skip
        self._program = Program(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
                "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
                f"--num-cpus={self.num_cpus}", "--object-store-memory=200000000", f"--temp-dir={self.directory}",
                *(f"{option}={port}" for option, port in ports.items()),
            ],
            clean_environment("RAY_", "AIRFLOW")
            | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PATH": _path_of_this_python()}
            | self.environment,
            self.directory / "ray-start.log",
        )  # fmt: skip
        self._program.wait_until(self._answers, "the Ray head", timeout)
        return self

    def stop(self) -> None:
        """Stop the head with all of its jobs; the directory stays until :meth:`close`."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    def close(self) -> None:
        """Stop the head and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            # the list needs the head's job agent, which comes up last
            with urllib.request.urlopen(f"{self.address}/api/jobs/", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401  # token mode: up, and asking who we are
        except OSError:
            return False


def connection_to(head: RayHead) -> dict[str, dict[str, object]]:
    """Return the Airflow connection that leads to a head."""
    parts = urlsplit(head.address)
    return {"ray_jobs_default": {"conn_type": "ray_jobs", "host": parts.hostname, "port": parts.port}}


def _path_of_this_python() -> str:
    """Return a PATH on which a job's ``python`` is the one that has Ray."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
