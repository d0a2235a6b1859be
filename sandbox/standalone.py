"""Run ``airflow standalone`` with the example DAGs, and a local Ray head. Ctrl-C stops both."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from sandbox.demo import say
from sandbox.local_airflow import LocalAirflow
from sandbox.processes import interrupt_on_signals
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run until Ctrl-C or SIGTERM."""
    interrupt_on_signals()
    with ExitStack() as stack:
        try:
            say("Starting a Ray head ...")
            head = stack.enter_context(RayHead())
            say("Starting Airflow ...")
            airflow = stack.enter_context(LocalAirflow(ROOT / "example_dags", connection_to(head), paused=True))
            say(f"\nAirflow:        {airflow.address}  (no login needed)")
            say(f"Ray dashboard:  {head.address}")
            say("The Airflow connection ray_jobs_default points to this Ray head. Press Ctrl-C to stop both.")
            signal.pause()
        except KeyboardInterrupt:
            pass
        say("\nStopping ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
