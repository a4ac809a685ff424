"""torchaccel.lightning costs nothing until it is used, and says what is missing."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_lightning_is_imported_on_demand() -> None:
    code = "import sys, torchaccel as ta; print([m for m in sys.modules if 'lightning' in m]); ta.lightning.Prune"
    assert python(code) == "[]"


def test_the_package_at_work_is_taken() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch"):
        code = f"import {name} as pl, torchaccel as ta; print(issubclass(ta.lightning.Prune, pl.Callback))"
        assert python(code) == "True"


def test_without_lightning_the_error_names_the_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import torchaccel as ta\n"
        "try: ta.lightning\n"
        "except ImportError as error: print(error)"
    )
    assert "`pip install pytorch-lightning`, the extra torchaccel[lightning]" in python(code)
    assert "no attribute 'nonsense'" in python("import torchaccel\ntry: torchaccel.nonsense\n"
                                               "except AttributeError as error: print(error)")  # fmt: skip
