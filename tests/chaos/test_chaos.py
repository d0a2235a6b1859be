"""
No fault breaks the promise that each task has exactly one Ray job and ends as it does.

Ten tasks run in a real Airflow on a real Ray head, while a random campaign kills processes, breaks the network, and
does what users do. ``CHAOS_SECONDS`` is its duration. ``CHAOS_SEED`` repeats the random choices of an earlier one.
"""

from __future__ import annotations

import os
import random

import pytest
from airflow import __version__ as airflow_version
from chaos_run import Campaign
from packaging.version import Version

SECONDS = float(os.environ.get("CHAOS_SECONDS") or 120)
SEED = int(os.environ.get("CHAOS_SEED") or random.randrange(100_000))  # noqa: S311  (no secret)

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.ray,
    pytest.mark.timeout(1200 + SECONDS),
    pytest.mark.skipif(
        Version(airflow_version) < Version("3.3"),
        reason="the task state store and a trigger's on_kill came with Airflow 3.3",
    ),
]


def test_campaign_breaks_no_invariant(needs_deployment, tmp_path):
    """Whatever fails, a task has one living job, leaves none behind, and is green only if its own job succeeded."""
    print(f"CHAOS_SEED={SEED}")
    campaign = Campaign(SEED, SECONDS, tmp_path)
    campaign.run()
    print(campaign.summary())

    assert not campaign.report(), campaign.report()
    assert campaign.histories
