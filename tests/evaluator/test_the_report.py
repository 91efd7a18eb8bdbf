"""Report files from plain data and from artifacts."""

import dataclasses
import html.parser
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluator.reports import KEY, report_input, scores
from transfer_api.errors import ArtifactError, StorageError
from transfer_api.progress import Score
from transfer_api.results import Results, Sample, SampleAnswer, Switch, results_schema
from transfer_api.stage import Execution, StageKind, StagePlan
from transfer_evaluator.report import collect, render_table, verdict, write_report
from transfer_evaluator.summary import ReportInput, read_answers, read_curve
from transfer_evaluator.table import effect_of, number, probability, with_parts
from transfer_pod.artifact import ArtifactStore


def test_the_files_are_written_and_results_json_has_every_field(tmp_path):
    files = write_report(tmp_path / "runs" / "indonesian", report_input())
    assert sorted(path.name for path in files) == ["report.html", "report.md", "report.tex", "results.json"]
    content = json.loads((tmp_path / "runs" / "indonesian" / "results.json").read_text())
    wanted = {"suite", "task", "language", "metric", "value", "baseline", "difference", "interval", "items"}
    assert len(content["scores"]) == 6
    assert all(wanted <= set(score) for score in content["scores"])
    assert content["scores"][0]["interval"] == [-0.47, -0.39]
    assert Results.model_validate(content).samples[0].language == "ar"


def test_the_schema_of_results_json_names_every_key_that_is_written(tmp_path):
    write_report(tmp_path, report_input())
    content = json.loads((tmp_path / "results.json").read_text())
    schema = json.loads(results_schema())

    def check(value, part):
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        if isinstance(value, dict) and "properties" in part:
            assert set(value) == set(part["properties"]) >= set(part.get("required", []))
            for name, inner in value.items():
                check(inner, part["properties"][name])
        elif isinstance(value, list) and "items" in part:
            for inner in value:
                check(inner, part["items"])

    check(content, schema)


def test_the_page_is_one_file_that_asks_the_network_for_nothing(tmp_path):
    write_report(tmp_path, report_input())
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"""(src|href)=["'](?!#)|@import|url\((?!#)|<script [^>]|<link""", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_plots_take_the_colour_of_the_page_and_never_share_an_id(tmp_path):
    write_report(tmp_path, report_input())
    page = (tmp_path / "report.html").read_text()
    assert "#010203" not in page
    assert "currentColor" in page
    assert len(re.findall(r"<text ", page)) == len(re.findall(r'<text fill="currentColor" ', page)) > 20
    clips = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(clips) == len(set(clips)) > 1


def test_the_same_input_gives_the_same_page(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, report_input())
    assert (tmp_path / "a" / "report.html").read_text() == (tmp_path / "b" / "report.html").read_text()


def test_what_others_named_cannot_become_markup(tmp_path):
    named = scores()[0].model_copy(update={"task": "<script>alert(1)</script>|"})
    write_report(tmp_path, ReportInput(experiment="<b>", language="id", scores=[named]))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 1
    assert "script>alert" not in page
    assert "<b>" not in page
    assert html.unescape(page).count("<script>alert(1)</script>|") == 4  # verdict, table, its sort value, label of the plot
    assert r"</script>\|" in (tmp_path / "report.md").read_text()


def test_the_overlap_with_training_stands_in_the_report_where_it_was_counted(tmp_path):
    overlap = {"suite": "s", "task": "t|u", "items": 1200, "contaminated": 30, "short": 4, "share": 0.025}
    write_report(tmp_path, dataclasses.replace(report_input(), contamination=[overlap]))
    assert r"| s | t\|u | 1,200 | 30 | 2.5 % | 4 |" in (tmp_path / "report.md").read_text()
    assert re.search(r"<td[^>]*>2\.5 %</td>", (tmp_path / "report.html").read_text())
    assert json.loads((tmp_path / "results.json").read_text())["contamination"] == [overlap]
    write_report(tmp_path, report_input())
    assert "Overlap" not in (tmp_path / "report.md").read_text()


def test_what_a_model_answered_cannot_become_markup_and_its_switches_are_marked(tmp_path):
    text = "a </div><script>x</script> because"
    answer = SampleAnswer(text=text, switches=[Switch(start=text.index("because"), end=len(text), language="en")])
    sample = Sample(language="ur", prompt="<i>?", base=None, adapted=answer)
    write_report(tmp_path, ReportInput(experiment="x", language="ur", samples=[sample]))
    page = (tmp_path / "report.html").read_text()
    assert '<mark title="en">because</mark>' in page
    assert page.count("<script") == 1
    assert "<i>" not in page
    assert '<div class="text" lang="ur" dir="auto">&lt;i&gt;?</div>' in page


