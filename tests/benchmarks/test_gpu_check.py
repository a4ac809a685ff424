"""gpu-check without a GPU: the dry run walks all of it, and what ends a process costs one item."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gpu_check
import gpu_checks
import gpu_items
import gpu_ptx
import gpu_sanitize
import gpu_section
import gpu_table
import gpu_tilings
import ptx_vectors
from gpu_items import FAILED, NO_KERNEL, NOT_RUN, OK, Item, Result
from harness import compiled

CPU = torch.device("cpu")
NO_COUNTERPART = {"linear 2:4 M=N=K=64: cuSPARSELt int8", "linear 2:4 M=N=K=64: cuSPARSELt fp16"}  # on a CPU


def test_the_dry_run_walks_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    result = gpu_check.check_all(CPU, quick=True, limit=1e6, chosen=list(gpu_check.PARTS))
    failed = {entry["name"] for part in gpu_check.PARTS for entry in result[part] if entry["status"] != OK}
    assert failed == NO_COUNTERPART
    assert gpu_sanitize.FINISHED in capsys.readouterr().out
    table = {row["group"]: row for row in result["table"]}
    assert len(table) > 20 and all(row["ours_ms"] > 0 for row in table.values())
    for prefix in gpu_table.TARGETS:
        assert prefix == "t(M+1)/t(M)" or any(group.startswith(prefix) for group in table), prefix
    assert {row["group"] for row in result["table"] if row["ratio"] is None} == {"linear 2:4 M=N=K=64"}
    text = gpu_check.summary(json.loads(json.dumps(result)))
    assert (
        f"ptx: {len(ptx_vectors.VECTORS)} ok, 0 failed" in text
        and "t(M+1)/t(M)" in text
        and "cuSPARSELt int8: failed" in text
    )


def test_tilings_are_planned_and_run_one_by_one() -> None:
    for library, name, problem in gpu_tilings.shapes(small=True):
        kernels = compiled(f"products_{library}").library
        found = gpu_tilings.measure(kernels, problem, CPU, multiprocessors=3)
        assert len(found) > 4 and sum(each["chosen"] for each in found) == 1, name
        assert all(each["same"] for each in found)
        assert {each["warpgroups"] for each in found} == {False, True} and all(each["cycles"] > 0 for each in found)
        best = min(found, key=lambda each: each["cycles"])
        assert best["cycles"] * 1.002 > next(each["cycles"] for each in found if each["chosen"])
        assert name in gpu_tilings.shown(name, found)


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, gpu_check.__file__], capture_output=True, text=True)
    assert done.returncode == 2 and "needs a GPU" in done.stderr


def test_every_op_of_the_cuda_sources_is_checked() -> None:
    claimed = gpu_checks.claimed()
    assert len(claimed) > 3
    checked = {op for item in gpu_checks.items(CPU, False) for op in item.ops}
    assert set(claimed) <= checked, set(claimed) - checked
    assert checked <= gpu_sanitize._calls(CPU).keys()


def run(items: list[Item], deadline: float = 1e18, done: tuple[str, ...] = ()) -> list[Result]:
    found: list[Result] = []
    gpu_items.run_items(items, CPU, deadline, found.append, done=done)
    return found


def test_items_do_not_stop_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("3 differ")

    items = [Item("a", fail, facts={"group": "g"}), Item("b", lambda: {"ms": 2.0}), Item("c", fail)]
    first, second = run(items, done=("c",))
    assert (first["status"], first["detail"], first["group"]) == (FAILED, "AssertionError: 3 differ", "g")
    assert (second["status"], second["ms"]) == (OK, 2.0)
    assert [each["status"] for each in run(items, deadline=0.0)] == [NOT_RUN] * 3
    broken = iter(["an illegal memory access", None])
    monkeypatch.setattr(gpu_items, "_broken", lambda device: next(broken))
    with pytest.raises(gpu_items.BrokenDeviceError, match="illegal"):
        run(items[1:])


SCRIPT = """
import json, os, sys, time
file = sys.argv[sys.argv.index("--results") + 1]
done = {line.get("name", line.get("begin")) for line in map(json.loads, open(file))}
def note(line):
    with open(file, "a") as out:
        out.write(json.dumps(line) + chr(10))
