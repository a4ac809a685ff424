"""In-tree PEP 517 backend: setuptools', with the torch that is already installed put within reach of an isolated build.

pip isolates a build through PYTHONPATH, which `python -E` ignores; so the same interpreter, asked with -E, tells
where the user's torch is. Naming torch in `build-system.requires` would fetch and build against a second one.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401 - hooks that need no torch
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

_ASK = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"


def torch_site_packages() -> str | None:
    """The folder that holds the installed torch, or None where there is none."""
    answer = subprocess.run(
        [sys.executable, "-E", "-c", _ASK], cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False
    )
    origin = answer.stdout.strip()
    return str(Path(origin).parent.parent) if origin else None


def _reach_torch() -> None:
    if importlib.util.find_spec("torch") is not None:
        return
    site = torch_site_packages()
    if site is None:
        print("torchaccel: no torch is installed beside this Python, so no kernels are built", file=sys.stderr)
    else:
        # Last, so that the build's own setuptools stays the one in use.
        sys.path.append(site)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _reach_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _reach_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
