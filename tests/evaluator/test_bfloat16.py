"""Scores in bfloat16 stay within its rounding of those in float32, and choices differ only where float32 all but ties."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from tests.evaluator.tasks import write_tasks
from transfer_api.spec import Precision
from transfer_evaluator.harness import HarnessModel
from transfer_evaluator.model import LoadedModel, load_model
from transfer_evaluator.scorer import TokenScorer
from transfer_evaluator.tasks import TaskLibrary

TOKEN_TOLERANCE = 0.03
"""Nats a token: eight bits of mantissa on logits of a few units. A wrong mask or position moves a score of this model by tenths."""


@pytest.fixture(scope="module")
def half(tiny_folder: Path) -> LoadedModel:
    return load_model(tiny_folder, Precision.BFLOAT16)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> TaskLibrary:
    return TaskLibrary([write_tasks(tmp_path_factory.mktemp("tasks"))])


def scores(library: TaskLibrary, suite: str, model: Any) -> np.ndarray:
    """Log-likelihoods, items by options."""
    found = simple_evaluate(
        model=model, tasks=library._load(suite), task_manager=library._manager, num_fewshot=1 if suite == "letters" else None,
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    return np.array([[response[0][0] for response in sample["resps"]] for sample in found["samples"][suite]])


def lengths(library: TaskLibrary, suite: str, model: HarnessModel) -> np.ndarray:
    (task,) = library._load(suite)
    return np.array([[len(model.tok_encode(f" {option}")) for option in task.doc_to_choice(doc)] for doc in task.eval_docs])


@pytest.mark.parametrize("tree", [pytest.param(True, id="tree"), pytest.param(False, id="padded batches")])
@pytest.mark.parametrize("suite", ["letters", "cloze"])
def test_scores_are_those_of_float32_within_the_rounding(library, tiny, half, suite, tree):
    assert str(half.model.dtype) == "torch.bfloat16"
    exact = scores(library, suite, HarnessModel(tiny))
    rounded = scores(library, suite, HarnessModel(half, TokenScorer(half.model, tree=tree, row_tokens=32)))
    assert not np.array_equal(exact, rounded), "it was computed in float32"
    tolerance = TOKEN_TOLERANCE * lengths(library, suite, HarnessModel(tiny))
    assert (np.abs(rounded - exact) <= tolerance).all(), np.abs(rounded - exact).max()
    for item, (wanted, found) in enumerate(zip(exact, rounded, strict=True)):
        best, second = itertools.islice(sorted(wanted, reverse=True), 2)
        if best - second > 2 * tolerance[item].max():
            assert wanted.argmax() == found.argmax()


def test_they_are_no_farther_from_float32_than_those_of_the_harness_in_bfloat16(library, tiny, half, tiny_folder):
    exact = scores(library, "cloze", HarnessModel(tiny))
    ours = np.abs(scores(library, "cloze", HarnessModel(half)) - exact).mean()
    theirs = HFLM(pretrained=str(tiny_folder), dtype="bfloat16", device="cpu", batch_size=4)
    assert ours <= np.abs(scores(library, "cloze", theirs) - exact).mean()
