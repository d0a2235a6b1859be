"""A program that fails: a chain of two exceptions."""

import argparse


def parse(row: str) -> float:
    return float(row)


def load(day: str) -> float:
    try:
        return parse("12,5")
    except ValueError as error:
        raise RuntimeError(f"no data for {day}") from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--day", required=True)
    load(parser.parse_args().day)
