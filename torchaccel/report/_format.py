"""Numbers as people read them; the text and the page share one spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence

NOT_MEASURED = "not measured"

_TUPLE = re.compile(r"\(\d+(?:, \d+)*,?\)")


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    digits = 3 if value < 1 else 2 if value < 100 else 1
    return f"{value:,.{digits}f} ms"


def rate(value: float) -> str:
    """Samples a second."""
    return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"


def size(value: int | None) -> str:
    if value is None:
        return NOT_MEASURED
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value} B"


def percent(value: float | None, digits: int = 2) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f} %"


def _is_fraction(value: float) -> bool:
    return 0 <= value <= 1


def score(value: float | None) -> str:
    """An accuracy as a percentage; another score, such as a negative loss, as it is."""
    if value is None or _is_fraction(value):
        return percent(value)
    return f"{value:.4g}"


def score_change(before: float | None, after: float | None) -> str:
    """A difference of two accuracies in percentage points, of two other scores as it is; with its sign."""
    if before is None or after is None:
        return NOT_MEASURED
    if not (_is_fraction(before) and _is_fraction(after)):
        return f"{after - before:+.4g}" if after != before else "no change"
    points = round(100 * (after - before), 2)
    return f"{points:+.2f} points" if points else "no change"


def drop(value: float, before: float) -> str:
    """A drop that is allowed, in the spelling of the score it is taken from."""
    return f"{100 * value:.2f} points" if _is_fraction(before) else f"{value:g}"


def ratio(value: float | None) -> str:
    """A speed-up; near 1 a third digit keeps 0.996 from reading as 1.00."""
    if value is None:
        return "-"
    near_one = abs(value - 1) < 0.02 and value != 1
    return f"{value:.{3 if near_one else 2}f}x"


def shape(value: str | Sequence[int]) -> str:
    """Sizes joined by x; in a text such as "(1, 64) @ (10, 64)" each tuple alike."""
    if not isinstance(value, str):
        return "x".join(map(str, value))
    return _TUPLE.sub(lambda match: "x".join(re.findall(r"\d+", match[0])), value)


def date(value: object) -> str:
    """A date in ISO 8601 with a space in place of the T."""
    return str(value).replace("T", " ").replace("+00:00", " UTC")


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
