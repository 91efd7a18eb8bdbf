"""The suites of the catalogue: each resolves to tasks of the installed harness, and runs from a mirror without any network."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.evaluator.mirrors import ENTRIES, REVISION, letters, write_data_set
from tests.support.folders import write_model
from transfer_api.errors import DataError, ExitCode, SpecError
from transfer_cli.main import main
from transfer_evaluator.catalogue import _entries, find
from transfer_evaluator.harness import HarnessModel
from transfer_evaluator.mirror import Mirror
from transfer_evaluator.model import LoadedModel
from transfer_evaluator.score import TaskResult
from transfer_evaluator.suites import check_suites, named
from transfer_evaluator.tasks import TaskLibrary, is_hub_name


def in_every_language() -> list[str]:
    return [f"{name}_{one}" for name, entry in _entries().items() for one in entry.get("languages", ())]


@pytest.mark.parametrize("suite", [name for name, entry in _entries().items() if "languages" not in entry])
def test_a_suite_names_tasks_that_the_harness_has(suite: str) -> None:
    library = TaskLibrary([])
    assert library.data_sets([suite]) or library.files([suite])


def test_a_suite_of_several_languages_has_tasks_in_each() -> None:
    wanted = [suite for suite in in_every_language() if suite.partition("_")[0] != "global-mmlu"]
    assert set(TaskLibrary([]).data_sets(wanted)) == {"facebook/belebele", "cambridgeltl/xcopa"}
    for suite in in_every_language():
        found = find(suite)
        assert found is not None
        assert found.folder.is_dir(), f"{suite} has no folder in the harness"


def test_the_settings_are_those_of_the_paper() -> None:
    assert {name: _entries()[name]["shots"] for name in ("mmlu", "c-eval", "agieval", "gaokao-bench")} == {
        "mmlu": 5, "c-eval": 5, "agieval": 0, "gaokao-bench": 0,
    }  # fmt: skip
    assert {name: set(TaskLibrary([]).data_sets([name])) for name in ("mmlu", "c-eval", "cmmlu", "gaokao-bench", "global-mmlu_id")} == {
        "mmlu": {"cais/mmlu"}, "c-eval": {"ceval/ceval-exam"}, "cmmlu": {"haonan-li/cmmlu"}, "gaokao-bench": {"RUCAIBox/gaokao-bench"},
        "global-mmlu_id": {"CohereForAI/Global-MMLU"},
    }  # fmt: skip
    assert sum(name.startswith("hails/agieval-") for name in TaskLibrary([]).data_sets(["agieval"])) == 21


def test_names_are_known_without_the_harness_and_languages_are_checked() -> None:
    check_suites(["mmlu", "c-eval", "belebele_sw", "gaokao-bench", "xcopa_id"], [])
    assert find("belebele_ind_Latn") is find("mmlu_anatomy") is find("arc_easy") is None, "names of the harness itself"
    with pytest.raises(
        SpecError, match=r"spec\.evaluation\.suites: has no questions in that language \(got 'xcopa_de'\).*xcopa_ with one of et, ht"
    ):
        check_suites(["xcopa_de"], [])
    with pytest.raises(SpecError, match="exists in several languages"):
        TaskLibrary([]).check(["belebele"])


@pytest.mark.usefixtures("harness_index")
def test_a_misspelt_suite_is_refused_by_the_command_with_the_nearest_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "base")
    assert main(["evaluate", "base", "--suites", "belebele_ind_latn"]) == ExitCode.REFUSED
    told = capsys.readouterr().err
    assert "no such suite (got 'belebele_ind_latn')" in told
    assert "belebele_ind_Latn" in told
    assert not (tmp_path / "runs").exists()
    assert main(["evaluate", "base", "--suites", "mlmu"]) == ExitCode.REFUSED
    near = capsys.readouterr().err.partition("Nearest names: ")[2].partition(".")[0].split(", ")
    assert near.count("mmlu") == 1, "a suite of ours that the harness has too is named once"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("cais/mmlu", True), ("glue", True), ("json", False), ("./data", False), ("/data/set", False), ("a/b/c", False), (None, False)],
)
def test_data_sets_of_the_hub_are_told_from_files_and_folders(path: str | None, expected: bool) -> None:
    assert is_hub_name(path) is expected


def test_a_task_folder_may_have_a_suite_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: mmlu\ndataset_path: json\n")
    library = TaskLibrary([tmp_path])
    assert library.data_sets(["mmlu"]) == {}


def run(suite: str, mirror: Path, tiny: LoadedModel, **settings: Any) -> list[TaskResult]:
    library = TaskLibrary([], Mirror(mirror))
    library.check([suite])
    return library.run(suite, HarnessModel(tiny), **{"shots": None, "limit": None, "seed": 0, **settings})


def test_belebele_runs_from_a_mirror_with_its_settings_beside_the_score(tmp_path: Path, tiny: LoadedModel) -> None:
    rows = [
        {"flores_passage": f"Bagian {n // 2}.", "question": f"Apa {n}?", "correct_answer_num": str(1 + n % 4)}
        | {f"mc_answer{place}": word for place, word in enumerate(ENTRIES, start=1)}
        for n in range(6)
    ]  # fmt: skip
    write_data_set(tmp_path, "facebook/belebele", {"ind_Latn": {"test": rows}})
    (result,) = run("belebele_id", tmp_path, tiny)
    assert (result.suite, result.task, result.language, len(result.items)) == ("belebele_id", "belebele_ind_Latn", "id", 6)
    assert result.harness.endswith(f", 0-shot, log-likelihood, split test, data facebook/belebele@{REVISION[:8]}, task version 0.0")
    assert len({item["document"] for item in result.items}) == 3, "questions about one passage hang together"


def test_examples_come_before_the_question_as_the_catalogue_says(
    tmp_path: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfer_evaluator import tasks

    parts = [f"mmlu_{one}" for one in ("anatomy", "astronomy")]
    harness = tmp_path / "mmlu"
    harness.mkdir()
    (harness / "group.yaml").write_text(
        f"group: mmlu\ntask: [{', '.join(parts)}]\naggregate_metric_list: [{{metric: acc, weight_by_size: true}}]\n"
    )
    template = find("mmlu").folder / "_default_template_yaml"  # type: ignore[union-attr]
    (harness / "_default_template_yaml").write_text(template.read_text())
    for part in parts:
        (harness / f"{part}.yaml").write_text(
            f"include: _default_template_yaml\ntask: {part}\ndataset_name: {part.removeprefix('mmlu_')}\n"
        )
    write_data_set(
        tmp_path / "m",
        "cais/mmlu",
        {part.removeprefix("mmlu_"): {"test": letters(3 + n), "dev": letters(5)} for n, part in enumerate(parts)},
    )
    smaller = tasks.Suite(name="mmlu", task="mmlu", folder=harness, shots=2, language="en")  # of 57 subjects two
    monkeypatch.setattr(tasks, "find", lambda name: smaller if name == "mmlu" else None)
    whole, *subjects = run("mmlu", tmp_path / "m", tiny)
    assert [result.task for result in subjects] == parts
    assert len(whole.items) == 7
    assert whole.language == "en"
    assert "2-shot, log-likelihood, split test, data cais/mmlu@01234567" in whole.harness
    assert whole.harness.endswith("mean over the items of 2 tasks")
    (asked,) = {result.harness.split(", ")[1] for result in run("mmlu", tmp_path / "m", tiny, shots=0)}
    assert asked == "0-shot"


EXAM = {"year": "2030", "category": "", "analysis": "", "score": 6}
"""Columns that are not read."""


def exams(mirror: Path) -> None:
    single = [{**EXAM, "index": n, "question": f"{n} + 1 = ？ A. 1 B. 2 C. 3 D. 4", "answer": ["ABCD"[n % 4]]} for n in range(4)]
    names = [str(task["dataset_name"]) for task in map(_content, sorted((find("gaokao-bench").folder).glob("[a-z]*.yaml")))]  # type: ignore[union-attr]
    special = {
        "2010-2022_English_Reading_Comp": [{**EXAM, "index": 0, "question": "A passage.", "standard_answer": ["A", "C", "D"]}],
        "2012-2022_English_Cloze_Test": [{**EXAM, "index": 0, "question": "A text with gaps.", "standard_answer": ["G", "E"]}],
        "2010-2022_Physics_MCQs": [{**EXAM, "index": 0, "question": "Which?", "standard_answer": ["B", "D"]}],
    }
    write_data_set(mirror, "RUCAIBox/gaokao-bench", {name: {"test": special.get(name, single)} for name in names})


def _content(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    content: dict[str, Any] = load_yaml(path, resolve_func=False)
    return content


def test_gaokao_bench_asks_for_each_letter_of_the_objective_part(tmp_path: Path, tiny: LoadedModel) -> None:
    exams(tmp_path)
    whole, *parts = run("gaokao-bench", tmp_path, tiny)
    counts = {part.task.removeprefix("gaokao-bench_"): len(part.items) for part in parts}
    assert len(counts) == 14
    assert counts | {"english_reading": 3, "english_cloze": 2, "physics": 1, "history": 4} == counts
    assert len(whole.items) == sum(counts.values())
    assert (whole.suite, whole.language) == ("gaokao-bench", "zh")
    reading = next(part for part in parts if part.task.endswith("reading"))
    assert [item["target"] for item in reading.items] == ["0", "2", "3"]
    assert len({item["document"] for item in reading.items}) == 1
    physics = next(part for part in parts if part.task.endswith("physics"))
    assert len(physics.items[0]["responses"]) == 15, "every combination of four letters"
    assert all(0 <= item["acc"] <= 1 for item in whole.items)


BLANKS = {
    "2010-2022_Math_I_Fill-in-the-Blank": [("$x=$", "$\\frac{1}{2}$.\n"), ("$y=$", "$\\frac{3}{10} \\# \\# 0.3$\n")],
    "2010-2022_Math_II_Fill-in-the-Blank": [("$z=$", "-7\n")],
    "2010-2022_Chinese_Language_Famous_Passages_and_Sentences_Dictation": [
        ("（1）____，____。\n（2）____。", "【答案】（1）.春眠不觉晓 ，\n处处闻啼鸟（重点字：鸟）\n（2）.(夜)夜来《风》雨声\n")
    ],
    "2014-2022_English_Language_Cloze_Passage": [
        ("It 61 (be) a dog 62 barks.", "【解答】\n61．was，考查be．\n62．which/that，考查从句．\n"), ("A 41 B 42", "go\nWhen/As\n")
    ],
}  # fmt: skip


def blanks(mirror: Path) -> None:
    """A mirror of the repository, with rows of our own in the manners of several years."""
    files = {}
    for file in TaskLibrary([]).files(["gaokao-bench_fill-in"]):
        rows = [{**EXAM, "index": n, "question": asked, "answer": told} for n, (asked, told) in enumerate(BLANKS[Path(file.path).stem])]
        place = mirror / file.name / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"keywords": "k", "example": rows}, ensure_ascii=False))
        files[file.path] = {"size": place.stat().st_size}
    (mirror / f"{file.name}.json").write_text(json.dumps({"revision": file.revision, "files": files}))


def test_each_blank_of_gaokao_bench_is_an_item_with_its_right_answers(tmp_path: Path, tiny: LoadedModel) -> None:
    blanks(tmp_path)
    whole, *parts = run("gaokao-bench_fill-in", tmp_path, tiny)
    targets = {part.task.removeprefix("gaokao-bench_fill-in_"): [item["target"] for item in part.items] for part in parts}
    assert targets == {
        "mathematics_1": ["$\\frac{1}{2}$.", "$\\frac{3}{10} / 0.3$"], "mathematics_2": ["-7"],
        "dictation": ["春眠不觉晓", "处处闻啼鸟", "夜来风雨声"], "english": ["was", "which / that", "go", "When / As"],
    }  # fmt: skip
    assert (whole.suite, whole.language, len(whole.items)) == ("gaokao-bench_fill-in", "zh", 10)
    assert [metric.name for metric in whole.metrics] == ["exact_match"]
    assert "greedy generation" in whole.harness
    assert "data OpenLMLab/GAOKAO-Bench@6dbb24f8" in whole.harness
    english = next(part for part in parts if part.task.endswith("english"))
    assert len({item["document"] for item in english.items}) == 2, "the blanks of a text hang together"


@pytest.mark.parametrize(
    ("rule", "target", "given", "right"),
    [
        ("formula", "$\\frac{1}{2}$.", " 0.5", True),
        ("formula", "$\\frac{3}{10} / 0.3$", "$\\dfrac{3}{10}$。", True),
        ("formula", "$2 \\sqrt{3}$", "2√3", True),
        ("formula", "$\\frac{\\sqrt{3}}{3}$", "\\sqrt{3}/3", True),
        ("formula", "$90^{\\circ}$", "90°", True),
        ("formula", "0. 98.", "0.98", True),
        ("formula", "-7", "7", False),
        ("formula", "2", "因为 x=2", False),
        ("formula", "2", "", False),
        ("verse", "处处闻啼鸟", "“处处闻啼鸟。”", True),
        ("verse", "处处闻啼鸟", "处处闻啼", False),
        ("word", "which / that", "That.", True),
        ("word", "has been told", " has  been told", True),
        ("word", "go", "going", False),
        ("word", "go", "...", False),
    ],
)
def test_an_answer_is_right_where_it_is_the_same_when_written_alike(rule: str, target: str, given: str, right: bool) -> None:
    path = find("gaokao-bench_fill-in").folder / "blanks.py"  # type: ignore[union-attr]
    spec = importlib.util.spec_from_file_location("blanks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert getattr(module, f"same_{rule}")({"target": target}, [given]) == {"exact_match": float(right)}


def test_a_mirror_with_another_commit_of_a_repository_is_refused(tmp_path: Path) -> None:
    blanks(tmp_path)
    record = tmp_path / "OpenLMLab" / "GAOKAO-Bench.json"
    record.write_text(record.read_text().replace("6dbb24f8", "00000000"))
    library = TaskLibrary([], Mirror(tmp_path))
    library.check(["gaokao-bench_fill-in"])
    with pytest.raises(DataError, match=r"has no file Data/.* of OpenLMLab/GAOKAO-Bench@6dbb24f8.*transfer evaluate fetch"):
        library.prepare(["gaokao-bench_fill-in"])


def test_a_letter_that_is_no_option_is_refused(tmp_path: Path) -> None:
    exams(tmp_path)
    (tmp_path / "RUCAIBox/gaokao-bench/2010-2022_Biology_MCQs/test.jsonl").unlink()
    write_data_set(
        tmp_path, "RUCAIBox/gaokao-bench", {"2010-2022_Biology_MCQs": {"test": [{"index": 7, "question": "?", "answer": ["F"]}]}}
    )
    library = TaskLibrary([], Mirror(tmp_path))
    library.check(["gaokao-bench"])
    with pytest.raises(DataError, match="question 7 has the answer 'F'"):
        library.prepare(["gaokao-bench"])


def test_an_incomplete_mirror_is_named_file_by_file(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, "facebook/belebele", {name: {"test": [{"a": 1}]} for name in ("ind_Latn", "swh_Latn")})
    (folder / "ind_Latn" / "test.jsonl").unlink()
    (folder / "swh_Latn" / "test.jsonl").write_text("")
    library = TaskLibrary([], Mirror(tmp_path))
    library.check(["belebele_id", "xcopa_id"])
    with pytest.raises(
        DataError, match=r"lacks 2 files of facebook/belebele: ind_Latn/test.jsonl, swh_Latn/test.jsonl.*transfer evaluate fetch"
    ):
        library.prepare(["belebele_id"])
    with pytest.raises(DataError, match=r"spec\.evaluation\.mirror: has no data set cambridgeltl/xcopa") as raised:
        library.prepare(["xcopa_id"])
    command = f"Run `transfer evaluate fetch SUITE --mirror {tmp_path}` where"
    assert raised.value.next_step is not None
    assert raised.value.next_step.startswith(command), "in its own capitals"


@pytest.mark.parametrize("content", ["", "{}", '{"revision": "x", "files": []}', '{"revision": "x", "files": {"a": {}}}'])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    write_data_set(tmp_path, "facebook/belebele", {})
    (tmp_path / "facebook" / "belebele.json").write_text(content)
    with pytest.raises(DataError, match=r"unreadable record of a data set.*belebele\.json"):
        Mirror(tmp_path).place("facebook/belebele")


def test_a_pipe_among_the_task_files_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("task: mine\n")
    assert named("task", {"mine", "other"}, [tmp_path]) == {"mine"}
