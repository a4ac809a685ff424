"""Changed kernels do not get past the emulator: a sample of `make mutants`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mutants_operators import mutants

SOURCE = """\
#include <cstdint>  // a < b
constexpr int kWidth = 4;
__device__ void step(int n, float y) {
  for (int i = 0; i < kWidth; ++i) sums[i] = 0;  // no mutants
  if (n < 1) return;
  ptx::cp_async_wait<2>();
  __syncthreads();
  const int at = swizzled<64>(row + 1, 2 * lane) ^ 3;
  x[at] = __fadd_rn(y, bias) * 0.5f;
}
__device__ int other(int n) { return min(n, 3); }
"""


def test_each_operator_changes_its_place() -> None:
    found = mutants("step.cuh", SOURCE, but=("other",))
    assert [(m.line, m.operator, m.change) for m in found] == [
        (5, "guard", "n < 1 -> false"),
        (5, "guard", "n < 1 -> true"),
        (5, "bound", "< -> <="),
        (6, "wait", "ptx::cp_async_wait<2>(); -> ;"),
        (6, "wait", "ptx::cp_async_wait<2>(); -> ptx::cp_async_wait<2 + 1>();"),
        (7, "barrier", "__syncthreads(); -> ;"),
        (8, "swizzle", "swizzled<64>(row + 1, 2 * lane) -> ((row + 1) * 64 + (2 * lane) * 16)"),
        (8, "one", "+ 1 -> nothing"),
        (8, "product", "* -> +"),
        (8, "xor", "^ -> + 0 *"),
        (9, "statement", "x[at] = __fadd_rn(y, bias) * 0.5f; -> ;"),
        (9, "term", "__fadd_rn(y, bias) -> (y)"),
        (9, "float", "0.5f -> (0.5f + 1.0f)"),
    ]
    changed = found[4].apply(SOURCE)
    assert "cp_async_wait<2 + 1>" in changed and len(changed) == len(SOURCE) + 4
    assert [m.change for m in mutants("step.cuh", SOURCE)][-2:] == ["min(n, 3) -> (3)", "min(n, 3) -> (n)"]


def test_a_sample_is_killed_or_has_its_reason() -> None:
    runner = Path(__file__).with_name("mutants.py")
    done = subprocess.run([sys.executable, str(runner), "--sample", "40"], capture_output=True, text=True)
    assert done.returncode == 0 and ", 0 of them without a reason" in done.stdout, done.stdout + done.stderr
