"""Build the CUDA kernels alone, beside any torch, also one without CUDA: `python _build/cuda_library.py build/cuda`.

The library runs on another machine: point TORCHACCEL_CUDA_LIBRARY at it there.
"""

from __future__ import annotations

import os
import sys

from setuptools import Distribution

import native


def main(folder: str) -> None:
    reason = native.missing_for_cpu() or native.missing_toolkit()
    if reason is not None:
        raise SystemExit(f"torchaccel: the CUDA kernels cannot be built: {reason}")
    made = native.Plan("cuda", [native.cuda_extension("libtorchaccel_cuda")])
    command = native.build_ext_class(made)(Distribution({"name": "torchaccel", "ext_modules": made.extensions}))
    command.build_lib = os.path.abspath(folder)
    command.ensure_finalized()
    command.run()
    print(os.path.join(folder, "libtorchaccel_cuda.so"))


if __name__ == "__main__":
    main(*sys.argv[1:])
