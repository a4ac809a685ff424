"""What a report's data must look like; the same rules hold for a dict and for a JSON file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

Rule = Callable[[str, Any], Any]  # (where, value) -> the value in plain JSON types, or ValueError


def _fail(where: str, value: object, accepted: str) -> NoReturn:
    given = repr(value)
    raise ValueError(f"report: {where} is {given if len(given) <= 60 else given[:57] + '...'}, accepted is {accepted}")


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        _fail(where, value, "text")
    return value


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(where, value, "true or false")
    return value


def _number(accepted: str, low: float, high: float = math.inf, *, open_low: bool = False) -> Rule:
    def rule(where: str, value: Any) -> float:
        if not isinstance(value, Real) or isinstance(value, bool):
            _fail(where, value, accepted)
        number = int(value) if isinstance(value, Integral) else float(value)
        if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
            _fail(where, value, accepted)
        return number

    return rule


def _count(low: int) -> Rule:
    accepted = f"a whole number, at least {low}"

    def rule(where: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
            _fail(where, value, accepted)
        return int(value)

    return rule


def _optional(rule: Rule) -> Rule:
    return lambda where, value: None if value is None else rule(where, value)


def _list(rule: Rule, length: int | None = None) -> Rule:
    def of(where: str, value: Any) -> list[Any]:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            _fail(where, value, "a list")
        if length is not None and len(value) != length:
            _fail(where, value, f"a list of {length}")
        return [rule(f"{where}[{i}]", item) for i, item in enumerate(value)]

    return of


def _plain(where: str, value: Any) -> Any:
    """Any JSON value; what the table of a dict does not name still has to be writable."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Real):
        return _number("a finite number", -math.inf)(where, value)
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{where}.{key}", item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(f"{where}[{i}]", item) for i, item in enumerate(value)]
    _fail(where, value, "null, text, a number, a list or a dict")


def _dict(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    def of(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            _fail(where, value, "a dict" + (f" with {', '.join(required)}" if required else ""))
        prefix = f"{where}." if where != "data" else ""
        for key in required:
            if key not in value:
                raise ValueError(f"report: {prefix}{key} is missing; {where} needs {', '.join(required)}")
        rules = {**(optional or {}), **required}
        return {str(key): rules.get(key, _plain)(f"{prefix}{key}", item) for key, item in value.items()}

    return of


def _shape(where: str, value: Any) -> Any:
    return value if isinstance(value, str) else _list(_count(0))(where, value)


def _interval(where: str, value: Any) -> list[float]:
    low, high = _list(POSITIVE, length=2)(where, value)
    if low > high:
        _fail(where, value, "[low, high] with low <= high")
    return [low, high]


POSITIVE = _number("a finite number above 0", 0, open_low=True)
FRACTION = _number("a fraction from 0 to 1", 0, 1)
NOT_NEGATIVE = _number("a finite number, at least 0", 0)

_FORM = _dict(
    {
        "form": _text,
        "latency_ms": POSITIVE,
        "throughput": POSITIVE,
        "accuracy": _optional(_number("a finite number", -math.inf)),
        "size_bytes": _optional(_count(0)),
    }
)
_LAYER = _dict(
    {
        "name": _text,
        "type": _text,
        "shape": _shape,
        "sparsity": _optional(FRACTION),
        "chosen": _text,
        "speedup": _optional(POSITIVE),
        "reason": _text,
    },
    {"dense_ms": _optional(NOT_NEGATIVE), "chosen_ms": _optional(NOT_NEGATIVE), "channels": _optional(_text)},
)
_GATES = _dict(
    {},
    {
        "max_drop": _optional(NOT_NEGATIVE),
        "min_speedup": _optional(NOT_NEGATIVE),
        "accuracy_passed": _optional(_flag),
        "speed_passed": _optional(_flag),
        "notes": _list(_text),
    },
)
_REPORT = _dict(
    {
        "baseline": _FORM,
        "optimized": _FORM,
        "batch_size": _count(1),
        "speedup": POSITIVE,
        "speedup_ci95": _optional(_interval),
        "layers": _list(_LAYER),
        "environment": _dict({}),
    },
    {
        "model": _optional(_text),
        "forms": _list(_dict({"form": _text, "latency_ms": _optional(POSITIVE)}, {"note": _optional(_text)})),
        "gates": _optional(_GATES),
        "settings": _optional(_dict({})),
        "trials": _optional(_dict({"baseline_ms": _list(POSITIVE), "optimized_ms": _list(POSITIVE)})),
    },
)


def checked(data: Mapping[str, Any]) -> dict[str, Any]:
    """Check a report's data and copy it into plain JSON types.

    Args:
        data: what `Report` takes. Keys beyond the contract are kept, if JSON can hold them.

    Returns:
        A deep copy: tuples become lists, numpy numbers become Python's.

    Raises:
        ValueError: a key is missing or a value is not accepted; the message names its place, such as
            `layers[3].speedup`.
    """
    result: dict[str, Any] = _REPORT("data", data)
    return result
