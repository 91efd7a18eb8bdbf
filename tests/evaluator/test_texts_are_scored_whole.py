"""Bits per byte and perplexity: every token once, every document on its own."""

import math

import pytest
import torch

from transfer_api.errors import DataError
from transfer_api.spec import NamedText
from transfer_evaluator.perplexity import Text, read_texts, score_texts, tokenize, windows
from transfer_evaluator.score import score_metric
from transfer_evaluator.scorer import TokenScorer

SHORT = "Semua orang dilahirkan merdeka."
LONG = "All human beings are born free and equal in dignity and rights. " * 30


@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 13, 40])
@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 8), (8, 1), (1, 1)])
def test_windows_predict_each_token_once_within_the_context(length, context, stride):
    tokens = list(range(100, 100 + length))
    cut = list(windows(tokens, 0, context, stride))
    assert [token for request in cut for token in request.continuation] == tokens
    assert all(0 < len(request.inputs) <= context and request.context for request in cut)
    for request in cut[1:]:
        assert len(request.context) + len(request.continuation) == context + 1
        assert len(request.continuation) <= stride
    whole = (0, *tokens)
    for request in cut:
        assert any(whole[i : i + len(request.inputs) + 1] == request.context + request.continuation for i in range(length))


def test_an_empty_document_has_no_windows():
    assert list(windows([], 0, 8, 4)) == []


def test_nats_are_those_of_a_plain_forward_pass_from_bos(tiny):
    (result,) = score_texts(tiny, TokenScorer(tiny.model), [Text("short", "id", (SHORT,))])
    (ids,) = tokenize(tiny, [SHORT])
    with torch.inference_mode():
        logits_TV = tiny.model(torch.tensor([[tiny.prefix_token, *ids[:-1]]])).logits[0].log_softmax(-1)
    nats = -logits_TV[torch.arange(len(ids)), torch.tensor(ids)].sum().item()
    assert result.items[0]["nats"] == pytest.approx(nats, abs=1e-4)
    assert (result.items[0]["bytes"], result.items[0]["tokens"]) == (len(SHORT), len(ids))


def test_bits_are_counted_by_byte_and_by_character_and_perplexity_by_token(tiny):
    document = "ব্যঞ্জনবর্ণ é 漢"
    (result,) = score_texts(tiny, TokenScorer(tiny.model), [Text("t", "bn", (document,))])
    (item,) = result.items
    assert (item["bytes"], item["characters"]) == (len(document.encode()), len(document))
    assert item["bytes"] > item["characters"]
    scores = {metric.name: score_metric(result, metric, None, 0).value for metric in result.metrics}
    assert scores["bits_per_byte"] == pytest.approx(item["nats"] / math.log(2) / item["bytes"])
    assert scores["bits_per_character"] == pytest.approx(item["nats"] / math.log(2) / item["characters"])
    assert scores["perplexity"] == pytest.approx(math.exp(item["nats"] / item["tokens"]))


def test_across_vocabularies_bytes_and_characters_are_compared_and_tokens_are_not(tiny):
    (result,) = score_texts(tiny, TokenScorer(tiny.model), [Text("t", "id", (SHORT, LONG))])
    other = [{**item, "tokens": item["tokens"] // 2} for item in result.items]
    scores = {metric.name: score_metric(result, metric, other, 0) for metric in result.metrics}
    assert scores["perplexity"].baseline is None
    assert scores["perplexity"].difference is None
    for name in ("bits_per_byte", "bits_per_character"):
        assert (scores[name].baseline, scores[name].difference) == (scores[name].value, 0.0)
    same = score_metric(result, result.metrics[-1], result.items, 0)
    assert (same.metric, same.baseline) == ("perplexity", same.value)


def test_a_document_is_scored_the_same_alone_and_among_others(tiny):
    scorer = TokenScorer(tiny.model)
    together = score_texts(tiny, scorer, [Text("a", "id", (SHORT, LONG)), Text("b", "en", (LONG, SHORT, SHORT + "!"))])
    (alone,) = score_texts(tiny, scorer, [Text("a", "id", (LONG,))])
    assert together[0].items[1]["nats"] == pytest.approx(alone.items[0]["nats"], rel=1e-5)
    assert together[1].items[0]["nats"] == pytest.approx(alone.items[0]["nats"], rel=1e-5)


def test_a_document_longer_than_the_context_keeps_half_of_it_before_each_window(tiny):
    (result,) = score_texts(tiny, TokenScorer(tiny.model), [Text("long", "en", (LONG,))])
    assert result.items[0]["tokens"] > tiny.positions
    assert "context 256, stride 128" in result.harness
    assert "not comparable across vocabularies" in result.harness


def test_an_untrained_model_needs_about_as_many_bits_as_its_vocabulary_has(tiny):
    (result,) = score_texts(tiny, TokenScorer(tiny.model), [Text("long", "en", (LONG,))])
    item = result.items[0]
    assert item["nats"] / item["tokens"] == pytest.approx(math.log(len(tiny.tokenizer)), rel=0.2)


def test_documents_are_limited_and_blank_ones_passed_over():
    text = NamedText(name="t", path="t.txt", language="id")
    (read,) = read_texts([text], lambda source, field: iter(["a", " \n", "b", "c"]), limit=2)
    assert read.documents == ("a", "b")


def test_a_text_without_documents_is_refused_by_its_place():
    text = NamedText(name="t", path="t.txt")
    with pytest.raises(DataError) as refused:
        read_texts([text], lambda source, field: iter([]), limit=None)
    assert refused.value.field == "spec.evaluation.texts[0]"
