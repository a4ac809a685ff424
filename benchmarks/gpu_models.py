"""ResNet-50 in int8 against the fastest fp16 and bf16 forms, all in CUDA graphs, on channels_last half images."""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gpu_baselines import nhwc
from gpu_items import Item, Result, by_wgmma
from gpu_timing import gpu_state, run_ms
from torchaccel import measure
from torchaccel.compress import Int8Static, calibrate
from torchaccel.demo import resnet18, resnet50
from torchaccel.graph.connect import assemble
from torchaccel.graph.prepare import prepare
from torchaccel.workflow.candidates import candidates
from torchaccel.workflow.graphed import Graphed

OPS = ("int8_conv2d", "int8_linear", "quantize_int8")
HALVES = (torch.float16, torch.bfloat16)


def items(device: torch.device, quick: bool) -> list[Item]:
    """Eager forms first: compilation takes minutes, and what it leaves out is said in the table."""
    batches = (2,) if quick else (32, 256)
    made = [_item(device, n, quick, "int8", OPS) for n in batches]
    made.append(Item("ResNet-50: kernels of int8", partial(_kernels, device, batches[-1], quick), OPS))
    made += by_wgmma(made, device)
    forms = [f"{form} {str(dtype).removeprefix('torch.')}" for form in ("eager", "compiled") for dtype in HALVES]
    forms.append("compiled, max-autotune float16")
    for form in forms[: 2 if quick else None]:
        made += [_item(device, n, quick, form) for n in batches[::-1]]
    return made


def _item(device: torch.device, batch: int, quick: bool, form: str, ops: tuple[str, ...] = ()) -> Item:
    group = f"ResNet-50, batch {batch}"
    facts = {"group": group, "who": form, "ours": form == "int8"}
    return Item(f"{group}: {form}", partial(_time, device, batch, quick, form), ops, facts)


def _time(device: torch.device, batch: int, quick: bool, form: str) -> Result:
    found: Result = {}
    size = 32 if quick else 224
    dtype = torch.bfloat16 if form.endswith("bfloat16") else torch.float16
    shape = (batch, 3, size, size)
    inputs = [nhwc(torch.randn(shape, device=device).to(dtype)) for _ in range(2)]
    model = Graphed(_int8(device, size) if form == "int8" else _half(device, size, form, dtype))
    with measure.inference():
        for x in (*inputs, *inputs):
            model(x)
        if model.refused:
            found["detail"] = f"not captured: {model.refused[0]}"
        rounds = 1 if quick else max(1, int(200 / run_ms(lambda: model(inputs[0]), 2, device)))
        trials = sorted(run_ms(lambda: [model(x) for x in inputs], rounds, device) / 2 for _ in range(7))
    found |= {"ms": trials[3], "min_ms": trials[0], "images_per_s": batch / trials[3] * 1e3}
    return found | {"gpu": gpu_state()} if device.type == "cuda" else found


def _kernels(device: torch.device, batch: int, quick: bool) -> Result:
    """Where the time goes: [name, calls, microseconds] of the kernels of one run, the longest first."""
    size = 32 if quick else 224
    model, x = _int8(device, size), nhwc(torch.randn(batch, 3, size, size, device=device).half())
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with measure.inference():
        model(x)
        with profile(activities=[kind]) as profiled:
            model(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    time = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = sorted(profiled.key_averages(), key=lambda each: getattr(each, time), reverse=True)[:25]
    kernels = [[each.key[:160], each.count, round(getattr(each, time), 1)] for each in found]
    print("\n".join(f"    {us:9.1f} us {calls:4d} x {name[:100]}" for name, calls, us in kernels[:12]), flush=True)
    return {"kernels": kernels}


@cache
def _float(device: torch.device, size: int) -> nn.Module:
    """Random weights with BatchNorm settled on noise; for small images, of a dry run, a smaller model."""
    torch.manual_seed(0)
    model = (resnet50 if size >= 224 else resnet18)(3, 1000).to(device).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, size, size, device=device))
    return model.eval()


def _half(device: torch.device, size: int, form: str, dtype: torch.dtype) -> nn.Module:
    torch.backends.cudnn.benchmark = True
    model = copy.deepcopy(_float(device, size)).to(dtype).to(memory_format=torch.channels_last)
    if not form.startswith("compiled"):
        return model
    torch._dynamo.reset()
    options: dict[str, Any] = {"freezing": True}
    if "max-autotune" in form:
        options["max_autotune"] = True
    return torch.compile(model, options=options, dynamic=False)


@cache
def _int8(device: torch.device, size: int) -> nn.Module:
    """Every layer that an int8 kernel serves, without a choice by measurement."""
    example = (torch.randn(8, 3, size, size, device=device),)
    prepared = prepare(copy.deepcopy(_float(device, size)), example)
    ranges = calibrate(prepared.dense, [*prepared.names, *prepared.weightless], [example], Int8Static(), 1)
    found = candidates(prepared, device, Int8Static(), ranges)
    if device.type == "cuda" and found.kept:
        print(f"  not int8: {found.kept}", flush=True)
    return assemble(prepared.dense, {name: forms[-1] for name, forms in found.alternatives.items()})
