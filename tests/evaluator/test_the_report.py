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
from transfer_api.stage import StageKind, StagePlan
from transfer_evaluator.report import collect, render_table, verdict, write_report
from transfer_evaluator.summary import ReportInput, read_curve
from transfer_evaluator.table import effect_of, number
from transfer_pod.artifact import ArtifactStore


def test_three_files_are_written_and_results_json_has_every_field(tmp_path):
    files = write_report(tmp_path / "runs" / "indonesian", report_input())
    assert sorted(path.name for path in files) == ["report.html", "report.md", "results.json"]
    content = json.loads((tmp_path / "runs" / "indonesian" / "results.json").read_text())
    wanted = {"suite", "task", "language", "metric", "value", "baseline", "difference", "interval", "items"}
    assert len(content["scores"]) == 6
    assert all(wanted <= set(score) for score in content["scores"])
    assert content["scores"][0]["interval"] == [-0.47, -0.39]


def test_the_page_is_one_file_that_asks_the_network_for_nothing(tmp_path):
    write_report(tmp_path, report_input())
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"""(src|href)=["'](?!#)|@import|url\((?!#)|<script|<link""", page)
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
    assert "<script" not in page
    assert "<b>" not in page
    assert html.unescape(page).count("<script>alert(1)</script>|") == 3  # verdict, table, label of the plot
    assert r"</script>\|" in (tmp_path / "report.md").read_text()


def test_the_overlap_with_training_stands_in_the_report_where_it_was_counted(tmp_path):
    overlap = {"suite": "s", "task": "t|u", "items": 1200, "contaminated": 30, "short": 4, "share": 0.025}
    write_report(tmp_path, dataclasses.replace(report_input(), contamination=[overlap]))
    assert r"| s | t\|u | 1,200 | 30 | 2.5 % | 4 |" in (tmp_path / "report.md").read_text()
    assert "<td>2.5 %</td>" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["contamination"] == [overlap]
    write_report(tmp_path, report_input())
    assert "Overlap" not in (tmp_path / "report.md").read_text()


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


def test_the_verdict_on_an_evaluation_alone_states_the_value():
    alone = scores()[0].model_copy(update={"baseline": None, "difference": None})
    assert verdict([alone], "id") == "Target language (id): 1.180 bits per byte on guide-id."
    assert "No bits per byte" in verdict([], "id")


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
        "steps": [{"step": 1, "tokens": 64, "loss": 3.0, "world_size": 2}, {"step": 2, "tokens": 128, "loss": 2.5, "world_size": 1}],
        "validation": [{"step": 0, "bits_per_byte": {"udhr-id": 1.6}}, {"step": 2, "bits_per_byte": {"udhr-id": 1.5}}],
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


def test_camel_case_and_absent_world_sizes_are_read_too(tmp_path):
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"steps": [{"step": 1, "tokens": 8, "loss": None}], "validation": [{"step": 0, "bitsPerByte": {"a": 1.0}}]}))
    curve = read_curve("pretraining", path)
    assert curve.world_sizes == []
    assert curve.validation[0].bits_per_byte == {"a": 1.0}


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
