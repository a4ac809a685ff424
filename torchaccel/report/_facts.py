"""What follows from a report's data: the verdict, the gates in words, what was kept dense and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torchaccel.report import _format

Data = Mapping[str, Any]

_FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:x\b|%)")
Outcome = Literal["faster", "dense", "unproven"]


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
    """ "faster", "dense" where the best dense form was returned, or "unproven"."""
    if data["optimized"]["form"] == data["baseline"]["form"]:
        return "dense"
    low = data["speedup_ci95"][0] if data.get("speedup_ci95") else data["speedup"]
    return "faster" if low > 1 else "unproven"


def headline(data: Data) -> str:
    """One sentence for somebody who reads no further."""
    speedup, best = _format.ratio(data["speedup"]), data["baseline"]["form"]
    gained = not all(map(is_dense, data["layers"])) or (data.get("gates") or {}).get("accuracy_passed") is False
    match outcome(data):
        case "faster":
            return f"{speedup} faster than the best dense form of the model ({best})."
        case "dense" if gained:
            failed = " and ".join(verdict.gate for verdict in verdicts(data) if verdict.passed is False)
            why = f"did not pass the {failed} gate" if failed else "did not win"
            return f"The optimized model {why}, so the best dense form of the model ({best}) is returned."
        case "dense":
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
    return _format.score_change(before, after)


def interval(data: Data) -> str:
    ci = data.get("speedup_ci95")
    return "no interval" if not ci else f"95% interval {_format.ratio(ci[0])} to {_format.ratio(ci[1])}"


def _speed_gate(data: Data, gates: Data) -> Verdict:
    demanded, ci = gates.get("min_speedup"), data.get("speedup_ci95")
    if outcome(data) == "dense" and gates.get("speed_passed") is False:
        goal = "to be faster" if demanded is None else f"to reach {_format.ratio(demanded)}"
        return Verdict("speed", False, f"no optimized model was shown {goal}")
    figure = _format.ratio(ci[0] if ci else data["speedup"])
    shown = f"the lower end of the 95% interval is {figure}" if ci else f"the speed-up is {figure}"
    text = shown if demanded is None else f"{shown}; at least {_format.ratio(demanded)} is demanded"
    return Verdict("speed", gates.get("speed_passed"), text)


def _allowed(data: Data, gates: Data) -> str:
    drop, before = gates.get("max_drop"), data["baseline"]["accuracy"]
    if drop is None:
        return "no limit was given"
    return f"a drop of up to {_format.drop(drop, before)} is allowed"


def _accuracy_gate(data: Data, gates: Data) -> Verdict:
    before, after = data["baseline"]["accuracy"], data["optimized"]["accuracy"]
    if before is None or after is None:
        text = "accuracy was not measured, because no evaluation was given"
        return Verdict("accuracy", None, text)
    if outcome(data) == "dense" and gates.get("accuracy_passed") is False:
        return Verdict("accuracy", False, f"the optimized model lost too much: {_allowed(data, gates)}")
    text = f"{_format.score(before)} before, {_format.score(after)} after"
    return Verdict("accuracy", gates.get("accuracy_passed"), f"{text}; {_allowed(data, gates)}")


def verdicts(data: Data) -> list[Verdict]:
    """The two gates; empty where the data tells of none."""
    gates = data.get("gates")
    return [_speed_gate(data, gates), _accuracy_gate(data, gates)] if gates else []


def kept_dense(layers: Sequence[Data]) -> dict[str, list[str]]:
    """The names of the layers that stayed dense, by reason, the most frequent reason first.

    Reasons that differ only in what was measured are one: "kept dense: 0.81x to 0.97x at N=1".
    """
    groups: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for layer in layers:
        if is_dense(layer):
            reason = layer["reason"] or "no reason given"
            groups.setdefault(tuple(_FIGURE.split(reason)), []).append((layer["name"], _FIGURE.findall(reason)))
    merged = {}
    for words, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        figures = zip(*(figures for _, figures in members), strict=True)
        reason = words[0] + "".join(_reach(values) + word for values, word in zip(figures, words[1:], strict=True))
        merged[reason] = [name for name, _ in members]
    return merged


def _reach(figures: Sequence[str]) -> str:
    """The smallest and the largest of figures such as "0.97x"."""
    ordered = sorted(figures, key=lambda text: float(text[:-1]))
    return " to ".join(dict.fromkeys((ordered[0], ordered[-1])))


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
