"""save and load: one safetensors file that holds canonical weights, and says in plain words how to put them back.

The metadata names layers by words that a table maps to classes; nothing in a file is imported or run.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from torchaccel import __version__
from torchaccel.compress.removal import check_widths, narrow_to_, record_of, set_record
from torchaccel.graph.chain import chain, chained, unchain
from torchaccel.graph.connect import connect
from torchaccel.graph.prepare import skeleton
from torchaccel.graph.trace import UntraceableError, set_module, trace
from torchaccel.nn import (
    Int8AdaptiveAvgPool2d,
    Int8Add,
    Int8AvgPool2d,
    Int8Conv2d,
    Int8ConvTranspose2d,
    Int8Linear,
    Int8LinearWeightOnly,
    Int8MaxPool2d,
    SparseConv2d,
    SparseInt8Conv2d,
)
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d, DenseLinear
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.report import replacing
from torchaccel.workflow.forms import Cast
from torchaccel.workflow.graphed import Graphed
from torchaccel.workflow.sliced import Sliced

KEY = "torchaccel"
FORMAT = 1
MAX_METADATA = 1 << 20

LAYERS: dict[str, type[nn.Module]] = {
    "dense_conv2d": DenseConv2d,
    "dense_conv_transpose2d": DenseConvTranspose2d,
    "dense_linear": DenseLinear,
    "int8_adaptive_avg_pool2d": Int8AdaptiveAvgPool2d,
    "int8_add": Int8Add,
    "int8_avg_pool2d": Int8AvgPool2d,
    "int8_conv2d": Int8Conv2d,
    "int8_conv_transpose2d": Int8ConvTranspose2d,
    "int8_linear": Int8Linear,
    "int8_linear_weight_only": Int8LinearWeightOnly,
    "int8_max_pool2d": Int8MaxPool2d,
    "sparse_conv2d": SparseConv2d,
    "sparse_int8_conv2d": SparseInt8Conv2d,
}
_CASTS = {None: None, "float16": torch.float16, "bfloat16": torch.bfloat16}
_WORDS = {layer: word for word, layer in LAYERS.items()}


def _bare(model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The module inside the forms that `optimize` may return, and what these forms are."""
    cast, graphs, slices = None, False, None
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, Graphed):
            inner, graphs = model.model, True
        if isinstance(model, Sliced):
            inner, slices = model.model, model.size
        if inner is None and isinstance(model, Cast):
            dtype = None if model.dtype is None else str(model.dtype).removeprefix("torch.")
            cast = {"dtype": dtype, "channels_last": model.channels_last}
            inner = model.model
        if inner is None:
            return model, {"cast": cast, "cuda_graphs": graphs, "slices": slices}
        model = inner


def _unchained(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A graph with its layers on their own, as files hold them, and the names of those that run in chains."""
    if not isinstance(model, fx.GraphModule):
        return model, []
    graph = trace(model)
    graph.meta.update(model.meta)
    names = chained(graph)
    unchain(graph)
    return graph, names


def _describe(model: nn.Module) -> dict[str, Any]:
    layers = {
        name: {"kind": _WORDS[type(module)], "config": module.config()}  # type: ignore[operator]
        for name, module in model.named_modules()
        if type(module) in _WORDS
    }
    meta = model.meta if isinstance(model, fx.GraphModule) else {}
    inputs = meta.get("torchaccel_inputs")
    return {
        "format": FORMAT,
        "torchaccel": __version__,
        "structure": "modules" if inputs is None else "graph",
        "inputs": inputs or [],
        "graph": meta.get("torchaccel_graph"),
        "layers": layers,
        "channels": record_of(model),
    }


def _compact(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors, each stored once, indices in 16 bits where they fit; and which names share a tensor."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    addresses: set[int] = set()
    for name, tensor in state.items():
        identity = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            tensor.dtype,
        )
        if tensor.numel() and identity in first:
            aliases[name] = first[identity]
            continue
        first[identity] = name
        shared = tensor.numel() > 0 and tensor.data_ptr() in addresses
        addresses.add(tensor.data_ptr())
        if (
            name.rpartition(".")[2] == "columns"
            and tensor.dtype == torch.int32
            and tensor.numel()
            and int(tensor.max()) < 1 << 15
        ):
            tensor = tensor.to(torch.int16)
        kept = tensor.detach().cpu().contiguous()
        stored[name] = kept.clone() if shared or kept.untyped_storage().nbytes() != kept.nbytes else kept
    return stored, aliases


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model that `optimize`, `accelerate` or `quantize_` made into one safetensors file.

    The file is written under a temporary name and moved into place.

    Args:
        model: its weights are stored in their canonical form, independent of the machine.
        path: of the file.

    Raises:
        OSError: the file cannot be written.

    Equivalent to `safetensors.torch.save_file(model.state_dict(), path)`, with what `load` needs to know beside it.
    """
    model, form = _bare(model)
    model, chains = _unchained(model)
    stored, aliases = _compact(model.state_dict())
    metadata = json.dumps(_describe(model) | {"aliases": aliases, "chains": chains} | form)
    with replacing(path) as temporary:
        save_file(stored, temporary, {KEY: metadata})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says of itself, checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, truncated, or not one that `save` wrote.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load: no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(KEY)
    except SafetensorError as error:
        raise ValueError(f"load: {path} is truncated or no safetensors file ({error})") from error
    if raw is None:
        raise ValueError(f"load: {path} has no '{KEY}' metadata; accepted are files that torchaccel.save wrote")
    if len(raw) > MAX_METADATA:
        raise ValueError(f"load: {path} has {len(raw)} bytes of metadata, accepted are at most {MAX_METADATA}")
    try:
        metadata = json.loads(raw)
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}, accepted is {FORMAT}")
        if metadata["structure"] not in ("graph", "modules"):
            raise ValueError(f"structure {metadata['structure']!r}, accepted are 'graph' and 'modules'")
        for name, layer in metadata["layers"].items():
            if layer["kind"] not in LAYERS:
                raise ValueError(f"layer {name!r} is of the kind {layer['kind']!r}, accepted are {', '.join(LAYERS)}")
            dict(layer["config"])
        dict(metadata["aliases"]), list(metadata["inputs"])
        chains = metadata.get("chains", [])
        if not isinstance(chains, list) or not all(isinstance(name, str) for name in chains):
            raise ValueError(f"chains is {chains!r}, accepted is a list of names of layers")
        check_widths(metadata.get("channels", {}))
        if (cast := metadata.get("cast")) is not None and cast["dtype"] not in _CASTS:
            raise ValueError(f"it is cast to {cast['dtype']!r}, accepted are {', '.join(map(str, _CASTS))}")
        if (slices := metadata.get("slices")) is not None and not (isinstance(slices, int) and slices >= 1):
            raise ValueError(f"its slices are {slices!r}, accepted is at least 1")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"load: the metadata of {path} is not torchaccel's: {error}") from error
    return metadata


