"""The command line: `torchaccel doctor | demo | bench | optimize | sensitivity | infer | inspect | ...`."""

from torchaccel.cli import infer, sensitivity, tune
from torchaccel.cli.commands import app, main

__all__ = ["app", "infer", "main", "sensitivity", "tune"]
