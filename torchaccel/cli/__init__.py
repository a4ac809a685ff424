"""The command line: `torchaccel doctor | demo | bench | optimize | sensitivity | find-lr | find-batch-size | ...`."""

from torchaccel.cli import sensitivity, tune
from torchaccel.cli.commands import app, main

__all__ = ["app", "main", "sensitivity", "tune"]
