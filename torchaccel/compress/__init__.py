"""What changes weights: pruning masks, int8 and the calibration it needs."""

from torchaccel.compress.calibrate import calibrate, residual_of
from torchaccel.compress.channels import Removed, remove_channels_
from torchaccel.compress.cluster import cluster_channels_
from torchaccel.compress.configs import Int8Dynamic, Int8Static, Int8WeightOnly
from torchaccel.compress.convert import int8_module, stored_pattern
from torchaccel.compress.masks import finalize_masks_
from torchaccel.compress.patterns import check_mask, pattern_of, sparsity_of
from torchaccel.compress.quantize import Quantized, quantize_
from torchaccel.compress.readers import why_kept
from torchaccel.compress.sparsify import Sparsified, Sparsity, sparsify_

__all__ = [
    "Int8Dynamic",
    "Int8Static",
    "Int8WeightOnly",
    "Quantized",
    "Removed",
    "Sparsified",
    "Sparsity",
    "calibrate",
    "check_mask",
    "cluster_channels_",
    "finalize_masks_",
    "int8_module",
    "pattern_of",
    "quantize_",
    "remove_channels_",
    "residual_of",
    "sparsify_",
    "sparsity_of",
    "stored_pattern",
    "why_kept",
]
