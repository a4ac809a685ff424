"""The machine code is what the sources mean: matrix instructions, wide loads, no spills. It needs nvcc, not a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

import sass

ROOT = Path(__file__).parents[3]
LIBRARY = ROOT / "build/cuda/libtorchaccel_cuda.so"
VECTORS = ROOT / "build/cuda/libptx_vectors.so"
ARCHITECTURES = {"sm_80", "sm_90a"}


@dataclass(frozen=True)
class Rule:
    """What kernels of such a name must hold: opcodes anywhere, opcodes in the loop around the products.

    `stack` is the budget for spills and local arrays, in bytes a thread, `spills` for how often a main loop reads or
    writes them. The first rule that covers a kernel is the kernel's; each kernel needs one.
    """

    kernels: str
    has: tuple[str, ...] = ()
    in_main_loop: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    stack: int = 16
    spills: int = 0
    architecture: str | None = None  # None: any

    def covers(self, kernel: sass.Kernel) -> bool:
        return self.architecture in (None, kernel.architecture) and bool(re.search(self.kernels, kernel.name))


_LOOP = (r"LDSM\.16\.M88\.4", r"LDGSTS\.E\.BYPASS\.128")  # what a step of the main loop reads by
_INT8 = r"(un)?signed char"
_HALF = r"(__half|__nv_bfloat16)"


def products(
    format: str, instruction: str, lacks: tuple[str, ...] = (), pieces: tuple[int, ...] = ()
) -> tuple[Rule, ...]:
    """gemm_kernel over a format of weights, which reads x in pieces of 16 bytes; and of less for odd shapes."""
    kernel, loop = rf"gemm_kernel<torchaccel::cuda::{format}.*::Tiling<.*>", (instruction, *_LOOP)
    rules = [Rule(rf"{kernel}, {piece}>", in_main_loop=loop, lacks=lacks) for piece in (16, *pieces)]
    # Pieces of one or two bytes keep more addresses than there are registers.
    return tuple(replace(rule, stack=128, spills=48) if re.search(r" [12]>$", rule.kernels) else rule for rule in rules)


def warpgroup_products(format: str, instruction: str, lacks: tuple[str, ...]) -> Rule:
    """gemm_kernel by wgmma, which reads shared memory by itself."""
    kernel = rf"gemm_kernel<torchaccel::cuda::{format}.*::WarpgroupTiling<"
    return Rule(kernel, in_main_loop=(instruction, _LOOP[1]), lacks=("LDSM", *lacks), architecture="sm_90a")


RULES = (
    warpgroup_products(rf"Dense<{_INT8}>", r"IGMMA\.64x(64|128|256)x32\.S8", lacks=(r"IGMMA\.SP", "IMMA")),
    warpgroup_products(rf"Dense<{_HALF}>", r"HGMMA\.64x(64|128|256)x16\.F32", lacks=(r"HGMMA\.SP", "HMMA")),
    warpgroup_products(rf"Sparse24<{_INT8}>", r"IGMMA\.SP\.64x(64|128|256)x64\.S8", lacks=(r"IGMMA\.6", "IMMA")),
    warpgroup_products(rf"Sparse24<{_HALF}>", r"HGMMA\.SP\.64x(64|128|256)x32\.F32", lacks=(r"HGMMA\.6", "HMMA")),
    Rule(r"gemm_kernel<.*::WarpgroupTiling<", has=("BPT",), lacks=(r"[IH]G?MMA", "LDGSTS"), architecture="sm_80"),
    Rule(r"::probe_kernel\("),
    *products(rf"Dense<{_INT8}>", r"IMMA\.16832\.S8", lacks=(r"IMMA\.SP", r"HMMA\.1"), pieces=(4, 1)),
    *products(rf"Sparse24<{_INT8}>", r"IMMA\.SP\.16864\.S8", lacks=(r"IMMA\.1",)),
    *products(rf"Sparse24<{_HALF}>", r"HMMA\.SP\.16832\.F32", lacks=(r"HMMA\.1",)),
    *products(rf"Dense<{_HALF}>", r"HMMA\.16816\.F32", lacks=(r"HMMA\.SP",)),
    *products(rf"WeightOnly<{_HALF}>", r"HMMA\.16816\.F32", lacks=(r"HMMA\.SP",), pieces=(2,)),
    Rule(rf"::gemv_kernel<{_INT8}", in_main_loop=(r"IMMA\.16832\.S8", _LOOP[1])),
    Rule(r"::gemv_kernel<(float|__half|__nv_bfloat16)", in_main_loop=(r"HMMA\.16816\.F32", r"PRMT", _LOOP[1])),
    Rule(r"finish_(gemv_)?kernel<"),
    Rule(r"norm_quantize_kernel<.*, (32|256), [1-9]\d*, [48]>", has=(r"LDG\.E\.128",)),
    Rule(r"norm_quantize_kernel<"),  # what does not fit registers, or is not aligned
    Rule(r"add_kernel\("),
    Rule(r"(max|avg)_pool_kernel<"),
    Rule(r"quantize_rows_kernel<.*, (32|256), [1-9]\d*, \d+>", has=(r"LDG\.E\.128",), lacks=(r"LDG\.E\.U16",)),
    Rule(r"quantize_rows_kernel<.*, 0, \d+>"),  # likewise
    Rule(r"quantize_tensor_kernel<.*, (4|8)>", has=(r"LDG\.E\.128",)),
    Rule(r"quantize_tensor_kernel<.*, 1>"),
)
VECTOR_RULES = (
    Rule(r"Mma<signed char>", has=(r"IMMA\.16832\.S8\.S8",)),
    Rule(r"Mma<unsigned char>", has=(r"IMMA\.16832\.S8\.U8",)),
    Rule(r"Mma<__half>", has=(r"HMMA\.16816\.F32$",)),
    Rule(r"Mma<__nv_bfloat16>", has=(r"HMMA\.16816\.F32\.BF16",)),
    Rule(r"MmaSp<signed char, 0>", has=(r"IMMA\.SP\.16864\.S8\.S8",)),
    Rule(r"MmaSp<unsigned char, 0>", has=(r"IMMA\.SP\.16864\.S8\.U8",)),
    Rule(r"MmaSp<__half, [01]>", has=(r"HMMA\.SP\.16832\.F32$",)),
    Rule(r"MmaSp<__nv_bfloat16, [01]>", has=(r"HMMA\.SP\.16832\.F32\.BF16",)),
    Rule(r"Wgmma<", lacks=(r"[IH]G?MMA",), architecture="sm_80"),
    Rule(r"Wgmma<signed char, -1>", has=(r"IGMMA\.64x64x32\.S8\.S8",)),
    Rule(r"Wgmma<unsigned char, -1>", has=(r"IGMMA\.64x64x32\.S8\.U8",)),
    Rule(r"Wgmma<__half, -1>", has=(r"HGMMA\.64x64x16\.F32$",)),
    Rule(r"Wgmma<__nv_bfloat16, -1>", has=(r"HGMMA\.64x64x16\.F32\.BF16",)),
    Rule(r"Wgmma<signed char, 0>", has=(r"IGMMA\.SP\.64x64x64\.S8\.S8",)),
    Rule(r"Wgmma<unsigned char, 0>", has=(r"IGMMA\.SP\.64x64x64\.S8\.U8",)),
    Rule(r"Wgmma<__half, [01]>", has=(r"HGMMA\.SP\.64x64x32\.F32$",)),
    Rule(r"Wgmma<__nv_bfloat16, [01]>", has=(r"HGMMA\.SP\.64x64x32\.F32\.BF16",)),
    Rule(r"Ldmatrix<4>", has=(r"LDSM\.16\.M88\.4",)),
    Rule(r"Ldmatrix<2>", has=(r"LDSM\.16\.M88\.2",)),
    Rule(r"CpAsync<16>", has=(r"LDGSTS\.E\.BYPASS\.128",)),
    Rule(r"CpAsync<8>", has=(r"LDGSTS\.E\.64",)),
    Rule(r"CpAsync<4>", has=(r"LDGSTS\.E$",)),
)


@cache
def compiled(library: Path) -> list[sass.Kernel]:
    sources = [*ROOT.glob("csrc/cuda/*.cu*"), *ROOT.glob("tests/csrc/cuda/*.cu*")]
    newest = max(path.stat().st_mtime for path in sources)
    if not library.exists() or library.stat().st_mtime < newest:
        pytest.skip(f"{library.name} is not built from these sources; `make sass` builds it (with nvcc) and tests it")
    return sass.kernels(library)


def broken(kernel: sass.Kernel, rule: Rule) -> list[str]:
    """What the kernel has and should not, or lacks."""
    found = [f"no {pattern}" for pattern in rule.has if not kernel.count(pattern)]
    found += [f"no {pattern} in the main loop" for pattern in rule.in_main_loop if not kernel.in_main_loop(pattern)]
    found += [f"{kernel.count(pattern)} x {pattern}" for pattern in rule.lacks if kernel.count(pattern)]
    if kernel.stack > rule.stack:
        found.append(f"{kernel.stack} bytes of stack for a budget of {rule.stack}")
    spills = kernel.in_main_loop(r"STL|LDL")
    if spills > rule.spills:
        found.append(f"{spills} accesses of local memory in the main loop for a budget of {rule.spills}")
    if kernel.registers > 255:
        found.append(f"{kernel.registers} registers")
    return found


def check(kernels: list[sass.Kernel], rules: tuple[Rule, ...]) -> None:
    problems, used = [], set()
    for kernel in kernels:
        rule = next((rule for rule in rules if rule.covers(kernel)), None)
        if rule is None:
            problems.append(f"{kernel.name}: no rule of this test's table covers it")
            continue
        used.add(rule)
        problems += [f"{kernel.architecture} {kernel.name}: {problem}" for problem in broken(kernel, rule)]
    problems += [f"no kernel has a name like {rule.kernels}" for rule in rules if rule not in used]
    assert not problems, "\n".join(problems)


def test_each_kernel_of_the_library_is_compiled_as_meant() -> None:
    kernels = compiled(LIBRARY)
    assert {kernel.architecture for kernel in kernels} >= ARCHITECTURES
    check(kernels, RULES)


def test_the_probe_tells_code_for_wgmma_by_its_shared_memory() -> None:
    probes = {kernel.architecture: kernel.shared for kernel in compiled(LIBRARY) if "::probe_kernel(" in kernel.name}
    assert probes["sm_80"] <= 2048 < 16384 <= probes["sm_90a"]


def test_each_ptx_wrapper_is_its_instruction() -> None:
    kernels = compiled(VECTORS)
    assert {kernel.architecture for kernel in kernels} >= ARCHITECTURES
    check(kernels, VECTOR_RULES)


def kernel(*code: tuple[int, str, str], stack: int = 0) -> sass.Kernel:
    return sass.Kernel("k", "sm_80", 32, stack, 0, tuple(sass.Instruction(*each) for each in code))


def test_the_main_loop_is_the_one_around_the_products() -> None:
    made = kernel(
        (0x00, "LDG.E", " R0"),
        (0x10, "LDSM.16.M88.4", " R0"),
        (0x20, "IMMA.16832.S8.S8", " R0"),
        (0x30, "BRA", " 0x10 "),
        (0x40, "STG.E", " R0"),
        (0x50, "BRA", " 0x0 "),
        (0x60, "BRA", " 0x60"),
    )
    assert made.in_main_loop(r"LDSM") == made.in_main_loop(r"IMMA") == 1
    assert made.in_main_loop(r"LDG") == made.in_main_loop(r"STG") == 0
    assert kernel((0, "IMMA.16832.S8.S8", "")).in_main_loop("IMMA") == 0


def test_what_is_wrong_is_named() -> None:
    made = kernel((0, "LDG.E", ""), (0x10, "STL", ""), (0x20, "IMMA.16832.S8.S8", ""), (0x30, "BRA", " 0x0"), stack=24)
    assert broken(made, Rule("k", has=("HMMA",), in_main_loop=("LDSM",), lacks=("LDG",))) == [
        "no HMMA",
        "no LDSM in the main loop",
        "1 x LDG",
        "24 bytes of stack for a budget of 16",
        "1 accesses of local memory in the main loop for a budget of 0",
    ]
    assert not broken(kernel((0, "LDG.E", ""), (0x10, "STL", ""), stack=8), Rule("k", has=("LDG",)))
    with pytest.raises(AssertionError, match=r"no rule(.|\n)*no kernel has a name like x"):
        check([made], (Rule("x"),))
