"""Start programs, and stop them by process id: other users may run the same programs on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import psutil

# Seconds between SIGTERM and SIGKILL.
_STOP_TIMEOUT = 20.0
# Below the ephemeral ranges of Linux (32768 and more) and macOS, above Ray's default worker ports (10002 to 19999).
_FIXED_PORTS = range(20_000, 32_768)
_own_ports: set[int] = set()


class Program:
    """
    A running program with its child processes.

    :param arguments: the command line.
    :param environment: the complete environment; nothing is inherited.
    :param log: the file to which stdout and stderr are appended.
    :param user: the user that runs it. Default: the user of this process.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, user: str | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            # A new process session, so that Ctrl-C reaches only this process, which stops the programs in order.
            self._process = subprocess.Popen(
                arguments,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=user,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, is_ready: Callable[[], bool], name: str, timeout: float) -> None:
        """
        Wait until the program is ready.

        :param name: the program's name for the error message.
        :raises RuntimeError: if it exits first or is not ready within ``timeout`` seconds. The message ends with the
            last lines of its output.
        """
        deadline = time.monotonic() + timeout
        while not is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{name} exited with code {self._process.returncode} before it was ready:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} was not ready after {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.3)

    def send_signal(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to the program, or to all processes of its group."""
        if to_group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the program has exited, and tell whether it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return not self.is_running()

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of the program's output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Stop the program and its descendants: SIGTERM to the program first, then SIGKILL to all that are left."""
        processes = self._process_tree()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT)
        # The shutdown itself may have started further processes.
        alive = _wait_for([*processes, *self._process_tree()], timeout=3)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _wait_for(alive, timeout=5)
        self._process.wait()

    def kill(self) -> None:
        """Kill the program with its descendants, as if its machine had failed."""
        processes = self._process_tree()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _wait_for(processes, timeout=5)
        self._process.wait()

    def kill_matching(self, name: str) -> None:
        """Kill the processes of this program whose command line contains ``name``, with their descendants."""
        for process in self.matching(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                for target in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        target.kill()
        self._process.poll()

    def matching(self, name: str) -> Iterator[psutil.Process]:
        """Yield the processes of this program whose command line contains ``name``."""
        for process in self._process_tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                # Airflow changes its process titles: "api-server" becomes "api_server".
                if name in " ".join(process.cmdline()).replace("_", "-"):
                    yield process

    def _process_tree(self) -> list[psutil.Process]:
        if self._process.poll() is not None:
            return []  # another program may have this id by now
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class Startable(ABC):
    """Programs that a ``with`` statement starts and closes, also if the start fails."""

    @abstractmethod
    def start(self) -> Self:
        """Start the programs, and wait until they are ready."""

    @abstractmethod
    def close(self) -> None:
        """Stop the programs, and remove what they left."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _wait_for(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait for the end of processes, and return those that are alive."""
    while True:
        try:
            return list(psutil.wait_procs(processes, timeout=timeout)[1])
        except FileNotFoundError:  # psutil 7.2: a process has ended at an unlucky moment
            time.sleep(0.1)


def interrupt_on_signals() -> None:
    """
    Raise KeyboardInterrupt on SIGTERM and SIGINT, so that context managers stop the programs that were started.

    Not SystemExit, which pytest reports as one failed test. SIGINT has a handler too, because a shell starts background
    commands with SIGINT ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def free_port() -> int:
    """
    Return a port that is free at the moment, and that the kernel does not assign to other sockets.

    A program may need seconds until it binds its port. Meanwhile, the kernel could give a port of its ephemeral range
    to any other socket. A Ray head whose client server finds its port taken ends one second after it was ready. Nor
    does any other process that calls this function get the port, as long as this process lives.
    """
    while True:
        port = secrets.choice(_FIXED_PORTS)  # libraries seed `random` in tests
        if port in _own_ports:
            continue
        with socket.socket() as listener, contextlib.suppress(OSError):
            fcntl.lockf(_port_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            listener.bind(("", port))
            _own_ports.add(port)
            return port


@cache
def _port_locks() -> int:
    """Open the file whose byte ``n`` a process locks that has chosen port ``n``. The kernel unlocks it at the end."""
    return os.open(Path(tempfile.gettempdir(), f"airflow-provider-rayjobs-ports-{os.getuid()}"), os.O_RDWR | os.O_CREAT)


def clean_environment(*dropped_prefixes: str) -> dict[str, str]:
    """Return this process's environment without the variables whose names start with one of the prefixes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped_prefixes)}
