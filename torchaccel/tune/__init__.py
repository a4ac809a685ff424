"""What to train and run with: the learning rate and the batch size, measured."""

from torchaccel.tune.batch_size import find_batch_size
from torchaccel.tune.learning_rate import find_lr
from torchaccel.tune.rates import LearningRates
from torchaccel.tune.sizes import BatchSizes

__all__ = ["BatchSizes", "LearningRates", "find_batch_size", "find_lr"]
