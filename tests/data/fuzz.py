"""Load damaged files under sanitizers: `python -m tests.data.fuzz [--count 10000] [--sanitizers address thread]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from tests.data.images import interlaced_png, jpeg, picture, png

ROOT = Path(__file__).parents[2]
SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}


def seeds() -> dict[str, bytes]:
    """Small valid images of every kind that the decoders tell apart."""
    pixels = picture(90, 70)
    made = {
        "restarts.jpg": jpeg(pixels, restart_marker_blocks=3),
        "gray.jpg": jpeg(pixels, "L"),
        "cmyk.jpg": jpeg(pixels, "CMYK"),
        "interlaced.png": interlaced_png(pixels),
    }
    for subsampling in (0, 1, 2):
        made[f"baseline{subsampling}.jpg"] = jpeg(pixels, subsampling=subsampling)
        made[f"progressive{subsampling}.jpg"] = jpeg(pixels, subsampling=subsampling, progressive=True)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        made[f"{mode.replace(';', '')}.png"] = png(pixels, mode)
    return made


def build(sanitizer: str, out: Path) -> None:
    """Compile the core of csrc/data and fuzz.cpp under a sanitizer."""
    sources = [str(path) for path in sorted((ROOT / "csrc/data").glob("*.cpp")) if path.name != "bind.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", SANITIZERS[sanitizer], "-fno-sanitize-recover=all"]
    command = [
        os.environ.get("CXX", "c++"),
        *flags,
        f"-I{ROOT / 'csrc'}",
        *sources,
        str(Path(__file__).parent / "fuzz.cpp"),
    ]
    subprocess.run([*command, "-o", str(out), "-ljpeg", "-lpng", "-lpthread"], check=True)


def run(sanitizer: str, count: int, seed: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build and run; the exit code is not 0 if a sanitizer reports anything."""
    corpus, program = folder / "corpus", folder / sanitizer
    corpus.mkdir(exist_ok=True)
    for name, data in seeds().items():
        (corpus / name).write_bytes(data)
    build(sanitizer, program)
    return subprocess.run(
        [str(program), str(corpus), str(count), str(seed)], capture_output=True, text=True, check=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sanitizers", nargs="+", choices=SANITIZERS, default=list(SANITIZERS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for sanitizer in options.sanitizers:
            done = run(sanitizer, options.count, options.seed, Path(folder))
            print(f"{SANITIZERS[sanitizer]}: {done.stdout.strip() or 'no result'}{done.stderr}")
            if done.returncode != 0:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
