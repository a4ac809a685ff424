"""What `sensitivity` returns: a table of layers and forms, and the layers to leave out that follow from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchaccel.workflow.inputs import check_fraction

FIGURES = ("sparsity", "move", "accuracy", "drop", "kernel", "speedup", "low", "dense_ms", "form_ms")


@dataclass(frozen=True)
class Proposal:
    """Which layers to leave out of one form; `filter_fn` goes into `sparsify_`, `quantize_` or `optimize`.

    Attributes:
        form: the form that the others get.
        left_out: the others: those without such a form, and those that cost too much. They stay dense float, or get
            the form that was asked for instead.
        taken: the layers that are changed.
        move, drop: what changing them all is estimated to do to the output and to `evaluate` (None without it).
        dense_ms: what all layers of the table take as they are, in milliseconds a batch, added up.
        all_ms, ms: the same with every layer in its form where that is faster, and with the layers of `taken`.
    """

    form: str
    left_out: list[str]
    taken: list[str]
    move: float
    drop: float | None
    dense_ms: float
    all_ms: float
    ms: float

    def filter_fn(self, module: nn.Module, name: str) -> bool:
        """Whether to change the layer of that name."""
        return name in self.taken

    def summary(self) -> str:
        """A few lines of text."""
        drop = "" if self.drop is None else f", evaluate falls by {self.drop:.4g}"
        return (
            f"{self.form}: {len(self.taken)} of {len(self.taken) + len(self.left_out)} layers changed\n"
            f"  left out   {', '.join(self.left_out) or 'none'}\n"
            f"  estimated  output moves by {self.move:.2%}{drop}\n"
            f"  layers     {self.ms:.3f} ms; {self.all_ms:.3f} ms with none left out, {self.dense_ms:.3f} ms dense"
        )


@dataclass(frozen=True)
class Sensitivity:
    """How far each layer's forms, that layer alone changed, move the output, and how much faster they are.

    Attributes:
        layers: one dict for each form and layer, as in the JSON: `name`, `type`, `shape`, `form`; `sparsity`, the share
            of zeros; `move`, `|y - y_dense| / |y_dense|` of the model's output; `accuracy`, what `evaluate` gave, and
            `drop`, how much less that is than before; `kernel`, the fastest one, its `speedup` against the strongest
            dense form with `low`, the lower end of the 95% interval, `dense_ms` and `form_ms`; `reason`, why a layer
            has no such form or no kernel. What was not measured is None.
        facts: `model`, `batch_size`, `accuracy` (of the model as given), `forms`, `notes`, `environment`.
    """

    layers: list[dict[str, Any]]
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.facts, "layers": self.layers}

    def to_json(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def summary(self) -> str:
        """A table for each form, the most sensitive layers first."""
        place, before = self.facts["environment"], self.facts["accuracy"]
        device = place["gpu"] or f"{place['threads']} threads of {place['cpu']}"
        given = "" if before is None else f", evaluate gives {before:.4f}"
        lines = [f"{self.facts['model']}, batch of {self.facts['batch_size']}, {device}{given}"]
        lines += [f"note: {note}" for note in self.facts["notes"]]
        for form in self.facts["forms"]:
            rows = sorted(self._rows(form), key=_harm, reverse=True)
            lines += ["", f"{form}, in one layer at a time", *_table(rows)]
        return "\n".join(lines)

    def leave_out(
        self,
        *,
        max_move: float | None = None,
        max_drop: float | None = None,
        form: str | None = None,
        instead: str | None = None,
    ) -> Proposal:
        """Propose which layers to leave dense so that the others, all changed, stay within a limit and gain most.

        Layers are taken in the order of harm for time saved while they fit. Estimates add up what was measured one
        layer at a time: drops as they are, moves by their squares, as of errors that have nothing to do with each
        other. They hold for small changes; what many layers pruned far do together, only `evaluate` tells.

        Args:
            max_move: how far the output may move, relative to its size; at least 0.
            max_drop: how much `evaluate` may fall, in its own unit; at least 0.
            form: one of `facts["forms"]`; None is the last, the sparsest.
            instead: the form that layers left out get, such as "int8 static" for those left out of pruning alone, whose
                `filter_fn` then goes into `sparsify_`; None leaves them dense float.

        Returns:
            A Proposal; its `filter_fn` goes into `sparsify_`, `quantize_` or `optimize`.

        Raises:
            ValueError: no limit, a limit that is no such number, `max_drop` without `evaluate`, or an unknown form.

        Source: the greedy solution of a knapsack, Dantzig, Discrete-Variable Extremum Problems, 1957.
        """
        forms = self.facts["forms"]
        for name, asked in (("form", form), ("instead", instead)):
            if asked is not None and asked not in forms:
                raise ValueError(f"{name}: given {asked!r}, accepted are {', '.join(map(repr, forms))}")
        if max_move is None and max_drop is None:
            raise ValueError("leave_out: neither max_move nor max_drop is given, accepted is at least one")
        for name, limit in (("max_move", max_move), ("max_drop", max_drop)):
            if limit is not None:
                check_fraction(name, limit, 0.0, math.inf)
        if max_drop is not None and self.facts["accuracy"] is None:
            raise ValueError("max_drop: given for a table made without evaluate, accepted is max_move")
        form = form or forms[-1]
        rows = self._rows(form)
        usable = {row["name"]: row for row in rows if row["speedup"] is not None}
        others = {row["name"]: row for row in self._rows(instead) if row["speedup"] is not None}
        limits = (math.inf if max_move is None else max_move**2, math.inf if max_drop is None else max_drop)
        spent = tuple(math.fsum(costs) for costs in zip((0.0, 0.0), *map(_costs, others.values()), strict=True))
        changes = [_Change.between(others.get(name), row) for name, row in usable.items()]
        taken: dict[str, _Change] = {}
        for change in sorted(changes, key=lambda change: change.price(limits)):
            total = tuple(a + b for a, b in zip(spent, change.costs, strict=True))
            if all(t <= limit for t, limit in zip(total, limits, strict=True)):
                taken[change.name] = change
                spent = total
        dense_ms = sum(row["dense_ms"] for row in (others | usable).values())
        none_ms = dense_ms - sum(row["dense_ms"] - _ms(row) for row in others.values())
        return Proposal(
            form,
            left_out=[row["name"] for row in rows if row["name"] not in taken],
            taken=[row["name"] for row in rows if row["name"] in taken],
            move=math.sqrt(spent[0]),
            drop=None if self.facts["accuracy"] is None else spent[1],
            dense_ms=dense_ms,
            all_ms=none_ms - sum(change.saved_ms for change in changes),
            ms=none_ms - sum(change.saved_ms for change in taken.values()),
        )

    def _rows(self, form: str | None) -> list[dict[str, Any]]:
        return [row for row in self.layers if row["form"] == form]


@dataclass(frozen=True)
class _Change:
    """One layer that gets the form in question."""

    name: str
    costs: tuple[float, ...]
    saved_ms: float

    @classmethod
    def between(cls, before: dict[str, Any] | None, row: dict[str, Any]) -> _Change:
        """From its form when left out, dense float where that is None."""
        if before is None:
            return cls(row["name"], _costs(row), row["dense_ms"] - _ms(row))
        more = tuple(max(a - b, 0.0) for a, b in zip(_costs(row), _costs(before), strict=True))
        return cls(row["name"], more, max(_ms(before) - _ms(row), 0.0))

    def price(self, limits: tuple[float, ...]) -> tuple[float, float]:
        """The share of the limits that it uses up for a millisecond saved; where that is none, its own."""
        shares = [
            cost / limit if limit else (math.inf if cost else 0.0)
            for cost, limit in zip(self.costs, limits, strict=True)
        ]
        used = max(shares)
        return (used / self.saved_ms if self.saved_ms else math.inf if used else 0.0), used


def _costs(row: dict[str, Any]) -> tuple[float, ...]:
    """What adds up over layers: the square of the move, and the drop, where a gain makes up for none."""
    return row["move"] ** 2, max(row["drop"] or 0.0, 0.0)


def _ms(row: dict[str, Any]) -> float:
    """A kernel that is slower is not used, though a chain may still hold the layer."""
    return min(row["form_ms"], row["dense_ms"])


def _harm(row: dict[str, Any]) -> tuple[float, ...]:
    """What rows are sorted by; those that were not measured come last."""
    return (-1.0,) if row["move"] is None else tuple(reversed(_costs(row)))


_COLUMNS = {
    "pruned": ("sparsity", ".0%"),
    "moves": ("move", ".2%"),
    "drop": ("drop", "+.4f"),
    "speed-up": ("speedup", ".2f"),
    "dense ms": ("dense_ms", ".3f"),
    "ms": ("form_ms", ".3f"),
}


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Columns aligned, numbers to the right; one without a figure is left out."""
    columns = {
        head: ["-" if row[key] is None else format(row[key], spelling) for row in rows]
        for head, (key, spelling) in _COLUMNS.items()
        if any(row[key] is not None for row in rows)
    }
    columns = {
        "layer": [row["name"] for row in rows],
        **columns,
        "kernel": [row["kernel"] or row["reason"] or "-" for row in rows],
    }
    widths = {head: max(map(len, [head, *cells])) for head, cells in columns.items()}
    aligned = [
        [
            cell.ljust(widths[head]) if head in ("layer", "kernel") else cell.rjust(widths[head])
            for cell in (head, *cells)
        ]
        for head, cells in columns.items()
    ]
    return ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]
