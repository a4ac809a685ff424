"""`torchaccel sensitivity`: how far each layer's forms move the output, and how much faster they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchaccel.cli.commands import Device, Inputs, Json, Model, Threads, Weights, app
from torchaccel.cli.output import emit, note, only_json, say


@app.command()
def sensitivity(
    model: Model,
    inputs: Inputs,
    weights: Weights = None,
    sparsity: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN:AMOUNT", help="e.g. 1x4:0.9; once for each amount.")
    ] = None,
    int8: Annotated[
        list[str] | None,
        typer.Option(
            metavar="static|dynamic|weight-only|none",
            help="Once for each; static with --calibration, else dynamic. With --sparsity, pruned layers are int8 too.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Real inputs, samples first: .npy or .safetensors; also compared on them."),
    ] = None,
    threads: Threads = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Change one layer at a time: how far the output moves, and what that layer gains in speed."""
    from torchaccel.cli import arguments
    from torchaccel.workflow.sensitivity import sensitivity as run

    with only_json(json):
        calibrated = calibration is not None
        names = int8 or ["static" if calibrated else "dynamic"]
        if "none" in names and len(names) > 1:
            raise ValueError(f"--int8 is given as {', '.join(names)}, accepted is none by itself")
        kinds = [how for name in names if (how := arguments.parse_int8(name, calibrated and name == "static"))]
        prunings = [pruning for text in sparsity or [] if (pruning := arguments.parse_sparsity(text))]
        where = arguments.pick_device(device)
        arguments.use_threads(threads)
        examples = arguments.make_inputs(inputs, where)
        batches = arguments.read_calibration(calibration, examples[0])
        built = arguments.build_model(model, weights).to(where)
        if batches is not None and batches[0].shape == examples[0].shape:
            examples = (batches[0], *examples[1:])
        arguments.check_runs(built, examples, inputs)
        found = run(built, examples, sparsity=prunings, int8=kinds, calibration=batches)
    emit(found.to_dict()) if json else say(found.summary())
    if not calibrated:
        note("outputs were compared on noise; --calibration takes real inputs")
    note(
        "accuracy was not measured, because the command line has no evaluation; torchaccel.sensitivity(evaluate=) does"
    )
