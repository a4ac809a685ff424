"""Parallel data loading: images from files, archives or memory into batches, on threads, without losing a sample."""

from torchaccel.data._decode import Decoder, decoder
from torchaccel.data.cuda import cuda_prefetch
from torchaccel.data.faults import Fault, SampleError
from torchaccel.data.loader import Loader
from torchaccel.data.pack import PackResult, pack
from torchaccel.data.packed import Packed
from torchaccel.data.recipes import CenterCrop, HorizontalFlip, Normalize, RandomCrop, RandomResizedCrop, Resize
from torchaccel.data.sources import Arrays, ImageFolder
from torchaccel.data.stats import Stats
from torchaccel.data.tar import Tar

__all__ = [
    "Arrays",
    "CenterCrop",
    "Decoder",
    "Fault",
    "HorizontalFlip",
    "ImageFolder",
    "Loader",
    "Normalize",
    "PackResult",
    "Packed",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "SampleError",
    "Stats",
    "Tar",
    "cuda_prefetch",
    "decoder",
    "pack",
]
