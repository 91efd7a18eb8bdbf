"""What docs/exactness.md shows can be made: its plot, and the comparison of two runs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.elastic_losses import Comparison, plot

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "exactness.md").read_text()
RUN = Comparison("LoRA", [3.0, 2.0, 1.0, 1.0], [3.0, 2.0, 1.0 + 1e-6, 1.0], [2, 2, 3, 1], 1)


def test_a_comparison_knows_its_stretches_and_differences() -> None:
    assert RUN.spans == [(2, 1, 2), (3, 3, 3), (1, 4, 4)]
    assert RUN.differences == pytest.approx([0, 0, 1e-6, 0], rel=1e-3)


def test_the_plot_is_an_svg_and_the_same_for_the_same_run(tmp_path: Path) -> None:
    for name in ("one.svg", "other.svg"):
        plot(tmp_path / name, [RUN])
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "other.svg").read_text()
    texts = {"".join(element.itertext()).strip() for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {"LoRA", "2", "3", "1", "optimizer step", "workers come and go"} <= texts


def test_the_page_shows_the_plot_that_is_there() -> None:
    (image,) = re.findall(r"!\[.*?\]\((.*?)\)", PAGE, re.S)
    assert ET.parse(ROOT / "docs" / image).getroot().tag.endswith("svg")


def test_two_runs_are_compared_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "one.json", tmp_path / "other.json"]
    for path, losses in zip(paths, (RUN.elastic, RUN.steady), strict=True):
        path.write_text(json.dumps({"steps": [{"loss": loss} for loss in losses]}))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    monkeypatch.setattr("sys.argv", ["compare", *map(str, paths)])
    exec(code, {})
    assert float(capsys.readouterr().out) == pytest.approx(1e-6, rel=1e-3)
