"""ta.sensitivity: how far each layer's other forms move the model's output, and how much faster they are."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchaccel.compress import Int8Dynamic, Int8Static, Sparsity, finalize_masks_, sparsify_, why_kept
from torchaccel.compress.configs import check_config
from torchaccel.compress.convert import why_not
from torchaccel.compress.patterns import sparsity_of
from torchaccel.graph.cache import ChoiceCache
from torchaccel.graph.choose import able, arguments, kind, shape_words, timings
from torchaccel.graph.connect import assemble
from torchaccel.graph.fuse import layer_at
from torchaccel.graph.prepare import Prepared, prepare
from torchaccel.nn import InputRange
from torchaccel.workflow.candidates import Candidates, Int8, candidates
from torchaccel.workflow.evidence import environment
from torchaccel.workflow.gates import apart, outputs_of
from torchaccel.workflow.inputs import Evaluate, check_inputs, evaluated
from torchaccel.workflow.layer_table import FIGURES, Sensitivity
from torchaccel.workflow.optimize import input_ranges
from torchaccel.workflow.progress import Progress
from torchaccel.workflow.running import inner

Row = dict[str, Any]


def sensitivity(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    sparsity: Sparsity | Sequence[Sparsity] | None = None,
    int8: Int8 | Sequence[Int8] | None = None,
    calibration: Iterable[object] | None = None,
    evaluate: Evaluate | None = None,
) -> Sensitivity:
    """Change one layer at a time: how far the output moves, how `evaluate` falls, and what that layer gains in speed.

    The forms are those that `optimize` makes of a layer, in all steps of `sparsity`. With `int8` as well they are dense
    int8 and, pruned by each amount, int8. Also layers that `sparsify_` leaves dense by default are pruned, since here
    they are measured. Each layer is timed against its strongest dense form, once for each kernel, inside a model whose
    other layers are in the same form; chains of layers, which `optimize` makes on CPUs, gain more than their layers.

    Args:
        model: trained, in float; it stays as it is, in weights and mode.
        example_inputs: a tuple of tensors, the batch first: real data, on which outputs are compared, of the shapes
            to be fast at.
        sparsity: patterns and amounts; each of `steps` is a form.
        int8: `Int8Static`, `Int8Dynamic`, `Int8WeightOnly`, or several of them.
        calibration: batches for `Int8Static`, as in `optimize`; without it the example inputs serve.
        evaluate: `evaluate(model) -> float`, higher is better; called once for the model and once for each layer and
            form, so a part of the test data serves best.

    Returns:
        A Sensitivity: `.layers`, `.summary()`, `.to_json(path)`, and `.leave_out(max_move=..., max_drop=...)`, which
        proposes a `filter_fn` for `sparsify_`, `quantize_` and `optimize`.

    Raises:
        ValueError: an argument that is not as described, or an `evaluate` that returns no finite number.
        RuntimeError: `evaluate` raised; the message names the layer, and the cause is attached.

    Equivalent to a loop over `model.named_modules()` that exchanges one layer, calls the model and puts it back.

    Source: one layer at a time, as in Li et al., Pruning Filters for Efficient ConvNets, 2017, section 3.2, and Wu et
    al., Integer Quantization for Deep Learning Inference, 2020, section 6.1; with times as well.
    """
    check_inputs(example_inputs)
    forms = _forms(sparsity, int8)
    progress = Progress()
    original = finalize_masks_(copy.deepcopy(inner(model)).eval())
    prepared = prepare(copy.deepcopy(original), example_inputs, protected=why_kept(original))
    notes = [] if prepared.note is None else [prepared.note]
    expected = outputs_of(prepared.dense, example_inputs)
    if not 0 < float(expected.norm()) < math.inf:
        raise ValueError(
            f"example_inputs: the norm of the model's output on them is {float(expected.norm())}, accepted are inputs "
            "whose output is finite and not all zeros"
        )
    before = None if evaluate is None else evaluated(evaluate, original, "original")
    static = next((form.int8 for form in forms if isinstance(form.int8, Int8Static)), None)
    if static is not None and calibration is None:
        notes.append("calibrated on example_inputs alone, for want of calibration batches")
    batches = [example_inputs] if calibration is None else calibration
    ranges = input_ranges(prepared, static, batches, len(example_inputs), progress)
    probe = _Probe(original, prepared, example_inputs, expected, ranges, evaluate, before, progress)
    rows = [row for number, form in enumerate(forms, 1) for row in probe.rows(form, f"form {number} of {len(forms)}")]
    probe.cache.save()
    facts = {
        "model": type(inner(model)).__name__,
        "batch_size": example_inputs[0].shape[0] if example_inputs[0].dim() else 1,
        "accuracy": before,
        "forms": [form.label for form in forms],
        "notes": notes,
        "environment": environment(example_inputs[0].device),
    }
    return Sensitivity(rows, facts)


@dataclass(frozen=True)
class _Form:
    """One way to change a layer."""

    sparsity: Sparsity | None
    int8: Int8 | None

    @property
    def label(self) -> str:
        """In the words of the command line: "1x4:0.9 int8 static"."""
        words = [] if self.sparsity is None else [f"{self.sparsity.pattern}:{self.sparsity.amount:g}"]
        if self.int8 is not None:
            static, dynamic = isinstance(self.int8, Int8Static), isinstance(self.int8, Int8Dynamic)
            words.append(f"int8 {'static' if static else 'dynamic' if dynamic else 'weight-only'}")
        return " ".join(words)

    @property
    def unpruned(self) -> _Form:
        """What becomes of a layer that cannot be pruned."""
        return replace(self, sparsity=None)


def _why_unseen(module: nn.Module) -> str:
    """Why a layer is not among those of the traced model."""
    if parametrize.is_parametrized(module):
        return "its weight has a parametrization of another kind"
    return "it is not called just once"


def _several(given: Any) -> list[Any]:
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def _forms(sparsity: object, int8: object) -> list[_Form]:
    """The forms that are asked for, the sparsest last."""
    for item in _several(sparsity):
        if not isinstance(item, Sparsity):
            raise ValueError(f"sparsity: given {item!r}, accepted is a Sparsity, several of them or None")
        if item.pattern == "channel":
            raise ValueError(
                "sparsity: given pattern 'channel', accepted are those of masks, since channels of several layers go "
                "together; optimize removes them in steps and keeps the last one that evaluate accepts"
            )
    for item in _several(int8):
        check_config("sensitivity", item)
    amounts = [
        replace(item, amount=amount, steps=None)
        for item in _several(sparsity)
        for amount in item.steps or (item.amount,)
    ]
    forms = [_Form(None, item) for item in _several(int8)]
    forms += [_Form(amount, item) for item in _several(int8) or [None] for amount in amounts]
    labels = [form.label for form in forms]
    if not forms:
        raise ValueError("sensitivity: neither sparsity nor int8 is given, accepted is at least one")
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(
            f"sensitivity: {twice!r} is given twice, accepted is each pattern, amount and kind of int8 once"
        )
    return forms


@dataclass
class _Probe:
    """One model, whose layers are changed one at a time."""

    original: nn.Module
    prepared: Prepared
    inputs: tuple[Tensor, ...]
    expected: Tensor  # the output, flat
    ranges: Mapping[str, InputRange]
    evaluate: Evaluate | None
    before: float | None
    progress: Progress
    cache: ChoiceCache = field(default_factory=ChoiceCache)
    timed: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)  # layer, int8, kernel, if dense
    done: dict[tuple[str, str], Row] = field(default_factory=dict)  # form, layer

    def __post_init__(self) -> None:
        dense, kinds = self.prepared.dense, nn.Linear | nn.Conv2d | nn.ConvTranspose2d
        self.args = arguments(dense, [*self.prepared.names, *self.prepared.weightless], self.inputs)
        layers = {name: m for name, m in self.original.named_modules() if isinstance(m, kinds)}
        layers |= {name: dense.get_submodule(name) for name in self.prepared.names}
        order = {name: place for place, (name, _) in enumerate(self.original.named_modules())}
        self.layers = dict(sorted(layers.items(), key=lambda item: order.get(item[0], len(order))))
        read = why_kept(self.original)
        self.impossible = {
            name: read.get(name) or why_not(module) or _why_unseen(module)
            for name, module in layers.items()
            if name not in self.args
        } | dict.fromkeys(self.prepared.given, "it is int8 or sparse already")

    def rows(self, form: _Form, title: str) -> Iterator[Row]:
        """A row for each layer."""
        here, untouched = self.prepared, self.impossible
        if form.sparsity is not None:
            here, unpruned = self._pruned(form.sparsity)
            untouched = unpruned | untouched
        ranges = self.ranges if isinstance(form.int8, Int8Static) else {}
        found = candidates(here, self.inputs[0].device, form.int8, ranges, self.impossible)
        forms = {name: modules[0] for name, modules in found.alternatives.items()} | dict(found.unserved)
        if form.sparsity is not None:  # without a kernel, pruned layers are otherwise dense
            forms = {name: here.dense.get_submodule(name) for name in self.layers if name not in untouched} | forms
        ran, errors = able(self.prepared.dense, forms, self.inputs)
        reasons = {name: reason.removeprefix("kept dense: ") for name, reason in found.kept.items()}
        reasons |= errors | untouched
        measured = {name: module for name, module in ran.items() if name in self.layers and name not in untouched}
        times = self._times(form, ran, measured, found, title)
        with self.progress.step(f"outputs, {title}", len(self.layers)) as tick:
            for name in self.layers:
                if name in untouched and form.sparsity is not None and form.int8 is not None:
                    row = self.done[form.unpruned.label, name] | {"form": form.label}
                else:
                    row = self._named(name, form) | {"reason": reasons.get(name)}
                if name in measured:
                    row["sparsity"] = sparsity_of(layer_at(here.dense, name).weight)
                    row |= self._moves(name, form, measured[name]) | times.get(name, {})
                self.done[form.label, name] = row
                yield row
                tick()

    def _pruned(self, sparsity: Sparsity) -> tuple[Prepared, dict[str, str]]:
        """The model with all layers pruned that can be, and why the others cannot."""
        work = copy.deepcopy(self.original)
        report = sparsify_(work, sparsity, filter_fn=lambda module, name: True)
        here = prepare(finalize_masks_(work), self.inputs, protected=why_kept(work))
        if here.note != self.prepared.note:
            raise RuntimeError(f"sensitivity: once pruned, the model is recorded in another way: {here.note}")
        kept = dict.fromkeys(self.layers, "pruning serves linear layers and convolutions") | report.kept
        return here, {name: reason for name, reason in kept.items() if name not in report.pruned}

    def _times(
        self, form: _Form, ran: Mapping[str, nn.Module], names: Iterable[str], found: Candidates, title: str
    ) -> dict[str, Row]:
        """The fastest kernel of each layer. Those for dense weights are not timed again for other amounts."""
        rivals = {name: found.alternatives[name] for name in names if name in found.alternatives}
        best: dict[str, Row] = {}
        with self.progress.step(f"timing, {title}", sum(map(len, rivals.values()))) as tick:
            for rank in range(max(map(len, rivals.values()), default=0)):
                trial = {name: modules[rank] for name, modules in rivals.items() if rank < len(modules)}
                keys = {name: (name, str(form.int8), kind(module)) for name, module in trial.items()}
                new = [name for name in trial if keys[name] not in self.timed]
                results = dict(timings(self.prepared.dense, {**ran, **trial}, new, self.inputs, self.args, self.cache))
                for name, key in keys.items():
                    result = self.timed.get(key) or results.get(name)
                    tick()
                    if result is None:
                        continue
                    if not key[-1].endswith("sparse"):
                        self.timed[key] = result
                    if name not in best or result["speedup"] > best[name]["speedup"]:
                        best[name] = {
                            "kernel": key[-1],
                            "speedup": result["speedup"],
                            "low": result["low"],
                            "dense_ms": result["dense_ms"],
                            "form_ms": result["chosen_ms"],
                        }
        return best

    def _named(self, name: str, form: _Form) -> Row:
        """A row without figures."""
        layer = self.layers[name]
        row = {
            "name": name,
            "type": type(layer).__name__.removeprefix("Dense"),
            "shape": shape_words(layer, self.args[name]) if name in self.args else None,
            "form": form.label,
        }
        return row | dict.fromkeys(FIGURES)

    def _moves(self, name: str, form: _Form, module: nn.Module) -> Row:
        """What the model does with this layer changed alone."""
        model = assemble(self.prepared.dense, {name: module})
        moves: Row = {"move": apart(self.expected, outputs_of(model, self.inputs))}
        if self.evaluate is not None and self.before is not None:
            value = evaluated(self.evaluate, model, f"{form.label} {name}")
            moves |= {"accuracy": value, "drop": self.before - value}
        return moves
