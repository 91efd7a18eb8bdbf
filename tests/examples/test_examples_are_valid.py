"""Every file a newcomer may copy from is accepted as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hack.shorten import shorten
from tests.support.documents import document
from transfer_api.load import experiment_from, load_experiment
from transfer_api.spec import API_GROUP, Precision, TransferExperiment

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
FENCE = re.compile(r"^```yaml\n(.*?)^```", re.M | re.S)
FOREIGN = re.compile(r"^```yaml \w+\n(.*?)^```", re.M | re.S)
"""YAML of other programs, named behind `yaml`: values of the chart, Prometheus' configuration."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_an_example_is_accepted(path: Path) -> None:
    assert load_experiment(path).metadata.name


def test_no_two_examples_share_a_name_and_so_an_output_folder() -> None:
    names = [load_experiment(path).metadata.name for path in EXAMPLES]
    assert len(set(names)) == len(names)


def test_the_two_arms_of_the_vocabulary_comparison_differ_in_nothing_else() -> None:
    original, extended = (
        load_experiment(ROOT / "examples" / "vocabulary" / f"{arm}.yaml").spec.model_dump() for arm in ("original", "extended")
    )
    assert original.pop("vocabulary") is None
    assert extended.pop("vocabulary") is not None
    assert original == extended


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_an_example_that_asks_for_no_gpus_trains_in_float32(path: Path) -> None:
    """bfloat16, the default, is the slower one on processors without AMX."""
    spec = load_experiment(path).spec
    stages = [stage for stage in (spec.pretraining, spec.instruction_tuning) if stage is not None]
    assert stages
    if not spec.workers.resources.limits:
        assert {stage.precision for stage in stages} == {Precision.FLOAT32}


def test_the_readme_shows_the_shortest_example() -> None:
    shown = next(text for place, text in fences() if place.startswith("README.md"))
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "examples" / "minimal.yaml").read_text())


def fences() -> list[tuple[str, str]]:
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
    return [
        (f"{page.relative_to(ROOT)}:{page.read_text()[: match.start()].count(chr(10)) + 1}", match[1])
        for page in pages
        for match in FENCE.finditer(page.read_text())
    ]


@pytest.mark.parametrize("text", [pytest.param(text, id=place) for place, text in fences()])
def test_yaml_in_the_documentation_is_accepted(text: str) -> None:
    """Experiments as they are; what names no kind is part of a spec and must fit into one; other resources must be YAML."""
    for written in yaml.safe_load_all(text):
        if "kind" not in written:
            experiment_from(document(**written))
        elif str(written["apiVersion"]).startswith(API_GROUP):
            experiment_from(written)


def test_yaml_of_other_programs_is_yaml() -> None:
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for match in FOREIGN.finditer(page.read_text()):
            assert list(yaml.safe_load_all(match[1])), page


def test_no_yaml_in_the_documentation_is_overlooked() -> None:
    assert len(fences()) >= 2
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    assert not [page for page in pages if re.search(r"^[ \t]*```+ ?(yml|YAML)|^[ \t]+```yaml|^~~~", page.read_text(), re.M)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_a_shortened_example_has_the_same_stages_and_less_to_do(path: Path, tmp_path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    whole = load_experiment(path).spec
    short = TransferExperiment.model_validate(shorten(written)).spec
    for stage in ("vocabulary", "pretraining", "instruction_tuning", "evaluation"):
        assert (getattr(short, stage) is None) == (getattr(whole, stage) is None)
    assert short.pretraining is None or short.pretraining.steps == 4
    assert short.instruction_tuning is None or (short.instruction_tuning.examples, short.instruction_tuning.steps) == (12, 4)
    assert short.evaluation is not None
    assert short.evaluation.limit == 4
