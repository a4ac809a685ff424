"""Chains: runs of neighbouring layers, int8 or float, that become one op."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

from torchaccel.graph.shapes import changed_between, value_of
from torchaccel.graph.trace import has_hooks, module_of
from torchaccel.nn import (
    ConvChain,
    Int8AdaptiveAvgPool2d,
    Int8Add,
    Int8Conv2d,
    Int8ConvTranspose2d,
    SparseConv2d,
    SparseInt8Conv2d,
)
from torchaccel.nn.add import Add
from torchaccel.nn.concatenation import parts_of
from torchaccel.nn.contiguous import Contiguous
from torchaccel.nn.conv_chain import in_float, takes
from torchaccel.nn.dense import DenseConv2d, DenseConvTranspose2d
from torchaccel.nn.quantize import QuantizeInt8
from torchaccel.nn.upsample import Upsample

_CONVOLUTIONS = (Int8Conv2d, Int8ConvTranspose2d, SparseInt8Conv2d, SparseConv2d, DenseConv2d, DenseConvTranspose2d)
_STARTS = (*_CONVOLUTIONS, QuantizeInt8)
_LOADING = (*_STARTS, Add, Int8Add)
_AVERAGES = (Int8AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d)
# Nothing to choose: they go with their neighbours.
_UNCHOSEN = (QuantizeInt8, Contiguous, Add, Upsample, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def _joins(graph: fx.GraphModule, node: fx.Node, names: Collection[str] | None) -> bool:
    """Whether a chain could hold the layer that a node calls, wherever its inputs come from."""
    module = module_of(graph, node)
    if module is None or not takes(module) or node.kwargs or has_hooks(module):
        return False
    listed = names is None or str(node.target) in names or isinstance(module, _UNCHOSEN)
    residual = len(node.args) == 1 or in_float(module) or getattr(module, "int8_residual", isinstance(module, Int8Add))
    return listed and residual and all(isinstance(a, fx.Node) for a in node.args)


def _concatenates(graph: fx.GraphModule, node: fx.Node, run: list[fx.Node], source: object, floats: bool) -> bool:
    """Whether a node concatenates what a run has, and could be a part of it."""
    parts = parts_of(node)
    if parts is None or not all(part in run or (floats and part is source) for part in parts):
        return False
    channels = [value.shape[1] for part in parts[:-1] if (value := value_of(part)) is not None]
    return floats or all(c % 4 == 0 for c in channels)


def _grow(graph: fx.GraphModule, start: fx.Node, after: list[fx.Node], names: Collection[str] | None) -> list[fx.Node]:
    """The longest run from `start` on that reads one value and gives one."""
    source, floats = start.args[0], in_float(module_of(graph, start))
    run = [start]
    for node in after:
        module = module_of(graph, node)
        if _concatenates(graph, node, run, source, floats):
            if not changed_between(graph, source, start, node):
                run.append(node)
            continue
        if not (isinstance(module, Upsample) or in_float(module) == floats) or not _joins(graph, node, names):
            continue
        x, *residual = node.args
        if changed_between(graph, source, start, node):  # a chain reads it where its last layer stood
            continue
        # What a pooling layer reads, and in int8 a residual, has a range that only the chain's own layers know.
        loads = isinstance(module, _LOADING) and x is source
        both = floats or isinstance(module, Int8Add)
        if (x in run or loads) and all(r in run or (both and r is source) for r in residual):
            run.append(node)
    while run:
        held = set(run)
        given = [node for node in run if any(user not in held for user in node.users)]
        averages = [node for node in run if isinstance(module_of(graph, node), _AVERAGES)]
        quantizations = [node for node in given if isinstance(module_of(graph, node), QuantizeInt8)]
        if given == run[-1:] and not quantizations and averages in ([], given):
            break
        run.pop()
    return run


def runs(graph: fx.GraphModule, names: Collection[str] | None = None) -> list[list[fx.Node]]:
    """The runs of layers that could be chains, each with a convolution at least, or two in int8.

    Args:
        graph: connected.
        names: the layers that may be part of one; None for all. What has one form alone needs no name.
    """
    nodes = list(graph.graph.nodes)
    found: list[list[fx.Node]] = []
    taken: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        starts = isinstance(module_of(graph, node), _STARTS) and len(node.args) == 1
        if node in taken or not starts or not _joins(graph, node, names):
            continue
        run = _grow(graph, node, [n for n in nodes[i + 1 :] if n not in taken], names)
        least = 1 if in_float(module_of(graph, node)) else 2
        if sum(isinstance(module_of(graph, n), _CONVOLUTIONS) for n in run) >= least:
            found.append(run)
            taken.update(run)
    return found


def single(model: nn.Module, names: Collection[str]) -> set[str]:
    """Of the layers that run in chains, those that are chains by themselves."""
    found = runs(model, names) if isinstance(model, fx.GraphModule) else []
    return {str(run[0].target) for run in found if len(run) == 1}


def chain_of(graph: fx.GraphModule, run: list[fx.Node]) -> ConvChain:
    """The layers of a run as one; they are shared with the graph."""
    body = fx.Graph()
    copies = {run[0].args[0]: body.placeholder("x")}
    for node in run:
        copies[node] = body.node_copy(node, copies.__getitem__)
    body.output(copies[run[-1]])
    called = [str(node.target) for node in run if node.op == "call_module"]
    modules = {name: graph.get_submodule(name) for name in called}
    return ConvChain(fx.GraphModule(modules, body)).eval()


def chain(graph: fx.GraphModule, names: Collection[str] | None = None) -> None:
    """Put a ConvChain in place of each run, in place."""
    for run in runs(graph, names):
        name = f"chain_{run[0].name}"
        while hasattr(graph, name):
            name += "_"
        graph.add_submodule(name, chain_of(graph, run))
        with graph.graph.inserting_after(run[-1]):
            chained = graph.graph.call_module(name, (run[0].args[0],))
        run[-1].replace_all_uses_with(chained)
        for node in reversed(run):
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()


def _name_outside(chain: fx.Node, inner: fx.Node) -> str:
    """The name of a layer where its chain is undone: behind that of the module which holds the chain."""
    return f"{str(chain.target).rpartition('.')[0]}.{inner.target}".lstrip(".")


def chained(graph: fx.GraphModule) -> list[str]:
    """The layers that run in chains, by the names that they have outside of them."""
    found = ((node, module_of(graph, node)) for node in graph.graph.nodes)
    chains = ((node, held.body.graph.nodes) for node, held in found if isinstance(held, ConvChain))
    return [_name_outside(node, inner) for node, body in chains for inner in body if inner.op == "call_module"]


def unchain(graph: fx.GraphModule) -> None:
    """Undo `chain`, in place."""
    for node in list(graph.graph.nodes):
        held = module_of(graph, node)
        if not isinstance(held, ConvChain):
            continue
        copies = {next(n for n in held.body.graph.nodes if n.op == "placeholder"): node.args[0]}
        with graph.graph.inserting_before(node):
            for inner in held.body.graph.nodes:
                if inner.op == "output":
                    node.replace_all_uses_with(copies[inner.args[0]])
                elif inner.op != "placeholder":
                    copies[inner] = graph.graph.node_copy(inner, copies.__getitem__)
                if inner.op == "call_module":
                    copies[inner].target = name = _name_outside(node, inner)
                    graph.add_submodule(name, held.body.get_submodule(str(inner.target)))
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
