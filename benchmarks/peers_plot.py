"""Images a second over sparsity from bench_peers' JSON: `python benchmarks/peers_plot.py RESULTS.json OUT.svg`."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from _svg import text, write

LEFT, TOP, WIDE, HIGH = 54, 52, 470, 330  # of the axes
WIDTH, HEIGHT, BETWEEN = 760, 440, 17  # of the page; between labels
ENGINES = {  # class and colour by engine
    "DeepSparse": ("deepsparse", ("#bc4c00", "#f0883e")),
    "OpenVINO": ("openvino", ("#8250df", "#bc8cff")),
    "ONNX Runtime": ("onnxruntime", ("#1a7f37", "#3fb950")),
}
OURS = "torchaccel"

Points = list[tuple[float, float]]  # (sparsity, images a second)


def series(rows: list[dict[str, Any]]) -> dict[tuple[str, str], Points]:
    """The points of each engine and type, in order of sparsity."""
    found: dict[tuple[str, str], Points] = defaultdict(list)
    for row in rows:
        found[row["engine"], row["dtype"]].append((row["sparsity"], row["images_per_s"]))
    return {name: sorted(points) for name, points in found.items()}


class Axes:
    """Where a point lies: to the right half as many weights are left with each step, upwards images a second."""

    def __init__(self, lines: dict[tuple[str, str], Points]) -> None:
        points = [point for each in lines.values() for point in each]
        self.sparsities = sorted({sparsity for sparsity, _ in points})
        highest = max(rate for _, rate in points)
        self.step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if highest / s <= 8)
        self.top = math.ceil(highest / self.step) * self.step

    def x(self, sparsity: float) -> float:
        end = -math.log(1 - self.sparsities[-1]) or 1.0
        return LEFT + WIDE * -math.log(1 - sparsity) / end

    def y(self, rate: float) -> float:
        return TOP + HIGH * (1 - rate / self.top)

    def drawn(self) -> list[str]:
        parts = []
        for rate in range(0, self.top + 1, self.step):
            y = self.y(rate)
            parts.append(f'<path d="M{LEFT} {y:.1f}h{WIDE}" class="faint line"/>')
            parts.append(text(LEFT - 8, y + 4, f"{rate}", "end", 12))
        for sparsity in self.sparsities:
            parts.append(text(self.x(sparsity), TOP + HIGH + 20, f"{sparsity:.0%}", "middle", 12))
        return [*parts, text(LEFT + WIDE / 2, TOP + HIGH + 40, "weights pruned", "middle", 12)]


def drawn(axes: Axes, name: tuple[str, str], points: Points) -> list[str]:
    """A line with its points; for an engine that gains nothing from zeros a thin one right across."""
    colour = colour_of(name)
    dash = "" if name[1] == "int8" else ' stroke-dasharray="6 4"'
    across = len(points) == 1
    if across:
        points = [points[0], (axes.sparsities[-1], points[0][1])]
    path = "L".join(f"{axes.x(sparsity):.1f} {axes.y(rate):.1f}" for sparsity, rate in points)
    width = 3 if name[0] == OURS else 1.2 if across else 2
    parts = [f'<path d="M{path}" class="{colour} line" stroke-width="{width}"{dash}/>']
    dots = points[:1] if across else points
    return parts + [f'<circle cx="{axes.x(s):.1f}" cy="{axes.y(r):.1f}" r="3.5" class="{colour}"/>' for s, r in dots]


def colour_of(name: tuple[str, str]) -> str:
    return "ours" if name[0] == OURS else ENGINES.get(name[0], ("others", None))[0]


def labels(axes: Axes, lines: dict[tuple[str, str], Points]) -> list[str]:
    """Names at the ends of the lines, moved apart."""
    ends = sorted((axes.y(points[-1][1]), name, points[-1][1]) for name, points in lines.items())
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + BETWEEN if places else y))
    for i in range(len(places) - 1, -1, -1):  # back up from the bottom
        most = TOP + HIGH if i == len(places) - 1 else places[i + 1] - BETWEEN
        places[i] = min(places[i], most)
    parts, x = [], LEFT + WIDE
    for (y, name, rate), place in zip(ends, places, strict=True):
        parts.append(f'<path d="M{x + 6} {y:.1f}L{x + 24} {place:.1f}" class="{colour_of(name)} line"/>')
        parts.append(text(x + 28, place + 4, f"{' '.join(name)}: {rate:.0f}", weight=700 if name[0] == OURS else 400))
    return parts


def main(source: str, target: str) -> None:
    report = json.loads(Path(source).read_text())
    lines = series(report["rows"])
    axes = Axes(lines)
    parts = [text(10, 40, "Dashed: float32 or bfloat16. Right: at the highest sparsity.", size=12), *axes.drawn()]
    for name in sorted(lines, key=lambda name: name[0] == OURS):
        parts += drawn(axes, name, lines[name])
    title = f"Images a second: {report['model']}, batch {report['batch']}, {report['environment']['threads']} threads"
    write(target, (WIDTH, HEIGHT), title, [*parts, *labels(axes, lines)], dict(ENGINES.values()))


if __name__ == "__main__":
    main(*sys.argv[1:])
