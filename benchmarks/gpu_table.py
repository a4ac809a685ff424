"""What is measured against what: each group has our time, its opponents' and the ratio that is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpu_items import OK, Result

COPY = "copy speed"  # the opponent of what memory bounds: the same bytes at the speed of a large device copy


@dataclass(frozen=True)
class Target:
    """What a group's opponents' least time over our time should be: at least, and as a stretch."""

    at_least: float
    stretch: float


# A group's target is that of the first prefix of its name.
TARGETS = {
    "int8_linear 8192^3": Target(0.8, 1.25),
    "int8_linear small M": Target(0.75, 0.85),
    "int8_conv2d": Target(1.1, 1.6),
    "2:4 conv": Target(1.1, 1.4),
    "tile conv": Target(2.0, 3.0),
    "ResNet-50": Target(1.2, 2.0),
    "quantize_int8": Target(0.75, 0.85),
    "t(M+1)/t(M)": Target(1.15, 1.10),  # at most
}


def target_of(group: str) -> Target | None:
    return next((target for prefix, target in TARGETS.items() if group.startswith(prefix)), None)


def rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One row a group: {group, ours, ours_ms, opponent, opponent_ms, ratio, at_least, stretch, met, missing}.

    `missing` names what was not measured: a ratio beside it is against those that were.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if "group" in result:
            groups.setdefault(result["group"], []).append(result)
    return [_row(group, measured) for group, measured in groups.items()]


def _row(group: str, results: list[Result]) -> dict[str, Any]:
    target = target_of(group)
    done = [each for each in results if each["status"] == OK]
    ours = min((each for each in done if each["ours"]), key=lambda each: each["ms"], default=None)
    rival = min((each for each in done if not each["ours"]), key=lambda each: each["ms"], default=None)
    row: dict[str, Any] = dict.fromkeys(("ours", "ours_ms", "opponent", "opponent_ms", "ratio")) | {"group": group}
    if ours is not None:
        row |= {key: ours[key] for key in ("tops", "gb_per_s") if key in ours} | {
            "ours": ours["who"],
            "ours_ms": ours["ms"],
        }
    if rival is not None:
        row |= {"opponent": rival["who"], "opponent_ms": rival["ms"]}
    if ours is not None and rival is not None:
        row["ratio"] = rival["ms"] / ours["ms"]
    row |= {"at_least": target and target.at_least, "stretch": target and target.stretch}
    row["met"] = None if row["ratio"] is None or target is None else row["ratio"] >= target.at_least
    row["missing"] = [f"{each['who']}: {each['status']}" for each in results if each["status"] != OK]
    return row


def text(table: list[dict[str, Any]]) -> str:
    """The table for a terminal; its end says what could not be measured."""
    lines = [f"{'group':<46} {'ours ms':>9} {'other ms':>9} {'ratio':>6} {'asked':>6}  what"]
    for row in table:
        figures = [_number(row["ours_ms"], 9, 4), _number(row["opponent_ms"], 9, 4)]
        figures += [_number(row["ratio"], 6, 2), _number(row["at_least"], 6, 2)]
        mark = {True: "(met)", False: "(not met)", None: ""}[row["met"]]
        missing = f"[{'; '.join(row['missing'])}]" if row["missing"] else ""
        versus = f"{row['ours'] or '-'} against {row['opponent'] or '-'}"
        lines.append(" ".join([f"{row['group']:<46}", *figures, "", versus, mark, missing]).rstrip())
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
