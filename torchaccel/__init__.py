"""torchaccel."""
