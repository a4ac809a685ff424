"""The HTML page: self-contained, escaped, accessible, and true to the data."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from torchaccel.report import Report, _page

VOID = {"meta", "link", "br", "img", "input", "hr"}


class _Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _render(data: dict[str, Any], tmp_path: Path) -> str:
    Report(data).to_html(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_shows_what_was_measured(data: dict[str, Any], tmp_path: Path) -> None:
    page = _Page(_render(data, tmp_path))
    for part in ("2.00×", "1.90× to 2.10×", "12.00 ms", "6.00 ms", "44.0 MB", "5.5 MB", "8.00× smaller", "98.80 %"):
        assert part in page.text
    for part in ("Speed passed", "Accuracy passed", "conv1 put back for accuracy", "out of memory", "2.13.0"):
        assert part in page.text
    assert "kept dense: 0.81× to 0.97× at N=32" in page.text
    assert sum(tag == "th" and attrs.get("scope") == "row" for tag, attrs in page.tags) == 3


def test_reaches_for_nothing_outside(data: dict[str, Any], tmp_path: Path) -> None:
    html = _render(data, tmp_path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    for tag, attrs in _Page(html).tags:
        assert attrs.get("src") is None and attrs.get("href") in (None, "data:,"), tag
    assert "default-src 'none'" in html


def test_hostile_names_stay_text(data: dict[str, Any], tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\" onload=\"alert(3)"
    calm = len(_Page(_render(data, tmp_path)).tags)
    data["model"] = hostile
    for layer in data["layers"]:
        layer |= {"name": hostile, "type": hostile, "shape": hostile, "reason": hostile}
    data["layers"][1]["chosen"] = hostile
    data["baseline"]["form"] = data["forms"][1]["form"] = data["forms"][0]["note"] = hostile
    data["gates"]["notes"] = [hostile]
    data["environment"]["cpu"] = data["environment"][hostile] = hostile
    page = _Page(_render(data, tmp_path))
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    assert not any(tag == "img" or name.startswith("on") for tag, attrs in page.tags for name in attrs)
    assert hostile in page.text
    # One more entry in the list of the machine, one reason fewer notes; nothing that a name brought along.
    assert abs(len(page.tags) - calm) < 10


def test_nothing_won(nothing_won: dict[str, Any], tmp_path: Path) -> None:
    page = _Page(_render(nothing_won, tmp_path))
    assert "Nothing was faster than the best dense form" in page.text
    assert "Speed failed" in page.text and "Accuracy not checked" in page.text
    assert "no evaluation was given, so nothing is known about accuracy" in page.text
    assert not any("after" in (attrs.get("class") or "").split() for tag, attrs in page.tags if tag == "rect")


def test_is_accessible(data: dict[str, Any], tmp_path: Path) -> None:
    tags = _Page(_render(data, tmp_path)).tags
    assert ("html", {"lang": "en"}) in tags
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")
    depth_of_unnamed = [
        attrs for tag, attrs in tags if tag == "svg" and attrs.get("role") == "img" and not attrs.get("aria-label")
    ]
    assert not depth_of_unnamed
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in tags if "aria-labelledby" in attrs} <= set(ids)


def test_environment_of_lists_and_unknown_keys() -> None:
    rows = _page._environment({"extra": 1, "isa": ["avx2", "vnni"], "gpu": None, "cpu": "A CPU"})
    assert rows == [("CPU", "A CPU"), ("Instruction set", "avx2, vnni"), ("extra", "1")]


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("2.14x faster", "2.14× faster"),
        ("64x3x7x7", "64×3×7×7"),
        ("max 3xy", "max 3xy"),
        ("sparse 1x4", "sparse 1×4"),
    ],
)
def test_multiplication_sign(plain: str, shown: str) -> None:
    assert _page._times(plain) == shown
