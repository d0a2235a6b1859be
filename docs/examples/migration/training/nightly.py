"""A small training: it prints a line for each epoch, and its result."""

import argparse
import time

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--day", required=True)
    day = parser.parse_args().day
    print(f"training on the data of {day}")
    for epoch in range(2):
        print(f"epoch {epoch + 1} of 2", flush=True)
        time.sleep(0.5)
    print("accuracy: 0.92")
