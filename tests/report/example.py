"""One plausible report, small enough to know by heart."""

from __future__ import annotations

from typing import Any


def _layer(name: str, chosen: str, speedup: float, reason: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "Conv2d",
        "shape": [64, 32, 3, 3],
        "sparsity": 0.0 if chosen == "dense" else 0.9,
        "chosen": chosen,
        "speedup": speedup,
        "reason": reason,
        "dense_ms": 1.0,
        "chosen_ms": 1.0 / speedup,
    }


def example() -> dict[str, Any]:
    """A report's data: twice as fast, one layer of three accelerated, accuracy 99.0 % to 98.8 %."""
    return {
        "model": "resnet18",
        "batch_size": 32,
        "speedup": 2.0,
        "speedup_ci95": [1.9, 2.1],
        "baseline": {
            "form": "compiled",
            "latency_ms": 12.0,
            "throughput": 2666.7,
            "accuracy": 0.990,
            "size_bytes": 44_000_000,
        },
        "optimized": {
            "form": "torchaccel",
            "latency_ms": 6.0,
            "throughput": 5333.3,
            "accuracy": 0.988,
            "size_bytes": 5_500_000,
        },
        "layers": [
            _layer("conv1", "dense", 1.0, "kept dense: 0.81x at N=32"),
            _layer("layer1.0.conv1", "sparse_int8_conv2d 1x4", 3.0, "3.00x at N=32"),
            _layer("layer1.0.conv2", "dense", 1.0, "kept dense: 0.97x at N=32"),
        ],
        "forms": [
            {"form": "eager", "latency_ms": 18.0, "note": ""},
            {"form": "compiled", "latency_ms": 12.0, "note": ""},
            {"form": "channels_last", "latency_ms": None, "note": "out of memory"},
        ],
        "gates": {
            "max_drop": 0.005,
            "min_speedup": 1.0,
            "accuracy_passed": True,
            "speed_passed": True,
            "notes": ["conv1 put back for accuracy"],
        },
        "trials": {"baseline_ms": [11.9, 12.0, 12.1, 12.0], "optimized_ms": [5.9, 6.0, 6.1, 6.0]},
        "environment": {"cpu": "A CPU", "threads": 2, "device": "cpu", "gpu": None, "torch": "2.13.0"},
    }
