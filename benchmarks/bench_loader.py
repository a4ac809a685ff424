"""The loader against what PyTorch users have: images a second, and images per CPU second, over epochs in turns.

`python -m benchmarks.bench_loader --json [FILE]`. Peers that are not installed are named as absent. The JPEGs are made
from photographs that scikit-image ships, at several sizes and qualities. CPU seconds are those of this process and of
its workers; they tell more than wall time where other work shares the machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchaccel.data as tad

sys.path.insert(0, str(Path(__file__).parent))  # also where this runs as a module
import loader_peers as peers

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
    "hubble_deep_field.jpg",
)
SIZES = ((500, 375), (375, 500), (640, 480), (400, 300))
QUALITIES = (75, 88, 95)
TRAIN = [tad.RandomResizedCrop(peers.SIZE), tad.HorizontalFlip()]
NORMALIZED = [*TRAIN, tad.Normalize(peers.MEAN, peers.STD)]


def write_photos(folder: Path, count: int) -> list[str]:
    """JPEGs of real photographs: random parts, reduced to the size, so that they have detail at every pixel."""
    try:
        import skimage.data
        from PIL import Image
    except ImportError as error:
        raise SystemExit(f"bench_loader: {error}; `pip install scikit-image` brings the photographs") from error
    dice = random.Random(0)
    photos = [Image.open(Path(skimage.data.__file__).parent / name).convert("RGB") for name in PHOTOS]
    (folder / "photos").mkdir()
    for i in range(count):
        photo, (width, height) = photos[i % len(photos)], SIZES[i % len(SIZES)]
        share = min(photo.width / width, photo.height / height)
        w, h = int(width * share), int(height * share)
        x, y = dice.randint(0, photo.width - w), dice.randint(0, photo.height - h)
        part = photo.crop((x, y, x + w, y + h)).resize((width, height), Image.Resampling.LANCZOS)
        part.save(folder / "photos" / f"{i:05}.jpg", quality=QUALITIES[i % len(QUALITIES)])
    return sorted(map(str, (folder / "photos").iterdir()))


def cpu_seconds() -> float:
    """Of this process and its live children."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def epoch_of(batches: peers.Batches) -> int:
    samples = 0
    for batch in batches():
        images = batch[0] if isinstance(batch, list | tuple) else batch
        samples += len(images)
    return samples


def compare(title: str, loaders: dict[str, peers.Batches], rounds: int) -> dict[str, Any]:
    """Epochs of each loader in turns, one unmeasured first; medians, and ratios to the first of the same round."""
    for batches in loaders.values():
        epoch_of(batches)
    wall: dict[str, list[float]] = {name: [] for name in loaders}
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(rounds):
        names = list(loaders) if turn % 2 == 0 else list(loaders)[::-1]
        for name in names:
            gc.collect()
            began, used = time.perf_counter(), cpu_seconds()
            samples = epoch_of(loaders[name])
            wall[name].append(samples / (time.perf_counter() - began))
            cpu[name].append(samples / max(cpu_seconds() - used, 1e-6))
    ours = next(iter(loaders))
    rows = []
    print(f"\n{title}")
    for name in loaders:
        row = {
            "loader": name,
            "images_per_second": statistics.median(wall[name]),
            "images_per_cpu_second": statistics.median(cpu[name]),
            "ours_is_faster": statistics.median(a / b for a, b in zip(wall[ours], wall[name], strict=True)),
            "ours_per_cpu_second": statistics.median(a / b for a, b in zip(cpu[ours], cpu[name], strict=True)),
        }
        rows.append(row)
        print(
            f"  {name:34s} {row['images_per_second']:9.0f} images/s {row['images_per_cpu_second']:9.0f} per CPU second"
            f"   ours: {row['ours_is_faster']:5.2f}x, per CPU second {row['ours_per_cpu_second']:5.2f}x",
            flush=True,
        )
    return {"work": title, "rounds": rounds, "rows": rows}


def jpeg(paths: list[str], options: argparse.Namespace, floats: bool) -> dict[str, Any]:
    folder = str(Path(paths[0]).parent)
    loader = tad.Loader(
        tad.ImageFolder(folder), options.batch, NORMALIZED if floats else TRAIN, shuffle=True, threads=options.threads
    )
    others, absent = peers.file_peers(paths, options.batch, options.threads, floats)
    what = "float32 NCHW, normalized" if floats else "uint8 NCHW"
    with loader:
        found = compare(
            f"JPEG, random resized crop to {peers.SIZE}, flip, {what}",
            {"torchaccel": lambda: loader} | others,
            options.rounds,
        )
    for name in absent:
        print(f"  absent: {name}")
    return found | {"absent": absent}


