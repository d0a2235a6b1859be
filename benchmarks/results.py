"""The results of a benchmark: values with their baselines and targets."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

RESULTS_FILE = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Target:
    """A bound for a result's value, or for its ratio to the baseline: ``Target("ratio", ">=", 40)``."""

    of: Literal["value", "ratio"]
    sign: Literal["<=", ">="]
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.sign} {self.bound:g}"


@dataclass(frozen=True)
class Result:
    """
    One measured value.

    :param baseline: the value to compare with, in the same unit and from the same run, if there is one.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None

    @property
    def meets_target(self) -> bool:
        """True also without a target."""
        if self.target is None:
            return True
        measured = self.value if self.target.of == "value" else self.ratio
        holds = operator.le if self.target.sign == "<=" else operator.ge
        return measured is not None and bool(holds(measured, self.target.bound))

    def to_json(self, benchmark: str) -> dict[str, Any]:
        """Return the entry for :data:`RESULTS_FILE`."""
        return {
            "name": f"{benchmark}: {self.name}",
            "value": _rounded(self.value),
            "unit": self.unit,
            "baseline": _rounded(self.baseline),
            "ratio": _rounded(self.ratio),
        }


def save(results: Mapping[str, Iterable[Result]]) -> None:
    """Write results into :data:`RESULTS_FILE`, by benchmark. Entries of other benchmarks are kept."""
    saved = json.loads(RESULTS_FILE.read_text()) if RESULTS_FILE.is_file() else []
    entries = [entry for entry in saved if entry["name"].partition(":")[0] not in results]
    entries += [result.to_json(benchmark) for benchmark, group in results.items() for result in group]
    RESULTS_FILE.write_text(json.dumps(sorted(entries, key=lambda entry: str(entry["name"])), indent=2) + "\n")


def format_table(results: Mapping[str, Iterable[Result]]) -> str:
    """Return a text table of results, by benchmark."""
    rows = [("", "value", "unit", "baseline", "ratio", "target")]
    for benchmark, group in results.items():
        for result in group:
            target = "" if result.target is None else f"{result.target}  {'ok' if result.meets_target else 'MISSED'}"
            figures = (_format(result.value), result.unit, _format(result.baseline), _format(result.ratio))
            rows.append((f"{benchmark}: {result.name}", *figures, target))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = (False, True, False, True, True, False)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in rows
    )


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.4g}")


def _format(figure: float | None) -> str:
    return "" if figure is None else f"{_rounded(figure):g}"
