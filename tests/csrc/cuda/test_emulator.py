"""The emulated machine reports each sin that a kernel can commit, in any order, and leaves clean kernels alone."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch
from torch import Tensor

from harness import MACHINES, ROOT, Kernels, Machine, apart, compiled, output, workspace

UNWRITTEN = "shared byte .*, which nobody wrote"
UNORDERED = "with no barrier since"
UNDER_WAY = "while a copy of thread .* is under way"
UNALIGNED = "not aligned to"

SHARED = {
    "read_without_barrier": f"{UNORDERED}|{UNWRITTEN}",
    "read_within_warp": f"{UNORDERED}|{UNWRITTEN}",
    "warp_barrier_for_a_block": f"{UNORDERED}|{UNWRITTEN}",
    "write_after_read": f"read {UNORDERED}|wrote {UNORDERED}",
    "write_after_read_of_another_warp": f"read {UNORDERED}|wrote {UNORDERED}",
    "write_after_read_of_another_lane": f"read {UNORDERED}|wrote {UNORDERED}",
    "warp_barrier_for_another_warp": f"wrote {UNORDERED}|{UNWRITTEN}",
    "barrier_before_wait": f"wrote {UNORDERED}|{UNDER_WAY}",
    "two_writers": f"wrote {UNORDERED}",
    "uninitialized": UNWRITTEN,
    "left_by_another_block": UNWRITTEN,
    "past_shared": "writes bytes 2048 to 2051 of shared memory, which has 2048",
    "read_before_wait": UNDER_WAY,
    "wait_for_one_group_of_two": UNDER_WAY,
    "wait_before_commit": UNDER_WAY,
    "wait_without_barrier": f"wrote {UNORDERED}|{UNWRITTEN}|{UNDER_WAY}",
    "copy_over_what_others_read": f"read {UNORDERED}|{UNDER_WAY}|wrote {UNORDERED}",
    "write_over_a_copy": UNDER_WAY,
    "copy_not_waited_for": "ends with 1 copies under way",
    "unaligned_copy": UNALIGNED,
    "copy_to_unaligned": UNALIGNED,
    "copy_past_the_end": "reads 16 bytes at no buffer, 0 bytes past the end of argument 2",
    "unaligned_rows": UNALIGNED,
    "rows_outside": "of shared memory, which has 2048",
    "rows_without_barrier": f"wrote {UNORDERED}",
}
GLOBAL = {
    "read_past_the_end": "reads 4 bytes at no buffer, 0 bytes past the end of argument 2",
    "write_past_the_end": "writes 4 bytes at no buffer, 0 bytes past the end of argument 4|a second time",
    "unaligned_load": UNALIGNED,
    "input_written": "writes byte .* of argument 2, an input",
    "written_twice": "writes byte .* of argument 4 a second time",
    "not_written": "byte 68 of argument 4 was never written",
    "output_read": "reads byte .* of argument 4, an output",
    "workspace_unwritten": "reads byte 256 of argument 5, which nobody wrote",
    "workspace_race": f"argument 5.*({UNORDERED}|which nobody wrote)",
    "workspace_of_another_block": "argument 5, which (nobody|another block) wrote",
    "workspace_read_by_another_block": "argument 5, which another block (read|wrote)",
    "all_sin": "writes 4 bytes at no buffer",
    "divergent_collectives": "comes to .* while other lanes of its warp wait at",
    "lanes_missing": "deadlock: waits at a shuffle",
    "partial_mask": "a shuffle with mask 0xffff",
    "barrier_in_a_branch": "ends while .* others wait at a barrier|waits at a barrier to which",
    "barrier_and_collective": "deadlock: waits at __syncwarp",
    "metadata_falls": "places 1 and 0 of row 9, group 0 do not rise",
    "metadata_repeats": "places 1 and 1 of row 9, group 0 do not rise",
    "shift_too_far": "shifts by 32",
    "index_out_of_bounds": "at 4, out of its bounds",
    "memcpy_past_the_end": "reads bytes 0 to 256 of argument 2, which has 256",
}

UNDER_WAY_PRODUCTS = "products under way"
PRODUCTS = {
    "no_proxy_fence": "with no fence.proxy.async before the barrier",
    "proxy_fence_after_the_barrier": "with no fence.proxy.async before the barrier",
    "product_without_barrier": f"{UNORDERED}|{UNWRITTEN}|before the barrier",
    "no_fence_of_sums": "no wgmma.fence since the last group",
    "write_over_operands": f"which {UNDER_WAY_PRODUCTS} read",
    "write_over_operands_of_another_warp": f"which {UNDER_WAY_PRODUCTS} read|read {UNORDERED}",
    "wait_for_another_group": f"which {UNDER_WAY_PRODUCTS} read",
    "products_not_waited_for": f"{UNDER_WAY_PRODUCTS}, not waited for",
    "products_not_committed": f"{UNDER_WAY_PRODUCTS}, not waited for",
    "rows_off_their_group": "begins 64 bytes behind a group of eight rows",
    "descriptors_differ": "descriptors differ in the warpgroup",
    "a_warp_is_missing": "deadlock: waits at wgmma|comes to wgmma.* while",
}


def run(kernels: Kernels, name: str, sin: bool, machine: Machine) -> tuple[Tensor, Tensor]:
    """What the kernel was given, and its output."""
    given, out = torch.arange(64, dtype=torch.int32) * 7919, torch.empty(64, dtype=torch.int32)
    zero, scratch = torch.zeros(1, dtype=torch.int32), torch.empty(128, dtype=torch.int32)
    arguments = name, int(sin), given, zero, output(out), workspace(scratch)
    kernels.run("run", *arguments, machine=machine)
    assert kernels.launches == 2
    return given, out


FILES = {"sins_shared": SHARED, "sins_global": GLOBAL, "sins_products": PRODUCTS}
CASES = [(file, name) for file, sins in FILES.items() for name in sins]


@pytest.mark.parametrize("file, name", CASES)
def test_sin(file: str, name: str) -> None:
    kernels = compiled(file)
    for machine in (*MACHINES, Machine("random", 2, True)):
        assert torch.equal(*run(kernels, name, False, machine))
        with pytest.raises(AssertionError, match=FILES[file][name]) as raised:
            run(kernels, name, True, machine)
        if name != "not_written":
            assert f"{name}, block " in str(raised.value)
        assert torch.equal(*run(kernels, name, False, machine)), "a report leaves nothing behind"


def test_blocks_and_threads_run_in_the_order_asked_for() -> None:
    first = {}
    for machine in (Machine(), Machine("reversed"), *(Machine("random", seed) for seed in range(8))):
        with pytest.raises(AssertionError) as raised:
            run(compiled("sins_global"), "all_sin", True, machine)
        first[machine] = re.search(r"block (\d+), thread (\d+)", str(raised.value)).groups()
    assert first[Machine()] == ("0", "0") and first[Machine("reversed")] == ("1", "63")
    random = list(first.values())[2:]
    assert {block for block, _ in random} == {"0", "1"} and len({thread for _, thread in random}) > 3


def test_copies_land_as_late_or_as_early_as_they_may() -> None:
    for machine in MACHINES:
        given, out = run(compiled("sins_shared"), "copy_of_what_changes", True, machine)
        assert torch.equal(out, given if machine.early_copies else torch.zeros_like(given))


def test_products_come_as_late_or_as_early_as_they_may() -> None:
    kernels = compiled("sins_products")
    given, scratch = torch.arange(64, dtype=torch.int32) * 7919, torch.empty(128, dtype=torch.int32)
    zero, out = torch.zeros(1, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
    for machine in MACHINES:
        for sin in (0, 1):
            arguments = "sums_before_the_wait", sin, given, zero, output(out), workspace(scratch)
            kernels.run("run", *arguments, machine=machine)
            there = bool((scratch[:64] - given).any())
            assert there == (machine.early_copies or not sin)


def test_endless_loops_end() -> None:
    with pytest.raises(AssertionError, match="endless, block 0, thread 0: seems to be endless"):
        run(compiled("sins_global"), "endless", True, Machine(accesses=100_000))
    assert torch.equal(*run(compiled("sins_global"), "endless", False, Machine(accesses=100_000)))


def test_bank_conflicts_are_counted() -> None:
    kernels = compiled("sins_shared")
    assert torch.equal(*run(kernels, "bank_conflicts", False, MACHINES[0])) and kernels.bank_conflicts == 0
    assert torch.equal(*run(kernels, "bank_conflicts", True, MACHINES[0]))
    assert kernels.bank_conflicts == 2 * 2 * 7, "two warps, two matrices of eight rows in one bank"


@pytest.mark.parametrize(
    "blocks, threads, shared", [(0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, 232449), (2**31, 1, 0)]
)
def test_launches_that_no_gpu_takes(blocks: int, threads: int, shared: int) -> None:
    with pytest.raises(AssertionError, match="cannot launch"):
        compiled("sins_global").run("launch_nothing", blocks, threads, shared)


def test_a_report_names_the_line() -> None:
    with pytest.raises(AssertionError) as raised:
        run(compiled("sins_global"), "input_written", True, MACHINES[0])
    file, line = re.search(r"at (tests/csrc/cuda/sins_global.cpp):(\d+)", str(raised.value)).groups()
    assert "const_cast<int*>(m.in)" in (ROOT / file).read_text().splitlines()[int(line) - 1]


def test_what_lies_apart_keeps_its_values_and_alignment() -> None:
    memory = torch.arange(300, dtype=torch.int16)
    for tensor in (memory[3:], memory[:24].view(4, 6).T, memory[:0], torch.tensor([True, False])):
        copy = apart(tensor)
        assert torch.equal(copy, tensor) and copy.stride() == tensor.stride()
        assert tensor.numel() == 0 or (copy.data_ptr() - tensor.data_ptr()) % 256 == 0


def test_conversions_of_half_types_round_to_even() -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    between = (
        torch.arange(1 << 20, dtype=torch.int32) * 4099
    )  # all exponents and signs, some halfway between two halves
    halfway = torch.arange(1 << 16, dtype=torch.int32) << 16 | torch.tensor([0x1000, 0x3000, 0x8000, 0x8001]).view(4, 1)
    floats = torch.cat([between, halfway.to(torch.int32).view(-1)]).view(torch.float32)
    for dtype, letter in ((torch.float16, b"h"), (torch.bfloat16, b"b")):
        wide, narrow = torch.empty(1 << 16), torch.empty(floats.shape, dtype=torch.int16)
        library = compiled("sins_global").library
        pointers = [ctypes.c_void_p(each.data_ptr()) for each in (bits, wide, floats, narrow)]
        library.convert(ctypes.c_char(letter), *pointers, ctypes.c_int64(floats.numel()))
        assert torch.equal(wide.nan_to_num(7.0), bits.view(dtype).float().nan_to_num(7.0))
        assert torch.equal(wide.isnan(), bits.view(dtype).isnan())
        want, got = floats.to(dtype), narrow.view(dtype)
        assert torch.equal(want.isnan(), got.isnan())
        assert torch.equal(want.view(torch.int16)[~want.isnan()], narrow[~want.isnan()])
