"""One inference engine in a process of its own, timed on request. It imports nothing of torchaccel, so that it runs in
any Python; bench_peers starts it.

`python peer_engines.py export FOLDER NAME...`: each FOLDER/NAME.pt, weights of ResNet-50, as ONNX in float32 and int8.
`python peer_engines.py ENGINE MODEL.onnx INPUT.npy THREADS`: one line `{"moved": ...}` when the engine is ready, then
the median milliseconds of a call for each line with a number of seconds; INPUT.npy has the expected output beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], np.ndarray]
RESNET = Path(__file__).parents[1] / "torchaccel" / "demo" / "resnet.py"
OPSET = 13  # what all of the engines read


def export(folder: Path, names: list[str]) -> None:
    import torch

    spec = importlib.util.spec_from_file_location("resnet", RESNET)
    resnet = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(resnet)  # type: ignore[union-attr]
    images = torch.from_numpy(np.load(folder / "input.npy"))
    ends = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
    for name in names:
        model = resnet.resnet50(3, 1000).eval()
        model.load_state_dict(torch.load(folder / f"{name}.pt"))
        path = folder / f"{name}.onnx"
        torch.onnx.export(model, (images[:1],), str(path), opset_version=OPSET, dynamo=False, **ends)
        _quantize(path, images.numpy())


def _quantize(path: Path, images: np.ndarray) -> None:
    """Static int8 with a scale per output channel, by ONNX Runtime's tools, calibrated on the images."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": image[None]} for image in images[:4]]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    target = str(path.with_name(f"{path.stem}-int8.onnx"))
    quant_pre_process(str(path), target, skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(target, target, Images(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
    model = onnx.load(target)
    standard = [each for each in model.opset_import if each.domain == ""]
    del model.opset_import[:]  # it uses no other, and older engines refuse to read versions that they do not know
    model.opset_import.extend(standard)
    onnx.save(model, target)


def onnxruntime(model: str, x: np.ndarray, threads: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def _openvino(model: Any, x: np.ndarray, threads: int, precision: str) -> Run:
    import openvino

    model.reshape(list(x.shape))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: x})[0]


def openvino_float32(model: str, x: np.ndarray, threads: int) -> Run:
    import openvino

    return _openvino(openvino.Core().read_model(model), x, threads, "f32")


def openvino_bfloat16(model: str, x: np.ndarray, threads: int) -> Run:
    """OpenVINO's own default on processors with bfloat16 instructions."""
    import openvino

    return _openvino(openvino.Core().read_model(model), x, threads, "bf16")


def openvino_int8(model: str, x: np.ndarray, threads: int) -> Run:
    """Quantized from float32 by NNCF, as OpenVINO recommends; what stays float may be bfloat16."""
    import nncf
    import openvino

    images = nncf.Dataset([image[None] for image in x[:4]])
    quantized = nncf.quantize(openvino.Core().read_model(model), images, subset_size=4)
    return _openvino(quantized, x, threads, "bf16")


def deepsparse(model: str, x: np.ndarray, threads: int) -> Run:
    from deepsparse import Engine

    engine = Engine(model=model, batch_size=len(x), num_cores=threads)
    return lambda: engine.run([x])[0]


ENGINES = {
    "onnxruntime": onnxruntime,
    "openvino float32": openvino_float32,
    "openvino bfloat16": openvino_bfloat16,
    "openvino int8": openvino_int8,
    "deepsparse": deepsparse,
}


def serve(build: Callable[[], Run], expected: np.ndarray) -> None:
    """Build, say how far the output is from the expected one, then time the step for as long as each line asks."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like, but not into the answers
    run = build()
    for _ in range(2):
        y = np.asarray(run())
    print(json.dumps({"moved": float(np.linalg.norm(y - expected) / np.linalg.norm(expected))}), file=out, flush=True)
    for line in sys.stdin:
        run()
        times, end = [], time.perf_counter() + float(line)
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        print(statistics.median(times), file=out, flush=True)


def main() -> None:
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]), sys.argv[3:])
        return
    engine, model, images, threads = sys.argv[1:]
    x = np.load(images)
    expected = np.load(Path(images).with_name(Path(model).name.split(".")[0].removesuffix("-int8") + ".npy"))
    serve(lambda: ENGINES[engine](model, x, int(threads)), expected)


if __name__ == "__main__":
    main()
