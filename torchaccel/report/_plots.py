"""The geometry of the page's plots: plain numbers that the SVG macros draw.

Horizontal positions are in percent of the plot's width, so that a plot fits a phone as well as a desk while its text
keeps its size; vertical ones are in pixels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torchaccel.report import _facts, _format

Data = Mapping[str, Any]

RATIO_TICKS = (
    0.05,
    0.1,
    0.2,
    0.5,
    0.7,
    0.8,
    0.9,
    1.0,
    1.1,
    1.2,
    1.5,
    2.0,
    3.0,
    5.0,
    8.0,
    12.0,
    20.0,
    50.0,
    100.0,
    200.0,
)
PLOT_HEIGHT = 190


def bars(rows: Sequence[tuple[str, float | None, str, str, str]]) -> list[dict[str, Any]]:
    """Horizontal bars from zero; a row is (label, value or None, the value's text, a style, a note)."""
    top = max((value for _, value, *_ in rows if value), default=1.0)
    return [
        {
            "label": label,
            "width": None if value is None else 100 * value / top,
            "text": text,
            "style": style,
            "note": note,
        }
        for label, value, text, style, note in rows
    ]


def latency(data: Data) -> list[dict[str, Any]]:
    """One bar for each dense form and one for the optimized model."""
    best, after = data["baseline"], data["optimized"]
    rows: list[tuple[str, float | None, str, str, str]] = []
    if _facts.outcome(data) != "dense":
        rows.append(
            (after["form"], after["latency_ms"], _format.milliseconds(after["latency_ms"]), "after", "optimized")
        )
    for form in _facts.dense_forms(data):
        is_best = form["form"] == best["form"]
        value = best["latency_ms"] if is_best else form["latency_ms"]
        text = "failed" if value is None else _format.milliseconds(value)
        note = ", ".join(filter(None, ["best dense form" if is_best else "", form.get("note")]))
        rows.append((form["form"], value, text, "best" if is_best else "dense", note))
    return bars(rows)


def sizes(data: Data) -> list[dict[str, Any]] | None:
    before, after = data["baseline"]["size_bytes"], data["optimized"]["size_bytes"]
    if before is None or after is None:
        return None
    rows = [("optimized", after, _format.size(after), "after", ""), ("dense", before, _format.size(before), "best", "")]
    return bars(rows[1:] if _facts.outcome(data) == "dense" else rows)


def accuracy(data: Data) -> dict[str, Any] | None:
    """Both accuracies on an axis just wide enough to show the difference, with the drop that was allowed."""
    before, after = data["baseline"]["accuracy"], data["optimized"]["accuracy"]
    if before is None or after is None:
        return None
    allowed = (data.get("gates") or {}).get("max_drop")
    span = max(abs(after - before), allowed or 0.0, 0.001 * max(1.0, abs(before)))
    low, high = min(before - span, after) - 0.5 * span, max(before, after) + 0.5 * span
    if 0 <= before <= 1 and 0 <= after <= 1:
        low, high = max(0.0, low), min(1.0, high)
    at = _linear(low, high)
    band = None
    if allowed is not None:
        left = at(max(low, before - allowed))
        band = {"x": left, "width": at(before) - left}
    return {
        "before": at(before),
        "after": at(after),
        "allowed": band,
        "low": _format.score(low),
        "high": _format.score(high),
    }


def _linear(low: float, high: float) -> Any:
    return lambda value: 100 * (value - low) / (high - low)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two values, about as many as asked for."""
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * magnitude for factor in (1, 2, 5, 10)), key=lambda candidate: abs(candidate - raw))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _density(values: Sequence[float], low: float, high: float, steps: int = 160) -> str:
    """An SVG path in a 100 x 100 box: a Gaussian kernel density, scaled to its own peak."""
    spread = statistics.pstdev(values) if len(values) > 1 else 0.0
    # Silverman's rule, but never narrower than the eye can see.
    width = max(1.06 * spread * len(values) ** -0.2, 0.006 * (high - low))
    grid = [low + (high - low) * i / steps for i in range(steps + 1)]
    heights = [sum(math.exp(-0.5 * ((x - value) / width) ** 2) for value in values) for x in grid]
    peak = max(heights)
    top = [f"L{100 * i / steps:.2f} {100 - 96 * height / peak:.2f}" for i, height in enumerate(heights)]
    return f"M0 100 {' '.join(top)} L100 100 Z"


def trials(data: Data) -> dict[str, Any] | None:
    """The distribution of single measurements, one ridge each on a common axis."""
    given = data.get("trials") or {}
    series: list[tuple[str, str, list[float]]] = [
        ("dense", "best", given.get("baseline_ms") or []),
        (
            "optimized" if _facts.outcome(data) != "dense" else "optimized, not taken",
            "after",
            given.get("optimized_ms") or [],
        ),
    ]
    if not all(values for *_, values in series):
        return None

    def fence(values: list[float]) -> float:
        # Far outliers would squeeze the rest into a line; they are counted instead.
        ordered = sorted(values)
        quarter, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
        return min(ordered[-1], upper + 3 * max(upper - quarter, 0.01 * upper))

    low, high = min(min(v) for *_, v in series), max(fence(v) for *_, v in series)
    margin = 0.06 * (high - low) or 0.05 * high
    low, high = max(0.0, low - margin), high + margin
    at = _linear(low, high)
    ridges = []
    for label, style, values in series:
        shown = [value for value in values if value <= high]
        median = statistics.median(values)
        ridges.append(
            {
                "label": label,
                "style": style,
                "path": _density(shown, low, high),
                "median": at(min(median, high)),
                "text": f"median {_format.milliseconds(median)} of {_format.plural(len(values), 'trial')}",
                "dots": [at(value) for value in shown],
                "beyond": len(values) - len(shown),
            }
        )
    axis = [(at(tick), f"{tick:g}") for tick in (round(t, 9) for t in ticks(low, high, 4))]
    return {"ridges": ridges, "axis": axis}


def _slot(i: int, layers: Sequence[Data]) -> dict[str, Any]:
    share = 100 / len(layers)
    return {"layer": layers[i], "index": i + 1, "slot_x": share * i, "slot_width": share, "centre": share * (i + 0.5)}


def layer_speedups(layers: Sequence[Data]) -> dict[str, Any] | None:
    """A column a layer, up or down from 1x on a logarithmic axis: twice as fast and half as fast look alike."""
    values = [layer["speedup"] for layer in layers if layer["speedup"] is not None]
    if not values or all(value == 1 for value in values):
        return None
    low, high = min(0.9, min(values)), max(1.1, max(values))
    reach = math.log(high / low)
    low, high = low * math.exp(-0.04 * reach), high * math.exp(0.06 * reach)

    def y(value: float) -> float:
        return PLOT_HEIGHT * (1 - math.log(value / low) / math.log(high / low))

    columns = []
    for i, layer in enumerate(layers):
        speedup = layer["speedup"]
        column = _slot(i, layers) | {"x": 100 * (i + 0.15) / len(layers), "width": 70 / len(layers)}
        if speedup is not None:
            top, bottom = min(y(speedup), y(1)), max(y(speedup), y(1))
            thin = max(0.0, 4 - (bottom - top))  # a layer at 1x still shows
            column |= {"y": top - thin / 2, "height": bottom - top + thin}
        column["style"] = "dense" if _facts.is_dense(layer) else "after"
        columns.append(column)
    inside = [tick for tick in RATIO_TICKS if low <= tick <= high]
    spaced: list[float] = []
    for tick in sorted(inside, key=lambda tick: (tick != 1, abs(math.log(tick)))):
        if all(abs(y(tick) - y(other)) >= 22 for other in spaced):
            spaced.append(tick)
    return {"columns": columns, "axis": [(y(tick), f"{tick:g}x", tick == 1) for tick in spaced], "height": PLOT_HEIGHT}


def layer_times(layers: Sequence[Data]) -> dict[str, Any] | None:
    """A column for the dense time of each layer, in ms, and one beside it where an accelerated kernel was chosen."""
    # Zero stands for a layer that was not timed, because it had no other form.
    timed = [ms for layer in layers for ms in (layer.get("dense_ms"), layer.get("chosen_ms")) if ms]
    if not timed:
        return None
    high = 1.06 * max(timed)
    scale = PLOT_HEIGHT / high
    columns = []
    for i, layer in enumerate(layers):
        column = _slot(i, layers)
        pair = [("best", layer.get("dense_ms"))]
        if not _facts.is_dense(layer):
            pair.append(("after", layer.get("chosen_ms")))
        left = 0.5 - 0.185 * len(pair)
        column["pair"] = [
            {
                "x": 100 * (i + left + 0.37 * k) / len(layers),
                "width": 35 / len(layers),
                "y": PLOT_HEIGHT - ms * scale,
                "height": ms * scale,
                "style": style,
            }
            for k, (style, ms) in enumerate(pair)
            if ms
        ]
        columns.append(column)
    axis = [(PLOT_HEIGHT - tick * scale, f"{tick:g}", tick == 0) for tick in (round(t, 9) for t in ticks(0, high, 4))]
    return {"columns": columns, "axis": axis, "height": PLOT_HEIGHT}
