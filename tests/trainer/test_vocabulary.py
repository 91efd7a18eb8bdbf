"""The vocabulary stage: from a corpus to a larger model that plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.support.tiny import SENTENCES, drop_tensor, llama2_tokenizer, save_tiny_model, tiny_tokenizer
from transfer_api.errors import DataError, ModelError
from transfer_api.progress import ResultMessage
from transfer_api.spec import Initialization, ModelSource, TextSource
from transfer_api.stage import StageKind, StagePlan, VocabularyParameters
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer import vocabulary
from transfer_trainer.dataset import load_tokenizer
from transfer_trainer.embedding import MULTIVARIATE_SCALE
from transfer_trainer.tokenizer import BaseTokenizer

TEXTS = [f"{sentence} Kata {number} 人人生而自由，在尊严和权利上一律平等。" for sentence in SENTENCES[2:] for number in range(10)]
ADDED = 30


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("storage")
    save_tiny_model(root / "tied")
    save_tiny_model(root / "untied", tied=False)
    save_tiny_model(root / "llama2", tied=False, tokenizer=llama2_tokenizer())
    save_tiny_model(root / "llama2-legacy", tokenizer=llama2_tokenizer(legacy=True))
    (root / "corpus.txt").write_text("\n\n".join(TEXTS))
    return root


def run(
    storage: Path, key: str, model: str = "tied", added: int = ADDED, initialization: str = "SubtokenMean", multiple: int | None = None
) -> tuple[ResultMessage, Path]:
    parameters = VocabularyParameters(
        model=ModelSource(path=model), added_tokens=added, initialization=Initialization(initialization),
        pad_to_multiple_of=multiple, corpus=[TextSource(path="corpus.txt")], seed=1,
    )  # fmt: skip
    stage = StagePlan(name="v", kind=StageKind.VOCABULARY, key=key, parameters=parameters.model_dump(mode="json", by_alias=True))
    result = vocabulary.run(PodContext(stage=stage, storage=storage, pod="p"), lambda progress: None)
    return result, ArtifactStore(storage).open(StageKind.VOCABULARY, key)


def weights(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


def test_the_extended_model_is_loaded_by_plain_transformers(storage: Path) -> None:
    result, folder = run(storage, "plain")
    old, new = AutoTokenizer.from_pretrained(storage / "tied"), AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert len(new) == len(old) + ADDED == model.config.vocab_size == model.get_input_embeddings().weight.shape[0]
    assert [new.convert_tokens_to_ids(token) for token in new.all_special_tokens] == [
        old.convert_tokens_to_ids(token) for token in old.all_special_tokens
    ]
    assert new.chat_template == old.chat_template
    assert result.numbers["added_tokens"] == ADDED
    assert model(input_ids=torch.tensor([new(TEXTS[0]).input_ids])).logits.shape[-1] == len(new)


def test_texts_take_fewer_tokens_and_come_back_unchanged(storage: Path) -> None:
    result, folder = run(storage, "shorter")
    old, new = load_tokenizer(storage / "tied"), load_tokenizer(folder / "model")
    for text in [*TEXTS, *SENTENCES, "Ganz anderer Text: 人 🙂"]:
        ids = new(text).input_ids
        assert new.decode(ids) == text
        assert len(ids) <= len(old(text).input_ids)
    assert result.numbers["bytes_per_token_after"] > 1.3 * result.numbers["bytes_per_token_before"]
    facts = json.loads((folder / "vocabulary.json").read_text())
    assert facts["effective_size"] == facts["rows"] == len(old) + ADDED
    assert facts["corpus"]["held_out_documents"] == 2
    assert facts["after"]["tokens_per_word"] < facts["before"]["tokens_per_word"]


def test_every_added_token_is_reachable(storage: Path) -> None:
    _, folder = run(storage, "reachable")
    tokens = json.loads((folder / "vocabulary.json").read_text())["tokens"]
    model = load_tokenizer(folder / "model").backend_tokenizer.model
    first = len(load_tokenizer(storage / "tied"))
    assert [[token.id for token in model.tokenize(string)] for string in tokens] == [[first + n] for n in range(ADDED)]


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_new_rows_begin_as_the_mean_of_their_old_pieces_and_old_rows_stay(storage: Path, model: str) -> None:
    _, folder = run(storage, f"mean-{model}", model)
    base = BaseTokenizer(load_tokenizer(storage / model))
    tokens = json.loads((folder / "vocabulary.json").read_text())["tokens"]
    for old, new in zip(weights(storage / model), weights(folder / "model"), strict=True):
        torch.testing.assert_close(new[: base.size], old, rtol=0, atol=0)
        expected = torch.stack([old[base.ids(token)].mean(dim=0) for token in tokens])
        torch.testing.assert_close(new[base.size :], expected)
    tied = [embedding.data_ptr() == head.data_ptr() for embedding, head in [weights(folder / "model")]]
    assert tied == [model == "tied"]


def test_other_beginnings_are_the_mean_of_all_rows_and_seeded_noise(storage: Path) -> None:
    old, _ = weights(storage / "tied")
    mean, _ = weights(run(storage, "all", initialization="Mean")[1] / "model")
    torch.testing.assert_close(mean[len(old) :], old.mean(dim=0).expand(ADDED, -1))
    noise, _ = weights(run(storage, "noise", initialization="Random")[1] / "model")
    again, _ = weights(run(storage, "noise-again", initialization="Random")[1] / "model")
    assert torch.equal(noise, again)
    assert noise[len(old) :].std() == pytest.approx(float(old.std()), rel=0.1)


def test_multivariate_rows_lie_about_the_mean_with_noise_like_the_old_rows(storage: Path) -> None:
    old, _ = weights(storage / "tied")
    new = weights(run(storage, "multivariate", initialization="Multivariate")[1] / "model")[0][len(old) :]
    assert torch.equal(new, weights(run(storage, "multivariate-again", initialization="Multivariate")[1] / "model")[0][len(old) :])
    noise = (new - old.mean(dim=0)) / MULTIVARIATE_SCALE**0.5
    assert len({tuple(row.tolist()) for row in noise}) == ADDED
    # In the directions of the old rows' spread it has their size.
    _, vectors = torch.linalg.eigh(old.T.cov())
    spread = ((old - old.mean(dim=0)) @ vectors).std(dim=0)
    assert float(((noise @ vectors) / spread).std()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_rows_are_padded_to_the_multiple_with_the_mean_and_are_nobodys_token(storage: Path, model: str) -> None:
    result, folder = run(storage, f"padded-{model}", model, multiple=64)
    facts = json.loads((folder / "vocabulary.json").read_text())
    assert facts["rows"] % 64 == 0
    assert facts["rows"] - 64 < facts["effective_size"] < facts["rows"]
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == facts["effective_size"] == result.numbers["effective_size"]
    for old, new in zip(weights(storage / model), weights(folder / "model"), strict=True):
        assert len(new) == facts["rows"]
        padding = new[facts["effective_size"] :]
        torch.testing.assert_close(padding, old[: facts["base_size"]].mean(dim=0).expand(len(padding), -1))


def test_the_number_format_of_the_model_is_kept(storage: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(storage / "tied", dtype=torch.bfloat16)
    model.save_pretrained(storage / "half")
    AutoTokenizer.from_pretrained(storage / "tied").save_pretrained(storage / "half")
    _, folder = run(storage, "half", "half")
    assert AutoModelForCausalLM.from_pretrained(folder / "model", dtype="auto").dtype == torch.bfloat16


def test_special_tokens_that_follow_the_vocabulary_keep_their_ids(storage: Path) -> None:
    """As in Llama 3: such tokens are numbered behind the vocabulary when the file is read."""
    tokenizer = AutoTokenizer.from_pretrained(storage / "tied")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|late|>"]})
    late = tokenizer.convert_tokens_to_ids("<|late|>")
    model = AutoModelForCausalLM.from_pretrained(storage / "tied")
    model.resize_token_embeddings(len(tokenizer) + 5)  # padded, as many models are
    model.save_pretrained(storage / "late")
    tokenizer.save_pretrained(storage / "late")
    assert late == len(tokenizer) - 1
    result, folder = run(storage, "late", "late")
    new = AutoTokenizer.from_pretrained(folder / "model")
    assert new("a<|late|>b").input_ids[1] == late
    assert new.decode([late]) == "<|late|>"
    assert (result.numbers["effective_size"], result.numbers["rows"]) == (late + 1 + ADDED, late + 1 + ADDED)


def test_padding_of_the_model_is_used_before_rows_are_added(storage: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(storage / "tied")
    model.resize_token_embeddings(512)
    model.save_pretrained(storage / "padded")
    AutoTokenizer.from_pretrained(storage / "tied").save_pretrained(storage / "padded")
    result, folder = run(storage, "padded", "padded")
    size = len(load_tokenizer(storage / "tied"))
    assert (result.numbers["effective_size"], result.numbers["rows"]) == (size + ADDED, 512)
    assert weights(folder / "model")[0].shape[0] == 512


def test_a_corpus_too_small_for_the_rows_says_how_many_it_gives(storage: Path) -> None:
    with pytest.raises(DataError, match="too small") as caught:
        run(storage, "many", added=100_000)
    assert caught.value.field == "spec.vocabulary.addedTokens"
    limit = int(str(caught.value.allowed).split()[2])
    assert run(storage, "most", added=limit)[0].numbers["added_tokens"] == limit


@pytest.mark.parametrize("model", ["llama2", "llama2-legacy"])
def test_a_sentencepiece_tokenizer_gets_characters_first_and_then_merges(storage: Path, model: str) -> None:
    result, folder = run(storage, f"pieces-{model}", model, added=60)
    old, new = load_tokenizer(storage / model), load_tokenizer(folder / "model")
    tokens = json.loads((folder / "vocabulary.json").read_text())["tokens"]
    assert type(new) is type(old)
    assert len(new) == len(old) + 60
    # Characters that were spelled in bytes, and whole words of both scripts with the space before them.
    assert {"人", "，"} < set(tokens)
    assert any(len(token) > 3 and token.startswith("▁") for token in tokens)
    assert any(len(token) > 1 and "一" <= token[0] <= "鿿" for token in tokens)
    assert new.convert_tokens_to_ids(tokens) == list(range(len(old), len(new)))
    for text in [*TEXTS, *SENTENCES, "Ganz anderer Text: 龘 🙂", "  zwei Leerzeichen\n und\tmehr", "<0x41>"]:
        ids = new(text).input_ids
        assert new.decode(ids, skip_special_tokens=True) == old.decode(old(text).input_ids, skip_special_tokens=True)
        assert len(ids) <= len(old(text).input_ids)
    assert result.numbers["bytes_per_token_after"] > 2 * result.numbers["bytes_per_token_before"]
    for content in ("<s>", "</s>", "<unk>"):
        assert new.convert_tokens_to_ids(content) == old.convert_tokens_to_ids(content)


def test_rows_of_characters_that_were_spelled_begin_as_the_mean_of_their_bytes(storage: Path) -> None:
    _, folder = run(storage, "spelled", "llama2", added=40)
    new = load_tokenizer(folder / "model").convert_tokens_to_ids("人")
    bytes_of = load_tokenizer(storage / "llama2").convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "人".encode()])
    for old, grown in zip(weights(storage / "llama2"), weights(folder / "model"), strict=True):
        torch.testing.assert_close(grown[new], old[bytes_of].mean(dim=0))


@pytest.mark.parametrize("model", ["tied", "llama2"])
def test_encoding_the_corpus_uses_every_token_or_builds_a_longer_one_of_it(storage: Path, model: str) -> None:
    _, folder = run(storage, f"used-{model}", model, added=40)
    facts = json.loads((folder / "vocabulary.json").read_text())
    new = load_tokenizer(folder / "model")
    used = {token for text in TEXTS for token in new(text).input_ids}
    unused = [token for token in facts["tokens"] if new.convert_tokens_to_ids(token) not in used]
    assert facts["used_in_corpus"] + len(facts["parts_of_longer_tokens"]) == 40
    assert set(unused) >= set(facts["parts_of_longer_tokens"])
    assert all(any(part in token and part != token for token in facts["tokens"]) for part in facts["parts_of_longer_tokens"])


def test_a_tokenizer_without_a_piece_for_every_byte_is_refused_with_those_it_lacks() -> None:
    for tokenizer, piece in ((tiny_tokenizer(), "Ġ"), (llama2_tokenizer(legacy=True), "<0x0A>")):
        plain = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        plain["model"]["merges"] = []
        del plain["model"]["vocab"][piece]
        with pytest.raises(ModelError, match=f"lacks 1 of the 256 byte pieces, among them {piece}"):
            BaseTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(plain))))


def test_sizes_and_fertility_are_logged(storage: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "transfer_trainer.vocabulary"):
        result, _ = run(storage, "logged", multiple=64)
    numbers = result.numbers
    assert f"effective size {int(numbers['effective_size'])}, padded size {int(numbers['rows'])}" in caplog.text
    assert f"{numbers['tokens_per_word_before']:.2f} to {numbers['tokens_per_word_after']:.2f} tokens per word" in caplog.text
    assert numbers["tokens_per_word_after"] < numbers["tokens_per_word_before"]


def test_a_tokenizer_of_another_kind_is_refused(storage: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="byte-level BPE"):
        BaseTokenizer(PreTrainedTokenizerFast(tokenizer_object=words))


def test_weights_of_which_one_is_missing_are_refused(storage: Path) -> None:
    save_tiny_model(storage / "torn")
    drop_tensor(storage / "torn")
    with pytest.raises(ModelError, match=r"lacks 1 weights.*down_proj"):
        run(storage, "torn", model="torn")
