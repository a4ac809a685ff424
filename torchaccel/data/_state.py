"""The state of a loader: one cursor into an order that is computed, not stored; so it is exact and of fixed size."""

from __future__ import annotations

from typing import Any

from torchaccel.data.sources import digest

VERSION = 1


def fingerprint(source: Any) -> str:
    """What tells one source from another; of a source without a `fingerprint`, its class and length."""
    found = source.__dict__.get("_torchaccel_fingerprint") if hasattr(source, "__dict__") else None
    if found is None:
        own = getattr(source, "fingerprint", None)
        found = own() if callable(own) else digest(f"{type(source).__qualname__} {len(source)}")
        if hasattr(source, "__dict__"):
            source.__dict__["_torchaccel_fingerprint"] = found
    return found


def of(source: Any, seed: int, shuffle: bool, epoch: int, cursor: int) -> dict[str, Any]:
    """The state after `cursor` samples of an epoch, over all ranks."""
    return {
        "version": VERSION,
        "source": fingerprint(source),
        "length": len(source),
        "seed": seed,
        "shuffle": shuffle,
        "epoch": epoch,
        "cursor": cursor,
    }


def read(state: dict[str, Any], source: Any, seed: int, shuffle: bool) -> tuple[int, int]:
    """The epoch and the cursor of a state, if it belongs to these; else ValueError."""
    expected = of(source, seed, shuffle, 0, 0)
    if not isinstance(state, dict) or set(state) != set(expected):
        raise ValueError(f"Loader: the state is {state!r}, accepted is what state_dict returned")
    names = {
        "version": "version",
        "length": "number of samples",
        "source": "source",
        "seed": "seed",
        "shuffle": "shuffle",
    }
    for key, name in names.items():
        if state[key] != expected[key]:
            raise ValueError(
                f"Loader: the state is of another {name}: {state[key]!r}, accepted here is {expected[key]!r}"
            )
    epoch, cursor = state["epoch"], state["cursor"]
    if not (isinstance(epoch, int) and 0 <= epoch < 1 << 32 and isinstance(cursor, int) and 0 <= cursor <= len(source)):
        raise ValueError(f"Loader: the state has epoch {epoch!r} and cursor {cursor!r} of {len(source)} samples")
    return epoch, cursor
