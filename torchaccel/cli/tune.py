"""`torchaccel find-lr` and `torchaccel find-batch-size`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchaccel.cli.commands import Device, Inputs, Json, Model, Threads, Weights, app
from torchaccel.cli.output import GATE_FAILED, emit, only_json, say


@app.command()
def find_lr(
    setup: Annotated[
        str,
        typer.Argument(
            metavar="SETUP", help="module:function that returns (model, optimizer, batches, loss), loss(model, batch)."
        ),
    ],
    min_lr: Annotated[float, typer.Option(help="The first learning rate.")] = 1e-7,
    max_lr: Annotated[float, typer.Option(help="The last learning rate.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps from the first to the last.")] = 100,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw loss over learning rate: .png, .svg or .pdf.")
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Raise the learning rate step by step, and propose the one to train with."""
    from torchaccel.cli import arguments
    from torchaccel.tune import find_lr as run

    with only_json(json):
        arguments.use_threads(threads)
        if plot is not None:
            arguments.check_plot(plot)
        made = arguments.called("SETUP", setup)
        if not isinstance(made, tuple) or len(made) != 4:
            given = type(made).__name__ + (f" of {len(made)}" if isinstance(made, tuple) else "")
            raise ValueError(
                f"SETUP is {setup!r} and returned a {given}, accepted is (model, optimizer, batches, loss)"
            )
        found = run(*made, min_lr=min_lr, max_lr=max_lr, steps=steps)
        if plot is not None:
            found.plot().savefig(plot)
    emit(found.to_dict()) if json else say(found.summary())
    if found.suggestion is None:
        raise typer.Exit(GATE_FAILED)


@app.command()
def find_batch_size(
    model: Model,
    inputs: Inputs,
    weights: Weights = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `optimize` made of the model: times that.")
    ] = None,
    max_latency: Annotated[float | None, typer.Option(metavar="MS", help="How long a batch may take.")] = None,
    max_batch_size: Annotated[int, typer.Option(help="The largest size to try.")] = 1024,
    threads: Threads = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Time a model at growing batch sizes, and propose the smallest that is fast."""
    from torchaccel.cli import arguments
    from torchaccel.tune import find_batch_size as run
    from torchaccel.workflow.checkpoint import load

    with only_json(json):
        if weights is not None and checkpoint is not None:
            raise ValueError("--weights and --checkpoint are given, accepted is one of them")
        arguments.use_threads(threads)
        where = arguments.pick_device(device)
        examples = arguments.make_inputs(inputs, where)
        if checkpoint is not None:
            built = load(checkpoint, lambda: arguments.build_model(model, None), device=where)
        else:
            built = arguments.build_model(model, weights).to(where)
        arguments.check_runs(built, examples, inputs)
        found = run(built, examples, max_latency_ms=max_latency, max_batch_size=max_batch_size)
    emit(found.to_dict()) if json else say(found.summary())
    if found.suggestion is None:
        raise typer.Exit(GATE_FAILED)
