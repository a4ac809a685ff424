"""ta.accelerate: fold, fuse, pack and pick each layer's kernel by measurement."""

from __future__ import annotations

import copy
from functools import partial

from torch import Tensor, nn

from torchaccel import measure
from torchaccel.compress import finalize_masks_, why_kept
from torchaccel.compress.removal import record_of, set_record
from torchaccel.graph.cache import ChoiceCache
from torchaccel.graph.choose import Choice, choose
from torchaccel.graph.choose_chains import choose_chains
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import Prepared, prepare
from torchaccel.workflow.candidates import Candidates, candidates
from torchaccel.workflow.graphed import Graphed
from torchaccel.workflow.inputs import check_inputs
from torchaccel.workflow.progress import Progress
from torchaccel.workflow.running import inner, running


def choose_layers(
    prepared: Prepared, found: Candidates, inputs: tuple[Tensor, ...], cache: ChoiceCache, progress: Progress
) -> tuple[dict[str, nn.Module], list[Choice], set[str]]:
    """Run the choice with progress bars, keep what was measured; winners, choices, and the layers in chains."""
    with progress.step("timing layers", sum(len(forms) for forms in found.alternatives.values())) as tick:
        winners, choices = choose(prepared.dense, found.alternatives, found.kept, inputs, cache, tick=lambda _: tick())
    cache.save()
    with progress.step("timing chains", 1) as tick:
        run = partial(running, inputs=inputs)
        chosen = choose_chains(prepared.dense, found.alternatives, winners, choices, inputs, run)
        tick()
    return chosen


def accelerate(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> nn.Module:
    """Make an inference copy of a model: BatchNorm folded, activations and residuals fused, kernels picked by timing.

    Layers that `quantize_` made int8 stay int8 where that was measured faster than the same layer dense; otherwise a
    float layer with their dequantized weights takes their place. Pruned float layers get sparse kernels on the same
    terms. A model that torch.fx cannot trace is converted layer by layer; `accelerated.notes` says so. If the whole is
    not faster than the model as it came, a copy of that is returned. On a GPU the result replays CUDA graphs, see
    `workflow.graphed`; on a CPU it may run a batch in slices, see `workflow.sliced`.

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
    device = example_inputs[0].device
    model = inner(model)
    work = finalize_masks_(copy.deepcopy(model).eval())
    widths = record_of(work)
    prepared = prepare(work, example_inputs, protected=why_kept(work))
    set_record(prepared.dense, widths)
    found = candidates(prepared, device)
    winners, choices, chained = choose_layers(prepared, found, example_inputs, ChoiceCache(), progress)
    fast = running(assemble(prepared.dense, winners, chained), example_inputs)
    notes = [] if prepared.note is None else [prepared.note]
    given = finalize_masks_(copy.deepcopy(model).eval())
    with measure.inference():
        result = measure.compare(lambda: given(*example_inputs), lambda: fast(*example_inputs))
    if result.speedup < 1:
        notes.append(f"returned as it came: the accelerated model ran at {result.speedup:.2f}x")
        fast = given
    elif isinstance(fast, Graphed):
        notes.extend(f"runs without a CUDA graph: {reason}" for reason in fast.refused)
    fast.choices, fast.notes = choices, notes  # type: ignore[assignment]
    return fast
