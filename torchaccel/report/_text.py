"""The report as plain text, narrow enough to paste into a message."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from torchaccel.report import _facts, _format

WIDTH = 80


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns aligned: the first to the left, the numbers to the right, the last one free."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *numbers, last in rows:
        cells = [first.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:-1], strict=True)), last]
        lines.append("  ".join(cells).rstrip())
    return lines


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False)


def _layers(data: Mapping[str, Any]) -> list[str]:
    layers = data["layers"]
    if not layers:
        return []
    dense = sum(map(_facts.is_dense, layers))
    lines = [f"layers    {len(layers) - dense} of {len(layers)} accelerated, {dense} kept dense"]
    if dense < len(layers) and _facts.outcome(data) == "dense":
        lines = [f"layers    {len(layers) - dense} of {len(layers)} would gain by themselves, {dense} would not"]
    for reason, names in _facts.kept_dense(layers).items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines += _wrapped("          ", f"{reason}: {shown}")
    return lines


def summary(data: Mapping[str, Any]) -> str:
    """Lay out a checked report as text, without a trailing newline."""
    before, after = data["baseline"], data["optimized"]
    speed = _format.ratio(data["speedup"]) + (f" ({_facts.interval(data)})" if data.get("speedup_ci95") else "")
    rows = [
        ("", "dense", "optimized", ""),
        ("latency", _format.milliseconds(before["latency_ms"]), _format.milliseconds(after["latency_ms"]), speed),
        ("rate", _format.rate(before["throughput"]), _format.rate(after["throughput"]), ""),
        (
            "accuracy",
            _format.score(before["accuracy"]),
            _format.score(after["accuracy"]),
            _facts.accuracy_change(data),
        ),
        ("size", _format.size(before["size_bytes"]), _format.size(after["size_bytes"]), _facts.size_change(data)),
    ]
    lines = [f"{data.get('model') or 'model'}: {_facts.headline(data)}"]
    lines = [*textwrap.wrap(lines[0], WIDTH), _facts.machine(data), "", *_table(rows), ""]
    same = before["form"] == after["form"]
    lines += _wrapped("form      ", f"{before['form']}, unchanged" if same else f"{before['form']} -> {after['form']}")
    for verdict in _facts.verdicts(data):
        lines += _wrapped("gate      ", f"{verdict.gate} {verdict.word}: {verdict.text}")
    for note in (data.get("gates") or {}).get("notes", []):
        lines += _wrapped("note      ", note)
    lines += _layers(data)
    return "\n".join(lines)
