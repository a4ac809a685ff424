"""bench_peers: how engines are asked, what counts as failed, and the plot."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest

import bench_peers
import peer_engines
import peers_plot
from bench_peers import Engine

ENGINE = f"""
import sys, time
sys.path.insert(0, {str(Path(peer_engines.__file__).parent)!r})
import numpy as np
from peer_engines import serve

def build():
    print("a banner")
    return lambda: time.sleep(0.002) or np.full(4, VALUE)

serve(build, np.ones(4))
"""


def started(code: str, folder: Path, dtype: str = "float32") -> Engine:
    engine = Engine("an engine", dtype, "unstructured", 0.0, "dense", [sys.executable, "-c", code])
    engine.start(1, folder / "log")
    return engine


def test_an_engine_answers_with_milliseconds(tmp_path: Path) -> None:
    engine = started(ENGINE.replace("VALUE", "1.01"), tmp_path)
    try:
        assert engine.moved == pytest.approx(0.01)
        for _ in range(2):
            engine.time(0.02)
        assert not engine.failed
        assert len(engine.rounds) == 2
        assert min(engine.rounds) >= 2
    finally:
        engine.stop()


def test_an_engine_that_computes_something_else_fails(tmp_path: Path) -> None:
    engine = started(ENGINE.replace("VALUE", "1.1"), tmp_path)
    engine.stop()
    assert "10.0% from that of eager PyTorch" in engine.failed
    lossy = started(ENGINE.replace("VALUE", "1.1"), tmp_path, "int8")
    lossy.stop()
    assert not lossy.failed


def test_an_engine_that_ends_tells_its_last_words(tmp_path: Path) -> None:
    engine = started("raise RuntimeError('no such file')", tmp_path)
    engine.stop()
    assert engine.failed == "RuntimeError: no such file"


def made(name: str, dtype: str, sparsity: float, ms: float) -> Engine:
    return Engine(name, dtype, "unstructured", sparsity, "", [], [ms, ms, 9 * ms])


def rows() -> list[dict]:
    engines = [made("torchaccel", "int8", s, 100 * (1 - s)) for s in (0.0, 0.8, 0.9)]
    engines += [made("DeepSparse", "float32", s, 300 * (1 - s)) for s in (0.0, 0.8, 0.9)]
    engines += [made(name, "int8", 0.0, ms) for name, ms in (("OpenVINO", 80), ("ONNX Runtime", 81), ("another", 82))]
    return bench_peers.report(engines, 16)


def test_the_baseline_is_the_fastest_of_the_others() -> None:
    ratios = {(row["engine"], row["sparsity"]): row["ratio"] for row in rows()}
    assert ratios["DeepSparse", 0.9] == pytest.approx(1)
    assert ratios["torchaccel", 0.9] == pytest.approx(3)
    assert ratios["torchaccel", 0.0] == pytest.approx(0.3)


def test_each_engine_is_in_the_plot_and_labels_do_not_touch(tmp_path: Path) -> None:
    data = {"model": "a network", "batch": 16, "environment": {"threads": 2}, "rows": rows()}
    (tmp_path / "peers.json").write_text(json.dumps(data))
    peers_plot.main(str(tmp_path / "peers.json"), str(tmp_path / "peers.svg"))
    svg = ElementTree.parse(tmp_path / "peers.svg").getroot()
    texts = {each.text: each for each in svg.iter("{http://www.w3.org/2000/svg}text")}
    named = {text: float(each.get("y", "")) for text, each in texts.items() if text and ": " in text and "8" in text}
    assert {name.split(":")[0] for name in named} >= {"torchaccel int8", "OpenVINO int8", "another int8"}
    heights = sorted(float(texts[name].get("y", "")) for name in texts if name and " int8: " in name)
    assert min(b - a for a, b in pairwise(heights)) >= peers_plot.BETWEEN - 0.1
    assert named["torchaccel int8: 1600"] < named["OpenVINO int8: 200"]
    assert svg.findall(".//*[@class='ours']")


@pytest.mark.parametrize("rate", [1.0, 1000.0])
def test_labels_stay_beside_the_axes_where_lines_end_together(rate: float) -> None:
    lines = {(f"engine {i}", "int8"): [(0.0, rate + i / 1000)] for i in range(6)}
    lines["torchaccel", "int8"] = [(0.0, 1.0), (0.9, 1000.0)]
    drawn = peers_plot.labels(peers_plot.Axes(lines), lines)
    heights = [float(ElementTree.fromstring(each).get("y", "")) for each in drawn if each.startswith("<text")]
    assert len(heights) == 7
    assert min(heights) >= peers_plot.TOP
    assert max(heights) <= peers_plot.TOP + peers_plot.HIGH + 5
