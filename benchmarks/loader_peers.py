"""Other loaders for bench_loader: the same random resized crops, by what PyTorch users have."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Callable[[], Iterable[Any]]  # one epoch


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a random part, as torchvision draws it."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def finish(pixels: np.ndarray, floats: bool) -> torch.Tensor:
    """uint8 [H, W, C] to a tensor [C, H, W], flipped at random, normalized if `floats`."""
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if not floats:
        return image.contiguous()
    image = image.contiguous().to(torch.float32).div_(255)
    return image.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


class Files(Dataset):
    """JPEG files by Pillow, or by simplejpeg and OpenCV."""

    def __init__(self, paths: Sequence[str], by: str, floats: bool) -> None:
        self.paths, self.by, self.floats = paths, by, floats

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.by == "pillow":
            from PIL import Image

            with Image.open(self.paths[index]) as image:
                image = image.convert("RGB")
                x, y, w, h = random_box(*image.size)
                part = image.crop((x, y, x + w, y + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return finish(np.array(part), self.floats), 0
        import cv2
        import simplejpeg

        cv2.setNumThreads(1)  # workers are the threads
        pixels = simplejpeg.decode_jpeg(Path(self.paths[index]).read_bytes(), "RGB")
        x, y, w, h = random_box(pixels.shape[1], pixels.shape[0])
        part = cv2.resize(pixels[y : y + h, x : x + w], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        return finish(part, self.floats), 0


class Pixels(Dataset):
    """Crops of images that lie in memory as uint8 [N, H, W, C]."""

    def __init__(self, images: np.ndarray, floats: bool) -> None:
        self.images, self.floats = images, floats

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        y, x = random.randint(0, image.shape[0] - SIZE), random.randint(0, image.shape[1] - SIZE)
        return finish(image[y : y + SIZE, x : x + SIZE], self.floats), 0


def data_loader(dataset: Dataset, batch: int, workers: int) -> Batches:
    """torch's loader with workers that stay, which makes no warm-up count."""
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda: loader


def spdl_files(paths: Sequence[str], batch: int, threads: int, floats: bool) -> Batches:
    """SPDL's pipeline around simplejpeg and OpenCV, which let go of the GIL."""
    dataset = Files(paths, "opencv", floats)

    def collate(samples: list[tuple[torch.Tensor, int]]) -> torch.Tensor:
        return torch.stack([image for image, _ in samples])

    return spdl_epochs(range(len(paths)), dataset.__getitem__, collate, batch, threads)


def spdl_ffmpeg(paths: Sequence[str], batch: int, threads: int, floats: bool) -> Batches:
    """SPDL's pipeline and its own decoder: FFmpeg decodes, crops and resizes, a batch is converted at once."""
    import spdl.io

    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def decode(path: str) -> Any:
        area, ratio = random.uniform(0.08, 1.0), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
        flip = ",hflip" if random.random() < 0.5 else ""
        x, y = random.random(), random.random()
        crop = f"crop=floor(iw*{w:.4f}):floor(ih*{h:.4f}):floor((iw-ow)*{x:.4f}):floor((ih-oh)*{y:.4f})"
        steps = f"{crop}{flip},scale={SIZE}:{SIZE}:flags=bilinear,format=pix_fmts=rgb24"
        return spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=steps)

    def collate(frames: list[Any]) -> torch.Tensor:
        images = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(0, 3, 1, 2)
        if not floats:
            return images.contiguous()
        return images.to(torch.float32).div_(255).sub_(mean.view(1, 3, 1, 1)).div_(std.view(1, 3, 1, 1)).contiguous()

    return spdl_epochs(paths, decode, collate, batch, threads)


def spdl_epochs(items: Sequence[Any], sample: Callable, collate: Callable, batch: int, threads: int) -> Batches:
    """Epochs of an SPDL pipeline: a sample each on threads, then batches."""
    from spdl.pipeline import PipelineBuilder

    def epoch() -> Iterator[Any]:
        builder = PipelineBuilder().add_source(random.sample(items, len(items)))
        builder = builder.pipe(sample, concurrency=threads).aggregate(batch).pipe(collate).add_sink(3)
        pipeline = builder.build(num_threads=threads)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def spdl_missing() -> str | None:
    """Why SPDL, which is installed, cannot decode here: it looks for FFmpeg's libraries when it is first used."""
    import spdl.io

    try:
        spdl.io.demux_config()
    except RuntimeError as error:
        return str(error).split(".")[0]
    return None


def file_peers(paths: Sequence[str], batch: int, threads: int, floats: bool) -> tuple[dict[str, Batches], list[str]]:
    """The peers for JPEG files that are installed, and the names of those that are not."""
    found: dict[str, Batches] = {}
    absent: list[str] = []
    found["DataLoader + Pillow"] = data_loader(Files(paths, "pillow", floats), batch, threads)
    opencv = version("simplejpeg") and importlib.util.find_spec("cv2")
    if opencv:
        found["DataLoader + simplejpeg, OpenCV"] = data_loader(Files(paths, "opencv", floats), batch, threads)
    else:
        absent.append("DataLoader + simplejpeg, OpenCV (pip install simplejpeg opencv-python-headless)")
    name = f"SPDL {version('spdl-io')}"
    if not version("spdl-io"):
        absent.append("SPDL (pip install spdl)")
    elif why := spdl_missing():
        absent.append(f"{name}: {why}")
    else:
        found[f"{name}, FFmpeg"] = spdl_ffmpeg(paths, batch, threads, floats)
        if opencv:
            found[f"{name} + simplejpeg, OpenCV"] = spdl_files(paths, batch, threads, floats)
    return found, absent
