"""What pyproject.toml cannot say: the kernel libraries. `_build/native.py` decides which, and how."""

import os
import sys

from setuptools import setup

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "_build"))

import native

plan = native.plan()
setup(
    ext_modules=plan.extensions,
    cmdclass=native.commands(plan),
    # Kernels hold no Python symbols: one wheel for every Python from 3.10 on. With csrc/data it is for this Python.
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if plan.abi3 else {},
)
