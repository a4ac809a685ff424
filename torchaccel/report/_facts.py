"""What follows from a report's data: the verdict, the gates in words, what was kept dense and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torchaccel.report import _format

Data = Mapping[str, Any]

_RATIO = re.compile(r"\b\d+(?:\.\d+)?x\b")
Outcome = Literal["faster", "nothing won", "unproven"]


class Verdict(NamedTuple):
    """One gate: its name, True or False or None for "not checked", and a sentence."""

    gate: str
    passed: bool | None
    text: str

    @property
    def word(self) -> str:
        return "not checked" if self.passed is None else "passed" if self.passed else "failed"


def is_dense(layer: Data) -> bool:
    """Whether a layer stayed as it was."""
    return str(layer["chosen"]).lower().startswith("dense")


def outcome(data: Data) -> Outcome:
    low = data["speedup_ci95"][0] if data.get("speedup_ci95") else data["speedup"]
    if low > 1:
        return "faster"
    return "nothing won" if data["speedup"] == 1 and all(map(is_dense, data["layers"])) else "unproven"


def headline(data: Data) -> str:
    """One sentence for somebody who reads no further."""
    speedup, best = _format.ratio(data["speedup"]), data["baseline"]["form"]
    match outcome(data):
        case "faster":
            return f"{speedup} faster than the best dense form of the model ({best})."
        case "nothing won":
            return f"Nothing was faster than the best dense form of the model ({best}), so that form is returned."
        case _:
            return f"Measured at {speedup} the speed of the best dense form ({best}): not shown to be faster."


def size_change(data: Data) -> str:
    before, after = data["baseline"]["size_bytes"], data["optimized"]["size_bytes"]
    if not before or not after:
        return _format.NOT_MEASURED
    if before == after:
        return "no change"
    return f"{before / after:.2f}x smaller" if before > after else f"{after / before:.2f}x larger"


def accuracy_change(data: Data) -> str:
    before, after = data["baseline"]["accuracy"], data["optimized"]["accuracy"]
    return _format.NOT_MEASURED if before is None or after is None else _format.points(after - before)


def interval(data: Data) -> str:
    ci = data.get("speedup_ci95")
    return "no interval" if not ci else f"95% interval {_format.ratio(ci[0])} to {_format.ratio(ci[1])}"


def _speed_gate(data: Data, gates: Data) -> Verdict:
    demanded, ci = gates.get("min_speedup"), data.get("speedup_ci95")
    figure = _format.ratio(ci[0] if ci else data["speedup"])
    shown = f"the lower end of the 95% interval is {figure}" if ci else f"the speed-up is {figure}"
    text = shown if demanded is None else f"{shown}; at least {_format.ratio(demanded)} is demanded"
    return Verdict("speed", gates.get("speed_passed"), text)


def _accuracy_gate(data: Data, gates: Data) -> Verdict:
    before, after = data["baseline"]["accuracy"], data["optimized"]["accuracy"]
    if before is None or after is None:
        text = "accuracy was not measured, because no evaluation was given"
        return Verdict("accuracy", gates.get("accuracy_passed"), text)
    text = f"{_format.percent(before)} before, {_format.percent(after)} after"
    if gates.get("max_drop") is not None:
        text += f"; a drop of up to {100 * gates['max_drop']:.2f} points is allowed"
    return Verdict("accuracy", gates.get("accuracy_passed"), text)


def verdicts(data: Data) -> list[Verdict]:
    """The two gates; empty where the data tells of none."""
    gates = data.get("gates")
    return [_speed_gate(data, gates), _accuracy_gate(data, gates)] if gates else []


def kept_dense(layers: Sequence[Data]) -> dict[str, list[str]]:
    """The names of the layers that stayed dense, by reason, the most frequent reason first.

    Reasons that differ only in the ratio measured are one: "kept dense: 0.81x to 0.97x at N=1".
    """
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for layer in layers:
        if is_dense(layer):
            reason = layer["reason"] or "no reason given"
            groups.setdefault(_RATIO.sub("{}", reason, count=1), []).append((layer["name"], _RATIO.findall(reason)[:1]))
    merged = {}
    for pattern, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        ratios = sorted({ratio for _, found in members for ratio in found}, key=lambda text: float(text[:-1]))
        reach = " to ".join(dict.fromkeys((ratios[0], ratios[-1]))) if ratios else "{}"
        merged[pattern.replace("{}", reach, 1)] = [name for name, _ in members]
    return merged


def dense_forms(data: Data) -> list[Data]:
    """All dense forms that were compared, the baseline among them, the fastest first and the failed ones last."""
    forms = list(data.get("forms") or [])
    if all(form["form"] != data["baseline"]["form"] for form in forms):
        forms.append(data["baseline"])
    return sorted(forms, key=lambda form: (form["latency_ms"] is None, form["latency_ms"] or 0))


def machine(data: Data) -> str:
    """Device, threads and batch size in one line."""
    env = data["environment"]
    device = env.get("gpu") if str(env.get("device", "")).startswith("cuda") else env.get("cpu")
    parts = [str(device or env.get("device") or "unknown device")]
    if env.get("threads"):
        parts.append(_format.plural(int(env["threads"]), "thread"))
    parts.append(f"batch size {data['batch_size']}")
    return ", ".join(parts)
