"""The suite `perplexity`: how well a model predicts held-out text.

Bits per byte is the figure to compare: nats over a whole document divided by its UTF-8 bytes, whatever the tokens were; so is
bits per character (Unicode code point). Perplexity per token is kept beside them because papers print it, but a larger vocabulary
lowers the number of tokens and so raises it for the same prediction: it is compared only where both models cut the text into as many.

Each document is scored on its own. Its first token is predicted from BOS (EOS where there is none); a document longer than
the context is read in windows that advance by `stride`, so that every token but those of the first window has at least
`context - stride` tokens before it, and each token is predicted once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from transfer_api.errors import DataError
from transfer_api.spec import PERPLEXITY, NamedText
from transfer_evaluator.model import LoadedModel
from transfer_evaluator.score import DOCUMENT, Item, Metric, TaskResult, Transform
from transfer_evaluator.scorer import Begin, Request, TokenScorer, silent

MAX_CONTEXT = 1024
METRICS = (
    Metric(name="bits_per_byte", numerator="nats", denominator="bytes", transform=Transform.BITS, higher_is_better=False),
    Metric(
        name="bits_per_character", numerator="nats", denominator="characters", transform=Transform.BITS, higher_is_better=False, main=False
    ),
    Metric(
        name="perplexity", numerator="nats", denominator="tokens", transform=Transform.EXP, higher_is_better=False,
        main=False, must_agree="tokens",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A held-out text, read and ready."""

    name: str
    language: str
    documents: tuple[str, ...]


def read_texts(texts: Sequence[NamedText], read: Callable[[NamedText, str], Iterable[str]], limit: int | None) -> list[Text]:
    """Reads the documents of every text, at most `limit` of each.

    Raises:
        DataError: a text has no documents, or cannot be read.
    """
    found = []
    for number, text in enumerate(texts):
        field = f"spec.evaluation.texts[{number}]"
        documents = tuple(itertools.islice((d for d in read(text, field) if d.strip()), limit))
        if not documents:
            raise DataError("has no documents", field=field, value=text.path or text.hub, next_step="Give a text that is not empty")
        found.append(Text(text.name, text.language or "und", documents))
    return found


def score_texts(model: LoadedModel, scorer: TokenScorer, texts: Sequence[Text], begin: Begin = silent) -> list[TaskResult]:
    """Nats, bytes and tokens of every document of every text; one pass over all of them, so that rows fill up."""
    context = min(model.positions, MAX_CONTEXT)
    stride = max(1, context // 2)
    tokens = [tokenize(model, text.documents) for text in texts]
    owners: list[tuple[int, int]] = []
    requests: list[Request] = []
    for number, documents in enumerate(tokens):
        for place, ids in enumerate(documents):
            for request in windows(ids, model.prefix_token, context, stride):
                owners.append((number, place))
                requests.append(request)
    nats = [[0.0] * len(documents) for documents in tokens]
    for (number, place), score in zip(owners, scorer.score(requests, begin(len(requests))), strict=True):
        nats[number][place] -= score.log_probability
    harness = (
        f"transfer-operator, whole documents, context {context}, stride {stride}, first token from BOS or EOS; "
        "perplexity is per token and not comparable across vocabularies"
    )
    return [
        TaskResult(
            suite=PERPLEXITY, task=text.name, language=text.language, harness=harness, metrics=METRICS, unit=DOCUMENT,
            items=_items(text, ids, found), notes=_repeated(text), texts=text.documents,
        )
        for text, ids, found in zip(texts, tokens, nats, strict=True)
    ]  # fmt: skip


def _repeated(text: Text) -> list[str]:
    """Documents that count twice make an interval narrower than it should be."""
    again = len(text.documents) - len(set(text.documents))
    return [f"{again} of {len(text.documents)} documents stand there twice"] if again else []


def _items(text: Text, tokens: Sequence[Sequence[int]], nats: Sequence[float]) -> list[Item]:
    return [
        {"id": _identity(place, document), "nats": found, "bytes": len(document.encode()), "characters": len(document), "tokens": len(ids)}
        for place, (document, ids, found) in enumerate(zip(text.documents, tokens, nats, strict=True))
        if ids
    ]


def _identity(place: int, document: str) -> str:
    """Place and content: an altered document is not taken for the old one."""
    return f"{place}-{hashlib.sha256(document.encode()).hexdigest()[:12]}"


def tokenize(model: LoadedModel, documents: Sequence[str]) -> list[list[int]]:
    """Token ids of each document, without special tokens around it."""
    found: list[list[int]] = model.tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return found


def windows(tokens: Sequence[int], prefix: int, context: int, stride: int) -> Iterator[Request]:
    """Cuts a document into requests of at most `context` inputs that predict each token exactly once.

    The first window predicts up to `context` tokens, each later one up to `stride`, with as many tokens before them as fit.
    """
    whole = (prefix, *tokens)  # position i predicts whole[i + 1]
    end = 1
    while end < len(whole):
        start = end
        end = min(len(whole), start + (context if start == 1 else stride))
        yield Request(whole[max(0, end - 1 - context) : start], whole[start:end])