def _tensors(path: str | os.PathLike[str], aliases: dict[str, str], device: torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"load: {path} is truncated or no safetensors file ({error})") from error
    for name, tensor in state.items():
        if name.rpartition(".")[2] == "columns" and tensor.dtype == torch.int16:
            state[name] = tensor.to(torch.int32)
    for name, source in aliases.items():
        if source not in state:
            raise ValueError(f"load: {path} lacks the tensor {source!r}, which {name!r} shares")
        state[name] = state[source]
    return state


def _rebuild(path: str | os.PathLike[str], metadata: dict[str, Any], model_fn: Callable[[], nn.Module]) -> nn.Module:
    """The model without weights, on the meta device."""
    with torch.device("meta"):
        model = model_fn().eval()
        try:
            narrow_to_(model, metadata.get("channels", {}))
            built: nn.Module = skeleton(model, metadata["inputs"]) if metadata["structure"] == "graph" else model
        except (UntraceableError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"load: model_fn does not build the model of {path}: {error}") from error
        wanted = metadata.get("graph")
        if isinstance(built, fx.GraphModule) and wanted not in (None, built.meta.get("torchaccel_graph")):
            raise ValueError(
                f"load: model_fn does not build the model of {path}: its recorded graph is another one than the file's"
            )
        for name, layer in metadata["layers"].items():
            try:
                made = LAYERS[layer["kind"]](**layer["config"])
                _same_sizes(built.get_submodule(name), made)
            except (AttributeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"load: layer {name!r} of {path} does not fit the model of model_fn: {error}"
                ) from error
            set_module(built, name, made)
    set_record(built, record_of(model))
    return built


def _same_sizes(there: nn.Module, made: nn.Module) -> None:
    for name in ("in_channels", "out_channels", "kernel_size", "output_size", "in_features", "out_features"):
        given, expected = getattr(made, name, None), getattr(there, name, None)
        if isinstance(given, tuple) and isinstance(expected, int):  # pooling layers keep one number for both sides
            expected = expected, expected
        if isinstance(given, tuple) and isinstance(expected, list):
            expected = tuple(expected)
        if given != expected:
            raise ValueError(f"{name} is {expected} in the model, {given} in the file")


def load(
    path: str | os.PathLike[str], model_fn: Callable[[], nn.Module], device: str | torch.device = "cpu"
) -> nn.Module:
    """Read a model that `save` wrote; it gives the same outputs, to the bit.

    Args:
        path: of the file.
        model_fn: builds the float model without weights, with all its channels; called under the meta device.
        device: where the weights go.

    Returns:
        The model in eval mode, packed for this machine.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, foreign or damaged, or one of another model.

    Equivalent to `model = model_fn(); model.load_state_dict(safetensors.torch.load_file(path), assign=True)`.
    """
    metadata = read_metadata(path)
    state = _tensors(path, metadata["aliases"], torch.device(device))
    model = _rebuild(path, metadata, model_fn)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # which names every tensor of a large model
        said = textwrap.shorten(str(error), 500, placeholder=" ...")
        raise ValueError(f"load: {path} does not fit the model of model_fn: {said}") from error
    _fill_constants(model, model_fn, torch.device(device))
    if isinstance(model, fx.GraphModule):
        connect(model)
        chain(model, metadata.get("chains", ()))
    for module in model.modules():
        if isinstance(module, QuantizeInt8):
            module.to(device)
    model = _recast(model, metadata.get("cast")).eval()
    if (slices := metadata.get("slices")) is not None:
        model = Sliced(model, slices)
    return Graphed(model) if metadata.get("cuda_graphs") else model


def _recast(model: nn.Module, cast: dict[str, Any] | None) -> nn.Module:
    if cast is None:
        return model
    channels_last = bool(cast["channels_last"])
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Cast(model, _CASTS[cast["dtype"]], channels_last)


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """Buffers, and tensors that are plain attributes, by name."""
    plain = {
        f"{name}.{attribute}".lstrip("."): value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    }
    return plain | dict(model.named_buffers())


def _fill_constants(model: nn.Module, model_fn: Callable[[], nn.Module], device: torch.device) -> None:
    """Tensors that no state dict holds were built on the meta device; take them from a real model."""
    missing = {name for name, tensor in _constants(model).items() if tensor.device.type == "meta"}
    if not missing:
        return
    for name, tensor in _constants(model_fn()).items():
        if name in missing:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, tensor.to(device))
            missing.discard(name)
    if missing:
        raise ValueError(f"load: model_fn builds no values for {', '.join(sorted(missing))}")
