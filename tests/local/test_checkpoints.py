"""Checkpoints that are scored on the way, and a gate that ends a run which loses too much of English in the middle of its training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.experiment import Workplace, workplace
from transfer_api.status import Phase, Reason
from transfer_cli.main import main

pytestmark = pytest.mark.timeout(600)
MARKS = [4 * 448, 96 * 448]


def gated(folder: Path, *, learning_rate: str, most: str, tuning: bool) -> Workplace:
    """Pretraining whose checkpoints may stop it."""
    place = workplace(folder)
    del place.spec["pretraining"]["validationSteps"]
    place.spec["pretraining"] |= {
        "steps": 96, "maxEpochs": 80, "snapshotTokens": MARKS, "schedule": "Constant", "warmup": "0", "learningRate": learning_rate,
    }  # fmt: skip
    place.spec["evaluation"] = {
        "suites": ["perplexity"], "texts": [{"name": "heldout", "path": "texts/heldout.jsonl", "language": "en"}],
        "when": "EachCheckpoint", "retention": {"stop": True, "maxLoss": most},
    }  # fmt: skip
    if not tuning:
        del place.spec["instructionTuning"]
    return place


def test_a_run_that_loses_english_is_stopped_in_its_training_and_leaves_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = gated(tmp_path, learning_rate="0.5", most="0.05", tuning=True)
    code, text = place.run()
    assert code == 10, text
    assert "BeyondMargin" in text
    status = place.status()
    assert (status["phase"], status["failure"]["reason"], status["failure"]["stage"]) == (
        Phase.FAILED, Reason.BEYOND_MARGIN, "evaluation-at-1792",
    )  # fmt: skip
    training = place.stage("pretraining")
    assert (training["state"], training["snapshots"]) == ("Suspended", MARKS[:1])
    assert len(place.ledger()) < 96
    assert place.stage("instruction-dataset")["state"] == "Waiting"
    results = json.loads((place.output / "results.json").read_text())
    assert [checkpoint["tokens"] for checkpoint in results["checkpoints"]] == [1792]
    assert results["retention"]["kept"] is False
    (place.output / "report.md").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(place.file), "--storage", str(place.storage), "--output", str(place.output)]) == 0
    assert "| 1,792 |" in (place.output / "report.md").read_text()
    assert not (place.output / "model").exists()


def test_a_training_that_stands_aside_for_its_scores_has_the_losses_of_one_that_does_not(tmp_path: Path) -> None:
    place = gated(tmp_path / "gated", learning_rate="1e-3", most="1", tuning=False)
    code, text = place.run()
    assert code == 0, text
    assert place.stage("pretraining")["attempt"] > 1, "it was stopped for the first score"
    assert place.status()["restarts"]["total"] == 0
    plain = gated(tmp_path / "plain", learning_rate="1e-3", most="1", tuning=False)
    del plain.spec["evaluation"]
    code, text = plain.run()
    assert code == 0, text
    told = [[(line["step"], line["loss"], line["digest"]) for line in one.ledger()] for one in (place, plain)]
    assert told[0] == told[1]
