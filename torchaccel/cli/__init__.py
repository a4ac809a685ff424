"""The command line: `torchaccel doctor | demo | bench | optimize | sensitivity | inspect`."""

from torchaccel.cli import sensitivity
from torchaccel.cli.commands import app, main

__all__ = ["app", "main", "sensitivity"]
