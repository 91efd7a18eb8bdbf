"""Continued Unigram vocabularies: texts are cut as the base cuts them, with runs of its pieces joined."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.support.tiny import SENTENCES, save_tiny_model, unigram_tokenizer
from transfer_api.errors import DataError, ModelError
from transfer_api.progress import ResultMessage
from transfer_api.spec import Initialization, ModelSource, TextSource
from transfer_api.stage import StageKind, StagePlan, VocabularyParameters
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer import vocabulary
from transfer_trainer.dataset import load_tokenizer
from transfer_trainer.tokenizer import BaseTokenizer
from transfer_trainer.vocabulary import learn

TEXTS = [f"{sentence} Kata {number} 人人生而自由，在尊严和权利上一律平等。" for sentence in SENTENCES[2:] for number in range(10)]
KINDS = ["xglm", "bytes"]
BASES = {"xglm": BaseTokenizer(unigram_tokenizer()), "bytes": BaseTokenizer(unigram_tokenizer(byte_fallback=True))}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("storage")
    save_tiny_model(root / "xglm", tied=False, tokenizer=unigram_tokenizer())
    save_tiny_model(root / "bytes", tokenizer=unigram_tokenizer(byte_fallback=True))
    (root / "corpus.txt").write_text("\n\n".join(TEXTS))
    for kind in KINDS:
        parameters = VocabularyParameters(
            model=ModelSource(path=kind), added_tokens=60, initialization=Initialization.SUBTOKEN_MEAN,
            corpus=[TextSource(path="corpus.txt")], seed=1, pad_to_multiple_of=None,
        )  # fmt: skip
        stage = StagePlan(name="v", kind=StageKind.VOCABULARY, key=kind, parameters=parameters.model_dump(mode="json", by_alias=True))
        result = vocabulary.run(PodContext(stage=stage, storage=root, pod="p"), lambda progress: None)
        (root / f"{kind}.json").write_text(result.model_dump_json())
    return root


def extended(storage: Path, kind: str) -> Path:
    return ArtifactStore(storage).open(StageKind.VOCABULARY, kind)


def known(kind: str, text: str) -> bool:
    """Whether the base gives a text back: it has no unknown character."""
    return BASES[kind].unknown not in Tokenizer.from_str(json.dumps(BASES[kind].plain)).encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_extended_model_is_loaded_by_plain_transformers_with_old_ids_and_scores(storage: Path, kind: str) -> None:
    folder = extended(storage, kind)
    old, new = AutoTokenizer.from_pretrained(storage / kind), AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert type(new) is type(old)
    assert len(new) == len(old) + 60 == model.get_input_embeddings().weight.shape[0]
    before, after = (json.loads(one.backend_tokenizer.to_str())["model"]["vocab"] for one in (old, new))
    assert after[: len(before)] == before
    assert {token: new.convert_tokens_to_ids(token) for token in old.get_vocab()} == old.get_vocab()
    assert model(input_ids=torch.tensor([new(TEXTS[0]).input_ids])).logits.shape[-1] == len(new)
    assert new("").input_ids == old("").input_ids, "the template of special tokens is the same"


@pytest.mark.parametrize("kind", KINDS)
def test_every_added_piece_is_reached_from_its_own_text_and_from_the_corpus(storage: Path, kind: str) -> None:
    folder = extended(storage, kind)
    facts = json.loads((folder / "vocabulary.json").read_text())
    new, size = load_tokenizer(folder / "model"), len(load_tokenizer(storage / kind))
    model = new.backend_tokenizer.model
    assert [[token.id for token in model.tokenize(piece)] for piece in facts["tokens"]] == [[size + number] for number in range(60)]
    used = {token for text in TEXTS for token in new(text).input_ids}
    unused = [piece for number, piece in enumerate(facts["tokens"], size) if number not in used]
    assert all(len(piece) == 1 for piece in unused), "characters that stand in longer pieces alone"
    assert any(piece.startswith("▁") and len(piece) > 4 for piece in facts["tokens"])
    assert any(len(piece) > 1 and "一" <= piece[0] <= "鿿" for piece in facts["tokens"])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_take_fewer_tokens_and_characters_that_were_unknown_come_back(storage: Path, kind: str) -> None:
    folder = extended(storage, kind)
    old, new = load_tokenizer(storage / kind), load_tokenizer(folder / "model")
    numbers = ResultMessage.model_validate_json((storage / f"{kind}.json").read_text()).numbers
    assert numbers["tokens_per_word_after"] < numbers["tokens_per_word_before"] * 0.7
    assert new.decode(new(TEXTS[0], add_special_tokens=False).input_ids) == TEXTS[0]
    assert (old.decode(old(TEXTS[0], add_special_tokens=False).input_ids) == TEXTS[0]) is (kind == "bytes")


def test_rows_begin_as_the_mean_of_known_pieces_and_of_all_rows_where_there_is_none(storage: Path) -> None:
    folder, base = extended(storage, "xglm"), BASES["xglm"]
    tokens = json.loads((folder / "vocabulary.json").read_text())["tokens"]
    assert base.ids(tokens[0]) == [base.unknown]
    before, after = (AutoModelForCausalLM.from_pretrained(one) for one in (storage / "xglm", folder / "model"))
    for old, new in (
        (before.get_input_embeddings().weight, after.get_input_embeddings().weight),
        (before.get_output_embeddings().weight, after.get_output_embeddings().weight),
    ):
        assert torch.equal(new[: base.size], old)
        for number, piece in enumerate(tokens, base.size):
            ids = [one for one in base.ids(piece) if one != base.unknown] or list(range(base.size))
            torch.testing.assert_close(new[number], old[ids].mean(dim=0))


WORDS = st.lists(st.sampled_from([*"abeknrtu ,.7人权é🙂", "▁", "  ", "manusia", " bersaudara", "equal", "dan "]), max_size=30).map("".join)
LEARNED: dict[str, tuple[Any, Any, Any]] = {}


def tokenizers(kind: str) -> tuple[Any, Any, Any]:
    """Base and extended tokenizer, and what was learned."""
    if kind not in LEARNED:
        base = BASES[kind]
        learned = learn(base, Counter(word for text in TEXTS for word in base.words(text)), 60)
        plain = {**base.plain, "model": {**base.plain["model"], "vocab": base.entries(learned.tokens, learned.scores)}}
        LEARNED[kind] = Tokenizer.from_str(json.dumps(base.plain)), Tokenizer.from_str(json.dumps(plain)), learned
    return LEARNED[kind]


@pytest.mark.parametrize("kind", KINDS)
@given(text=WORDS)
@settings(max_examples=150, deadline=None)
def test_a_text_is_cut_as_before_with_runs_joined(kind: str, text: str) -> None:
    base = BASES[kind]
    old, new, learned = tokenizers(kind)
    ids, before = new.encode(text, add_special_tokens=False).ids, old.encode(text, add_special_tokens=False).ids
    characters = [token for token in learned.tokens if len(token) == 1]
    if not set(characters) & set(text):
        parts = [base.ids(learned.tokens[one - base.size]) if one >= base.size else [one] for one in ids]
        assert [part for pieces in parts for part in pieces] == before
        assert len(ids) <= len(before)
    if all(one < base.size for one in ids):
        assert ids == before
    if base.unknown not in ids:
        assert new.decode(ids) == base.decoded(text)
    if known(kind, text):
        assert new.decode(ids) == old.decode(before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_corpus_gives_the_same_pieces_and_scores(kind: str) -> None:
    base = BASES[kind]
    words = Counter(word for text in TEXTS for word in base.words(text))
    assert learn(base, words, 60) == tokenizers(kind)[2]


def test_a_corpus_too_small_says_how_many_it_gives() -> None:
    base = BASES["xglm"]
    words = Counter(word for text in TEXTS for word in base.words(text))
    with pytest.raises(DataError, match="too small") as caught:
        learn(base, words, 100_000)
    limit = int(str(caught.value.allowed).split()[2])
    assert len(learn(base, words, limit).tokens) == limit


def test_special_tokens_behind_the_vocabulary_stay_and_gaps_are_refused() -> None:
    tokenizer: Any = unigram_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|late|>"]})
    base = BaseTokenizer(tokenizer)
    late = tokenizer.convert_tokens_to_ids("<|late|>")
    assert (base.size, base.entries(["▁baru"], [-3.0])[late:]) == (late + 1, [("<|late|>", min(base.scores)), ("▁baru", -3.0)])
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    plain["added_tokens"][-1]["id"] = late
    plain["model"]["vocab"] = plain["model"]["vocab"][:-3]
    base.plain["model"]["vocab"] = plain["model"]["vocab"]
    base.scores = base.scores[:-3]
    with pytest.raises(ModelError, match="leaves out ids"):
        base._check_numbers()


def test_wordpiece_is_refused_with_what_is_allowed() -> None:
    pieces = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match=r"WordPiece.*Unigram"):
        BaseTokenizer(PreTrainedTokenizerFast(tokenizer_object=pieces))