def packed(folder: Path, options: argparse.Namespace, floats: bool) -> dict[str, Any]:
    """Pixels of 256 x 256 that need no decoding."""
    path = folder / "raw.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).integers(0, 256, (1024, 256, 256, 3), np.uint8))
    images = np.load(path, mmap_mode="r")
    steps: list[Any] = [tad.RandomCrop(peers.SIZE), tad.HorizontalFlip()]
    steps += [tad.Normalize(peers.MEAN, peers.STD)] if floats else []
    theirs = peers.data_loader(peers.Pixels(images, floats), options.batch, options.threads)
    what = "float32 NCHW, normalized" if floats else "uint8 NCHW"
    with tad.Loader(tad.Arrays(images), options.batch, steps, shuffle=True, threads=options.threads) as loader:
        return compare(
            f"packed uint8, random crop to {peers.SIZE}, flip, {what}",
            {"torchaccel": lambda: loader, "DataLoader": theirs},
            options.rounds,
        )


def scaling(paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    source = tad.ImageFolder(Path(paths[0]).parent)
    loaders = {n: tad.Loader(source, options.batch, TRAIN, shuffle=True, threads=n) for n in (2, 1)}
    found = compare(
        "two threads against one", {f"{n} threads": (lambda x=x: x) for n, x in loaders.items()}, options.rounds
    )
    for loader in loaders.values():
        loader.close()
    return found


def first_batch(paths: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds from a new loader's iter() to its first batch, and of those what its decoding takes."""
    source = tad.ImageFolder(Path(paths[0]).parent)
    beyond = []
    for _ in range(9):
        with tad.Loader(source, options.batch, TRAIN, threads=options.threads) as loader:
            began = time.perf_counter()
            iterator = iter(loader)
            next(iterator)
            first = time.perf_counter() - began
        with tad.Loader(source, options.batch, TRAIN, threads=options.threads, slots=2) as loader:
            # The same batch again, with threads and memory that are there.
            next(iter(loader))
            loader.set_epoch(0)
            began = time.perf_counter()
            next(iter(loader))
            beyond.append(first - (time.perf_counter() - began))
    value = statistics.median(beyond) * 1e3
    print(f"\nfirst batch beyond its decoding: {value:.1f} ms")
    return {"milliseconds_beyond_decoding": value}


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def beyond_slots(paths: list[str], options: argparse.Namespace) -> dict[str, float]:
    """What a loader takes beyond its slots; first of all, while no memory lies free that it could use unseen."""
    before = resident()
    source = tad.ImageFolder(Path(paths[0]).parent)
    with tad.Loader(source, options.batch, NORMALIZED, threads=options.threads, drop_last=True) as loader:
        for _ in range(2):
            epoch_of(lambda: loader)
        slots = min(loader.slots, len(loader)) * options.batch * 3 * peers.SIZE**2 * 4
        a_thread = (resident() - before - slots) / options.threads / 1e6
    print(f"memory beyond the slots: {a_thread:.1f} MB a thread")
    return {"megabytes_a_thread": a_thread}


def growth(options: argparse.Namespace) -> dict[str, float]:
    """Growth of the resident set over 10,000 batches."""
    images = np.random.default_rng(0).integers(0, 256, (4000, 40, 40, 3), np.uint8)
    with tad.Loader(
        tad.Arrays(images), 8, [tad.RandomResizedCrop(32), tad.Normalize()], shuffle=True, threads=options.threads
    ) as loader:
        for _ in range(2):
            epoch_of(lambda: loader)
        before, batches = resident(), 0
        while batches < 10_000:
            epoch_of(lambda: loader)
            batches += len(loader)
        grown = (resident() - before) / 1e6
    print(f"growth over {batches} batches: {grown:.2f} MB")
    return {"batches": batches, "grown_megabytes": grown}


def environment() -> dict[str, Any]:
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    names = ("pillow", "simplejpeg", "opencv-python-headless", "spdl-io", "numpy")
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "decoder": tad.decoder().versions,
        "load": os.getloadavg()[0],
        "versions": {name: peers.version(name) for name in names},
        "cache": "files in the page cache",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="and workers of the others")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write all figures; to stdout without FILE"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"environment": environment(), "options": vars(options), "results": []}
    print(report["environment"])
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), options.images)
        size = sum(os.path.getsize(path) for path in paths) / len(paths)
        print(f"{len(paths)} JPEGs of {size / 1e3:.0f} kB on average")
        report["mean_bytes"] = size
        report["memory"] = beyond_slots(paths, options)
        report["results"] += [jpeg(paths, options, floats) for floats in (False, True)]
        report["results"] += [packed(Path(folder), options, floats) for floats in (False, True)]
        report["results"].append(scaling(paths, options))
        report["first_batch"] = first_batch(paths, options)
        report["memory"] |= growth(options)
    if options.json:
        text = json.dumps(report, indent=1) + "\n"
        sys.stdout.write(text) if options.json == "-" else Path(options.json).write_text(text)


if __name__ == "__main__":
    main()
