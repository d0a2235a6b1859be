"""Airflow's standalone beside a local Ray head, with the example DAGs, to click through; Ctrl-C stops both."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from sandbox.demo import connection_to, say
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run until somebody asks to stop."""
    # SIGTERM ends it as Ctrl-C does: with everything stopped that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        try:
            say("Starting a Ray head ...")
            head = stack.enter_context(RayHead())
            say("Starting Airflow ...")
            airflow = stack.enter_context(LocalAirflow(ROOT / "example_dags", connection_to(head), paused=True))
            say(f"\nAirflow:        {airflow.address}  (no login needed)")
            say(f"Ray dashboard:  {head.address}")
            say("The connection ray_jobs_default leads to it. Ctrl-C stops both.")
            signal.pause()
        except KeyboardInterrupt:
            pass
        say("\nStopping ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