for name in ("first", "crash", "broken", "hang", "last"):
    if name in done:
        continue
    note({"begin": name})
    if name == "crash":
        os.abort()
    if name == "hang":
        time.sleep(60)
    note({"name": name, "status": "ok", "detail": "", "s": 0.1})
    if name == "broken":
        sys.exit(3)
"""


def test_a_crash_and_a_hang_cost_one_item(tmp_path: Path) -> None:
    script = tmp_path / "part.py"
    script.write_text(SCRIPT)
    found: list[Result] = []
    gpu_section.run_section([sys.executable, str(script)], time.monotonic() + 60, 2.0, found.append)
    assert {each["name"]: each["status"] for each in found} == {
        "first": OK, "crash": FAILED, "broken": OK, "hang": FAILED, "last": OK,
    }  # fmt: skip
    assert "status -6" in found[1]["detail"] and "too slow" in found[3]["detail"]


def test_a_command_that_does_nothing_is_not_repeated() -> None:
    found: list[Result] = []
    gpu_section.run_section([sys.executable, "-c", "raise SystemExit(1)"], time.monotonic() + 60, 9.0, found.append)
    assert not found


@pytest.mark.parametrize(
    "code, text, status",
    [
        (0, f"{gpu_sanitize.FINISHED}\n========= ERROR SUMMARY: 0 errors", OK),
        (0, f"{gpu_sanitize.FINISHED}\n========= RACECHECK SUMMARY: 0 hazards displayed", OK),
        (9, "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 1 error", FAILED),
        (0, "========= ERROR SUMMARY: 0 errors", FAILED),  # it did not come to its end
        (1, "Device not supported", NOT_RUN),
        (None, "", NOT_RUN),
    ],
)
def test_what_a_sanitizer_said(code: int | None, text: str, status: str) -> None:
    assert gpu_sanitize.judged("memcheck", code, text, 0.0)["status"] == status


def test_rows_compare_with_the_fastest_opponent_and_name_what_is_missing() -> None:
    def entry(who: str, ms: float, status: str = OK, group: str = "2:4 conv int8 x") -> Result:
        return {"group": group, "who": who, "ours": who == "ours", "ms": ms, "status": status}

    first, second = gpu_table.rows(
        [entry("ours", 2.0), entry("slow", 9.0), entry("fast", 3.0), entry("none", 0.1, FAILED)]
        + [entry("ours", 0.0, NO_KERNEL, "t"), entry("rival", 1.0, group="t")]
    )
    assert (first["opponent"], first["ratio"], first["met"], first["at_least"]) == ("fast", 1.5, True, 1.1)
    assert first["missing"] == ["none: failed"]
    assert second["ratio"] is None and second["met"] is None and second["missing"] == ["ours: no kernel"]
    assert "(met) [none: failed]" in gpu_table.text([first, second])


def test_recording_takes_what_a_gpu_gave_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptx_vectors, "FILE", tmp_path / "vectors.json")
    entries = [
        {"name": name, "status": OK, "out": ptx_vectors.recorded(make()[1])}
        for name, make in ptx_vectors.VECTORS.items()
    ]
    result = {
        "ptx": entries,
        "environment": {"device": "NVIDIA H100 80GB HBM3"},
        "gpu_before": {"driver_version": "580.159.04"},
    }
    gpu_ptx.record(result)
    assert ptx_vectors.read()["source"] == "NVIDIA H100 80GB HBM3, driver 580.159.04"
    for wrong in (
        {"ptx": entries[1:]}, {"ptx": [entries[0] | {"status": FAILED}, *entries[1:]]}, {"environment": {}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="record"):
            gpu_ptx.record(result | wrong)
