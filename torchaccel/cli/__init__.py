"""The command line: `torchaccel doctor | demo | bench | optimize | sensitivity | infer | inspect | pack`."""

from torchaccel.cli import infer, sensitivity
from torchaccel.cli.commands import app, main

__all__ = ["app", "infer", "main", "sensitivity"]
