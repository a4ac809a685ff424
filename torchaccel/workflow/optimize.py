"""ta.optimize: from a trained model to a faster one, with a report that proves it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from torchaccel import measure
from torchaccel.compress import (
    Int8Static,
    Sparsity,
    calibrate,
    finalize_masks_,
    sparsify_,
    why_kept,
)
from torchaccel.compress.configs import check_config
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
    fastest dense form of the model that was given. Where that comparison fails, the dense form is returned.

    Args:
        model: trained; it stays as it is, in weights and mode.
        example_inputs: a tuple of tensors, the batch first, of the shapes to be fast at; other batch sizes work too.
        sparsity: the pattern, the amount and the steps of pruning, or None.
        int8: `Int8Static`, `Int8Dynamic` or `Int8WeightOnly`, or None.
        calibration: batches for `Int8Static`, each a tensor or a tuple whose first items are the model's inputs;
            without it the example inputs serve, and the report says so.
        evaluate: `evaluate(model) -> float`, higher is better; without it there is no accuracy gate.
        finetune: `finetune(model, step) -> None` trains the pruned model in place; the masks hold.
        filter_fn: `filter_fn(module, name) -> bool` says which layers to prune and quantize, as in `sparsify_` and
            `quantize_`; others stay dense float. `sensitivity` proposes one.
        max_drop: how much lower than before `evaluate` may end, in its own unit.
        min_speedup: what the lower end of the measured speed-up's 95% interval must reach.

    Returns:
        A Result: `model`, `report` and whether both gates `passed`.

    Raises:
        ValueError: an argument that is not as described, or an `evaluate` that returns no finite number.
        RuntimeError: `evaluate` or `finetune` raised; the message names it and the cause is attached.

    Equivalent to nothing in PyTorch; it takes the place of `torch.compile(model, options={"freezing": True})`.
    """
    check_inputs(example_inputs)
    check_fraction("max_drop", max_drop, 0.0, float("inf"))
    check_fraction("min_speedup", min_speedup, 0.0, float("inf"))
    if sparsity is not None and not isinstance(sparsity, Sparsity):
        raise ValueError(f"sparsity: given {sparsity!r}, accepted is a Sparsity or None")
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
    before = None if evaluate is None else evaluated(evaluate, original, "original")

    work = copy.deepcopy(original)
    if sparsity is not None:
        _prune(work, sparsity, filter_fn, finetune, progress)
    after_pruning = None if evaluate is None or sparsity is None else evaluated(evaluate, work, "pruned")
    if after_pruning is not None:
        notes.append(f"after pruning, in float: {after_pruning:.4f}")

    prepared = prepare(work, example_inputs, protected=why_kept(work))
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
    after: float | None = None
    refuse: Callable[[Form], str | None] | None = None
    if evaluate is not None and before is not None:
        at_least = before - max_drop - 1e-9  # a drop of just max_drop may be rounded up
        fast, choices, after, restored = hold_accuracy(
            prepared.dense, winners, chained, choices, example_inputs, evaluate, at_least, progress
        )
        accuracy_passed = after >= at_least
        notes.extend(restored)
        refuse = partial(too_inexact, evaluate=evaluate, at_least=at_least)
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
        accuracy=(before, after), accuracy_passed=accuracy_passed, max_drop=max_drop, min_speedup=min_speedup,
        notes=notes, settings=settings(sparsity, int8), device=example_inputs[0].device,
    )  # fmt: skip
    return Result(fast if evidence.passed else forms.best.model, build_report(evidence), evidence.passed)


def _prune(
    model: nn.Module,
    sparsity: Sparsity,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    finetune: Callable[[nn.Module, int], None] | None,
    progress: Progress,
) -> None:
    steps = sparsity.steps or (sparsity.amount,)
    with progress.step("pruning", len(steps)) as tick:
        for step, amount in enumerate(steps):
            sparsify_(model, replace(sparsity, amount=amount, steps=None), filter_fn)
            if finetune is not None:
                try:
                    finetune(model, step)
                except Exception as error:
                    raise RuntimeError(f"finetune raised {type(error).__name__} in step {step}: {error}") from error
            tick()
    finalize_masks_(model.eval())


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
