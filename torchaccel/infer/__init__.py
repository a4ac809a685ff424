"""Inference on many threads, processes and machines."""

from torchaccel.infer.errors import BatchError, WorkerDied
from torchaccel.infer.workers import Workers

__all__ = ["BatchError", "WorkerDied", "Workers"]
