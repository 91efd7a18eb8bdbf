"""One experiment file in, a scored table out: every stage, with two workers that meet at a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.experiment import Workplace, workplace
from transfer_api.status import ExperimentStatus, Phase

pytestmark = pytest.mark.timeout(900)  # whole runs, on a machine that may be busy

SCORE_FIELDS = {"suite", "task", "language", "metric", "value", "baseline", "difference", "interval", "items"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, str]:
    place = workplace(tmp_path_factory.mktemp("whole"), workers={"min": 1, "replicas": 2, "max": 3})
    place.spec["pretraining"]["snapshotTokens"] = [12 * 448]
    place.spec["evaluation"]["when"] = "EachCheckpoint"
    code, text = place.run()
    assert code == 0, text
    return place, text


def test_every_stage_is_complete_and_the_status_is_that_of_the_resource(run: tuple[Workplace, str]) -> None:
    place, _ = run
    status = ExperimentStatus.model_validate(yaml.safe_load((place.output / "status.yaml").read_text()))
    assert status.phase is Phase.COMPLETE
    assert [stage.name for stage in status.stages] == [
        "baseline", "pretraining-dataset", "pretraining", "evaluation-at-5376", "instruction-dataset", "instruction-tuning", "evaluation",
    ]  # fmt: skip
    assert status.results is not None
    assert status.results.scores[0].baseline is not None


def test_two_workers_trained_together(run: tuple[Workplace, str]) -> None:
    place, _ = run
    assert max(line["world_size"] for line in place.ledger()) == 2
    assert [line["step"] for line in place.ledger()] == list(range(1, 25))


def test_the_scores_are_complete_and_stand_beside_the_baseline(run: tuple[Workplace, str]) -> None:
    place, text = run
    scores = json.loads((place.output / "results.json").read_text())["scores"]
    assert scores
    assert all(score.keys() >= SCORE_FIELDS for score in scores)
    per_byte = next(score for score in scores if score["metric"] == "bits_per_byte")
    assert per_byte["items"] == 12
    assert per_byte["value"] < per_byte["baseline"], "24 steps on text of the same words must help a random model"
    low, high = per_byte["interval"]
    assert low <= per_byte["difference"] <= high < 0
    assert "bits_per_byte" in text


def test_a_checkpoint_is_scored_as_the_model_it_was(run: tuple[Workplace, str]) -> None:
    place, _ = run
    results = json.loads((place.output / "results.json").read_text())
    (checkpoint,) = results["checkpoints"]
    assert checkpoint["tokens"] == 5376
    on_the_way, final = (next(s for s in scores if s["metric"] == "bits_per_byte") for scores in (checkpoint["scores"], results["scores"]))
    assert on_the_way["baseline"] == final["baseline"]
    assert on_the_way["value"] not in (final["value"], final["baseline"])
    along = json.loads(next(place.storage.glob("artifacts/pretraining/*/training.json")).read_text())["validation"]
    assert next(point for point in along if point["step"] == 12)["bitsPerByte"]["heldout"] == pytest.approx(on_the_way["value"], rel=0.2)
    assert "| 5,376 |" in (place.output / "report.md").read_text()


def test_the_report_has_the_table_and_needs_no_network(run: tuple[Workplace, str]) -> None:
    place, _ = run
    markdown = (place.output / "report.md").read_text()
    page = (place.output / "report.html").read_text()
    assert "bits_per_byte" in markdown
    assert "<svg" in page
    assert 'src="http' not in page


def test_a_plain_transformers_program_loads_the_model(run: tuple[Workplace, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, _ = run
    model = AutoModelForCausalLM.from_pretrained(place.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(place.output / "model")
    tokens = tokenizer("Semua orang", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] == tokens["input_ids"].shape[1] + 3


def test_a_second_run_runs_nothing(run: tuple[Workplace, str]) -> None:
    place, _ = run
    before = {path: path.stat().st_mtime_ns for path in (place.output / "logs").iterdir()}
    code, text = place.run()
    assert code == 0, text
    assert {path: path.stat().st_mtime_ns for path in (place.output / "logs").iterdir()} == before
    assert "bits_per_byte" in text


def test_a_new_output_folder_finds_every_stage_in_the_storage(run: tuple[Workplace, str], tmp_path: Path) -> None:
    place, _ = run
    process = place.start("--output", str(tmp_path / "again"))
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert not list((tmp_path / "again" / "logs").iterdir())
    assert text.count("already there") == 7
    assert json.loads((tmp_path / "again" / "results.json").read_text())["scores"]


def test_an_altered_artifact_is_refused_with_its_name(run: tuple[Workplace, str], tmp_path: Path) -> None:
    place, _ = run
    rows = next((place.artifact("instruction-dataset") / "rows").glob("*.tokens"))
    original = rows.read_bytes()
    tuned = place.artifact("instruction-tuning")
    hidden = tuned.with_name("hidden")
    tuned.rename(hidden)
    rows.write_bytes(bytes(len(original)))
    try:
        process = place.start("--output", str(tmp_path / "torn"))
        text, _ = process.communicate(timeout=300)
    finally:
        rows.write_bytes(original)
        if not tuned.exists():
            hidden.rename(tuned)
    assert process.returncode == 11, text
    assert "0.tokens" in text
    assert "CheckpointUnreadable" in text
