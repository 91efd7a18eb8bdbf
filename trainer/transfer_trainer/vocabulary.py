"""Stage `vocabulary`: learns tokens of the target language and gives the base model rows for them.

    read       words of the corpus, as the base tokenizer parts them, counted; every tenth document is held out
    learn      further merges on top of the base tokenizer's (`merges.py`), or further pieces and their scores (`pieces.py`)
    splice     vocabulary, merges or scores into tokenizer.json; old ids stay, new ones follow
    check      as many rows as asked, every one reachable, special tokens in place, texts unchanged by a round trip
    resize     embedding and head (`embedding.py`), and where asked for the distillation of the new rows (`distillation.py`)

Byte-level and SentencePiece-style BPE, and Unigram (`tokenizer.py`). With the last two, characters that the base spells in bytes or does
not know are the first tokens.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from transfer_api.errors import DataError, ModelError
from transfer_api.progress import Activity, Outcome, Progress, ResultMessage
from transfer_api.stage import VocabularyParameters
from transfer_pod.artifact import ArtifactStore, write_atomically
from transfer_pod.contents import check_contents
from transfer_pod.context import PodContext
from transfer_pod.documents import iter_documents
from transfer_pod.model import model_folder
from transfer_pod.shard import Report, at_work
from transfer_trainer.chat import prefix
from transfer_trainer.dataset import load_tokenizer
from transfer_trainer.distillation import Added, batches_of, choose, distil
from transfer_trainer.embedding import resized_model
from transfer_trainer.merges import LEAST_COUNT, Learned, MergeLearner, chunks
from transfer_trainer.pieces import learn_pieces
from transfer_trainer.tokenizer import BaseTokenizer, Kind

logger = logging.getLogger(__name__)

CHARACTER_COVERAGE = 0.9995
"""Share of the spelled characters of a corpus that become tokens, the most frequent first; SentencePiece's default."""
_HELD_OUT_EVERY = 10
_HELD_OUT_CHARACTERS = 4_000_000
_LONGEST_WORD = 96  # bytes: twice the longest token, so that a cut hides few pairs
_MOST_WORDS = 2_000_000  # about 2 GB in the learner; new words of a larger corpus are left out, known ones still counted
_REPORT_SECONDS = 1.0


@dataclass
class Corpus:
    """What is kept of the texts."""

    words: Counter[str] = field(default_factory=Counter)
    held_out: list[str] = field(default_factory=list)
    """Every tenth document while there is room: of all sources alike, where the last tenth would be one source's."""
    documents: int = 0
    bytes: int = 0
    words_left_out: int = 0


@dataclass(frozen=True)
class Fertility:
    """How finely a tokenizer cuts a text."""

    tokens_per_word: float
    """Words are what stands between spaces; scripts without spaces have few of them."""
    bytes_per_token: float
    characters_per_token: float


def run(context: PodContext, report: Report) -> ResultMessage:
    """Makes the extended model of a `vocabulary` stage and seals it.

    Raises:
        ModelError: the tokenizer is of a kind that cannot be extended, or the model cannot be loaded.
        DataError: a source cannot be used, or the corpus has too few different words for the rows asked for.
    """
    parameters = VocabularyParameters.model_validate(context.stage.parameters)
    folder = model_folder(context)
    tokenizer = load_tokenizer(folder)
    base = BaseTokenizer(tokenizer)
    progress = _Progress(report, parameters.added_tokens)
    corpus = _read(context, parameters, base, progress)
    learned = learn(base, corpus.words, parameters.added_tokens, progress.learned, progress.counting(corpus.documents))
    store = ArtifactStore(context.storage)
    target = store.draft(context.stage, context.pod)
    with progress.saving():
        save_tokenizer(tokenizer, base, learned, target / "model")
        extended = load_tokenizer(target / "model")
        check_extension(tokenizer, extended, base, learned, corpus.held_out)
        added = Added(base.size, [base.ids(token) for token in learned.tokens])
        # An unknown character has nothing to start from: its row begins as the mean of all, not as that of the unknown token.
        start = [[number for number in ids if number != base.unknown] for ids in added.pieces]
        model, rows = resized_model(folder, start, added.first_id, parameters)
    distilled = _distil(context, parameters, model, extended, added, progress) if parameters.distillation else {}
    with progress.saving():
        model.save_pretrained(target / "model")
        return _commit(context, target, base, corpus, learned, rows, (tokenizer, extended), distilled)


