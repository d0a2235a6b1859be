"""
Run histories by hand::

    python -m tests.simulation --histories 1000000            # a campaign with a fresh seed
    python -m tests.simulation --seed 17                      # the walk of a seed, and the journal of its violation
    python -m tests.simulation --bugs                        # put old bugs back, one by one
    python -m tests.simulation --replay "worker | 0 | ..."    # one history, with its journal
    python -m tests.simulation --watches 20000               # many triggers that share a watch
    python -m tests.simulation --watch-seed 17               # one of these histories, with its journal
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import sys
import tempfile
import time

if "AIRFLOW_HOME" not in os.environ:  # the processes of a campaign inherit it
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-simulation-")
    atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

from .bugs import BUGS, find
from .campaign import Case, Tally, run_campaign, shrink, walk
from .shared_watch import WatchHistory


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--histories", type=int, default=30_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, help="run only the walk of this seed")
    parser.add_argument("--seed-base", type=int, default=int(time.time()))
    parser.add_argument("--replay", help="run only this history")
    parser.add_argument("--bugs", action="store_true", help="put old bugs back, and say after how many each is found")
    parser.add_argument("--watches", type=int, help="run histories of triggers that share a watch")
    parser.add_argument("--watch-seed", type=int, help="run only the one of this seed")
    arguments = parser.parse_args()
    sys.unraisablehook = lambda _: None
    if arguments.watch_seed is not None:
        history = WatchHistory(arguments.watch_seed, is_verbose=True)
        violations = history.run()
        print(*history.journal, *violations or ["no violation"], sep="\n")
        return bool(violations)
    if arguments.watches is not None:
        return run_watches(arguments.watches, arguments.seed_base)
    if arguments.bugs:
        for bug in BUGS:
            found = find(bug, arguments.seed_base)
            print(f"{bug}: after {found.after} histories: {found.violations[0]}\n    {found.case}" if found else bug)
        return 0
    if arguments.replay:
        return show(Case.parse(arguments.replay))
    if arguments.seed is not None:
        case, report = list(walk(arguments.seed))[-1]
        return show(shrink(case, report.violations[0].partition(":")[0]) if report.violations else case)
    began = time.time()
    print(f"seed base {arguments.seed_base}")
    tally = run_campaign(arguments.histories, arguments.seed_base, arguments.processes)
    print(summary(tally))
    print(f"{tally.histories / (time.time() - began):.0f} histories a second")
    return bool(tally.findings)


def run_watches(histories: int, seed: int) -> int:
    """Run histories of triggers that share a watch, and print the seeds that break a promise."""
    count = 0
    print(f"seed base {seed}")
    for each in range(seed, seed + histories):
        if violations := WatchHistory(each).run():
            count += 1
            print(f"{each}: {violations[0]}")
    print(f"{histories} histories of a shared watch, {count} with violations")
    return bool(count)


def show(case: Case) -> int:
    """Print a history with its journal."""
    report = case.run(is_verbose=True)
    print(*report.journal, sep="\n")
    print(f"\n{case}\nstate {report.state}, tags {sorted(report.tags)}")
    print(*report.violations or ["no violation"], sep="\n")
    return bool(report.violations)


def summary(tally: Tally) -> str:
    """Describe the result of a campaign: one line for each kind of finding."""
    lines = [f"{tally.histories} histories, {tally.operations} operations, {len(tally.findings)} with violations"]
    lines += [f"  {count} {tag}" for tag, count in sorted(tally.tags.items())]
    seen = set()
    for finding in sorted(tally.findings, key=lambda finding: len(finding.case.faults)):
        if finding.kind in seen:
            continue
        seen.add(finding.kind)
        lines.append(f"after {finding.after}: {finding.violations[0]}\n    {finding.case}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
