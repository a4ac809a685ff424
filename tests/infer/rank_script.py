"""What each rank of test_ranks.py runs, under torchrun; rank 0 writes what it saw to a file."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import torchaccel as ta
from torchaccel.infer import RankError, Workers

BATCHES = 7


class Double(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"doubled": 2 * x, "pid": os.getpid()}


def results(workers: Workers, fails: str = "") -> Iterator[tuple[int, Any]]:
    """This rank's; the second of rank 1 does what `fails` says."""
    batches = [(torch.full((3, 2), float(i)).t(), i) for i in range(BATCHES)]
    for done, ((_, index), outputs) in enumerate(workers.map(ta.infer.share(batches))):
        if done == 1 and fails == f"raise {dist.get_rank()}":
            raise KeyError("broken")
        if done == 1 and fails == "die" and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == 1 and fails == "hang" and dist.get_rank() == 1:
            time.sleep(600)
        yield index, outputs


def caught(workers: Workers, fails: str, timeout: float = 60.0) -> list[Any]:
    """How far `gather` came, and what it raised, on every rank."""
    seen: list[Any] = []
    try:
        for index, _ in ta.infer.gather(results(workers, fails), timeout):
            seen.append(index)
    except (RankError, KeyError) as error:
        seen.append(f"{type(error).__name__}: {error}")
    return seen


def main(mode: str, folder: str) -> None:
    dist.init_process_group("gloo")
    seen: dict[str, Any] = {}
    with Workers(Double().eval(), workers=1, threads=1) as workers:
        if mode == "work":
            gathered = list(ta.infer.gather(results(workers)))
            seen["indices"] = [index for index, _ in gathered]
            seen["equal"] = [bool((outputs["doubled"] == 2 * index).all()) for index, outputs in gathered]
            seen["stride"] = [outputs["doubled"].stride() for _, outputs in gathered]
            seen["pids"] = [outputs["pid"] for _, outputs in gathered]
            seen["first"] = next(ta.infer.gather(results(workers)), [None])[0]  # and no more
            seen["empty"] = list(ta.infer.gather(iter(())))
            seen["raise 1"] = caught(workers, "raise 1")
            seen["raise 0"] = caught(workers, "raise 0")
            source = ta.data.Arrays(torch.zeros(8, 4, 4, 3, dtype=torch.uint8).numpy(), torch.arange(8).numpy())
            for name, given in (("default", {}), ("explicit", {"rank": 0, "world": 1})):
                with ta.data.Loader(source, 4, **given) as loader:
                    seen[f"loader {name}"] = [labels.tolist() for _, labels in loader]
        else:
            seen[mode] = caught(workers, mode, 3.0 if mode == "hang" else 60.0)
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    if mode != "work":
        os._exit(3)  # as a script that does not catch the error; torchrun then ends the other
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