def _distil(
    context: PodContext, parameters: VocabularyParameters, model: Any, tokenizer: Any, added: Added, progress: _Progress
) -> dict[str, float]:
    """Trains the new rows on snippets of the corpus without what is held out; returns their number and how it went."""
    assert parameters.distillation is not None
    texts = (text for text, held_out in _texts(context, parameters) if not held_out)
    with progress.counting(0):
        windows = choose(batches_of(texts, tokenizer), added, parameters.distillation.snippets)
    stored = model.dtype
    model.to("cuda" if torch.cuda.is_available() else "cpu", torch.float32)
    figures = distil(
        model, windows, added, parameters.distillation, prefix=prefix(tokenizer), seed=parameters.seed, report=progress.distilled
    )
    model.to("cpu", stored)
    logger.info("%d snippets distilled: %s", len(windows), ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return {"snippets": len(windows), **figures}


def _commit(
    context: PodContext,
    target: Path,
    base: BaseTokenizer,
    corpus: Corpus,
    learned: Learned,
    rows: int,
    tokenizers: tuple[Any, Any],
    distilled: dict[str, float],
) -> ResultMessage:
    """Measures and seals what was made."""
    before, after = (fertility(tokenizer, corpus.held_out) for tokenizer in tokenizers)
    parts = parts_of_longer_tokens(base, learned, corpus.words)
    facts = _facts(base, learned, corpus, rows, before, after, parts)
    if distilled:
        facts["distillation"] = distilled
    write_atomically(target / "vocabulary.json", json.dumps(facts, indent=1, ensure_ascii=False))
    numbers = {
        "added_tokens": len(learned.tokens),
        "effective_size": base.size + len(learned.tokens),
        "rows": rows,
        "bytes_per_token_before": before.bytes_per_token,
        "bytes_per_token_after": after.bytes_per_token,
        "tokens_per_word_before": before.tokens_per_word,
        "tokens_per_word_after": after.tokens_per_word,
    }
    logger.info(
        "%d tokens added to %d: effective size %d, padded size %d; held out: %.2f to %.2f tokens per word, %.2f to %.2f bytes per token",
        len(learned.tokens), base.size, base.size + len(learned.tokens), rows, before.tokens_per_word, after.tokens_per_word,
        before.bytes_per_token, after.bytes_per_token,
    )  # fmt: skip
    check_contents(context)
    reference = ArtifactStore(context.storage).commit(context.stage, target, numbers=numbers)
    return ResultMessage(outcome=Outcome.COMPLETE, artifact=reference, numbers=numbers, step=corpus.documents)


def _read(context: PodContext, parameters: VocabularyParameters, base: BaseTokenizer, progress: _Progress) -> Corpus:
    corpus = Corpus()
    for text, held_out in _texts(context, parameters):
        corpus.documents += 1
        corpus.bytes += len(text.encode())
        if held_out:
            corpus.held_out.append(text)
        else:
            _count(corpus, base.words(text))
        progress.read(corpus.documents)
    if not corpus.held_out:  # fewer than ten documents: measured on what was learned from, and said so in vocabulary.json
        first = next(iter_documents(parameters.corpus[0], context, "spec.vocabulary.corpus[0]"))
        corpus.held_out.append(first[:_HELD_OUT_CHARACTERS])
    return corpus


def _texts(context: PodContext, parameters: VocabularyParameters) -> Iterator[tuple[str, bool]]:
    """The documents of all sources, each with whether it is held out."""
    kept = documents = 0
    for number, source in enumerate(parameters.corpus):
        for text in iter_documents(source, context, f"spec.vocabulary.corpus[{number}]"):
            documents += 1
            held_out = documents % _HELD_OUT_EVERY == 0 and kept < _HELD_OUT_CHARACTERS
            kept += len(text) if held_out else 0
            yield text, held_out


def _count(corpus: Corpus, words: Sequence[str]) -> None:
    for word in words:
        for part in chunks(word, _LONGEST_WORD) if len(word) > _LONGEST_WORD else (word,):
            if part in corpus.words or len(corpus.words) < _MOST_WORDS:
                corpus.words[part] += 1
            else:
                corpus.words_left_out += 1


def learn(
    base: BaseTokenizer,
    words: Counter[str],
    tokens: int,
    report: Callable[[int], None] = lambda learned: None,
    counting: contextlib.AbstractContextManager[None] | None = None,
) -> Learned:
    """Learns exactly `tokens` tokens; `report` is told how many there are, and `counting` is entered while pairs are counted before.

    Raises:
        DataError: the corpus repeats too little for so many.
    """
    characters = _characters(base, words)[:tokens]
    with counting or contextlib.nullcontext():
        model = base.model_with(characters, scores=[min(base.scores)] * len(characters) if base.scores else ())
        split = [([token.id for token in model.tokenize(word)], count) for word, count in words.items()]
        known = {**base.vocabulary, **{character: base.size + number for number, character in enumerate(characters)}}
        learner = MergeLearner(known, base.merges, split, base.size + len(characters), frozenset(base.added), base.text_of)
    if base.kind is Kind.UNIGRAM:
        learned = learn_pieces(base, learner, characters, words, tokens, report)
    else:
        merged = learner.learn(tokens - len(characters), report)
        learned = Learned([*characters, *merged.tokens], merged.merges)
    if len(learned.tokens) < tokens:
        raise DataError(
            f"the corpus is too small: only {len(learned.tokens)} new tokens occur in it twice", field="spec.vocabulary.addedTokens",
            value=tokens, allowed=f"at most {len(learned.tokens)} with this corpus", next_step="Lower addedTokens or add text",
        )  # fmt: skip
    return learned


def _characters(base: BaseTokenizer, words: Counter[str]) -> list[str]:
    """The characters that the base spells in bytes or does not know, by count, without the rarest: `CHARACTER_COVERAGE`."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in base.spelled(word):
            counts[character] += count
    wanted, covered = CHARACTER_COVERAGE * counts.total(), 0
    chosen = []
    for character, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        if covered >= wanted or count < LEAST_COUNT:
            break
        covered += count
        chosen.append(character)
    return chosen


def save_tokenizer(tokenizer: Any, base: BaseTokenizer, learned: Learned, folder: Path) -> None:
    """Saves the extended tokenizer, its settings and its chat template.

    Special tokens go into the vocabulary of the model too: those that are only in the list of added tokens are numbered
    behind the vocabulary when the file is read, and would move with every row.
    """
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.model"):  # of the old vocabulary, where a tokenizer brings SentencePiece's own file
        path.unlink()
    plain = dict(base.plain)
    if base.kind is Kind.UNIGRAM:
        plain["model"] = {**plain["model"], "vocab": base.entries(learned.tokens, learned.scores)}
        write_atomically(folder / "tokenizer.json", json.dumps(plain, ensure_ascii=False))
        return
    new = {string: base.size + number for number, string in enumerate(learned.tokens)}
    everything = {**plain["model"]["vocab"], **base.added, **new}
    vocabulary = dict(sorted(everything.items(), key=lambda entry: entry[1]))
    merges = [list(merge) for merge in [*base.merges, *learned.merges]]
    plain["model"] = {**plain["model"], "vocab": vocabulary, "merges": merges}
    write_atomically(folder / "tokenizer.json", json.dumps(plain, ensure_ascii=False))


def check_extension(old: Any, new: Any, base: BaseTokenizer, learned: Learned, texts: Sequence[str]) -> None:
    """Proves what the stage promises, on the tokenizer as `AutoTokenizer` reads it back.

    Raises:
        ModelError: a row is missing or unreachable, a special token moved, or a text does not survive a round trip.
    """

    def refuse(problem: str, value: object) -> ModelError:
        return ModelError(
            f"its tokenizer cannot be extended: {problem}", field="spec.vocabulary", value=value, next_step="Leave spec.vocabulary out"
        )

    if len(new) - base.size != len(learned.tokens):
        raise refuse(f"{len(new) - base.size} rows were added instead of {len(learned.tokens)}", len(new))
    model = new.backend_tokenizer.model
    for number, string in enumerate(learned.tokens):
        if [token.id for token in model.tokenize(string)] != [base.size + number]:
            raise refuse("nothing leads to an added token", string)
    for content, number in base.added.items():
        if new.convert_tokens_to_ids(content) != number or new(content, add_special_tokens=False).input_ids != [number]:
            raise refuse("a special token would move", content)
    for text in texts:
        if not _as_before(old, new, base, text):
            raise refuse("a text is not what it was after encoding and decoding", text)


def parts_of_longer_tokens(base: BaseTokenizer, learned: Learned, words: Iterable[str]) -> list[str]:
    """Encodes the words of the corpus with the added tokens: returns those that stand in none of them by themselves.

    These are steps on the way to a longer token, in which they always end in this corpus ("marta" in "martabat").

    Raises:
        ModelError: a token is neither used nor such a step, so nothing would ever train its row.
    """
    model = base.model_with(learned.tokens, learned.merges, learned.scores)
    used = {token.id for word in words for token in model.tokenize(word)}
    unused = [string for number, string in enumerate(learned.tokens, base.size) if number not in used]
    steps = {part for merge in learned.merges for part in merge}
    if base.kind is Kind.UNIGRAM:  # runs are used by their choice; a character may stand in runs alone
        steps = {character for token in learned.tokens if len(token) > 1 for character in token}
    if dead := [string for string in unused if string not in steps]:
        raise ModelError(
            "its tokenizer cannot be extended: encoding the corpus never reaches an added token", field="spec.vocabulary", value=dead[0],
            next_step="Leave spec.vocabulary out",
        )  # fmt: skip
    return unused


def _as_before(old: Any, new: Any, base: BaseTokenizer, text: str) -> bool:
    """Whether a text survives as it did before, or better: characters that the base did not know are themselves now."""
    if (back := _round_trip(new, text)) == _round_trip(old, text):
        return True
    if base.unknown is None:
        return False
    if base.unknown in new(text, add_special_tokens=False).input_ids:
        return base.unknown in old(text, add_special_tokens=False).input_ids
    return back == base.decoded(text)


def _round_trip(tokenizer: Any, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False))


def fertility(tokenizer: Any, texts: Sequence[str]) -> Fertility:
    """Figures of a tokenizer over texts, without begin- and end-of-text tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encodings)
    words = sum(len(text.split()) for text in texts)
    return Fertility(
        tokens_per_word=tokens / max(1, words),
        bytes_per_token=sum(len(text.encode()) for text in texts) / max(1, tokens),
        characters_per_token=sum(map(len, texts)) / max(1, tokens),
    )


