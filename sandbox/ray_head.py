"""A local Ray head on free ports, in a temporary directory that is removed afterwards."""

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

from sandbox.processes import Program, Startable, clean_environment, free_port


class RayHead(Startable):
    """
    A Ray cluster of one node on this machine. Use it as a context manager.

    Its Ray is that of this Python's environment, or that of the Python in the variable ``RAY_HEAD_PYTHON``.

    :param num_cpus: the CPUs that the node advertises. A driver needs none by default.
    :param num_gpus: the GPUs that the node advertises, whether the machine has them or not.
    :param port: the port of the dashboard and the Jobs API. Default: a free one.
    :param environment: additional environment variables of the head, e.g. ``RAY_AUTH_MODE``.
    """

    def __init__(
        self, num_cpus: int = 4, port: int | None = None, environment: dict[str, str] | None = None, num_gpus: int = 0
    ) -> None:
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = environment or {}
        self.python = Path(os.environ.get("RAY_HEAD_PYTHON", sys.executable))
        # Not in TMPDIR, which may be long: Ray creates Unix sockets here, and their paths are limited to 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.gcs_port = free_port()
        # the command line, once it was started
        self.command: list[str] = []
        self._program: Program | None = None

    @property
    def gcs_address(self) -> str:
        """The address for ``ray.init(address)``, which connects a driver without the Jobs API."""
        return f"127.0.0.1:{self.gcs_port}"

    def start(self, timeout: float = 120.0) -> Self:
        """Start the head and wait until its Jobs API answers."""
        # Ray's default range of worker ports may contain one of these ports; 0 lets the kernel choose.
        ports = {
            "--port": self.gcs_port, "--dashboard-port": self.port, "--ray-client-server-port": free_port(),
            "--min-worker-port": 0, "--max-worker-port": 0, "--dashboard-agent-listen-port": 0,
            "--dashboard-agent-grpc-port": 0, "--metrics-export-port": 0,
        }  # fmt: skip
        self.command = [
            str(self.python.with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
            f"--num-cpus={self.num_cpus}", f"--num-gpus={self.num_gpus}", "--object-store-memory=200000000",
            f"--temp-dir={self.directory}",
            *(f"{option}={port}" for option, port in ports.items()),
        ]  # fmt: skip
        self._program = Program(
            self.command,
            clean_environment("RAY_", "AIRFLOW")
            # Without a mode, ``ray start`` requires the token of ~/.ray/auth_token if that file exists.
            | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PATH": self._path()}
            | self.environment,
            self.directory / "ray-start.log",
        )  # fmt: skip
        self._program.wait_until(self._is_ready, "the Ray head", timeout)
        return self

    def stop(self) -> None:
        """Stop the head with its jobs. :meth:`close` removes the directory."""
        if self._program is not None:
            self._program.stop()
            self._program = None

    def kill(self) -> None:
        """Kill the head with its jobs, as if its machine had failed. :meth:`start` starts it again."""
        if self._program is not None:
            self._program.kill()
            self._program = None

    def close(self) -> None:
        """Stop the head and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self) -> str:
        """Return a PATH on which a job's ``python`` is that of the head, which has Ray installed."""
        return os.pathsep.join([str(self.python.parent), os.environ.get("PATH", "")])

    def _is_ready(self) -> bool:
        try:
            # The job list needs the head's job agent, which starts last.
            with urllib.request.urlopen(f"{self.address}/api/jobs/", timeout=5) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401  # the head is ready and in token mode
        except OSError:
            return False


def connection_to(head: RayHead) -> dict[str, dict[str, object]]:
    """Return ``ray_jobs_default``, the Airflow connection for a head, as :class:`LocalAirflow` takes it."""
    parts = urlsplit(head.address)
    return {"ray_jobs_default": {"conn_type": "ray_jobs", "host": parts.hostname, "port": parts.port}}
