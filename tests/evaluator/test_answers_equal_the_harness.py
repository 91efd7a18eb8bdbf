"""Our model in lm-evaluation-harness against the harness's own `hf` model on the same tasks, in float32."""

import json
from pathlib import Path

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from tests.evaluator.tasks import write_tasks
from transfer_api.errors import DataError, SpecError
from transfer_evaluator.generation import Prompt, answer, cache_bytes_per_token, is_plainly_greedy
from transfer_evaluator.harness import HarnessModel
from transfer_evaluator.scorer import TokenScorer
from transfer_evaluator.tasks import TaskLibrary, read_results, resolve_data_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def library(folder) -> TaskLibrary:
    return TaskLibrary([folder])


@pytest.fixture(scope="module")
def theirs(tiny_folder) -> HFLM:
    return HFLM(pretrained=str(tiny_folder), dtype="float32", device="cpu", batch_size=4)


def evaluate(library: TaskLibrary, suite: str, model: object, shots: int | None = None) -> dict:
    return simple_evaluate(
        model=model, tasks=library._load(suite), task_manager=library._manager, num_fewshot=shots, bootstrap_iters=0, log_samples=True
    )


@pytest.mark.parametrize("tree", [pytest.param(True, id="tree"), pytest.param(False, id="padded batches")])
@pytest.mark.parametrize(
    ("suite", "shots"),
    [
        pytest.param("letters", None, id="one-token options"),
        pytest.param("letters", 2, id="two examples before each question"),
        pytest.param("cloze", None, id="full-text options"),
        pytest.param("rolling", None, id="whole texts"),
    ],
)
def test_log_likelihoods_and_answers_are_the_same(library, tiny, theirs, suite, shots, tree):
    ours = HarnessModel(tiny, TokenScorer(tiny.model, tree=tree, row_tokens=128))
    found, wanted = evaluate(library, suite, ours, shots), evaluate(library, suite, theirs, shots)
    assert len(found["samples"][suite]) == len(wanted["samples"][suite]) > 0
    for own, other in zip(found["samples"][suite], wanted["samples"][suite], strict=True):
        assert own["arguments"] == other["arguments"]
        for (own_response,), (other_response,) in zip(own["resps"], other["resps"], strict=True):
            if suite == "rolling":
                assert own_response == pytest.approx(other_response, abs=1e-3)  # a sum over hundreds of tokens
            else:
                assert own_response[0] == pytest.approx(other_response[0], abs=1e-4)
                assert own_response[1] == other_response[1]
        assert {m: own[m] for m in own["metrics"] if m.startswith("acc")} == {m: other[m] for m in other["metrics"] if m.startswith("acc")}
    for metric, value in wanted["results"][suite].items():
        if isinstance(value, float):
            assert found["results"][suite][metric] == pytest.approx(value, rel=1e-5, abs=1e-4)


def test_greedy_answers_are_the_same(library, tiny, theirs):
    ours = HarnessModel(tiny, TokenScorer(tiny.model))
    found, wanted = evaluate(library, "generated", ours), evaluate(library, "generated", theirs)
    assert [s["resps"] for s in found["samples"]["generated"]] == [s["resps"] for s in wanted["samples"]["generated"]]


@pytest.mark.parametrize("cache_tokens", [1, 200, 10_000], ids=["one at a time", "a few", "all together"])
@pytest.mark.parametrize("tree", [pytest.param(True, id="tree"), pytest.param(False, id="generate")])
def test_answers_do_not_depend_on_who_stands_beside_them(tiny, cache_tokens, tree):
    texts = ["all human beings", "Semua orang", "all human beings are born free and equal in dignity and rights", "S", "are endowed with"]
    prompts = [Prompt(tuple(tiny.tokenizer.encode(text)), 24, ()) for text in texts]
    plain = TokenScorer(tiny.model, tree=False)
    whole = [answer(tiny, [prompt], lambda finished, tokens: None, scorer=plain)[0] for prompt in prompts]
    counted = []

    def together(prompts: list[Prompt]) -> list[str]:
        return answer(
            tiny, prompts, lambda finished, tokens: counted.append((finished, tokens)),
            scorer=TokenScorer(tiny.model, tree=tree, row_tokens=16), cache_bytes=cache_tokens * cache_bytes_per_token(tiny.model),
        )  # fmt: skip

    assert together(prompts) == whole
    assert sum(finished for finished, _ in counted) == len(prompts)
    # A stop string from the middle of an answer ends it there, and its neighbours go on.
    stop = whole[0][len(whole[0]) // 2 :][:3]
    assert stop
    assert together([Prompt(prompt.tokens, 24, (stop,)) for prompt in prompts]) == [text.split(stop)[0] for text in whole]


def test_answers_end_at_every_token_that_the_model_names_as_its_end(tiny):
    prompt = Prompt(tuple(tiny.tokenizer.encode("Semua orang")), 12, ())
    ((end, *_),) = (tiny.tokenizer.encode(answer(tiny, [prompt], lambda *done: None)[0])[3:],)
    config = tiny.model.generation_config
    before, config.eos_token_id = config.eos_token_id, [tiny.tokenizer.eos_token_id, end]
    try:
        for tree in (True, False):
            (text,) = answer(tiny, [prompt], lambda *done: None, scorer=TokenScorer(tiny.model, tree=tree))
            assert end not in tiny.tokenizer.encode(text)
    finally:
        config.eos_token_id = before


def test_a_model_without_an_end_answers_up_to_the_limit(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.tokenizer), "eos_token_id", None, raising=False)
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", None)
    prompts = [Prompt((5, 6, 7), 4, ()), Prompt((5, 6), 4, ())]
    found = [answer(tiny, prompts, lambda *done: None, scorer=TokenScorer(tiny.model, tree=tree)) for tree in (True, False)]
    assert found[0] == found[1]
    assert all(found[0])


