"""From the words of a command line to a model, its weights and its inputs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from torchaccel import Int8Dynamic, Int8Static, Int8WeightOnly, Sparsity
from torchaccel.compress.coupled import pruning_library

DTYPES = {
    name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8")
}
INT8 = ("static", "dynamic", "weight-only", "none")
_SEED = 0


def find_function(word: str, text: str) -> Callable[[], object]:
    """What `module:function` names, in the current folder or the installed packages.

    Raises:
        ValueError: there is no such module, or no function of that name in it; `word` names the argument.
    """
    module_name, colon, attribute = text.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{word} is {text!r}, accepted is module:function, such as torchaccel.demo:resnet18")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            function = getattr(function, part)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{word} is {text!r}, but there is no module {error.name!r} (looked in {os.getcwd()} too)"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{word} is {text!r}: {error}") from error
    except Exception as error:
        raise ValueError(f"{word} is {text!r}; importing it raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"{word} is {text!r}, a {type(function).__name__}; accepted is a function without arguments")
    return function


def called(word: str, text: str) -> object:
    """What that function returns, without arguments.

    Raises:
        ValueError: as `find_function`, or the function raised.
    """
    function = find_function(word, text)
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{word} is {text!r}; calling it raised {type(error).__name__}: {error}") from error


def build_model(factory: str, weights: Path | None) -> nn.Module:
    """The model that a function makes, with weights loaded into it.

    Args:
        factory: as in `called`, such as "torchaccel.demo:resnet18".
        weights: a safetensors file that fits the model exactly, or None to keep what the function made.

    Raises:
        ValueError: the module, the function, the model or the weights are not as described.
    """
    model = called("MODEL", factory)
    if not isinstance(model, nn.Module):
        raise ValueError(f"MODEL is {factory!r} and returned a {type(model).__name__}, accepted is a torch.nn.Module")
    if weights is not None:
        _load_weights(model, weights)
    return model.eval()


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        missing, unexpected = model.load_state_dict(_tensors("--weights", path), strict=False)
    except RuntimeError as error:  # a tensor of another shape
        raise ValueError(f"--weights {path} does not fit the model: {error}") from error
    if missing or unexpected:
        parts = [("it lacks", missing), ("the model lacks", unexpected)]
        said = "; ".join(f"{what} {_first(names)}" for what, names in parts if names)
        raise ValueError(f"--weights {path} does not fit the model: {said}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tensors(option: str, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{option}: no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{option} {path} is no safetensors file ({error}); "
            "convert with safetensors.torch.save_file(model.state_dict(), ...)"
        ) from error


def make_inputs(shapes: list[str], device: torch.device) -> tuple[Tensor, ...]:
    """Random inputs, the same on each run, of shapes such as "1x3x224x224" or "8x128:int64"; integers are zeros.

    Raises:
        ValueError: a shape that cannot be read, or an unknown dtype.
    """
    generator = torch.Generator().manual_seed(_SEED)
    inputs = []
    for text in shapes:
        sizes, colon, dtype_name = text.partition(":")
        dtype = DTYPES.get(dtype_name if colon else "float32")
        if dtype is None:
            raise ValueError(f"--input is {text!r}, its dtype {dtype_name!r}; accepted are {', '.join(DTYPES)}")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes.split("x")):
            raise ValueError(f"--input is {text!r}, accepted are sizes above 0 joined by x, such as 1x3x224x224")
        shape = tuple(map(int, sizes.split("x")))
        if dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(device, dtype))
        else:
            inputs.append(torch.zeros(shape, dtype=dtype, device=device))
    return tuple(inputs)


def check_runs(model: nn.Module, inputs: tuple[Tensor, ...], shapes: list[str]) -> None:
    """Run the model once, so that a wrong shape is told from a fault of ours.

    Raises:
        ValueError: the model does not take these inputs.
    """
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        raise ValueError(f"--input {' '.join(shapes)}: the model raised {type(error).__name__}: {error}") from error


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one.

    Raises:
        ValueError: an unknown name, or CUDA where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is {name!r}, accepted are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is 'cuda', but torch finds no CUDA device; accepted here are auto and cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def use_threads(count: int | None) -> None:
    """Set the number of CPU threads; None leaves torch's own choice.

    Raises:
        ValueError: fewer than one.
    """
    if count is None:
        return
    if count < 1:
        raise ValueError(f"--threads is {count}, accepted is at least 1")
    torch.set_num_threads(count)


def check_tensorboard() -> None:
    """Look for TensorBoard now, not after minutes of work.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--tensorboard is given, but TensorBoard is not installed ({error}): `pip install tensorboard`"
        ) from error


