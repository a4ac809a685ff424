"""torchaccel and torch.compile as engines for bench_peers: `python peer_ours.py FORM MODEL.pt INPUT.npy THREADS`.

FORM is torch.compile, or float32 or int8 for what torchaccel makes of a model that is pruned already.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import MODELS
from peer_engines import Run, serve
from torchaccel import Int8Static, measure
from torchaccel.compress import calibrate
from torchaccel.graph.cache import ChoiceCache
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.workflow.accelerate import choose_layers
from torchaccel.workflow.candidates import candidates
from torchaccel.workflow.progress import Progress
from torchaccel.workflow.running import running


def optimized(model: nn.Module, x: Tensor, int8: Int8Static | None) -> nn.Module:
    """What `optimize` makes of the model, without its timing of the dense forms, which takes longer than the rest."""
    prepared = prepare(model, (x,))
    ranges = calibrate(prepared.dense, [*prepared.names, *prepared.weightless], [(x,)], int8, 1) if int8 else {}
    found = candidates(prepared, x.device, int8, ranges)
    winners, _, chained = choose_layers(prepared, found, (x,), ChoiceCache(), Progress())
    return running(assemble(prepared.dense, winners, chained), (x,))


def build(form: str, weights: str, images: np.ndarray) -> Run:
    model = MODELS["resnet50"]().eval()
    model.load_state_dict(torch.load(weights))
    x = torch.from_numpy(images)
    if form == "torch.compile":
        fast = torch.compile(model, options={"freezing": True})
    else:
        fast = optimized(model, x, Int8Static() if form == "int8" else None)

    def run() -> np.ndarray:
        with measure.inference():
            return fast(x).numpy()

    return run


def main() -> None:
    form, weights, images, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    serve(lambda: build(form, weights, np.load(images)), np.load(Path(weights).with_suffix(".npy")))


if __name__ == "__main__":
    main()
