"""share and gather under torchrun, two ranks on this machine: order, errors, ranks that die or hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

import torchaccel as ta
from torchaccel.infer import gather, share

ROOT = Path(__file__).parents[2]

if not dist.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)


def torchrun(mode: str, folder: Path) -> tuple[int, dict[int, Any]]:
    """The exit code, and what each rank saw."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "tests.infer.rank_script", mode, str(folder)]
    ran = subprocess.run([*command, *script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    seen = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert seen, ran.stderr
    return ran.returncode, seen


def test_rank_0_gets_all_results_in_order_and_failures_reach_everyone(tmp_path: Path) -> None:
    code, seen = torchrun("work", tmp_path)
    assert code == 0
    assert seen[0]["indices"] == list(range(7)) and all(seen[0]["equal"])
    assert all(stride == [1, 2] for stride in seen[0]["stride"])
    one, other = seen[0]["pids"][:2]
    assert one != other and seen[0]["pids"] == [one, other, one, other, one, other, one]
    assert seen[1]["indices"] == [] and seen[0]["first"] == 0 and seen[1]["first"] is None
    assert seen[0]["empty"] == seen[1]["empty"] == []
    assert seen[0]["raise 1"] == [0, 1, 2, "RankError: gather: rank 1 raised KeyError: 'broken'"]
    assert seen[1]["raise 1"] == ["KeyError: 'broken'"]
    assert seen[0]["raise 0"] == [0, 1, "KeyError: 'broken'"]
    assert seen[1]["raise 0"] == ["RankError: gather: rank 0 failed, or found that another rank did"]
    assert seen[0]["loader default"] == [[0, 2, 4, 6]] and seen[1]["loader default"] == [[1, 3, 5, 7]]
    assert seen[0]["loader explicit"] == seen[1]["loader explicit"] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("mode", ["die", "hang"])
def test_a_rank_that_dies_or_hangs_ends_the_others_with_an_error(mode: str, tmp_path: Path) -> None:
    code, seen = torchrun(mode, tmp_path)
    assert code != 0 and list(seen) == [0]
    *indices, said = seen[0][mode]
    assert indices == [0, 1, 2] and said.startswith("RankError: gather: rank 1 ended or did not answer in time")


SAMPLES = ta.data.Arrays(np.zeros((8, 2, 2), np.uint8), np.zeros(8, np.int64))


def test_without_torch_distributed_all_is_of_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(gather(share(range(5)))) == [0, 1, 2, 3, 4]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"Loader: WORLD_SIZE is 2, but torch\.distributed is not initialized"):
        ta.data.Loader(SAMPLES, 4)
    with pytest.raises(ValueError, match="given a loader that loads this rank's share already"):
        share(ta.data.Loader(SAMPLES, 4, rank=0, world=2))
    for timeout in ("a", None, 0, float("inf")):
        with pytest.raises(ValueError, match="gather: timeout is"):
            gather([], timeout)
    for call in (share, gather):
        with pytest.raises(RuntimeError, match=r"WORLD_SIZE is 2, but torch\.distributed is not initialized"):
            call([])