def check_plot(path: Path) -> None:
    """Look for matplotlib, a format that it writes and a folder now, not after minutes of work.

    Raises:
        ValueError: one of these is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--plot is given, but matplotlib is not installed: `pip install matplotlib`") from error
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ValueError(f"--plot is {str(path)!r}, accepted are files ending in .{', .'.join(sorted(formats))}")
    if not path.parent.is_dir():
        raise ValueError(f"--plot is {str(path)!r}, accepted is a file in an existing folder")


def check_torch_pruning(sparsity: Sparsity | None) -> None:
    """Look for torch-pruning where channels are to be removed.

    Raises:
        ValueError: it is not installed.
    """
    if sparsity is not None and sparsity.pattern == "channel":
        try:
            pruning_library()
        except ImportError as error:
            raise ValueError(f"--sparsity is channel:{sparsity.amount:g}, but {error}") from error


def parse_sparsity(text: str | None) -> Sparsity | None:
    """ "1x4:0.9" is 90 % of the weights in blocks of the pattern 1x4.

    Raises:
        ValueError: a text of another form, an unknown pattern or an amount outside 0 to 1.
    """
    if text is None:
        return None
    pattern, _, amount = text.rpartition(":")  # from the right, because one pattern is 2:4
    try:
        return Sparsity(pattern, float(amount))
    except ValueError as error:
        raise ValueError(f"--sparsity is {text!r}, accepted is pattern:amount, such as 1x4:0.9 ({error})") from error


def parse_int8(name: str | None, calibrated: bool) -> Int8Static | Int8Dynamic | Int8WeightOnly | None:
    """The int8 settings of a name; without one, static with calibration and dynamic without.

    Raises:
        ValueError: an unknown name, or static without calibration, which would measure scales on noise.
    """
    if name is None:
        name = "static" if calibrated else "dynamic"
    if name not in INT8:
        raise ValueError(f"--int8 is {name!r}, accepted are {', '.join(INT8)}")
    if name == "static" and not calibrated:
        raise ValueError(
            "--int8 is 'static', which needs --calibration with real inputs; "
            "accepted without are dynamic, weight-only and none"
        )
    if calibrated and name != "static":
        raise ValueError(f"--calibration is given with --int8 {name}, accepted only with static")
    settings = {"static": Int8Static(), "dynamic": Int8Dynamic(), "weight-only": Int8WeightOnly()}
    return settings.get(name)  # type: ignore[return-value]


def read_calibration(path: Path | None, example: Tensor) -> list[Tensor] | None:
    """Inputs from an .npy file, or a safetensors file with one tensor, cut into batches of the example's size.

    Args:
        path: [samples, ...], each sample of the shape of the example's.
        example: [N, ...], the first of the example inputs.

    Raises:
        ValueError: a file that cannot be read, of another kind, or with samples of another shape.
    """
    if path is None:
        return None
    if path.suffix == ".npy":
        if not path.is_file():
            raise ValueError(f"--calibration: no file {path}")
        try:
            samples = torch.from_numpy(np.load(path, allow_pickle=False))
        except (ValueError, TypeError, EOFError) as error:
            raise ValueError(f"--calibration {path} is no array of numbers ({error})") from error
    elif path.suffix == ".safetensors":
        tensors = _tensors("--calibration", path)
        if len(tensors) != 1:
            raise ValueError(f"--calibration {path} holds {len(tensors)} tensors, accepted is one, of all samples")
        samples = next(iter(tensors.values()))
    else:
        raise ValueError(f"--calibration is {str(path)!r}, accepted are .npy and .safetensors files")
    if samples.dim() == 0 or samples.shape[0] == 0 or samples.shape[1:] != example.shape[1:]:
        raise ValueError(
            f"--calibration {path} has the shape {'x'.join(map(str, samples.shape)) or '()'}, "
            f"accepted is samples x {'x'.join(map(str, example.shape[1:]))}, as in --input"
        )
    return list(samples.to(example.device, example.dtype).split(example.shape[0]))
