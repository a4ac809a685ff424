"""Models that the tests of `ta.infer` run, also in other processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import SmallNet

Pair = namedtuple("Pair", "mean text")


class Probe(nn.Module):
    """Its input says what it does, and its output where it ran."""

    def forward(self, x: Tensor) -> Any:
        word = int(x.flatten()[0])
        if word == -1:
            raise KeyError("minus one")
        if word == -2:
            os.kill(os.getpid(), signal.SIGKILL)
        if word == -3:
            raise UnpicklableError(threading.Lock())
        if word == -4:
            print("asleep", flush=True)
            time.sleep(600)
        return {"pid": os.getpid(), "thread": threading.get_ident(), "intra_op": torch.get_num_threads(),
                "cores": sorted(os.sched_getaffinity(0)), "grad": torch.is_grad_enabled(), "word": word}  # fmt: skip


class UnpicklableError(Exception):
    """What no other process can be told."""


class Nested(nn.Module):
    """Every kind of output, from two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        turned = (x + y).to(memory_format=torch.channels_last)
        pair = Pair(x.mean(), "words")
        return {"turned": turned, "rest": [pair, (x[:0], None, 3)], "y": y.to(torch.bfloat16), "same": x}


class Waiting(nn.Module):
    """Waits until a file exists."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        while not self.path.exists():
            time.sleep(0.005)
        return x + 1


class Failing(nn.Module):
    """Cannot be unpickled."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise ValueError("no way back")


def build() -> nn.Module:
    return SmallNet()
