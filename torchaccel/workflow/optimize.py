"""ta.optimize: from a trained model to a faster one, with a report that proves it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn

from torchaccel import measure
from torchaccel.compress import (
    Int8Static,
    Sparsity,
    calibrate,
    finalize_masks_,
    why_kept,
)
from torchaccel.compress.configs import check_config
from torchaccel.compress.coupled import pruning_library
from torchaccel.compress.removal import record_of, set_record
from torchaccel.graph.cache import ChoiceCache
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import Prepared, prepare
from torchaccel.nn import InputRange
from torchaccel.workflow.accelerate import choose_layers
from torchaccel.workflow.benchmark import time_forms
from torchaccel.workflow.candidates import Int8, candidates
from torchaccel.workflow.evidence import Evidence, build_report, settings
from torchaccel.workflow.forms import Form
from torchaccel.workflow.gates import hold_accuracy, moved, too_inexact
from torchaccel.workflow.inputs import Evaluate, check_fraction, check_inputs, evaluated
from torchaccel.workflow.progress import Progress
from torchaccel.workflow.pruning import AccuracyGate, prune
from torchaccel.workflow.result import Result
from torchaccel.workflow.running import inner, running


def optimize(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    sparsity: Sparsity | None = None,
    int8: Int8 | None = Int8Static(),  # noqa: B008 (frozen)
    calibration: Iterable[object] | None = None,
    evaluate: Evaluate | None = None,
    finetune: Callable[[nn.Module, int], None] | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    max_drop: float = 0.005,
    min_speedup: float = 1.0,
) -> Result:
    """Prune, quantize and accelerate a trained model, and keep only what is measured faster and still accurate.

    The steps: prune in the steps of `sparsity` with `finetune` after each; fold and fuse; calibrate; time every layer's
    forms and keep the fastest; put sensitive layers back until the accuracy holds; compare the whole model with the
    fastest dense form of the model that was given. Where that comparison fails, the dense form is returned. Channels
    that were removed cannot be put back: with the pattern "channel" the accuracy is checked after each step as well,
    and the last step that holds it goes on.

    Args:
        model: trained; it stays as it is, in weights and mode.
        example_inputs: a tuple of tensors, the batch first, of the shapes to be fast at; other batch sizes work too.
        sparsity: the pattern, the amount and the steps of pruning, or None.
        int8: `Int8Static`, `Int8Dynamic` or `Int8WeightOnly`, or None.
        calibration: batches for `Int8Static`, each a tensor or a tuple whose first items are the model's inputs;
            without it the example inputs serve, and the report says so.
        evaluate: `evaluate(model) -> float`, higher is better; without it there is no accuracy gate.
        finetune: `finetune(model, step) -> None` trains the pruned model in place; the masks hold. Once channels are
            removed its parameters are new ones, so it makes an optimizer of its own.
        filter_fn: `filter_fn(module, name) -> bool` says which layers to prune and quantize, as in `sparsify_` and
            `quantize_`; others stay dense float. `sensitivity` proposes one.
        max_drop: how much lower than before `evaluate` may end, in its own unit.
        min_speedup: what the lower end of the measured speed-up's 95% interval must reach.

    Returns:
        A Result: `model`, `report` and whether both gates `passed`.

    Raises:
        ValueError: an argument that is not as described, or an `evaluate` that returns no finite number.
        RuntimeError: `evaluate` or `finetune` raised; the message names it and the cause is attached.
        ImportError: the pattern is "channel" and torch-pruning is not installed.

    Equivalent to nothing in PyTorch; it takes the place of `torch.compile(model, options={"freezing": True})`.
    """
    check_inputs(example_inputs)
    check_fraction("max_drop", max_drop, 0.0, float("inf"))
    check_fraction("min_speedup", min_speedup, 0.0, float("inf"))
    if sparsity is not None and not isinstance(sparsity, Sparsity):
        raise ValueError(f"sparsity: given {sparsity!r}, accepted is a Sparsity or None")
    if sparsity is not None and sparsity.pattern == "channel":
        pruning_library()  # where it is missing, now and not after minutes
    if int8 is not None:
        check_config("optimize", int8)
    if finetune is not None and sparsity is None:
        raise ValueError(
            "finetune: given without sparsity, accepted only with it, since it is called after each pruning step"
        )
    progress = Progress()
    notes: list[str] = []
    model = inner(model)
    original = finalize_masks_(copy.deepcopy(model).eval())  # masks would slow the baseline down
    gate = None
    if evaluate is not None:
        before = evaluated(evaluate, original, "original")
        gate = AccuracyGate(evaluate, before, before - max_drop - 1e-9)  # a drop of just max_drop may be rounded up

    work, removed = copy.deepcopy(original), None
    if sparsity is not None:
        pruned = prune(work, sparsity, example_inputs, filter_fn, finetune, gate, progress)
        work, removed = pruned.model, pruned.removed
        notes.extend(pruned.notes)

    widths = record_of(work)
    prepared = prepare(work, example_inputs, protected=why_kept(work))
    set_record(prepared.dense, widths)
    if prepared.note is not None:
        notes.append(prepared.note)
    if int8 is not None and isinstance(int8, Int8Static) and calibration is None:
        notes.append("calibrated on example_inputs alone, for want of calibration batches")
    batches = [example_inputs] if calibration is None else calibration
    ranges = input_ranges(prepared, int8, batches, len(example_inputs), progress)
    left_out = [] if filter_fn is None else _left_out(prepared, original, filter_fn)
    found = candidates(prepared, example_inputs[0].device, int8, ranges, left_out)
    winners, choices, chained = choose_layers(prepared, found, example_inputs, ChoiceCache(), progress)

    accuracy_passed: bool | None = None
    accuracy: tuple[float | None, float | None] = (None, None)
    refuse: Callable[[Form], str | None] | None = None
    if gate is not None:
        fast, choices, after, restored = hold_accuracy(
            prepared.dense, winners, chained, choices, example_inputs, gate.evaluate, gate.at_least, progress
        )
        accuracy_passed, accuracy = after >= gate.at_least, (gate.before, after)
        notes.extend(restored)
        refuse = partial(too_inexact, evaluate=gate.evaluate, at_least=gate.at_least)
    else:
        fast = running(assemble(prepared.dense, winners, chained), example_inputs)
        notes.append(f"outputs moved by {moved(original, fast, example_inputs):.2%} on the example inputs")

    fused = Form("folded and fused", prepared.dense, "the graph of torchaccel with every layer in dense float")
    with progress.step("timing dense forms", 1) as tick:
        forms = time_forms(original, example_inputs, beside=[fused], refuse=refuse)
        tick()
    with progress.step("timing the result", 1) as tick, measure.inference():
        trials = measure.compare(
            lambda: forms.best.model(*example_inputs), lambda: fast(*example_inputs), budget_s=6.0, min_pairs=21
        )
        tick()
    evidence = Evidence(
        model=type(model).__name__, original=original, optimized=fast, forms=forms, trials=trials, choices=choices,
        accuracy=accuracy, accuracy_passed=accuracy_passed, max_drop=max_drop, min_speedup=min_speedup,
        notes=notes, settings=settings(sparsity, int8), device=example_inputs[0].device,
        removed=removed, widths=widths,
    )  # fmt: skip
    return Result(fast if evidence.passed else forms.best.model, build_report(evidence), evidence.passed)


def _left_out(prepared: Prepared, model: nn.Module, filter_fn: Callable[[nn.Module, str], bool]) -> list[str]:
    """The float layers that `filter_fn` rejects; it sees those of the model, or what tracing made a layer of."""
    modules = dict(model.named_modules())
    names = [name for name in prepared.names if name not in prepared.given]
    return [name for name in names if not filter_fn(modules.get(name) or prepared.dense.get_submodule(name), name)]


def input_ranges(
    prepared: Prepared, int8: Int8 | None, batches: Iterable[object], inputs: int, progress: Progress
) -> dict[str, InputRange]:
    """The range of each layer's input, where the kind of int8 needs one."""
    if not isinstance(int8, Int8Static):
        return {}
    with progress.step("calibrating", 1) as tick:
        ranges = calibrate(prepared.dense, [*prepared.names, *prepared.weightless], batches, int8, inputs)
        tick()
    return ranges
