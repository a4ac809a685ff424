"""What the plots share: an SVG with its own page, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

# class: (on a light page, on a dark one)
COLOURS = {
    "page": ("#ffffff", "#0d1117"),
    "ink": ("#24292f", "#e6edf3"),
    "faint": ("#d8dee4", "#30363d"),
    "ours": ("#1f6feb", "#58a6ff"),
    "others": ("#9aa4b2", "#6e7681"),
}


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 13, weight: int = 400) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f"<text {place}>{escape(words)}</text>"


def write(
    path: str | Path,
    size: tuple[int, int],
    title: str,
    parts: list[str],
    more: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """A page of (width, height) with its title in the first 34 pixels, the parts over it.

    Parts name colours by class: `more` and `COLOURS` fill shapes and text with them, and draw lines of class `line`.
    """
    colours = COLOURS | dict(more or {})
    light, dark = ("".join(f".{name}{{--c:{pair[i]}}}" for name, pair in colours.items()) for i in (0, 1))
    style = (
        f"<style>{light}\n@media(prefers-color-scheme:dark){{{dark}}}\n"
        f"{','.join(f'.{name}' for name in colours)}{{fill:var(--c)}}.line{{fill:none;stroke:var(--c)}}</style>"
    )
    width, height = size
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" class="ink">'
    )
    page = f'<rect width="{width}" height="{height}" class="page"/>'
    Path(path).write_text(
        "\n".join([head, style, page, text(10, 22, title, size=15, weight=700), *parts, "</svg>"]) + "\n"
    )