def test_the_tasks_of_a_mean_follow_it_and_a_mean_says_of_how_many(tmp_path):
    base = {"suite": "g", "language": "id", "metric": "acc", "value": 0.5, "items": 4}
    lines = [Score(task="g", parts=2, **base), Score(task="other", **base | {"suite": "o"}), Score(task="b", part_of="g", **base),
             Score(task="a", part_of="g", **base)]  # fmt: skip
    assert [score.task for score in with_parts(lines)] == ["g", "b", "a", "other"]
    write_report(tmp_path, ReportInput(experiment="x", language="id", scores=lines))
    assert "| g | g (mean of 2) |" in (tmp_path / "report.md").read_text()
    assert "| ↳ b |" in (tmp_path / "report.md").read_text()


def test_a_difference_that_holm_does_not_let_pass_is_no_effect():
    score = scores()[4]
    assert effect_of(score.model_copy(update={"adjusted_p_value": 0.04})) == "better"
    assert effect_of(score.model_copy(update={"adjusted_p_value": 0.06})) == "equal"


def test_the_latex_table_has_as_many_cells_in_each_row_and_prints_names_as_they_are(tmp_path):
    named = scores()[0].model_copy(update={"task": "50%_of {a} & b\\c"})
    write_report(tmp_path, ReportInput(experiment="x", language="id", scores=[named, *scores()]))
    text = (tmp_path / "report.tex").read_text()
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 8
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {8}
    assert r"50\%\_of \{a\} \& b\textbackslash{}c" in text
    assert r"\textbf{$-$0.430} [$-$0.470, $-$0.390]" in text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0004, "< 0.001"), (0.049, "0.049"), (1.0, "1.000")])
def test_p_values_have_three_digits(value, text):
    assert probability(value) == text


def test_answers_of_both_models_stand_side_by_side_and_each_prompt_once(tmp_path):
    for side, answer in (("base", "English words"), ("adapted", "kata")):
        (tmp_path / side).mkdir()
        for name in ("code-switching", "language-identity"):
            item = {"id": name, "language": "id", "prompt": "Apa?", "answer": answer, "detected": "id", "switches": [[0, 4, "en"]]}
            (tmp_path / side / f"{name}.jsonl").write_text(json.dumps(item) + "\n" + json.dumps({"id": "x", "acc": 1.0}) + "\n")
    (sample,), (row,) = read_answers(tmp_path / "base", tmp_path / "adapted")
    assert (sample.prompt, sample.base.text, sample.adapted.text) == ("Apa?", "English words", "kata")
    assert (row.asked, row.base, row.adapted) == ("id", {"id": 1}, {"id": 1})
    (alone,), _ = read_answers(tmp_path / "base", None)
    assert (alone.base, alone.adapted.text) == (None, "English words")


def test_judged_answers_stand_side_by_side_with_their_scores(tmp_path):
    sides = {
        side: {"text": side, "scores": scores} for side, scores in (("base", {}), ("adapted", {"accuracy": 2.5, "logical_coherence": 1}))
    }
    line = {"set": "open", "id": "1-x", "category": "c", "language": "ur", "question": "?", "reference": "r"}
    for folder, more in (("both", sides), ("alone", {"answer": sides["adapted"]})):
        (tmp_path / folder / "llm-eval").mkdir(parents=True)
        (tmp_path / folder / "llm-eval" / "samples.jsonl").write_text(json.dumps({**line, **more}) + "\n")
    (sample,), _ = read_answers(tmp_path / "nothing", tmp_path / "both")
    assert (sample.questions, sample.language, sample.reference) == ("open", "ur", "r")
    assert (sample.base.text, sample.base.scores, sample.adapted.scores["accuracy"]) == ("base", {}, 2.5)
    (alone,), _ = read_answers(tmp_path / "alone", None)
    assert (alone.base, alone.adapted.text) == (None, "adapted")
    write_report(tmp_path, ReportInput(experiment="x", language="ur", samples=[sample]))
    page = (tmp_path / "report.html").read_text()
    assert "<summary>ur, open (1)</summary>" in page
    assert '<span class="quiet">accuracy 2.5, logical coherence 1</span>' in page
    assert '<span class="quiet">not judged</span>' in page
    assert json.loads((tmp_path / "results.json").read_text())["samples"][0]["adapted"]["scores"] == {
        "accuracy": 2.5,
        "logical_coherence": 1,
    }


