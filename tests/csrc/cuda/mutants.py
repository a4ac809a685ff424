"""Mutants of the CUDA kernels: each has one place of a source changed, and the emulated battery must notice.

    python tests/csrc/cuda/mutants.py                       # all: `make mutants`
    python tests/csrc/cuda/mutants.py --sample 40           # that many, spread evenly
    python tests/csrc/cuda/mutants.py gemm.cuh --line 140   # those of a file, or of a line, with what killed them

A mutant is killed by a wrong result, by a report of the emulator (a race, or an access out of bounds), by bank
conflicts, by more accesses to memory than the kernel takes, by a crash or by running for too long. Those that survive
must be in mutants_survivors.json with the reason why nothing can see them; any other, or one of the list that is killed
or is no mutant any more, is an error, and so is a file below 90%.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection, get_context
from pathlib import Path

import torch

import harness
import mutants_battery as battery
import mutants_rows as rows
from mutants_battery import Part
from mutants_operators import Mutant, mutants

SURVIVORS = Path(__file__).with_name("mutants_survivors.json")
LEAST = 0.9  # of a file's mutants, killed
CPU_SECONDS = 5  # of a mutant's run, which takes half of one when all is well
OUT_OF_TIME = (signal.SIGXCPU, signal.SIGKILL)
KINDS = ("result", "race", "bounds", "conflict", "slower", "crash", "endless")
PRODUCTS = (battery.image, battery.matrix, battery.pieces, battery.two_four, battery.halves, battery.warpgroups)


@dataclass(frozen=True)
class Source:
    """The parts of the battery that compile a file, and its functions that are left out."""

    parts: tuple[Callable[[], Part], ...]
    but: tuple[str, ...] = ()


SOURCES = {
    "gemm.cuh": Source(PRODUCTS),
    "mainloop.cuh": Source(PRODUCTS),
    "weights.cuh": Source(PRODUCTS),
    "operand.cuh": Source(PRODUCTS),
    "epilogue.cuh": Source((battery.matrix,)),
    "numerics.cuh": Source((rows.quantize_part, battery.matrix, battery.halves)),
    "product.cuh": Source((battery.matrix, battery.chosen), ("facts_of",)),  # where a wrong choice costs time alone
    "gemv.cuh": Source((rows.gemv_int8, rows.gemv_float), ("gemv_plan", "gemv_workspace")),
    "quantize_int8.cuh": Source((rows.quantize_part, rows.norm)),
    "norm_quantize.cuh": Source((rows.norm,)),
    "pool_int8.cuh": Source((rows.pools,)),
    "add_int8.cuh": Source((rows.pools,)),
}


@dataclass(frozen=True)
class Verdict:
    kind: str  # of KINDS, "compile" or "survives"
    text: str
    seconds: float


def kind_of(report: str) -> str:
    """Of an assertion's text."""
    if re.search(r"no barrier since|fence|under way|another block|deadlock|barrier|nobody wrote|comes to", report):
        return "race"
    if "bank conflicts" in report:
        return "conflict"
    if "more accesses" in report:
        return "slower"
    if "endless" in report:
        return "endless"
    return "bounds" if re.search(r" on Machine\(", report) else "result"


def snapshot(to: Path) -> None:
    """The kernels as they are now: others may be changing them."""
    to.mkdir()
    for source in harness.CSRC.glob("*.*h"):
        shutil.copy(source, to)
    (to / "emulate").symlink_to(harness.CSRC / "emulate")


prepared = cache(lambda make: make())


@cache
def lines_of(make: Callable[[], Part], csrc: Path) -> set[tuple[str, int]]:
    """The lines that have machine code in a part."""
    library = prepared(make).compiled(csrc).path
    command = ["objdump", "--dwarf=decodedline", str(library)]
    found = re.findall(r"^(\S+)\s+(\d+)\s+0x", subprocess.run(command, capture_output=True, text=True).stdout, re.M)
    return {(Path(file).name, int(line)) for file, line in found}


def parts_for(mutant: Mutant, csrc: Path) -> list[Part]:
    """The parts that hold the mutant's line; all where none does, as with constants."""
    makers = SOURCES[mutant.file].parts
    holding = [make for make in makers if (mutant.file, mutant.line) in lines_of(make, csrc)]
    return [prepared(make) for make in holding or makers]


