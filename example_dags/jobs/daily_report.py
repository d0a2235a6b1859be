"""
A Ray job that reads bicycle trips, summarises each station in its own Ray task, and writes a report.

It runs on the cluster without Airflow. Its arguments and environment variables contain all that it needs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
from collections import defaultdict
from pathlib import Path

import ray  # noqa: TID253  (this script runs on the Ray cluster)


@ray.remote
def summarise(station: str, durations: list[float]) -> dict[str, object]:
    """Return the statistics of one station. Durations are in seconds."""
    ordered = sorted(durations)
    return {
        "station": station,
        "trips": len(ordered),
        "median_minutes": round(statistics.median(ordered) / 60, 1),
        "longest_minutes": round(ordered[-1] / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trips", type=Path, required=True, help="CSV with started_at, station, duration_s")
    parser.add_argument("--weekday", type=int, help="0 for Monday to 6 for Sunday. Default: all days")
    parser.add_argument("--report", type=Path, help="path of the JSON report to write")
    arguments = parser.parse_args()

    print(f"Job {os.environ.get('RAY_JOB_SUBMISSION_ID')} of {os.environ.get('AIRFLOW_CTX_DAG_RUN_ID')}", flush=True)
    durations = defaultdict(list)
    with arguments.trips.open(newline="") as file:
        for trip in csv.DictReader(file):
            if arguments.weekday is None or int(trip["weekday"]) == arguments.weekday:
                durations[trip["station"]].append(float(trip["duration_s"]))
    print(f"Read {sum(map(len, durations.values()))} trips of {len(durations)} stations", flush=True)

    ray.init()
    waiting = [summarise.remote(station, trips) for station, trips in sorted(durations.items())]
    report = []
    while waiting:
        [done], waiting = ray.wait(waiting)
        report.append(ray.get(done))
        print(f"{report[-1]['station']:<12} {report[-1]['trips']:>5} trips", flush=True)
    report.sort(key=lambda figures: -figures["trips"])
    if arguments.report:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        arguments.report.write_text(json.dumps(report, indent=2))
    print(f"Busiest station: {report[0]['station']} with {report[0]['trips']} trips", flush=True)


if __name__ == "__main__":
    main()
