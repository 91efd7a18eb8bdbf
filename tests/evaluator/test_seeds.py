"""Runs that differ in their seed alone, as one table."""

import json
import math

import numpy as np
import pytest

from tests.operator.builders import TRAINING, experiment
from transfer_api.errors import SpecError
from transfer_api.results import ReportedScore, Results, StageRecord
from transfer_api.stage import plan_stages
from transfer_cli.main import main
from transfer_evaluator.seeds import combine, combine_runs
from transfer_evaluator.summary import collect

WIDTH = 2 * 1.959964


def score(value: float, *, error: float = 0.01, baseline: float | None = 1.0, task: str = "udhr-id") -> ReportedScore:
    middle = value if baseline is None else value - baseline
    return ReportedScore(
        suite="perplexity", task=task, language="id", metric="bits_per_byte", value=value, baseline=baseline, items=30, effect="better",
        difference=None if baseline is None else value - baseline, interval=(middle - WIDTH / 2 * error, middle + WIDTH / 2 * error),
        higher_is_better=False, harness="h",
    )  # fmt: skip


def results(seed: int, *scores: ReportedScore, recipe: str = "one") -> Results:
    stage = StageRecord(name="pretraining", kind="pretraining", key="k", digest="d", complete=True, seed=seed, numbers={})
    return Results(experiment=f"run-{seed}", language="id", recipe=recipe, verdict="", scores=list(scores), stages=[stage])


def test_what_the_seed_does_and_what_the_items_do_are_told_apart():
    found = combine([1.0, 2.0, 3.0], [0.3, 0.3, 0.3])
    assert (found.mean, found.seed_deviation, found.item_error) == (2.0, 1.0, pytest.approx(0.3))
    assert found.error == pytest.approx(math.sqrt(0.09 + 1 / 3))
    assert found.seed_share == pytest.approx((1 / 3) / (0.09 + 1 / 3))


def test_runs_that_agree_are_left_with_the_doubt_of_their_items():
    found = combine([0.5, 0.5], [0.1, 0.1])
    assert found.interval == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-3)
    assert found.seed_share == 0.0
    assert combine([0.5, 0.5], [0.0, 0.0]).interval == (0.5, 0.5)


def test_two_seeds_that_disagree_have_the_wide_interval_of_one_degree_of_freedom():
    low, high = combine([0.0, 1.0], [0.0, 0.0]).interval
    assert high - 0.5 == pytest.approx(12.706 * 0.5, rel=1e-4)
    assert low == pytest.approx(1 - high)


@pytest.mark.parametrize(("seeds", "of_seed", "of_items"), [(2, 0.3, 1.0), (3, 1.0, 1.0), (5, 1.0, 0.1), (5, 0.0, 1.0)])
def test_the_interval_covers_the_truth_at_least_as_often_as_it_says(seeds, of_seed, of_items):
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(2000):
        items, runs = random.normal(0, of_items), random.normal(0, of_seed, seeds)
        low, high = combine(list(items + runs), [of_items] * seeds).interval
        covered += low <= 0 <= high
    assert covered >= 0.94 * 2000


def test_lines_that_all_runs_have_stand_beside_the_baseline():
    first = results(1, score(0.8), score(0.9, task="udhr-en"), score(2.0, baseline=None, task="alone"))
    second = results(2, score(0.82), score(1.1, task="udhr-en"), score(2.1, baseline=None, task="alone"))
    better, equal, alone = combine_runs([first, second])
    assert (better.task, better.value, better.baseline, better.effect) == ("udhr-id", pytest.approx(0.81), 1.0, "better")
    assert better.combined.mean == pytest.approx(-0.19)
    assert (equal.lowest, equal.highest, equal.effect) == (0.9, 1.1, "equal")
    assert (alone.effect, alone.baseline, alone.combined.mean) == ("alone", None, pytest.approx(2.05))


def test_a_figure_that_is_no_mean_of_items_says_so():
    (line,) = combine_runs([results(seed, score(value).model_copy(update={"interval": None})) for seed, value in ((1, 0.8), (2, 0.82))])
    assert not line.items_counted
    assert line.combined.item_error == 0


def test_seeds_differ_in_the_recipe_of_no_stage(tmp_path):
    recipes = set()
    for seed, steps in ((1, 100), (2, 100), (2, 200)):
        plan = plan_stages(experiment(seed=seed, pretraining={**TRAINING["pretraining"], "steps": steps}).spec)
        recipes.add(collect(tmp_path, plan, experiment="x", language="id").recipe)
    assert len(recipes) == 2


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        pytest.param([results(1, score(0.8))], "one run", id="one run"),
        pytest.param([results(1, score(0.8)), results(1, score(0.8))], "same seed", id="the same seed"),
        pytest.param([results(1, score(0.8)), results(2, score(0.8), recipe="two")], "more than their seed", id="another file"),
        pytest.param([results(1, score(0.8), recipe=""), results(2, score(0.8), recipe="")], "more than their seed", id="an old report"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(runs, says):
    with pytest.raises(SpecError, match=says):
        combine_runs(runs)


def test_the_command_reads_the_reports_of_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for seed, value in ((1, 0.8), (2, 0.82)):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        (folder / "status.yaml").write_text("")
        (folder / "results.json").write_text(results(seed, score(value)).model_dump_json(by_alias=True))
    names = [str(tmp_path / f"run-{seed}") for seed in (1, 2)]
    assert main(["seeds", *names, "--json", str(tmp_path / "all.json")]) == 0
    assert "udhr-id" in capsys.readouterr().out
    (line,) = json.loads((tmp_path / "all.json").read_text())
    assert (line["effect"], line["combined"]["mean"], line["seed_share"] > 0) == ("better", pytest.approx(-0.19), True)
    assert main(["seeds", names[0], str(tmp_path / "none")]) == 2
    (tmp_path / "run-2" / "results.json").write_text("{}")
    assert main(["seeds", *names]) == 11
