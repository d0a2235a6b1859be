"""
Compare hashing, packing and uploading local code with Ray's own functions in the same run.

There are three folders: 10,000 small source files, 90 MB of text in 90 files, and 90 MB of random bytes, which are as
incompressible as models and images. Each result is the median of several rounds; the files are in the disk cache.

Targets:

- Hashing takes at most as long as Ray's. Packing takes at least 3 times as long as hashing.
- A submission takes at most 1.1 times as long as with Ray's SDK over the loopback interface.
- It takes at most 0.6 times as long through a link of 100 Mbit/s.
- Uploading 90 MB takes at most 32 MiB of memory.

Packing has no target. Ray stores files uncompressed, so its packing is a copy. This package compresses them. That takes
longer, but saves more time than that on any network between worker and head.
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
# Fewer rounds, because rounds through the link take long and vary little.
ROUNDS_ON_LINK = 3
LINK_RATE = 12_500_000  # bytes per second: 100 Mbit/s
# Bounds on a submission's time, as a ratio to Ray's SDK. Both clients must send all 90 MB of random bytes, so that 0.6
# is impossible there.
LOOPBACK_BOUND, LINK_BOUND, RANDOM_LINK_BOUND = 1.1, 0.6, 1.1
# More CPUs than the head has: no job starts and takes CPU time from the next round.
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
# ru_maxrss would include the memory of the parent process.
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) / 1024)
"""


def measure() -> list[Result]:
    """Create the folders and measure them."""
    logging.disable(logging.INFO)  # Ray's SDK logs each package. Its import resets its own log level.
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> list[Result]:
    trees = {"10,000 small files": _small(folder), "90 MB of text": _text(folder), "90 MB random": _random(folder)}
    # Before the start of the head, which uses CPU time.
    times = {name: _medians([_hash, _ray_hash, _pack, _ray_pack], tree) for name, tree in trees.items()}
    (folder / "one").mkdir()
    with RayHead() as head:
        submissions = {name: _submission_times(head.address, tree, ROUNDS) for name, tree in trees.items()}
        small_peak, large_peak = (_peak_memory(head, folder / name) for name in ("one", "random"))
    # A new head, because the first one keeps the packages in memory for ten minutes.
    with RayHead() as head, SlowLink(head.port, LINK_RATE) as link:
        address = f"http://127.0.0.1:{link.port}"
        submissions_on_link = {name: _submission_times(address, tree, ROUNDS_ON_LINK) for name, tree in trees.items()}
    results = []
    for name in trees:
        hashing, ray_hashing, packing, ray_packing = times[name]
        ours, rays = submissions[name]
        ours_on_link, rays_on_link = submissions_on_link[name]
        on_loopback = Target("ratio", "<=", LOOPBACK_BOUND)
        on_link = Target("ratio", "<=", RANDOM_LINK_BOUND if "random" in name else LINK_BOUND)
        results += [
            Result(f"hashing {name}, vs Ray", hashing, "s", ray_hashing, Target("ratio", "<=", 1)),
            Result(f"packing {name}, vs hashing", packing, "s", hashing, Target("ratio", ">=", 3)),
            Result(f"hashing and packing {name}, vs Ray", packing, "s", ray_packing),
            Result(f"submission with {name}, vs Ray's SDK", ours, "s", rays, on_loopback),
            Result(f"submission with {name} at 100 Mbit/s, vs Ray's SDK", ours_on_link, "s", rays_on_link, on_link),
        ]
    return [
        *results,
        Result("peak memory, upload of 90 MB vs one file", large_peak, "MiB", small_peak),
        Result(
            "additional peak memory, upload of 90 MB", large_peak - small_peak, "MiB", target=Target("value", "<=", 32)
        ),
    ]


def _small(folder: Path) -> Path:
    generator = random.Random(1)  # the same files in each run
    for number in range(10_000):
        path = folder / "small" / f"package{number % 100:02}" / f"module{number:05}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(generator.choices(WORDS, k=300)))
    (folder / "small" / ".gitignore").write_text("*.pyc\n__pycache__/\n/build\n*.log\n!keep.log\n.idea/\n")
    return folder / "small"


def _text(folder: Path) -> Path:
    generator = random.Random(2)
    (folder / "text").mkdir()
    for number in range(LARGE // MB):
        rows = [(generator.random(), generator.randrange(10_000), generator.choice(WORDS)) for _ in range(MB // 20)]
        text = "".join(f"{fraction:.6f},{integer},{word}\n" for fraction, integer, word in rows)
        (folder / "text" / f"{number}.csv").write_text(text[:MB])
    return folder / "text"


def _random(folder: Path) -> Path:
    (folder / "random").mkdir()
    for number in range(9):
        (folder / "random" / f"{number}.bin").write_bytes(os.urandom(LARGE // 9))
    return folder / "random"


def _medians(calls: Sequence[Callable[[Path], object]], tree: Path) -> list[float]:
    """Return the median time of each call. The calls take turns, so that other load affects all of them."""
    rounds = [[_seconds(partial(call, tree)) for call in calls] for _ in range(ROUNDS + 1)][
        1:
    ]  # the first fills caches
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _hash(tree: Path) -> object:
    return resolve_local_code({"working_dir": str(tree)})


def _pack(tree: Path) -> None:
    """Hash and pack, as for a package that the cluster does not have."""
    [package] = resolve_local_code({"working_dir": str(tree)}).packages
    with ExitStack() as stack:
        finish(pack(package, None, stack))


def _ray_hash(tree: Path) -> str:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import get_uri_for_directory

    return str(get_uri_for_directory(str(tree), include_gitignore=True, excludes=get_runtime_env_default_excludes()))


def _ray_pack(tree: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    _ray_hash(tree)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "package.zip"
        create_package(str(tree), target, include_gitignore=True, excludes=get_runtime_env_default_excludes())


def _submission_times(address: str, tree: Path, rounds: int) -> tuple[float, float]:
    """Return the median times of submissions with changed local code, for this client and for Ray's."""
    from ray.job_submission import JobSubmissionClient

    ray_client = JobSubmissionClient(address)
    ours: list[float] = []
    rays: list[float] = []
    with RayJobsClient(address) as client:
        for _ in range(rounds):
            (tree / "round").write_text(os.urandom(8).hex())
            job: dict[str, Any] = {"entrypoint": "true", "entrypoint_num_cpus": CPUS}
            for submit, times in ((client.submit_job, ours), (ray_client.submit_job, rays)):
                runtime_env = {"working_dir": str(tree)}
                times.append(_seconds(partial(submit, **job, runtime_env=runtime_env)))
    return statistics.median(ours), statistics.median(rays)


def _peak_memory(head: RayHead, tree: Path) -> float:
    (tree / "round").write_text(os.urandom(8).hex())
    command = [sys.executable, "-W", "ignore", "-c", PEAK, head.address, str(tree)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
