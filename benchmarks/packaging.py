"""
Naming, packing and sending local code, beside Ray's own functions in the same run.

Three trees: 10,000 small source files; 90 MB of text in 90 files; 90 MB that do not shrink, as models do not. Ray's
packages are not deflated, so its packing is no more than a copy; what deflating costs comes back in the upload, which
is why the whole way to the head is measured, too. Each figure is the median of some rounds, with the trees in the
disk's cache.

Wanted: naming not slower than Ray's, and at least 3 times faster than packing, as an unchanged tree needs no more;
packing and the whole way not slower than Ray's; at most 32 MiB of memory for 90 MB. Packing text misses that by far, as
deflating it takes four times as long as copying it; to the head it is the faster way all the same.
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
from functools import partial
from pathlib import Path

from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.jobs.packages.local_code import resolve_local_code
from airflow_provider_rayjobs.jobs.packages.zip_file import Packing
from benchmarks.results import Result, Target
from sandbox.ray_head import RayHead

ROUNDS = 7
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
# not ru_maxrss, which begins with that of the process that started this one
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) / 1024)
"""


def measure() -> list[Result]:
    """Make the trees, and measure each way of each."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> list[Result]:
    trees = {"10,000 small files": _small(folder), "90 MB of text": _text(folder), "90 MB of noise": _noise(folder)}
    # before there is a head, which takes its share of the machine
    times = {about: _medians([_name, _rays_name, _pack, _rays_pack], tree) for about, tree in trees.items()}
    (folder / "one").mkdir()
    with RayHead() as head:
        ways = {about: _both_ways(head, tree) for about, tree in trees.items()}
        little, much = (_peak(head, folder / name) for name in ("one", "noise"))
    results = []
    for about in trees:
        naming, rays_naming, packing, rays_packing = times[about]
        results += [
            Result(f"naming {about}, beside Ray", naming, "s", rays_naming, Target("ratio", "<=", 1)),
            Result(f"packing {about}, beside naming it", packing, "s", naming, Target("ratio", ">=", 3)),
            Result(f"naming and packing {about}, beside Ray", packing, "s", rays_packing, Target("ratio", "<=", 1)),
            Result(f"{about} to the head, beside Ray's SDK", *_as_figure(ways[about]), Target("ratio", "<=", 1)),
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


def _as_figure(ways: tuple[float, float]) -> tuple[float, str, float]:
    ours, rays = ways
    return ours, "s", rays


def _medians(calls: Sequence[Callable[[Path], object]], tree: Path) -> list[float]:
    """Take turns, so that what else the machine does meets all of them."""
    rounds = [[_seconds(partial(call, tree)) for call in calls] for _ in range(ROUNDS + 1)]
    return [statistics.median(column) for column in zip(*rounds[1:], strict=True)]  # the first fills the disk's cache


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _name(tree: Path) -> object:
    return resolve_local_code({"working_dir": str(tree)})


def _pack(tree: Path) -> None:
    """Name and pack, as for a package that is missing."""
    [package] = resolve_local_code({"working_dir": str(tree)}).packages
    with tempfile.TemporaryFile() as file:
        if package.tree is None:
            raise RuntimeError("a directory has a tree")
        packing = Packing(package.tree, "", package.digests, file, None)
        while packing.advance(0.25):
            pass


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


def _both_ways(head: RayHead, tree: Path) -> tuple[float, float]:
    """Submit a job with a tree that the head has not seen, with our client and with Ray's: medians of some rounds."""
    from ray.job_submission import JobSubmissionClient

    rays = JobSubmissionClient(head.address)
    ours, theirs = [], []
    with RayJobsClient(head.address) as client:
        for _ in range(ROUNDS):
            (tree / "round").write_text(os.urandom(8).hex())
            runtime_env = {"working_dir": str(tree)}
            ours.append(_seconds(partial(client.submit_job, "true", runtime_env=runtime_env)))
            theirs.append(_seconds(partial(rays.submit_job, entrypoint="true", runtime_env=dict(runtime_env))))
    return statistics.median(ours), statistics.median(theirs)


def _peak(head: RayHead, tree: Path) -> float:
    (tree / "round").write_text(os.urandom(8).hex())
    command = [sys.executable, "-W", "ignore", "-c", PEAK, head.address, str(tree)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
