"""Inference on many threads, processes and machines."""

from torchaccel.infer.errors import BatchError, RankError, WorkerDied
from torchaccel.infer.plan import Plan, Split, plan
from torchaccel.infer.ranks import gather, share
from torchaccel.infer.workers import Workers

__all__ = ["BatchError", "Plan", "RankError", "Split", "WorkerDied", "Workers", "gather", "plan", "share"]