def test_a_model_that_wants_a_penalty_gets_it(tiny, theirs, library):
    config, other = tiny.model.generation_config, theirs.model.generation_config
    plain = evaluate(library, "generated", HarnessModel(tiny))
    config.repetition_penalty = other.repetition_penalty = 5.0
    try:
        assert not is_plainly_greedy(tiny.model)
        found, wanted = evaluate(library, "generated", HarnessModel(tiny)), evaluate(library, "generated", theirs)
    finally:
        config.repetition_penalty = other.repetition_penalty = None
    answers = [[sample["resps"] for sample in one["samples"]["generated"]] for one in (found, wanted, plain)]
    assert answers[0] == answers[1] != answers[2]


def test_a_context_longer_than_the_model_is_cut_as_the_harness_cuts_it(tiny, theirs):
    from lm_eval.api.instance import Instance

    long = "all human beings are born free " * 60
    requests = [Instance("loglikelihood", {}, (long, option), 0) for option in (" and", " equal in dignity")]
    ours = HarnessModel(tiny, TokenScorer(tiny.model)).loglikelihood(requests)
    for own, other in zip(ours, theirs.loglikelihood(requests, disable_tqdm=True), strict=True):
        assert own[0] == pytest.approx(other[0], abs=1e-4)


def test_a_continuation_without_context_follows_the_prefix_token(tiny, theirs):
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, ("", "Semua orang"), 0)]
    ours = HarnessModel(tiny, TokenScorer(tiny.model)).loglikelihood(requests)
    assert ours[0][0] == pytest.approx(theirs.loglikelihood(requests, disable_tqdm=True)[0][0], abs=1e-4)


def test_sampling_is_refused(tiny):
    from lm_eval.api.instance import Instance

    requests = [Instance("generate_until", {}, ("Semua", {"do_sample": True, "temperature": 0.7}), 0)]
    with pytest.raises(SpecError, match="not repeatable"):
        HarnessModel(tiny, TokenScorer(tiny.model)).generate_until(requests)


def test_results_keep_items_language_and_how_they_came_about(library, tiny):
    (result,) = library.run("letters", HarnessModel(tiny, TokenScorer(tiny.model)), shots=None, limit=3, seed=0)
    assert (result.language, len(result.items)) == ("id", 3)
    assert result.harness.startswith("lm-evaluation-harness 0.4.")
    assert result.harness.endswith("0-shot, log-likelihood, split test, task version 1.0")
    assert {"acc", "acc_norm"} <= {metric.name for metric in result.metrics}
    assert all(len(item["responses"]) == 4 and item["acc"] in (0.0, 1.0) for item in result.items)


def test_a_group_has_its_own_line_before_its_tasks_over_all_their_items(library, tiny):
    whole, *parts = library.run("both", HarnessModel(tiny, TokenScorer(tiny.model)), shots=None, limit=None, seed=0)
    assert (whole.task, whole.detail) == ("both", False)
    assert sorted(part.task for part in parts) == ["cloze", "letters"]
    assert all(part.detail for part in parts)
    assert len(whole.items) == sum(len(part.items) for part in parts)
    assert [metric.name for metric in whole.metrics] == ["acc"]


def test_a_figure_that_is_no_mean_of_items_is_passed_on_without_them(library, tiny):
    results = evaluate(library, "rolling", HarnessModel(tiny, TokenScorer(tiny.model)))
    (result,) = read_results("rolling", results)
    assert not result.metrics
    assert result.aggregates["bits_per_byte"][1] is False


@pytest.mark.usefixtures("harness_index")
def test_an_unknown_suite_names_field_value_and_the_nearest(library):
    with pytest.raises(SpecError) as refused:
        library.check(["letters", "lettres"])
    assert refused.value.field == "spec.evaluation.suites"
    assert refused.value.value == "lettres"
    assert "letters" in str(refused.value)


@pytest.mark.usefixtures("harness_index")
def test_a_group_that_names_no_task_is_refused_before_a_model_is_loaded(tmp_path):
    write_tasks(tmp_path)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [letters, clozze]\n")
    with pytest.raises(SpecError, match=r"no such task, which the group both names.*clozze.*cloze"):
        TaskLibrary([tmp_path]).check(["both"])


def test_suites_of_the_task_folder_need_no_index_of_the_whole_harness(library, monkeypatch):
    monkeypatch.setattr(TaskLibrary, "_index", lambda *a, **k: pytest.fail("built the whole index"))
    library.check(["letters", "both"])


def test_a_missing_data_file_is_named(tmp_path):
    write_tasks(tmp_path)
    (tmp_path / "letters.jsonl").unlink()
    with pytest.raises(DataError, match=r"letters\.jsonl"):
        TaskLibrary([tmp_path])._load("letters")


def test_relative_data_files_are_resolved_in_every_form(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([]))
    absolute = str(tmp_path / "a.json")
    assert resolve_data_files({"test": "a.json", "train": ["a.json"]}, tmp_path) == {"test": absolute, "train": [absolute]}
    assert resolve_data_files("hf://data/a.json", tmp_path) == "hf://data/a.json"
    assert resolve_data_files(absolute, tmp_path / "elsewhere") == absolute


def test_the_tiny_model_is_scored_in_float32(tiny):
    assert tiny.model.dtype is torch.float32
