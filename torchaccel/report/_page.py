"""The report as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from torchaccel.report import _facts, _format, _plots

# How the keys of `environment` are called on the page, in its order; others follow under their own name.
ENVIRONMENT_LABELS = {
    "cpu": "CPU",
    "gpu": "GPU",
    "device": "Measured on",
    "isa": "Instruction set",
    "threads": "Threads",
    "platform": "Platform",
    "torchaccel": "torchaccel",
    "torch": "PyTorch",
    "python": "Python",
    "date": "Date",
}


@cache
def _template() -> Template:
    # Everything is escaped: layer and model names come from the user's code or from a file.
    environment = Environment(
        loader=PackageLoader("torchaccel.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ms": _format.milliseconds,
        "rate": _format.rate,
        "size": _format.size,
        "percent": _format.percent,
        "score": _format.score,
        "ratio": lambda value: _times(_format.ratio(value)),
        "shape": _shape,
        "times": _times,
        # Layers of one block differ at the end of their names.
        "tail": lambda text, length: text if len(text) <= length else "…" + text[1 - length :],
        "plural": _format.plural,
        "is_dense": _facts.is_dense,
    }
    return environment.get_template("report.html.j2")


def _shape(value: Any) -> str:
    """A shape that breaks before its operator, not after: "1x64 * 64x64x3x3"."""
    text = _times(_format.shape(value))
    return text.replace("* ", "*\N{NO-BREAK SPACE}").replace("@ ", "@\N{NO-BREAK SPACE}")


def _times(text: str) -> str:
    """Put the multiplication sign where the plain text has an x beside a digit: 2.14x, 64x64x3x3."""
    out = list(text)
    for i, letter in enumerate(out):
        if letter == "x" and i and text[i - 1].isdigit() and (i + 1 == len(out) or not text[i + 1].isalpha()):
            out[i] = "\N{MULTIPLICATION SIGN}"
    return "".join(out)


def _environment(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    keys = [key for key in ENVIRONMENT_LABELS if key in given] + [key for key in given if key not in ENVIRONMENT_LABELS]
    rows = []
    for key in keys:
        value = given[key]
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        text = _format.date(text) if key == "date" else text
        if value is not None and text:
            rows.append((ENVIRONMENT_LABELS.get(key, key), text))
    return rows


def render(data: Mapping[str, Any]) -> str:
    """Lay out a checked report as HTML."""
    layers = data["layers"]
    dense = sum(map(_facts.is_dense, layers))
    return _template().render(
        data=data,
        model=data.get("model") or "model",
        date=_format.date(data["environment"].get("date") or ""),
        outcome=_facts.outcome(data),
        headline=_facts.headline(data),
        interval=_facts.interval(data),
        rates=" to ".join(dict.fromkeys(_format.rate(data[form]["throughput"]) for form in ("baseline", "optimized"))),
        size_change=_facts.size_change(data),
        accuracy_change=_facts.accuracy_change(data),
        machine=_facts.machine(data),
        verdicts=_facts.verdicts(data),
        notes=(data.get("gates") or {}).get("notes", []),
        dense_count=dense,
        kept=_facts.kept_dense(layers),
        environment=_environment(data["environment"]),
        latency=_plots.latency(data),
        sizes=_plots.sizes(data),
        accuracy=_plots.accuracy(data),
        trials=_plots.trials(data),
        speedups=_plots.layer_speedups(layers),
        times=_plots.layer_times(layers),
    )
