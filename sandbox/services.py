"""PostgreSQL and Redis of this machine's packages, on free ports, in temporary folders that are removed afterwards."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from sandbox.processes import Program, Startable, free_port

_START_TIMEOUT = 60.0
# The user of Debian's package. PostgreSQL refuses to run as root.
_POSTGRES_USER = "postgres"


def missing_services() -> list[str]:
    """Return the Debian packages of those services that are not installed."""
    found = {"postgresql": _postgresql_folder(), "redis-server": shutil.which("redis-server")}
    return [package for package, program in found.items() if program is None]


class Service(Startable):
    """
    A server on this machine. Use it as a context manager.

    :param name: for messages.
    :param owner: the user that owns the folder and runs the server. Default: the user of this process.
    """

    def __init__(self, name: str, owner: str | None = None) -> None:
        self.name = name
        self.owner = owner
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name.lower()}-"))
        if owner is not None:
            shutil.chown(self.folder, owner, pwd.getpwnam(owner).pw_gid)
        self._program: Program | None = None

    def command(self) -> list[str]:
        """Return the command line of the server."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start the server on the data of its folder, and wait until it listens."""
        self._program = Program(self.command(), _environment(), self.folder / "output.log", self.owner)
        self._program.wait_until(self._is_listening, self.name, _START_TIMEOUT)
        return self

    def kill(self) -> None:
        """Kill the server, as if its machine had failed. :meth:`start` starts it again."""
        if self._program is not None:
            self._program.kill()
            self._program = None

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class PostgreSQL(Service):
    """A PostgreSQL server with one empty database."""

    def __init__(self) -> None:
        super().__init__("PostgreSQL", _POSTGRES_USER if os.geteuid() == 0 else None)
        self.address = f"airflow@127.0.0.1:{self.port}/postgres"
        self._data = self.folder / "data"

    def command(self) -> list[str]:
        return [
            _postgresql_program("postgres"), "-D", str(self._data), "-h", "127.0.0.1", "-p", str(self.port),
            "-k", str(self.folder), "-c", "max_connections=200", "-c", "fsync=off",
        ]  # fmt: skip

    def start(self) -> Self:
        if not self._data.exists():
            options = ["-U", "airflow", "--auth=trust", "--encoding=UTF8", "--no-sync"]
            subprocess.run(
                [_postgresql_program("initdb"), "-D", self._data, *options],
                env=_environment(),
                user=self.owner,
                cwd=self.folder,
                check=True,
                capture_output=True,
            )
        return super().start()

    def stop(self) -> None:
        """Stop the server as its restart does: it closes all connections. :meth:`start` starts it again."""
        if self._program is not None:
            self._program.send_signal(signal.SIGINT)
            self._program.wait(_START_TIMEOUT)
            self.kill()


class Redis(Service):
    """A Redis server. Its data is on disk only after minutes, as in Debian's configuration, so a kill loses it."""

    def __init__(self) -> None:
        super().__init__("Redis")
        self.address = f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--save", "3600 1 300 100 60 10000",
        ]  # fmt: skip

    def deliver_again(self) -> None:
        """
        Deliver all messages again that a Celery worker has received and not acknowledged.

        Celery does so after their visibility timeout. But each worker looks for such messages only every 100 s.
        """
        for tag in self._call("ZRANGE", "unacked_index", "0", "-1").split():
            message, _, queue = json.loads(self._call("HGET", "unacked", tag))
            self._call("ZREM", "unacked_index", tag)
            self._call("HDEL", "unacked", tag)
            self._call("RPUSH", queue, json.dumps(message))

    def _call(self, *command: str) -> str:
        arguments = ["redis-cli", "-p", str(self.port), *command]
        return subprocess.run(arguments, env=_environment(), check=True, capture_output=True, text=True).stdout


def _postgresql_folder() -> Path | None:
    """Return the folder of the newest PostgreSQL. Debian installs it in a folder that is not in PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    in_path = shutil.which("initdb")
    return folders[-1] if folders else Path(in_path).parent if in_path else None


def _postgresql_program(name: str) -> str:
    folder = _postgresql_folder()
    if folder is None:
        raise RuntimeError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return str(folder / name)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
