"""Distillation: new rows learn to stand for the tokens that they replace, and nothing else moves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.support.tiny import SENTENCES, save_tiny_model
from transfer_api.errors import ModelError
from transfer_api.spec import Distillation, Initialization, ModelSource, Precision, TextSource
from transfer_api.stage import StageKind, StagePlan, VocabularyParameters
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer import vocabulary
from transfer_trainer.dataset import load_tokenizer
from transfer_trainer.distillation import WINDOW, Added, check_distillable, choose, distil
from transfer_trainer.model import load_model, summed_loss
from transfer_trainer.parallel import Team
from transfer_trainer.tokenizer import BaseTokenizer
from transfer_trainer.validation import bits_per_byte, tokenise

TEXTS = [f"{sentence} Kata {number} 人人生而自由，在尊严和权利上一律平等。" for sentence in SENTENCES[2:] for number in range(150)]
HELD_OUT = [f"{SENTENCES[number]} Bab {number}: 人人生而自由。" for number in (2, 3)]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that have learned the texts a little, so that their hidden states mean something."""
    root = tmp_path_factory.mktemp("storage")
    (root / "corpus.txt").write_text("\n\n".join(TEXTS))
    for name, tied in (("tied", True), ("untied", False)):
        train(save_tiny_model(root / name, tied=tied))
    return root


def train(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [tokenizer(text).input_ids[:96] for text in TEXTS[::30]]
    tokens = torch.tensor([[*row, *[0] * (96 - len(row))] for row in rows])
    positions, targets, weights = torch.arange(96).expand_as(tokens), tokens > 0, torch.ones(len(tokens))
    for _ in range(30):
        (summed_loss(model, tokens, positions, targets, weights).objective / targets.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def make(storage: Path, key: str, model: str, initialization: Initialization, **settings: object) -> Path:
    distillation = Distillation.model_validate(settings) if initialization is Initialization.DISTILLATION else None
    parameters = VocabularyParameters(
        model=ModelSource(path=model), added_tokens=30, initialization=initialization, distillation=distillation,
        corpus=[TextSource(path="corpus.txt")], seed=1,
    )  # fmt: skip
    stage = StagePlan(name="v", kind=StageKind.VOCABULARY, key=key, parameters=parameters.model_dump(mode="json", by_alias=True))
    vocabulary.run(PodContext(stage=stage, storage=storage, pod="p"), lambda progress: None)
    return ArtifactStore(storage).open(StageKind.VOCABULARY, key)


def bits(folder: Path) -> float:
    text = tokenise("held-out", HELD_OUT, load_tokenizer(folder), 128)
    return bits_per_byte(load_model(folder), [text], Team(), Precision.FLOAT32, 1024)["held-out"]


def state_error(storage: Path, base: str, folder: Path) -> float:
    """Mean squared difference of the last hidden states between a held-out text in new tokens and in old ones."""
    old, new = load_tokenizer(storage / base), load_tokenizer(folder / "model")
    taken_apart = BaseTokenizer(old)
    tokens = json.loads((folder / "vocabulary.json").read_text())["tokens"]
    added = Added(taken_apart.size, [taken_apart.ids(token) for token in tokens])
    model, total = load_model(folder / "model"), 0.0
    for text in HELD_OUT:
        ids = new(text).input_ids
        expanded, ends = added.expand(ids)
        assert expanded == old(text).input_ids
        with torch.no_grad():
            states, wanted = (model.base_model(input_ids=torch.tensor([each])).last_hidden_state[0] for each in (ids, expanded))
        total += float((states - wanted[ends]).square().mean())
    return total / len(HELD_OUT)


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_it_beats_the_mean_of_subtokens_on_held_out_text_and_moves_no_old_row(storage: Path, model: str) -> None:
    mean = make(storage, f"mean-{model}", model, Initialization.SUBTOKEN_MEAN)
    distilled = make(storage, f"distilled-{model}", model, Initialization.DISTILLATION, learning_rate="1e-2", snippets=1000)
    assert bits(distilled / "model") < 0.95 * bits(mean / "model")
    assert state_error(storage, model, distilled) < 0.9 * state_error(storage, model, mean)
    before, after = (AutoModelForCausalLM.from_pretrained(folder / "model").state_dict() for folder in (mean, distilled))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}
    size = json.loads((mean / "vocabulary.json").read_text())["base_size"]
    assert all(torch.equal(before[name][:size], after[name][:size]) for name in changed)


def test_two_runs_are_equal_and_the_file_says_what_was_spent(storage: Path) -> None:
    folders = [make(storage, f"again-{number}", "tied", Initialization.DISTILLATION, snippets=3) for number in (1, 2)]
    first, second = (AutoModelForCausalLM.from_pretrained(folder / "model").get_input_embeddings().weight for folder in folders)
    assert torch.equal(first, second)
    facts = json.loads((folders[0] / "vocabulary.json").read_text())["distillation"]
    assert 3 <= facts["snippets"] <= 3 * 30
    assert all(math.isfinite(value) for value in facts.values())


def test_windows_are_chosen_until_each_token_was_seen_often_enough() -> None:
    added = Added(100, [[1, 2], [3, 4], [5, 6]])
    documents: Sequence[Sequence[int]] = [[100, 7], [100, 8], [7, 8, 9], [100, 101], [101, 9], [101, 7]]
    assert [list(window) for window in choose(documents, added, 2)] == [[100, 7], [100, 8], [100, 101], [101, 9]]
    assert [list(window) for window in choose(documents[:1], added, 2)] == [[100, 7]]
    long = choose([[102] * (2 * WINDOW + 1)], added, 9)
    assert [len(window) for window in long] == [WINDOW, WINDOW]  # a last window of one token has nothing to predict


def test_expanded_tokens_know_where_they_end() -> None:
    assert Added(100, [[1, 2, 3], [4]]).expand([9, 100, 101, 8]) == ([9, 1, 2, 3, 4, 8], [0, 3, 4, 5])


def test_without_snippets_nothing_is_changed(storage: Path) -> None:
    model = load_model(storage / "tied")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    size = model.config.vocab_size
    assert distil(model, [], Added(size - 1, [[1]]), Distillation()) == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_scales_what_it_reads_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10))
    check_distillable(model)
    model.config.model_type = "gemma2"
    with pytest.raises(ModelError, match="cannot be distilled"):
        check_distillable(model)
