"""Checkpoints that are scored on the way, and a gate that ends a run which loses too much of English."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.experiment import workplace
from transfer_api.status import Phase, Reason
from transfer_cli.main import main

pytestmark = pytest.mark.timeout(600)


def test_a_run_that_loses_english_is_stopped_and_leaves_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = workplace(tmp_path)
    del place.spec["pretraining"]["validationSteps"]
    place.spec["pretraining"] |= {"snapshotTokens": [4 * 448, 24 * 448], "schedule": "Constant", "warmup": "0", "learningRate": "0.5"}
    place.spec["evaluation"] = {
        "suites": ["perplexity"], "texts": [{"name": "heldout", "path": "texts/heldout.jsonl", "language": "en"}],
        "when": "EachCheckpoint", "retention": {"stop": True},
    }  # fmt: skip
    code, text = place.run()
    assert code == 10, text
    assert "BeyondMargin" in text
    status = place.status()
    assert (status["phase"], status["failure"]["reason"], status["failure"]["stage"]) == (
        Phase.FAILED, Reason.BEYOND_MARGIN, "evaluation-at-1792",
    )  # fmt: skip
    assert place.stage("instruction-dataset")["state"] == "Waiting"
    results = json.loads((place.output / "results.json").read_text())
    assert [checkpoint["tokens"] for checkpoint in results["checkpoints"]] == [1792]
    assert results["retention"]["kept"] is False
    (place.output / "report.md").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(place.file), "--storage", str(place.storage), "--output", str(place.output)]) == 0
    assert "| 1,792 |" in (place.output / "report.md").read_text()
    assert not (place.output / "model").exists()
