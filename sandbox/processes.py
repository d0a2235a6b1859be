"""Start programs and stop what was started, by process id: other people's programs share the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

# Seconds that a program has to end by itself once it is asked to.
_GRACE = 20.0


class Program:
    """
    One program with all that it starts, its output in a file.

    :param arguments: the command.
    :param environment: all of its environment.
    :param log: the file that takes its output.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            # A session of its own: Ctrl-C is ours to handle, and to pass on in order.
            self._process = subprocess.Popen(
                arguments,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, is_ready: Callable[[], bool], what: str, timeout: float) -> None:
        """
        Wait for the program to be ready.

        :raises RuntimeError: when it ends before, or takes longer than ``timeout`` seconds; with the end of its output.
        """
        deadline = time.monotonic() + timeout
        while not is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"{what} ended with {self._process.returncode} before it was ready:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} was not ready after {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.3)

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of the program's output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End the program and everything that it started, by request first."""
        family = self._family()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        # Whatever was born during the shutdown belongs to the family as well.
        _, alive = psutil.wait_procs([*family, *self._family()], timeout=3)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
        self._process.wait()

    def kill_child(self, name: str) -> None:
        """Kill, with all that they started, the processes of this program whose command line holds a name."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                # programs may show another title than they were started with: "api_server" for "api-server"
                if name in " ".join(process.cmdline()).replace("_", "-"):
                    for one in (process, *process.children(recursive=True)):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            one.kill()
        self._process.poll()

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def end_on_signals() -> None:
    """
    Let SIGTERM end this program as Ctrl-C does, by KeyboardInterrupt: with everything stopped that it started.

    Not by SystemExit, which pytest takes for one failed test. Ctrl-C is set as well, as a shell starts what runs in
    the background with it ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(*dropped_prefixes: str) -> dict[str, str]:
    """Return this process's environment without variables that would steer what is started."""
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped_prefixes)}
