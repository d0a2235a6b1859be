"""What a benchmark found: one figure beside its baseline, and what was wanted of it."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Wanted:
    """A bound on a result's value or on its ratio: ``Wanted("ratio", ">=", 40)``."""

    of: Literal["value", "ratio"]
    sign: Literal["<=", ">="]
    bound: float

    def __str__(self) -> str:
        return f"{self.of} {self.sign} {self.bound:g}"


@dataclass(frozen=True)
class Result:
    """
    One figure.

    :param baseline: of the same kind and unit, measured in the same run; ``None`` where there is nothing to compare.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    wanted: Wanted | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None

    @property
    def is_met(self) -> bool:
        """Tell whether it is as wanted, or nothing was."""
        if self.wanted is None:
            return True
        found = self.value if self.wanted.of == "value" else self.ratio
        holds = operator.le if self.wanted.sign == "<=" else operator.ge
        return found is not None and bool(holds(found, self.wanted.bound))

    def to_json(self, benchmark: str) -> dict[str, Any]:
        """Return what :data:`FILE` keeps; the name tells the benchmark, too."""
        return {
            "name": f"{benchmark}: {self.name}",
            "value": _rounded(self.value),
            "unit": self.unit,
            "baseline": _rounded(self.baseline),
            "ratio": _rounded(self.ratio),
        }


def keep(found: Mapping[str, Iterable[Result]]) -> None:
    """Write what was found into :data:`FILE`; benchmarks that did not run keep their entries."""
    before = json.loads(FILE.read_text()) if FILE.is_file() else []
    entries = [entry for entry in before if entry["name"].partition(":")[0] not in found]
    entries += [result.to_json(benchmark) for benchmark, results in found.items() for result in results]
    FILE.write_text(json.dumps(sorted(entries, key=lambda entry: str(entry["name"])), indent=2) + "\n")


def table(found: Mapping[str, Iterable[Result]]) -> str:
    """Return one table of all that was found."""
    rows = [("", "value", "unit", "baseline", "ratio", "wanted")]
    for benchmark, results in found.items():
        for result in results:
            wanted = "" if result.wanted is None else f"{result.wanted}  {'ok' if result.is_met else 'MISSED'}"
            figures = (_shown(result.value), result.unit, _shown(result.baseline), _shown(result.ratio))
            rows.append((f"{benchmark}: {result.name}", *figures, wanted))
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


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{_rounded(figure):g}"
