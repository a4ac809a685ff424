"""Bars of images a second from bench_loader's JSON: `python benchmarks/loader_plot.py RESULTS.json OUT.svg`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _svg import text, write

WIDTH, LEFT, BAR, GAP = 760, 250, 20, 8


def panel(result: dict[str, Any], top: int) -> tuple[list[str], int]:
    """The bars of one piece of work from `top` on, and where they end."""
    most = max(row["images_per_cpu_second"] for row in result["rows"])
    parts = [text(10, top + 14, result["work"], weight=600)]
    y = top + 26
    for row in result["rows"]:
        value = row["images_per_cpu_second"]
        length = (WIDTH - LEFT - 150) * value / most
        ours = row["loader"] == "torchaccel"
        told = f"{value:,.0f}" + ("" if ours else f"   ({row['ours_per_cpu_second']:.1f}x less)")
        colour = "ours" if ours else "others"
        parts += [
            text(LEFT - 8, y + 15, row["loader"], "end"),
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" class="{colour}"/>',
            text(LEFT + length + 6, y + 15, told),
        ]
        y += BAR + GAP
    return parts, y + 14


def main(source: str, target: str) -> None:
    report = json.loads(Path(source).read_text())
    parts, y = [], 34
    for result in report["results"]:
        if len(result["rows"]) > 1 and result["rows"][0]["loader"] == "torchaccel":
            made, y = panel(result, y)
            parts += made
    write(target, (WIDTH, y), "Images per CPU second (longer is better)", parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
