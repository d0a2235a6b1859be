"""
Naming, packing and uploading local code, compared with Ray's own functions in the same run.

There are three trees: 10,000 small source files, 90 MB of text in 90 files, and 90 MB of noise, which is as
incompressible as models and images. Each figure is the median of some rounds, with the trees in the disk's cache.

Wanted:

- naming takes at most as long as Ray's, and packing at least 3 times as long as naming;
- a submission takes at most 1.1 times as long as with Ray's SDK on loopback, where bandwidth costs nothing;
- it takes at most 0.6 times as long through a link of 100 Mbit/s;
- uploading 90 MB takes at most 32 MiB of memory.

Packing alone has no bound. Ray stores files uncompressed, so that its packing is a copy. Ours deflates them, which
takes longer and saves more than that as soon as there is a network between worker and head.
"""

from __future__ import annotations

import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.jobs.packages.local_code import resolve_local_code
from airflow_provider_rayjobs.jobs.packages.upload import pack
from airflow_provider_rayjobs.jobs.progress import finish
from benchmarks.results import Result, Target
from benchmarks.slow_link import SlowLink
from sandbox.ray_head import RayHead

ROUNDS = 7
# Rounds through the link take long, so that they vary less.
ROUNDS_ON_LINK = 3
# 100 Mbit/s.
LINK = 12_500_000
# Bounds on a submission's time, as a ratio to Ray's SDK. Noise does not shrink: both clients send 90 MB, for which the
# link needs 7 s, so that 0.6 is physically impossible.
LOOPBACK_BOUND, LINK_BOUND, LINK_BOUND_OF_NOISE = 1.1, 0.6, 1.1
# More than the head has: the job never starts, and so takes no CPU time from the next round.
CPUS = 1000
MB = 1_000_000
LARGE = 90 * MB
WORDS = ("model", "data", "batch", "epoch", "loss", "return", "self", "for", "in", "range", "if", "not", "None")
PEAK = """
import sys
from pathlib import Path
from airflow_provider_rayjobs.jobs import RayJobsClient
address, directory = sys.argv[1:]
with RayJobsClient(address) as client:
    client.submit_job("true", runtime_env={"working_dir": directory})
# not ru_maxrss, which includes that of the parent process
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) / 1024)
"""


def measure() -> list[Result]:
    """Make the trees and measure them."""
    logging.disable(logging.INFO)  # Ray's SDK logs each package, and sets its level when it is imported
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> list[Result]:
    trees = {"10,000 small files": _small(folder), "90 MB of text": _text(folder), "90 MB of noise": _noise(folder)}
    # before the head starts, as it uses CPU time
    times = {about: _medians([_name, _rays_name, _pack, _rays_pack], tree) for about, tree in trees.items()}
    (folder / "one").mkdir()
    with RayHead() as head:
        ways = {about: _both_ways(head.address, tree, ROUNDS) for about, tree in trees.items()}
        little, much = (_peak(head, folder / name) for name in ("one", "noise"))
    # a new head, as the old one keeps the packages in memory for ten minutes
    with RayHead() as head, SlowLink(head.port, LINK) as link:
        address = f"http://127.0.0.1:{link.port}"
        ways_on_link = {about: _both_ways(address, tree, ROUNDS_ON_LINK) for about, tree in trees.items()}
    results = []
    for about in trees:
        naming, rays_naming, packing, rays_packing = times[about]
        ours, rays = ways[about]
        ours_on_link, rays_on_link = ways_on_link[about]
        on_loopback = Target("ratio", "<=", LOOPBACK_BOUND)
        on_link = Target("ratio", "<=", LINK_BOUND_OF_NOISE if "noise" in about else LINK_BOUND)
        results += [
            Result(f"naming {about}, beside Ray", naming, "s", rays_naming, Target("ratio", "<=", 1)),
            Result(f"packing {about}, beside naming it", packing, "s", naming, Target("ratio", ">=", 3)),
            Result(f"naming and packing {about}, beside Ray", packing, "s", rays_packing),
            Result(f"{about} to the head, beside Ray's SDK", ours, "s", rays, on_loopback),
            Result(f"{about} through 100 Mbit/s, beside Ray's SDK", ours_on_link, "s", rays_on_link, on_link),
        ]
    return [
        *results,
        Result("peak for sending 90 MB, beside one empty file", much, "MiB", little),
        Result("more for 90 MB", much - little, "MiB", target=Target("value", "<=", 32)),
    ]


def _small(folder: Path) -> Path:
    lots = random.Random(1)  # the same tree each time
    for number in range(10_000):
        path = folder / "small" / f"package{number % 100:02}" / f"module{number:05}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(lots.choices(WORDS, k=300)))
    (folder / "small" / ".gitignore").write_text("*.pyc\n__pycache__/\n/build\n*.log\n!keep.log\n.idea/\n")
    return folder / "small"


def _text(folder: Path) -> Path:
    lots = random.Random(2)
    (folder / "text").mkdir()
    for number in range(LARGE // MB):
        lines = (f"{lots.random():.6f},{lots.randrange(10_000)},{lots.choice(WORDS)}\n" for _ in range(MB // 20))
        (folder / "text" / f"{number}.csv").write_text("".join(lines)[:MB])
    return folder / "text"


def _noise(folder: Path) -> Path:
    (folder / "noise").mkdir()
    for number in range(9):
        (folder / "noise" / f"{number}.bin").write_bytes(os.urandom(LARGE // 9))
    return folder / "noise"


def _medians(calls: Sequence[Callable[[Path], object]], tree: Path) -> list[float]:
    """Alternate the calls, so that other load on the machine affects all of them."""
    rounds = [[_seconds(partial(call, tree)) for call in calls] for _ in range(ROUNDS + 1)]
    return [
        statistics.median(column) for column in zip(*rounds[1:], strict=True)
    ]  # the first round fills the disk's cache


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _name(tree: Path) -> object:
    return resolve_local_code({"working_dir": str(tree)})


def _pack(tree: Path) -> None:
    """Name and pack, as for a package that the cluster does not have."""
    [package] = resolve_local_code({"working_dir": str(tree)}).packages
    with ExitStack() as stack:
        finish(pack(package, None, stack))


def _rays_name(tree: Path) -> str:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import get_uri_for_directory

    return str(get_uri_for_directory(str(tree), include_gitignore=True, excludes=get_runtime_env_default_excludes()))


def _rays_pack(tree: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    _rays_name(tree)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "package.zip"
        create_package(str(tree), target, include_gitignore=True, excludes=get_runtime_env_default_excludes())


def _both_ways(address: str, tree: Path, rounds: int) -> tuple[float, float]:
    """Return the median times of submissions with a new tree, with our client and with Ray's."""
    from ray.job_submission import JobSubmissionClient

    rays = JobSubmissionClient(address)
    ours: list[float] = []
    theirs: list[float] = []
    with RayJobsClient(address) as client:
        for _ in range(rounds):
            (tree / "round").write_text(os.urandom(8).hex())
            job: dict[str, Any] = {"entrypoint": "true", "entrypoint_num_cpus": CPUS}
            for submit, times in ((client.submit_job, ours), (rays.submit_job, theirs)):
                runtime_env = {"working_dir": str(tree)}
                times.append(_seconds(partial(submit, **job, runtime_env=runtime_env)))
    return statistics.median(ours), statistics.median(theirs)


def _peak(head: RayHead, tree: Path) -> float:
    (tree / "round").write_text(os.urandom(8).hex())
    command = [sys.executable, "-W", "ignore", "-c", PEAK, head.address, str(tree)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
