"""Ports of the programs that tests start, and the end of these programs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sandbox import processes
from sandbox.processes import free_port

ROOT = Path(__file__).parents[1]


def test_free_port_is_not_one_that_the_kernel_gives_to_other_sockets():
    """A Ray head binds the last of its ports seconds after they were chosen."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    assert not {free_port() for _ in range(200)} & set(range(first, last + 1))


def test_free_port_is_not_that_of_another_process():
    """Two processes of tests may choose a port at the same moment, long before a program binds it."""
    chosen = free_port()
    program = (
        "from sandbox import processes; ports = iter([{0}, {0} - 1, {0} + 1]);"
        "processes.secrets.choice = lambda _: next(ports); print(processes.free_port())"
    )

    other = subprocess.run(
        [sys.executable, "-c", program.format(chosen)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert int(other.stdout) in {chosen - 1, chosen + 1}


def test_free_port_is_not_in_use(monkeypatch: pytest.MonkeyPatch):
    """A port on which a program listens is passed over."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        taken = listener.getsockname()[1]
        ports = iter([taken, taken, *range(20_000, 20_100)])
        monkeypatch.setattr(processes.secrets, "choice", lambda _: next(ports))

        assert free_port() != taken


def test_signal_leaves_no_program_of_the_tests(tmp_path: Path):
    """The processes of ``pytest -n 2`` stop their programs after Ctrl-C, also if that takes 20 s."""
    pid = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n", "2", "tests/samples/slow_to_stop.py"],
        cwd=ROOT,
        env=os.environ | {"PID_FILE": str(pid)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as tests:
        while not (pid.exists() and pid.read_text()):
            assert tests.poll() is None
            time.sleep(0.2)
        program = psutil.Process(int(pid.read_text()))
        os.killpg(tests.pid, signal.SIGINT)

    assert not program.is_running()
