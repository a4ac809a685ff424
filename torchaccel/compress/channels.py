"""remove_channels_: take the channels that matter least out of a network, and prove that nothing else changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from torchaccel.compress.calibrate import evaluating
from torchaccel.compress.coupled import LAYERS, Coupled, Gone, coupled_channels
from torchaccel.compress.readers import why_kept
from torchaccel.compress.removal import Kept, narrow_, record_of, silence_, widths_of

Filter = Callable[[nn.Module, str], bool]

MULTIPLE = 16
"""The channels that stay are a multiple of it: 16 int8 channels are the 16 bytes that CUDA kernels copy at a time, 16
floats are a vector of AVX-512, and every block pattern for CPUs still fits."""


@dataclass(frozen=True)
class Removed:
    """What `remove_channels_` did.

    Attributes:
        remaining: by layer, which of its output channels remain, ascending; only layers that lost some.
        before: by layer, how many output channels it had.
        kept: why a linear or convolution layer kept all its output channels.
        parameters: how many the model had, and has.
        macs: multiply-accumulates of one pass over the example inputs, before and after.
    """

    remaining: dict[str, list[int]]
    before: dict[str, int]
    kept: dict[str, str]
    parameters: tuple[int, int]
    macs: tuple[int, int]

    def then(self, later: Removed) -> Removed:
        """This and a later removal as one."""
        remaining = self.remaining | later.remaining
        for name in self.remaining.keys() & later.remaining.keys():
            remaining[name] = [self.remaining[name][i] for i in later.remaining[name]]
        return Removed(
            remaining=remaining,
            before=later.before | self.before,
            kept={name: reason for name, reason in later.kept.items() if name not in remaining},
            parameters=(self.parameters[0], later.parameters[1]),
            macs=(self.macs[0], later.macs[1]),
        )


@torch.random.fork_rng()
@torch.inference_mode(False)  # channels are found by what autograd records
def remove_channels_(
    model: nn.Module, example_inputs: tuple[Tensor, ...], amount: float, filter_fn: Filter | None = None
) -> Removed:
    """Take the channels of smallest magnitude out of a model, in place: layers become narrower, calls stay the same.

    Layers whose channels meet, in a residual addition for one, lose the same ones. The magnitude of a channel is the L2
    norm of all weights that it meets. Each such group of layers loses the share `amount` of the channels it was built
    with, less what makes those that stay a multiple of 16. Inputs and outputs of the model keep their shapes.

    Before anything changes, the narrow model is held against the given one with the weights that read these channels
    set to zero: from the example inputs both must compute the same. Where they do not, because the model's Python
    mixes channels or counts on their number, as attention does with its heads, the group stays, with the reason. So do
    channels that meet a LayerNorm or a GroupNorm, which would change the others.

    Modules stay the same objects. Parameters are new ones: make an optimizer after this, not before.

    Args:
        model: any module of convolutions, linear layers and BatchNorm; unchanged if this raises.
        example_inputs: a tuple of tensors that the model takes, on its device: data, or noise like it.
        amount: the share of channels to remove, at least 0 and below 1, of those that the model was built with: a
            second call with a higher amount goes on from the first.
        filter_fn: `filter_fn(module, name) -> bool` says of which linear and convolution layers the output channels may
            go; what shares channels with a layer left out keeps them as well.

    Returns:
        Which channels remain, and why layers kept theirs.

    Raises:
        ValueError: an amount or inputs that are not as described, weights that are not finite, or a model that does
            not run on the inputs or returns other things than tensors in tuples, lists and dicts.
        ImportError: torch-pruning is not installed.

    Equivalent to `layer.weight = nn.Parameter(layer.weight[kept])` and `reader.weight[:, kept]`, in all layers at once.

    Source: Fang et al., DepGraph: Towards Any Structural Pruning, 2023, by its authors' torch-pruning.
    """
    if not isinstance(amount, int | float) or not 0 <= amount < 1:
        raise ValueError(f"remove_channels_: amount is {amount!r}, accepted is a number from 0 to below 1")
    if not isinstance(example_inputs, tuple) or not all(isinstance(x, Tensor) for x in example_inputs):
        given = type(example_inputs).__name__
        raise ValueError(f"remove_channels_: example_inputs is {given}, accepted is a tuple of tensors, such as (x,)")
    example_inputs = tuple(map(_telling, example_inputs))
    record = record_of(model)
    modules = dict(model.named_modules())
    kept = why_kept(model)  # such as within nn.MultiheadAttention, where no call of the layer is seen
    plans: list[_Plan] = []
    for group in coupled_channels(model, example_inputs):
        reason = group.reason or _refused(modules, group, filter_fn)
        if reason is None:
            now = len(group.scores)
            built = record.get(group.layers[0], {}).get("out", [now, now])[1]
            chosen = _smallest(group, now - _staying(built, amount, group.parts))
            gone = group.gone(chosen) if chosen else {}
            if not chosen:
                reason = _too_few(now, built, amount)
            elif gone[group.layers[0]]["out"] != set(chosen):
                reason = "its channels depend on each other"
            else:
                plans.append(_Plan(group, gone))
        if reason is not None:
            kept |= dict.fromkeys(group.layers, reason)
    plans, refused = _proven(model, example_inputs, plans)
    for plan, reason in refused:
        kept |= dict.fromkeys(plan.group.layers, reason)
    layers = {name: widths_of(module)["out"] for name, module in modules.items() if isinstance(module, LAYERS)}
    parameters, macs = _costs(model, example_inputs)
    change = _together(model, plans)
    narrow_(model, change)
    parameters_now, macs_now = _costs(model, example_inputs)
    remaining = {name: change[name].out for name in layers if name in change}
    left = {name: channels.tolist() for name, channels in remaining.items() if channels is not None}
    return Removed(
        remaining=left,
        before={name: layers[name] for name in left},
        kept={name: kept.get(name, "the example inputs do not reach it") for name in layers if name not in left},
        parameters=(parameters, parameters_now),
        macs=(macs, macs_now),
    )


@dataclass(frozen=True)
class _Plan:
    """What a group is to lose."""

    group: Coupled
    gone: Gone


def _refused(modules: dict[str, nn.Module], group: Coupled, filter_fn: Filter | None) -> str | None:
    if not torch.isfinite(group.scores).all():
        raise ValueError(
            f"remove_channels_: weights that {group.layers[0]!r} or its readers hold are NaN or infinite, "
            "accepted are finite ones"
        )
    if filter_fn is None:
        return None
    left_out = [name for name in group.layers if not filter_fn(modules[name], name)]
    if not left_out:
        return None
    return f"filter_fn left {', '.join(map(repr, left_out[:3]))} out" + (" and more" if left_out[3:] else "")


def _staying(built: int, amount: float, parts: int) -> int:
    """How many of the channels that a group was built with stay."""
    multiple = math.lcm(MULTIPLE, parts)
    return math.ceil(round(built * (1 - amount), 6) / multiple) * multiple


def _too_few(now: int, built: int, amount: float) -> str:
    return f"{amount:.0%} of its {built} channels leave no smaller multiple of {MULTIPLE} than the {now} that it has"


def _smallest(group: Coupled, count: int) -> list[int]:
    """The `count` channels with the smallest scores, equally many in the same places of each part."""
    count = max(count, 0) // group.parts
    scores = group.scores.view(group.parts, -1)
    places = scores.mean(0).argsort(stable=True)[:count]
    return (torch.arange(group.parts)[:, None] * scores.shape[1] + places.cpu()).flatten().tolist()


def _together(model: nn.Module, plans: Sequence[_Plan]) -> dict[str, Kept]:
    """What each layer keeps when all plans come true."""
    gone: Gone = {}
    for plan in plans:
        for name, sides in plan.gone.items():
            for side, channels in sides.items():
                gone.setdefault(name, {"out": set(), "in": set()})[side] |= channels
    kept: dict[str, Kept] = {}
    for name, module in model.named_modules():
        index = {
            side: torch.tensor([channel for channel in range(width) if channel not in gone[name][side]])
            for side, width in widths_of(module).items()
            if name in gone and gone[name][side]
        }
        if index:
            kept[name] = Kept(index.get("out"), index.get("in"))
    return kept


def _costs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one pass."""
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a transformer layer in one op, which the counter does not know
    try:
        with evaluating(model), counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def _telling(x: Tensor) -> Tensor:
    """The input, outside of inference mode; noise for one of zeros or ones, by which wrong layers would pass too."""
    constant = x.is_floating_point() and x.numel() > 1 and bool((x == x.flatten()[0]).all())
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x) if constant else x.clone()


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All tensors that the model returns; what it draws at random is the same each time."""
    torch.manual_seed(0)
    with evaluating(model):
        leaves = tree_leaves(model(*(x.clone() for x in inputs)))
    unknown = [type(y).__name__ for y in leaves if not isinstance(y, Tensor | int | float | str | None)]
    if unknown:
        raise ValueError(
            f"remove_channels_: the model returns a {unknown[0]}, accepted are tensors in tuples, lists and dicts"
        )
    return [y for y in leaves if isinstance(y, Tensor)]


def _proven(
    model: nn.Module, inputs: tuple[Tensor, ...], plans: list[_Plan]
) -> tuple[list[_Plan], list[tuple[_Plan, str]]]:
    """The plans by which the model computes what it does with silent channels, and the others with the reason."""
    if not plans or _why_not(model, inputs, plans) is None:
        return plans, []
    passed: list[_Plan] = []
    refused = []
    for plan in plans:
        reason = _why_not(model, inputs, [*passed, plan])
        if reason is None:
            passed.append(plan)
        else:
            refused.append((plan, reason))
    return passed, refused


def _why_not(model: nn.Module, inputs: tuple[Tensor, ...], plans: list[_Plan]) -> str | None:
    """Why these channels cannot go, or None: without them the outputs are those with nothing that reads them."""
    kept = _together(model, plans)
    silent, narrow = copy.deepcopy(model), copy.deepcopy(model)
    silence_(silent, kept)
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    try:  # in float64 sums in another order differ by next to nothing
        expected = _outputs(silent.double(), wide)
        narrow, inputs = narrow.double(), wide
    except RuntimeError:  # of a model that insists on its own type
        silent = copy.deepcopy(model)
        silence_(silent, kept)
        expected = _outputs(silent, inputs)
    try:
        narrow_(narrow, kept)
        given = _outputs(narrow, inputs)
    except Exception as error:  # of the model's own code, which may count on the number of channels
        first = str(error).strip().partition("\n")[0]
        return f"the model does not run without some of its channels: {type(error).__name__}: {first}"
    same = len(given) == len(expected) and all(map(_close, given, expected))
    return None if same else "without some of its channels the model computes something else from the others"


def _close(given: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of sums in another order."""
    if given.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return True  # an index of two values that are almost the same may be another
    size = torch.nan_to_num(expected.float(), posinf=0.0, neginf=0.0).abs().max().item() if expected.numel() else 0.0
    within, around = {torch.float64: (1e-6, 1e-9), torch.float32: (1e-3, 1e-3)}.get(expected.dtype, (3e-2, 3e-2))
    return torch.allclose(given, expected, rtol=within, atol=around * size, equal_nan=True)
