"""What changes weights: pruning masks, int8 and the calibration it needs."""

from torchaccel.compress.calibrate import calibrate
from torchaccel.compress.configs import Int8Dynamic, Int8Static, Int8WeightOnly
from torchaccel.compress.convert import int8_module
from torchaccel.compress.readers import why_kept

__all__ = ["Int8Dynamic", "Int8Static", "Int8WeightOnly", "calibrate", "int8_module", "why_kept"]
