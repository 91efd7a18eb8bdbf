"""A run whose judge is down ends with a table, says what is missing, and run again asks only the judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.in_process import InProcessBackend
from tests.support.judge_server import JudgeServer
from tests.support.tiny import save_tiny_model
from transfer_api.errors import ExitCode
from transfer_cli import run as runner
from transfer_cli.main import main
from transfer_cli.outputs import STATUS
from transfer_evaluator.judge import client


def judged(folder: Path, server: JudgeServer) -> list[str]:
    """The command that has three answers judged."""
    save_tiny_model(folder / "model")
    (folder / "open.jsonl").write_text("".join(json.dumps({"question": f"Apa itu {n}?"}) + "\n" for n in range(3)))
    judge = {"url": server.url, "model": "judge-a", "pace": {"retries": 0, "concurrency": 1}}
    questions = [{"name": "open", "path": "open.jsonl"}]
    evaluation = {"suites": ["llm-eval"], "questions": questions, "answerTokens": 8, "judge": judge}
    spec = {"model": {"path": "model"}, "language": "id", "storage": {"claim": "c"}, "evaluation": evaluation}
    names = {"apiVersion": "transfer-operator.dev/v1alpha1", "kind": "TransferExperiment", "metadata": {"name": "judged"}}
    (folder / "judged.yaml").write_text(json.dumps({**names, "spec": spec}))
    return ["run", str(folder / "judged.yaml"), "--storage", str(folder / "storage"), "--output", str(folder / "out")]


def test_a_run_whose_judge_is_down_is_complete_and_the_same_command_asks_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "LocalBackend", InProcessBackend)
    monkeypatch.setattr(runner, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)
    with JudgeServer(share=1.0, faults=["503"]) as server:
        command = judged(tmp_path, server)

        assert main(command) == ExitCode.COMPLETE
        assert "3 answers have no scores, since a judge did not answer" in capsys.readouterr().out
        status = yaml.safe_load((tmp_path / "out" / STATUS).read_text())
        (stage,) = status["stages"]
        assert (status["phase"], stage["state"], stage["artifact"]["provisional"]) == ("Complete", "Complete", True)
        (numbers,) = [one["numbers"] for one in json.loads((tmp_path / "out" / "results.json").read_text())["stages"]]
        assert numbers["unjudged"] == 3
        assert "unjudged" in (tmp_path / "out" / "report.md").read_text()

        server.share = 0.0
        monkeypatch.setattr("transfer_evaluator.generation._answer", lambda *_: pytest.fail("asked the model again"))
        assert main(command) == ExitCode.COMPLETE
        assert "no scores" not in capsys.readouterr().out
        scores = {score["metric"]: score for score in json.loads((tmp_path / "out" / "results.json").read_text())["scores"]}
        assert (scores["missing"]["value"], scores["accuracy"]["items"]) == (0, 3)
        before = len(server.requests)
        assert main(command) == ExitCode.COMPLETE
        assert len(server.requests) == before, "what is whole is not made again"


def test_a_wrong_token_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "LocalBackend", lambda **_: pytest.fail("ran"))
    with JudgeServer(token="right") as server:
        assert main(judged(tmp_path, server)) == ExitCode.REFUSED
    assert "spec.evaluation.judge.tokenSecret: the judge wants a token (answer 401)" in capsys.readouterr().err
