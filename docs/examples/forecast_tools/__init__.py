"""A module for several programs."""


def describe(day: str) -> str:
    return f"forecast for {day}"
