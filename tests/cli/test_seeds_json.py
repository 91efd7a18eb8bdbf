"""`transfer seeds --json FILE`: what becomes of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfer_api.results import RESULTS, ReportedScore, Results, StageRecord
from transfer_api.status import ExperimentStatus, Phase
from transfer_cli.main import main
from transfer_cli.outputs import STAMP, STATUS


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, a/ and b/, of one file with two seeds."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        score = ReportedScore(
            suite="perplexity", task="held", language="id", metric="bits_per_byte", value=2.0 + seed / 10, baseline=2.5,
            difference=-0.5 + seed / 10, interval=(-0.7, -0.3), items=10, higher_is_better=False, effect="better",
        )  # fmt: skip
        stage = StageRecord(name="pretraining", kind="pretraining", key="k", digest="", complete=True, seed=seed, numbers={})
        (tmp_path / name).mkdir()
        results = Results(experiment="demo", language="id", recipe="r", verdict="", scores=[score], stages=[stage])
        (tmp_path / name / RESULTS).write_text(results.model_dump_json(by_alias=True))
        status = ExperimentStatus(phase=Phase.COMPLETE).model_dump_json(by_alias=True, exclude_none=True)
        (tmp_path / name / STATUS).write_text(status)
        (tmp_path / name / STAMP).write_text("{}")
    return tmp_path


def test_it_gets_every_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seeds", "a/", "b/", "--json", "all.json"]) == 0
    assert [line["task"] for line in json.loads((runs / "all.json").read_text())] == ["held"]
    assert "held" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["nowhere/all.json", "a", "a/results.json", "x" * 300])
def test_a_place_that_cannot_be_it_is_named_and_the_runs_stay(runs: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (runs / "a" / RESULTS).read_text()
    assert main(["seeds", "a/", "b/", "--json", place]) == 2
    assert "--json: " in capsys.readouterr().err
    assert (runs / "a" / RESULTS).read_text() == before


@pytest.mark.parametrize("command", [["status"], ["push", "a/"], ["seeds", "a/"], ["ledger", "verify"], ["run", "f", "--output"]])
def test_a_name_that_no_file_system_takes_is_refused(runs: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "x" * 300]) == 2
    assert "Traceback" not in capsys.readouterr().err
