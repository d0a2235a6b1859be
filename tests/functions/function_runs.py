"""Run a function of a DAG file as its Ray job does, without a cluster: the same package in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from airflow_provider_rayjobs.functions.package import Call
from airflow_provider_rayjobs.functions.source import FunctionSource, extract_source
from airflow_provider_rayjobs.in_job import NONCE_VARIABLE
from airflow_provider_rayjobs.jobs.logs.cursor import LogCursor
from airflow_provider_rayjobs.jobs.logs.messages import JobMessages, MessageFilter

NONCE = "0123456789abcdef"


@dataclass(frozen=True)
class Decorated:
    """A function with the source that was extracted while its decorator was applied."""

    function: Any
    source: FunctionSource


def on_ray(function: Any = None, **_: Any) -> Any:
    """A decorator as ``@task.ray_job``: bare, or with arguments."""
    if function is None:
        return on_ray
    return Decorated(function, extract_source(function, "@task.ray_job"))


def load(folder: Path, text: str, name: str = "dag_file") -> ModuleType:
    """Write a DAG file and import it. The decorator is ``on_ray``."""
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    module.on_ray = on_ray
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@dataclass(frozen=True)
class Run:
    """The end of a function: exit code, messages, and what the task's log shows of the job's log."""

    exit_code: int
    messages: JobMessages
    shown: str
    log: bytes

    @property
    def value(self) -> Any:
        assert self.messages.result is not None, self.shown
        return self.messages.result.value


def run(
    decorated: Decorated,
    folder: Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    python: str = sys.executable,
    **options: str,
) -> Run:
    """Call a function in a process of its own."""
    call = Call(decorated.function, args, kwargs or {}, decorated.source, **options)
    package = folder / "package"
    for name, content in call.files().items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return run_command([python, "-m", "ray_job_function"], folder, package)


def run_command(command: Sequence[str], folder: Path, *python_path: Path) -> Run:
    """Run a program with the environment and the log file of a job."""
    (folder / "work").mkdir(exist_ok=True)
    path = folder / "job.log"
    path.unlink(missing_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(map(str, python_path)),
        "PYTHONUNBUFFERED": "1",
        NONCE_VARIABLE: NONCE,
    }
    with path.open("a") as log:
        ended = subprocess.run(
            command, cwd=folder / "work", env=environment, stdout=log, stderr=log, check=False, timeout=120
        )
    return Run(ended.returncode, *read(path.read_bytes()), path.read_bytes())


def read(data: bytes, chunk: int = 65536) -> tuple[JobMessages, str]:
    """Return the messages of a log, and the text that is shown of it."""
    log = MessageFilter(LogCursor())
    log.nonce = NONCE
    log.begin()
    records = [record for start in range(0, len(data), chunk) for record in log.feed(data[start : start + chunk])]
    records += [*log.flush(), *log.finish()]
    return log.messages, "\n".join(records)
