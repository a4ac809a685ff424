"""For PyTorch Lightning: pruning during training, and from a trained LightningModule to a fast model."""

from torchaccel.lightning.optimize import optimize, with_model
from torchaccel.lightning.prune import Prune

__all__ = ["Prune", "optimize", "with_model"]
