"""A sample of `make fuzz-data`: damaged files under address, undefined-behaviour and thread sanitizers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.data import fuzz
from tests.data.conftest import needs_native


@needs_native
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("sanitizer", fuzz.SANITIZERS)
def test_damaged_files_cause_no_report(sanitizer: str, tmp_path: Path) -> None:
    done = fuzz.run(sanitizer, 640, 7, tmp_path)
    found = re.fullmatch(r"640 files: (\d+) delivered, (\d+) refused\n", done.stdout)
    assert done.returncode == 0 and found is not None and not done.stderr, done.stdout + done.stderr
    assert int(found[1]) > 50 and int(found[2]) > 200
