"""Which of the processes of torch.distributed this is."""

from __future__ import annotations

import os

import torch.distributed as dist


def rank_and_world(caller: str) -> tuple[int, int]:
    """This process's rank and the number of ranks; 0 and 1 without torch.distributed.

    Raises:
        RuntimeError: torchrun started this process, but torch.distributed is not initialized.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise RuntimeError(
            f"{caller}: WORLD_SIZE is {processes}, but torch.distributed is not initialized; call "
            "torch.distributed.init_process_group before; a Loader takes rank and world instead"
        )
    return 0, 1
