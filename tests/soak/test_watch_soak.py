"""
Triggers that come and go leave nothing behind, while their heads are slow or fail.

``SOAK_SECONDS`` is the time for it. ``SOAK_SEED`` repeats the random choices of an earlier run.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.many_jobs import stand_in_head

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
SEED = int(os.environ.get("SOAK_SEED") or random.randrange(1_000))  # noqa: S311  (no secret)
# The memory grows while modules are imported and pools fill up. A shorter run says nothing about it.
WARM_UP, SHORTEST_FOR_MEMORY = 120.0, 480.0


@pytest.mark.timeout(300 + SECONDS)
def test_triggers_that_come_and_go(tmp_path: Path) -> None:
    """Every end is reported. At the end no task, connection or client is left, and the memory has not grown."""
    program = Path(__file__).with_name("watch_soak.py")
    with stand_in_head() as here, stand_in_head() as there:
        finished = subprocess.run(
            [sys.executable, "-W", "ignore", str(program), str(here), str(there), str(SECONDS), str(SEED)],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        )
    assert finished.returncode == 0, finished.stderr[-5_000:]
    result = json.loads(finished.stdout.splitlines()[-1])
    memory = result.pop("memory")
    after_warm_up = memory[int(WARM_UP / 5) :]
    print(f"SOAK_SEED={SEED}: {result['ended']} ended, {result['cancelled']} cancelled, memory {memory} MB")

    assert "never retrieved" not in finished.stderr
    assert result["failed"] == []
    assert result["leftovers"] == []
    assert result["ended"] > 4 * result["cancelled"] > 0
    if SECONDS >= SHORTEST_FOR_MEMORY:
        quarter = len(after_warm_up) // 4
        assert statistics.median(after_warm_up[-quarter:]) <= 1.05 * statistics.median(after_warm_up[:quarter]), memory
