"""Run the benchmarks, all or those that are named, print one table and keep the figures in ``results.json``."""

from __future__ import annotations

import sys
import time
from importlib import import_module

from benchmarks.results import Result, keep, table
from sandbox.processes import interrupt_on_signals

BENCHMARKS = ("import_cost", "log_throughput", "log_memory", "head_share", "triggerer_delay", "packaging")


def main(names: list[str]) -> int:
    """Return 0 if everything is as wanted."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"No such benchmark: {', '.join(sorted(unknown))}. There are: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    interrupt_on_signals()
    found: dict[str, list[Result]] = {}
    for name in names or BENCHMARKS:
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        began = time.monotonic()
        found[name] = import_module(f"benchmarks.{name}").measure()
        keep({name: found[name]})  # at once: the next one may fail
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(table(found))
    return 0 if all(result.is_met for results in found.values() for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
