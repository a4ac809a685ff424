"""ta.accelerate: fold, fuse, pack and pick each layer's kernel by measurement."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from torchaccel import measure
from torchaccel.compress import finalize_masks_, pattern_of, why_kept
from torchaccel.graph.cache import ChoiceCache
from torchaccel.graph.choose import Choice, choose
from torchaccel.graph.connect import assemble
from torchaccel.graph.fuse import Layer, layer_at
from torchaccel.graph.prepare import Prepared, prepare
from torchaccel.nn import SparseConv2d
from torchaccel.nn.dense import DenseConv2d
from torchaccel.ops import has_kernel
from torchaccel.workflow.inputs import check_inputs
from torchaccel.workflow.progress import Progress


@dataclass(frozen=True)
class Candidates:
    """Layer name -> modules that could serve there, and layer name -> why none could."""

    alternatives: Mapping[str, Sequence[nn.Module]]
    kept: Mapping[str, str]


def served(module: nn.Module, device: object) -> str | None:
    """Why no native kernel would serve the layer on `device`, or None. A reference is never faster than dense."""
    op = module.op  # type: ignore[attr-defined]
    return (
        None
        if has_kernel(str(op), str(device))
        else f"kept dense: no native kernel for {op} on {device} (see torchaccel doctor)"
    )


def choose_layers(
    prepared: Prepared, candidates: Candidates, inputs: tuple[Tensor, ...], cache: ChoiceCache, progress: Progress
) -> tuple[dict[str, nn.Module], list[Choice]]:
    """Run the choice with a progress bar, and keep what was measured."""
    with progress.step("timing layers", sum(len(forms) for forms in candidates.alternatives.values())) as tick:
        winners, choices = choose(
            prepared.dense, candidates.alternatives, candidates.kept, inputs, cache, tick=lambda _: tick()
        )
    cache.save()
    return winners, choices


def sparse_float(dense: Layer, pattern: str) -> SparseConv2d:
    """The float layer with its pruned weights compressed, and what was fused.

    Raises:
        ValueError: with the reason where there is none.
    """
    if not isinstance(dense, DenseConv2d):
        raise ValueError("sparse kernels serve convolutions")
    module = SparseConv2d.from_float(dense.to_float(), pattern)
    module.fuse_activation(dense.activation)
    return module


def _candidates(prepared: Prepared, device: object) -> Candidates:
    alternatives: dict[str, list[nn.Module]] = {}
    kept: dict[str, str] = {}
    for name in prepared.names:
        module = prepared.given.get(name)
        if module is None:
            dense = layer_at(prepared.dense, name)
            pattern = pattern_of(dense.weight)
            if pattern is None:
                kept[name] = "kept dense: not pruned, not quantized"
                continue
            try:
                module = sparse_float(dense, pattern)
            except ValueError as error:
                kept[name] = f"kept dense: {error}"
                continue
        reason = served(module, device)
        if reason is None:
            alternatives[name] = [module]
        else:
            kept[name] = reason
    return Candidates(alternatives, kept)


def accelerate(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """Make an inference copy of a model: BatchNorm folded, activations and residuals fused, kernels picked by timing.

    Layers that `quantize_` made int8 stay int8 where that was measured faster than the same layer dense; otherwise a
    float layer with their dequantized weights takes their place. Pruned float layers get sparse kernels on the same
    terms. A model that torch.fx cannot trace is converted layer by layer; `accelerated.notes` says so. If the whole is
    not faster than the model as it came, a copy of that is returned.

    Args:
        model: float, pruned by `sparsify_`, or quantized by `quantize_`; it stays as it is.
        example_inputs: a tuple of tensors with the shapes to be fast at; other batch sizes work too.

    Returns:
        A module with the same call, in eval mode; `.choices` lists what was chosen for each layer and why, `.notes`
        what else there is to know.

    Raises:
        ValueError: `example_inputs` is no tuple of tensors.

    Equivalent to `torch.compile(model, options={"freezing": True})` in purpose.
    """
    check_inputs(example_inputs)
    progress = Progress()
    work = finalize_masks_(copy.deepcopy(model).eval())
    prepared = prepare(work, example_inputs, protected=why_kept(work))
    candidates = _candidates(prepared, example_inputs[0].device)
    winners, choices = choose_layers(prepared, candidates, example_inputs, ChoiceCache(), progress)
    fast = assemble(prepared.dense, winners)
    notes = [] if prepared.note is None else [prepared.note]
    given = finalize_masks_(copy.deepcopy(model).eval())
    with measure.inference():
        result = measure.compare(lambda: given(*example_inputs), lambda: fast(*example_inputs))
    if result.speedup < 1:
        notes.append(f"returned as it came: the accelerated model ran at {result.speedup:.2f}x")
        fast = given
    fast.choices, fast.notes = choices, notes  # type: ignore[assignment]
    return fast
