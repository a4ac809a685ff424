"""The command line: `torchaccel doctor | demo | bench | optimize | inspect`."""

from torchaccel.cli.commands import app, main

__all__ = ["app", "main"]