class Wellformed(html.parser.HTMLParser):
    VOID = frozenset({"meta", "br", "link", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(report_input(), id="everything"),
        pytest.param(ReportInput(experiment="empty", language="id"), id="nothing done yet"),
        pytest.param(ReportInput(experiment="failed", language="id", status={"failure": {"message": "x"}}), id="failed"),
        pytest.param(
            dataclasses.replace(report_input(), scores=[s.model_copy(update={"baseline": None, "difference": None}) for s in scores()]),
            id="without a baseline",
        ),
    ],
)
def test_every_tag_that_opens_closes_whatever_is_missing(tmp_path, report):
    write_report(tmp_path, report)
    page = Wellformed()
    page.feed((tmp_path / "report.html").read_text())
    assert page.open == []
    assert (tmp_path / "report.md").read_text().startswith(f"# {report.experiment}\n")


def test_the_verdict_is_computed_from_the_scores():
    text = verdict(scores(), "id")
    assert text.startswith(
        "Target language (id): 1.610 → 1.180 bits per byte on guide-id, −26.7 % (95 % interval −29.2 to −24.2 %), better; "
    )
    assert text.endswith("English: 0.698 → 0.702 bits per byte on udhr-en, +0.6 % (95 % interval −0.4 to +1.7 %), no difference shown.")


def test_a_difference_that_too_few_items_vouch_for_is_not_called_none():
    few = scores()[0].model_copy(update={"interval": (-0.5, -0.1), "adjusted_p_value": 0.5, "items": 4})
    assert verdict([few], "id").endswith("which may be chance (p = 0.500, 4 items).")


def test_the_verdict_on_an_evaluation_alone_states_the_value():
    alone = scores()[0].model_copy(update={"baseline": None, "difference": None})
    assert verdict([alone], "id") == "Target language (id): 1.180 bits per byte on guide-id."
    assert verdict([alone], "id-ID").startswith("Target language (id-ID): ")
    assert verdict([alone.model_copy(update={"language": "en-GB"})], "en").count("guide-id") == 1


def test_the_verdict_does_not_deny_what_the_table_has():
    assert verdict([], "id") == "No bits per byte were measured; see the table."
    assert verdict(scores()[:1], "hi") == "No bits per byte were measured in hi or English; see the table."
    assert verdict(scores()[:1], "en") == "No bits per byte were measured in en; see the table."


@pytest.mark.parametrize(
    ("difference", "interval", "higher", "effect"),
    [
        pytest.param(0.1, (0.02, 0.2), True, "better", id="more is better"),
        pytest.param(0.1, (0.02, 0.2), False, "worse", id="more is worse"),
        pytest.param(-0.1, (-0.2, -0.02), False, "better", id="less is better"),
        pytest.param(-0.1, (-0.2, -0.02), True, "worse", id="less is worse"),
        pytest.param(0.1, (-0.02, 0.2), True, "equal", id="interval contains 0"),
        pytest.param(0.0, (0.0, 0.0), True, "equal", id="identical"),
        pytest.param(0.1, None, True, "alone", id="no interval"),
        pytest.param(None, (0.1, 0.2), True, "alone", id="no baseline"),
    ],
)
def test_an_effect_is_claimed_only_where_the_interval_excludes_0(difference, interval, higher, effect):
    score = Score(suite="s", task="t", language="id", metric="m", value=1.0, difference=difference, interval=interval, items=3,
                  higher_is_better=higher)  # fmt: skip
    assert effect_of(score) == effect


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(None, False, "–"), (0.0, True, "0.000"), (-0.0001, True, "0.000"), (1.2345, False, "1.234"), (-0.43, True, "−0.430"),
     (76.21, False, "76.21"), (1234.56, False, "1,234.6"), (0.004, True, "+0.004")],
)  # fmt: skip
def test_numbers_are_short_and_have_no_signed_zero(value, sign, text):
    assert number(value, sign=sign) == text


@given(st.floats(-1e6, 1e6), st.booleans())
def test_a_printed_number_is_the_number(value, sign):
    printed = number(value, sign=sign).replace("−", "-").replace(",", "")
    assert abs(float(printed) - value) <= 0.0006 * max(1, abs(value))


def test_the_table_has_a_row_for_each_score_in_their_order():
    rows = render_table(scores())
    assert [row.cells[1] for row in rows] == [score.task for score in scores()]
    assert rows[0].cells == ("perplexity", "guide-id", "id", "bits_per_byte", "1.610", "1.180", "−0.430 better", "−0.470 … −0.390", "82")


