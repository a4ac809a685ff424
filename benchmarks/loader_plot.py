"""Bars of images a second from bench_loader's JSON: `python benchmarks/loader_plot.py RESULTS.json OUT.svg`."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, BAR, GAP = 760, 250, 20, 8
OURS, OTHERS, INK = "#1f6feb", "#9aa4b2", "#24292f"


def panel(result: dict[str, Any], top: int) -> tuple[list[str], int]:
    """The bars of one piece of work from `top` on, and where they end."""
    most = max(row["images_per_cpu_second"] for row in result["rows"])
    parts = [f'<text x="10" y="{top + 14}" font-weight="600">{escape(result["work"])}</text>']
    y = top + 26
    for row in result["rows"]:
        value = row["images_per_cpu_second"]
        length = (WIDTH - LEFT - 150) * value / most
        ours = row["loader"] == "torchaccel"
        told = f"{value:,.0f}" + ("" if ours else f"   ({row['ours_per_cpu_second']:.1f}x less)")
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(row["loader"])}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{OURS if ours else OTHERS}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{told}</text>',
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
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">'
    )
    title = '<text x="10" y="20" font-size="15" font-weight="700">Images per CPU second (longer is better)</text>'
    background = f'<rect width="{WIDTH}" height="{y}" fill="white"/>'
    Path(target).write_text("\n".join([head, background, title, *parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
