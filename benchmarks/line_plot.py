"""A small plot as SVG: panels side by side, each with one line per series; both axes are logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT, _GAP, _TOP, _LEFT = 170, 150, 62, 44, 46
_COLOURS = ("#1a7f37", "#cf222e", "#0969da")


@dataclass(frozen=True)
class Panel:
    """A figure to plot, and the powers of ten between which it is."""

    title: str
    figure: str
    least: float
    most: float

    def y(self, value: float) -> float:
        inside = min(max(value, self.least), self.most)
        return _TOP + _HEIGHT * (1 - math.log10(inside / self.least) / math.log10(self.most / self.least))


def save_plot(
    path: Path, x_title: str, panels: Sequence[Panel], series: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> None:
    """Write a plot of figures by x and name of the series."""
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 60
    xs = sorted({x for points in series.values() for x in points})
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        left = _LEFT + index * (_WIDTH + _GAP)
        parts += _axes(panel, left, xs, x_title)
        for points, colour in zip(series.values(), _COLOURS, strict=False):
            known = {x: y for x in sorted(points) if not math.isnan(y := points[x][panel.figure])}
            dots = [(_x(left, x, xs), panel.y(y)) for x, y in known.items()]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
    for index, (name, colour) in enumerate(zip(series, _COLOURS, strict=False)):
        x = _LEFT + 150 * index
        parts.append(f'<rect x="{x}" y="{height - 16}" width="12" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{height - 11}">{escape(name)}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _x(left: float, x: float, xs: Sequence[float]) -> float:
    return left + _WIDTH * math.log10(x / xs[0]) / math.log10(xs[-1] / xs[0])


def _axes(panel: Panel, left: float, xs: Sequence[float], x_title: str) -> Iterator[str]:
    bottom = _TOP + _HEIGHT
    yield f'<text x="{left}" y="{_TOP - 14}" font-weight="bold">{escape(panel.title)}</text>'
    for power in range(round(math.log10(panel.least)), round(math.log10(panel.most)) + 1):
        y = panel.y(10.0**power)
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDTH}" y2="{y:.1f}" stroke="#d0d7de"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>'
    for x in xs:
        yield f'<text x="{_x(left, x, xs):.1f}" y="{bottom + 15}" text-anchor="middle">{x:,}</text>'
    yield f'<text x="{left + _WIDTH / 2}" y="{bottom + 30}" text-anchor="middle">{escape(x_title)}</text>'