def _facts(
    base: BaseTokenizer, learned: Learned, corpus: Corpus, rows: int, before: Fertility, after: Fertility, parts: Sequence[str]
) -> dict[str, Any]:
    """Content of vocabulary.json."""
    return {
        "base_size": base.size,
        "added_tokens": len(learned.tokens),
        "effective_size": base.size + len(learned.tokens),
        "rows": rows,
        "merges": len(learned.merges),
        "tokenizer": base.kind.value,
        "used_in_corpus": len(learned.tokens) - len(parts),
        "parts_of_longer_tokens": list(parts),
        "corpus": {
            "documents": corpus.documents,
            "bytes": corpus.bytes,
            "different_words": len(corpus.words),
            "words_left_out": corpus.words_left_out,
            "held_out_documents": len(corpus.held_out) if corpus.documents >= _HELD_OUT_EVERY else 0,
        },
        "before": vars(before),
        "after": vars(after),
        "tokens": learned.tokens,
    }


class _Progress:
    """Counts documents while reading and tokens while learning; a report is a file on disk, so at most one a second."""

    def __init__(self, report: Report, tokens: int) -> None:
        self._report = report
        self._tokens = tokens
        self._last = 0.0

    def read(self, documents: int) -> None:
        self._send(Progress(activity=Activity.LOADING, step=documents))

    def learned(self, tokens: int) -> None:
        self._send(Progress(activity=Activity.RUNNING, step=tokens, total_steps=self._tokens))

    def counting(self, documents: int) -> contextlib.AbstractContextManager[None]:
        return at_work(self._report, Progress(activity=Activity.LOADING, step=documents))

    def distilled(self, updates: int, total: int) -> None:
        self._send(Progress(activity=Activity.RUNNING, step=updates, total_steps=total))

    def saving(self) -> contextlib.AbstractContextManager[None]:
        return at_work(self._report, Progress(activity=Activity.SAVING, step=self._tokens, total_steps=self._tokens))

    def _send(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            self._report(progress)
