"""Run all benchmarks or the named ones, print a table, and save the results in ``results.json``."""

from __future__ import annotations

import sys
import time
from importlib import import_module

from benchmarks.results import Result, format_table, save
from sandbox.processes import interrupt_on_signals

BENCHMARKS = (
    "import_cost",
    "parse_cost",
    "log_throughput",
    "log_memory",
    "head_load",
    "triggerer_delay",
    "many_jobs",
    "fan_out",
    "packaging",
    "function_cost",
    "observability_cost",
)


def main(names: list[str]) -> int:
    """Return 0 if every result meets its target, 1 if not, 2 for an unknown name."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"Unknown benchmark: {', '.join(sorted(unknown))}. Available: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    interrupt_on_signals()
    results: dict[str, list[Result]] = {}
    for name in names or BENCHMARKS:
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        started = time.monotonic()
        results[name] = import_module(f"benchmarks.{name}").measure()
        save({name: results[name]})  # save now, because the next benchmark may fail
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    print(format_table(results))
    return 0 if all(result.meets_target for group in results.values() for result in group) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
