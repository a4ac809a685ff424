"""Concatenations along channels in a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_FUNCTIONS = (torch.cat, torch.concat, torch.concatenate)


def parts_of(node: object) -> list[fx.Node] | None:
    """What a node concatenates along the channels of [N, C, H, W], or None where it does something else."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.target not in _FUNCTIONS:
        return None
    given: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    parts = given.pop("tensors", None)
    if given not in ({"dim": 1}, {"dim": -3}) or not isinstance(parts, list | tuple) or not parts:
        return None
    return list(parts) if all(isinstance(part, fx.Node) for part in parts) else None
