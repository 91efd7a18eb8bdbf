"""`transfer evaluate`: a model folder and suites in, the table of `transfer run` out, with no file of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import write_model
from tests.support.in_process import InProcessBackend
from tests.support.tiny import SENTENCES, save_tiny_model
from transfer_api.errors import ExitCode, SpecError
from transfer_api.load import SpecErrors, load_experiment
from transfer_api.stage import plan_stages
from transfer_cli import evaluate
from transfer_cli import run as runner
from transfer_cli.inputs import fingerprints
from transfer_cli.main import main

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def built(*arguments: str) -> dict[str, Any]:
    """The spec that a command line describes."""
    import argparse

    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    _, document = evaluate.build(parser.parse_args(list(arguments)))
    spec: dict[str, Any] = document["spec"]
    return spec | {"name": document["metadata"]["name"]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two models that nothing loads and two texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRANSFER_STORAGE", raising=False)
    for name in ("Mine.v2", "base"):
        write_model(tmp_path / name)
    for name, sentences in (("id", SENTENCES[2:]), ("en", SENTENCES[:2])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(sentences))
    return tmp_path


def test_the_command_line_becomes_an_experiment_that_only_evaluates(place: Path) -> None:
    spec = built("Mine.v2", "--baseline", "base", "--suites", "perplexity,arc_easy", "--languages", "id,en", "--limit", "3",
                 "--texts", "id.txt", "en=en.txt")  # fmt: skip
    assert spec.pop("storage")
    assert spec == {
        "name": "evaluate-mine-v2",
        "model": {"path": str(place / "Mine.v2")},
        "language": "id",
        "evaluation": {
            "suites": ["perplexity", "arc_easy"], "baseline": True, "baselineModel": {"path": str(place / "base")}, "limit": 3,
            "texts": [
                {"name": "id", "path": str(place / "id.txt"), "language": "id"},
                {"name": "en", "path": str(place / "en.txt"), "language": "en"},
            ],
        },
    }  # fmt: skip


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["Mine.v2", "--texts", "id.txt"], {"suites": ["perplexity"], "baseline": False}, id="texts alone mean perplexity"),
        pytest.param(
            ["Mine.v2", "--suites", "code-switching,mmlu", "--languages", "id,sw"],
            {"suites": ["code-switching_id", "code-switching_sw", "mmlu"], "baseline": False},
            id="a suite of several languages in each",
        ),
    ],
)
def test_what_is_left_out_has_a_default(arguments: list[str], expected: dict[str, Any]) -> None:
    evaluation = built(*arguments)["evaluation"]
    assert {name: evaluation[name] for name in expected} == expected


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "language", "suites"),
    [
        pytest.param(["--texts", "id=id.txt"], "id", ["code-switching_id"], id="one text"),
        pytest.param(["--texts", "id.txt"], "en", ["code-switching_en"], id="a text without its language"),
        pytest.param(
            ["--texts", "en=en.txt", "zh-Hans=id.txt"], "zh-Hans", ["code-switching_zh", "code-switching_en"], id="English is no target"
        ),
        pytest.param(["--texts", "id=id.txt", "--languages", "sw"], "sw", ["code-switching_sw"], id="languages that are named"),
        pytest.param([], "en", ["code-switching_en"], id="neither"),
    ],
)
def test_the_languages_are_those_of_the_texts_where_none_is_named(arguments: list[str], language: str, suites: list[str]) -> None:
    spec = built("Mine.v2", "--suites", "perplexity,code-switching" if "--texts" in arguments else "code-switching", *arguments)
    assert spec["language"] == language
    assert [suite for suite in spec["evaluation"]["suites"] if suite != "perplexity"] == suites


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("languages", "message"), [("id,eng", "write en"), ("indonesian", "BCP 47")])
def test_languages_that_do_not_exist_are_refused(languages: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        built("Mine.v2", "--suites", "code-switching", "--languages", languages)
    assert raised.value.field == "--languages"


@pytest.mark.usefixtures("place")
def test_a_model_of_the_hub_is_named_with_its_commit() -> None:
    spec = built(f"org/some.model@{COMMIT}", "--suites", "mmlu")
    assert (spec["name"], spec["model"]) == ("evaluate-some-model", {"name": "org/some.model", "revision": COMMIT})
    with pytest.raises(SpecError, match=r"MODEL: is no folder here.*OWNER/NAME@COMMIT"):
        built("org/some.model", "--suites", "mmlu")


def test_questions_and_judges_are_those_of_a_file(place: Path) -> None:
    (place / "hi.jsonl").write_text('{"question": "?"}')
    (place / "second.yaml").write_text("url: http://127.0.0.1:8000/v1\nmodel: b\nspending: {tokens: 1M}\n")
    spec = built("base", "--questions", "hi=hi.jsonl", f"zh=llmeval-fdu/LLMEval-1@{COMMIT}", "--languages", "id", "--answer-tokens", "64",
                 "--judge", "org/judge=http://127.0.0.1/v1", "second.yaml")  # fmt: skip
    assert spec["evaluation"] == {
        "suites": ["llm-eval"], "baseline": False, "answerTokens": 64,
        "questions": [
            {"name": "hi", "path": str(place / "hi.jsonl"), "language": "hi"},
            {"name": "llmeval-1", "hub": "llmeval-fdu/LLMEval-1", "revision": COMMIT, "language": "zh"},
        ],
        "judge": {"model": "org/judge", "url": "http://127.0.0.1/v1"},
        "secondJudge": {"url": "http://127.0.0.1:8000/v1", "model": "b", "spending": {"tokens": "1M"}},
    }  # fmt: skip


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("judges", "message"),
    [
        (["nothing.yaml"], "--judge: is neither MODEL=URL nor a file with the fields of evaluation.judge: "),
        (["id.txt"], "--judge: is neither MODEL=URL"),
        (["a=http://x/v1", "b=http://x/v1", "c=http://x/v1"], "--judge: are too many"),
        (["a=http://x/v1", "a=http://x/v1"], "secondJudge stands beside judge and is another model"),
    ],
)
def test_judges_that_are_none_are_refused(judges: list[str], message: str) -> None:
    with pytest.raises((SpecError, SpecErrors)) as refused:
        built("base", "--questions", "id.txt", "--judge", *judges)
    assert message in str(refused.value)


def test_cloze_sets_that_are_named_with_their_language_are_asked_in_each(place: Path) -> None:
    (place / "tasks").mkdir()
    for name in ("cloze_id", "cloze_sw", "other"):
        (place / "tasks" / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\n")
    spec = built("base", "--suites", "cloze,other,mmlu", "--task-folders", "tasks", "--languages", "id,sw")
    assert spec["evaluation"]["suites"] == ["cloze_id", "cloze_sw", "other", "mmlu"]


@pytest.mark.usefixtures("place")
def test_two_texts_of_one_name_are_told_apart(place: Path) -> None:
    (place / "more").mkdir()
    (place / "more" / "id.txt").write_text("Lagi.")
    names = [text["name"] for text in built("base", "--texts", "id.txt", "more/id.txt")["evaluation"]["texts"]]
    assert names == ["id", "id-2"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base"], "--suites: names nothing to measure"),
        (["base", "--suites", "perplexity"], "the suite perplexity needs texts"),
        (["base", "--suites", "llm-eval"], "needs questions and a judge"),
        (["base", "--suites", "mmlu", "--limit", "0"], "spec.evaluation.limit"),
    ],
)
def test_a_suite_without_what_it_needs_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises((SpecError, SpecErrors)) as refused:
        built(*arguments)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda p: (p / "base").rename(p / "away"), ["spec.evaluation.baselineModel.path", "no such file"], id="no baseline"),
        pytest.param(lambda p: (p / "Mine.v2").rename(p / "away"), ["spec.model.path", "'Mine.v2'", "no such file"], id="no model"),
        pytest.param(lambda p: (p / "base/tokenizer.json").unlink(), ["baselineModel.path", "has no tokenizer"], id="no tokenizer"),
        pytest.param(
            lambda p: (p / "Mine.v2/model.safetensors").rename(p / "Mine.v2/pytorch_model.bin"),
            ["spec.model.path", "pickle (pytorch_model.bin)", "*.safetensors"],
            id="pickle",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_with_two(
    place: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Any], says: list[str]
) -> None:
    spoil(place)
    assert main(["evaluate", "Mine.v2", "--baseline", "base", "--texts", "id.txt"]) == ExitCode.REFUSED
    told = capsys.readouterr().err
    for words in says:
        assert words in told
    assert not (place / "runs").exists()


def test_the_table_stands_beside_the_baseline_and_is_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRANSFER_STORAGE", raising=False)
    monkeypatch.setattr(runner, "LocalBackend", InProcessBackend)
    monkeypatch.setattr(runner, "LOOK_EVERY_S", 0.01)
    save_tiny_model(tmp_path / "base")
    save_tiny_model(tmp_path / "mine", seed=1)
    (tmp_path / "held-out.txt").write_text("\n\n".join(SENTENCES[2:]))
    command = ["evaluate", "mine", "--baseline", "base", "--texts", "id=held-out.txt", "--limit", "1", "--output", "out"]
    assert main(command) == ExitCode.COMPLETE
    told = capsys.readouterr().out
    assert "2 stages (baseline, evaluation)" in told
    assert "bits_per_byte" in told
    assert "Target language (id): " in told
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (score,) = [score for score in results["scores"] if score["metric"] == "bits_per_byte"]
    assert score["difference"] == pytest.approx(score["value"] - score["baseline"])
    assert (score["task"], score["language"], score["items"]) == ("held-out", "id", 1)
    assert "held-out" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()

    kept = load_experiment(tmp_path / "out" / evaluate.FILE)
    plan = plan_stages(kept.spec, fingerprints(kept, storage=tmp_path / "runs/.storage", search=()))
    assert [stage.key for stage in plan] == [stage["key"] for stage in results["stages"]], "`transfer run` finds the same stages"

    assert main([*command[:-1], "again"]) == ExitCode.COMPLETE
    assert capsys.readouterr().out.count("already there") == 2
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["scores"] == results["scores"]
