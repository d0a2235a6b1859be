"""A training that takes some seconds: two Ray tasks, each of which prints its progress."""

import argparse
import time

import ray


@ray.remote
def train(part: int) -> float:
    for epoch in range(3):
        print(f"part {part}: epoch {epoch + 1} of 3", flush=True)
        time.sleep(1)
    return 0.9 + part / 100


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--day", required=True)
    day = parser.parse_args().day
    ray.init()
    print(f"training on the data of {day}")
    accuracies = ray.get([train.remote(part) for part in range(2)])
    print(f"accuracy: {max(accuracies):.2f}")