def trial(mutant: Mutant, csrc: Path) -> tuple[str, str]:
    """Kind and text of a verdict, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=csrc.parent) as name:
        folder = Path(name)
        shutil.copytree(csrc, folder / "cuda", symlinks=True)
        changed = folder / "cuda" / mutant.file
        changed.write_text(mutant.apply(changed.read_text()))
        parts = parts_for(mutant, csrc)
        harness.CACHE = folder / "build"
        for part in parts:
            try:
                kernels = part.compiled(folder / "cuda")
            except AssertionError as error:
                return "compile", str(error).split("error: ")[-1].split("\n")[0]
            try:
                part.check(kernels)
            except AssertionError as error:
                text = " ".join(str(error).split())
                return kind_of(text), f"{part.shim}: {text[-250:]}"
    return "survives", ""


def run(pending: Iterable[Mutant], csrc: Path, jobs: int) -> Iterator[tuple[Mutant, Verdict]]:
    """Verdicts as they come; each mutant in a process that is forked from this one, whose battery is ready."""
    fork = get_context("fork")
    waiting, running = deque(pending), {}

    def live(mutant: Mutant, to: connection.Connection) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        to.send(trial(mutant, csrc))

    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.popleft()
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=live, args=(mutant, there))
            process.start()
            there.close()
            running[process.sentinel] = process, mutant, here, time.monotonic()
        for sentinel in connection.wait(list(running)):
            process, mutant, here, start = running.pop(sentinel)
            process.join()
            try:
                kind, text = here.recv()
            except EOFError:
                if process.exitcode >= 0:
                    raise RuntimeError(f"no verdict on {mutant}") from None
                kind, text = "endless" if -process.exitcode in OUT_OF_TIME else "crash", f"signal {-process.exitcode}"
            here.close()
            yield mutant, Verdict(kind, text, time.monotonic() - start)


def spread(all_: list[Mutant], count: int) -> list[Mutant]:
    """`count` of them: what is between barriers and copies, the swizzles, then every so many of the rest."""
    first = [m for m in all_ if m.operator in ("barrier", "wait", "commit", "fence", "xor")]
    rest = [m for m in all_ if m not in first]
    left = max(count - len(first), 0)
    return (first + [rest[i * len(rest) // left] for i in range(left)])[:count]


def table(verdicts: dict[Mutant, Verdict]) -> tuple[str, bool]:
    """Mutants, and how they died, by file; whether each file has enough killed. What is no program does not count."""
    lines = [f"{'file':<20}{'mutants':>9}{'killed':>8}{'%':>7}" + "".join(f"{kind:>10}" for kind in KINDS)]
    enough = True
    for file in dict.fromkeys(mutant.file for mutant in verdicts):
        kinds = Counter(verdict.kind for mutant, verdict in verdicts.items() if mutant.file == file)
        killed = sum(kinds[kind] for kind in KINDS)
        total = killed + kinds["survives"]
        if total == 0:
            continue
        enough &= killed >= LEAST * total
        counts = "".join(f"{kinds[kind]:>10}" for kind in KINDS)
        lines.append(f"{file:<20}{total:>9}{killed:>8}{100 * killed / total:>7.1f}{counts}")
    invalid = sum(verdict.kind == "compile" for verdict in verdicts.values())
    enough &= invalid <= len(verdicts) // 10  # else it is not the mutants that do not compile
    return "\n".join([*lines, f"{invalid} more do not compile and are not counted"]), enough


def key(mutant: Mutant) -> tuple[str, ...]:
    """What names a mutant in the list of survivors: no line numbers, which every change moves."""
    return mutant.file, mutant.code, str(mutant.column), mutant.operator, mutant.after.strip()


def reasons() -> dict[tuple[str, ...], str]:
    """Why a mutant survives, by its key."""
    if not SURVIVORS.exists():
        return {}
    return {
        (file, code, str(column), operator, after): each["reason"]
        for each in json.loads(SURVIVORS.read_text())
        for file, code, column, operator, after in each["mutants"]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(SOURCES), help="by default all")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--line", type=int, default=0)
    parser.add_argument("--operator", help="of mutants_operators.py")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--verdicts", type=Path, help="where to write all verdicts, as JSON")
    options = parser.parse_args()
    part = options.sample or options.line or options.operator
    os.nice(5)
    torch.set_num_threads(1)  # a fork has no threads
    known = reasons()
    with tempfile.TemporaryDirectory() as name:
        harness.CACHE = Path(name) / "build"
        csrc = Path(name) / "cuda"
        snapshot(csrc)
        chosen = [
            mutant
            for file in options.files
            for mutant in mutants(file, (csrc / file).read_text(), SOURCES[file].but)
            if options.line in (0, mutant.line) and options.operator in (None, mutant.operator)
        ]
        every = {key(mutant) for mutant in chosen}
        if options.sample:
            chosen = spread(chosen, options.sample)
        for make in dict.fromkeys(make for file in options.files for make in SOURCES[file].parts):
            prepared(make).check(prepared(make).compiled(csrc))  # what is not changed lives
            lines_of(make, csrc)
        verdicts = {}
        start = time.monotonic()
        for mutant, verdict in run(chosen, csrc, options.jobs):
            verdicts[mutant] = verdict
            if verdict.kind == "survives" or options.line:
                unknown = verdict.kind == "survives" and key(mutant) not in known
                print(f"{verdict.kind}: {mutant}  {verdict.text}{'NO REASON' * unknown}")
            elif len(verdicts) % 50 == 0:
                print(f"{len(verdicts)} of {len(chosen)} after {time.monotonic() - start:.0f} s")
            sys.stdout.flush()
    if options.verdicts:
        entries = [[*key(m), m.line, v.kind, v.text, round(v.seconds, 1)] for m, v in verdicts.items()]
        options.verdicts.write_text(json.dumps(entries, indent=0))
    summary, enough = table({mutant: verdicts[mutant] for mutant in chosen})
    print(summary)
    survivors = {key(mutant) for mutant, verdict in verdicts.items() if verdict.kind == "survives"}
    unexplained = survivors - set(known)
    stale = {key(mutant) for mutant in verdicts} & set(known) - survivors
    if not part:
        stale |= {each for each in known if each[0] in options.files and each not in every}
    print(f"{len(survivors)} survive, {len(unexplained)} of them without a reason")
    for each in sorted(stale):
        print("no survivor any more:", *each, sep="  ")
    return int(bool(unexplained or stale) or not (enough or part))


if __name__ == "__main__":
    sys.exit(main())