def plans() -> tuple[StagePlan, ...]:
    texts = {"model": {"path": "m"}, "seed": 3, "texts": [{"name": "udhr-id", "language": "id"}]}
    return (
        StagePlan(name="baseline", kind=StageKind.EVALUATION, key=KEY, parameters=texts),
        StagePlan(name="pretraining", kind=StageKind.PRETRAINING, key=KEY, parameters={"seed": 3}),
        StagePlan(name="evaluation", kind=StageKind.EVALUATION, key=KEY[::-1], parameters=texts, inputs={"baseline": KEY}),
    )


def finish(store: ArtifactStore, plan: StagePlan, files: dict[str, object], **numbers: float) -> None:
    folder = store.work(plan.kind, plan.key) / "artifact"
    (folder / "items").mkdir(parents=True)
    (folder / "items" / "perplexity.udhr-id.jsonl").write_text('{"id": "0"}\n')
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    store.commit(plan, folder, numbers=numbers)


def lines(selected: list[Score]) -> dict[str, object]:
    return {"scores": [score.model_dump(mode="json", by_alias=True) for score in selected]}


def test_a_report_is_collected_from_artifacts_and_the_last_evaluation_gives_the_scores(tmp_path):
    baseline, training, evaluation = plans()
    store = ArtifactStore(tmp_path)
    course = {
        "steps": [{"step": 1, "tokens": 64, "loss": 3.0, "worldSize": 2}, {"step": 2, "tokens": 128, "loss": 2.5, "worldSize": 1}],
        "validation": [{"step": 0, "bitsPerByte": {"udhr-id": 1.6}}, {"step": 2, "bitsPerByte": {"udhr-id": 1.5}}],
    }
    finish(store, baseline, {"results.json": lines(scores()[1:2])}, seconds=4.0)
    finish(store, training, {"training.json": course}, steps=2.0)
    early = collect(tmp_path, plans(), experiment="x", language="id")
    assert [(stage.name, stage.complete) for stage in early.stages] == [("baseline", True), ("pretraining", True), ("evaluation", False)]
    assert [score.task for score in early.scores] == ["udhr-id"]

    finish(store, evaluation, {"results.json": lines(scores())})
    report = collect(tmp_path, plans(), experiment="x", language="id", status={"phase": "Complete"})
    assert list(report.scores) == scores()
    assert report.curves[0].world_sizes == [(1, 2), (2, 1)]
    assert (report.stages[0].seed, report.text_languages) == (3, {"udhr-id": "id"})
    write_report(tmp_path / "out", report)
    assert (tmp_path / "out" / "items" / "evaluation" / "perplexity.udhr-id.jsonl").is_file()
    assert "2 → 1" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("text", "digest", "shown"),
    [({}, "a", ["held", "same"]), ({"field": "body"}, "a", ["same"]), ({}, "b", ["same"]), ({"path": "other.jsonl"}, "a", ["same"])],
    ids=["nothing changed", "another field is read", "other content", "another file"],
)
def test_what_a_training_measured_on_a_text_that_is_another_today_is_not_shown(tmp_path, text, digest, shown):
    def plan(text, digest):
        texts = [{"name": "held", "path": "held.jsonl", "language": "id", **text}, {"name": "same", "path": "s.jsonl", "language": "en"}]
        execution = Execution(validation_texts=texts, validation_files={texts[0]["path"]: digest, "s.jsonl": "c"})
        return StagePlan(name="pretraining", kind=StageKind.PRETRAINING, key=KEY, parameters={"seed": 3}, execution=execution)

    course = {"steps": [], "validation": [{"step": 0, "bitsPerByte": {"held": 1.6, "same": 1.4}}]}
    finish(ArtifactStore(tmp_path), plan({}, "a"), {"training.json": course}, **{"bits_per_byte/held": 1.6, "bits_per_byte/same": 1.4})
    report = collect(tmp_path, [plan(text, digest)], experiment="x", language="id")
    assert list(report.curves[0].validation[0].bits_per_byte) == shown
    assert list(report.stages[0].numbers) == [f"bits_per_byte/{name}" for name in shown]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"steps": [3]}'])
def test_a_damaged_course_of_training_is_named(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"training\.json"):
        read_curve("pretraining", tmp_path / "training.json")


def test_an_output_folder_that_cannot_be_one_is_refused(tmp_path, monkeypatch):
    from pathlib import Path

    def refuse(self, *arguments, **values):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError):
        write_report(tmp_path / "out", report_input())
