"""Continues a Unigram vocabulary (Kudo, arXiv 1804.10959): new pieces are runs of base pieces, each a hair likelier than its parts.

A Unigram tokenizer takes the likeliest sequence of pieces, so a new piece is worth what its score makes of it. Here the score is
that of the base pieces that the tokenizer spells it with, and a small bonus for each token saved:

    score(t) = sum of the scores of the base pieces of t + BONUS * (number of those pieces - 1)

A part of a likeliest sequence is itself the likeliest of its text. So wherever the base has that run of pieces the new one takes its
place, and a text becomes, of all the ways to cut it that the base finds likeliest, the one with the fewest tokens:

    - old pieces keep their scores, and a text in which no new piece stands is encoded as before
    - no text takes more tokens than before, and no word that the base has as one piece is cut
    - every piece is reached, from its own text and, by the choice below, from the corpus

Which runs: those that continued merges give (`merges.py`), here on words as the base cuts them. No step on the way to a longer piece
is needed to reach it, so what encoding the corpus never uses is left out and the next run learned takes its place.

Rejected: pieces of a Unigram model trained on the corpus alone, with its log-probabilities (the mixture of models that SentencePiece's
author proposes for merging two, google/sentencepiece issue 822). Its pieces end elsewhere than the base's: 2,000 of them beside 8,000
left 0.81 of the tokens of held-out Indonesian and 0.80 of Chinese, runs 0.66 and 0.78.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence

from transfer_trainer.merges import Learned, MergeLearner
from transfer_trainer.tokenizer import BaseTokenizer

BONUS = 1e-3
"""Nats for each token saved: far above rounding (1e-13), and below what makes one cut of a word better than another."""


def learn_pieces(
    base: BaseTokenizer, learner: MergeLearner, characters: Sequence[str], words: Counter[str], tokens: int, report: Callable[[int], None]
) -> Learned:
    """Learns up to `tokens` pieces, the characters among them; fewer where the corpus repeats too little.

    Args:
        base: the Unigram tokenizer.
        learner: has the words as the base, with the characters, cuts them.
        characters: first of the new pieces.
        words: of the corpus, with their counts.
        tokens: how many.
        report: told how many there are, again and again also while the corpus is encoded.
    """
    lowest = min(base.scores)  # below any base piece that a character stands in, above what an unknown one counts
    scores = dict.fromkeys(characters, lowest)
    idle: set[str] = set()
    wanted = tokens - len(characters)
    asked = wanted
    while True:
        runs = learner.learn(asked, report).tokens
        kept = [run for run in runs if run not in idle][:wanted]
        if len(kept) < wanted and len(runs) == asked:
            asked += wanted - len(kept)
            continue
        scores |= _scores(base, characters, [run for run in kept if run not in scores], lowest)
        chosen = [*characters, *kept]
        used = _used(base, chosen, [scores[piece] for piece in chosen], words, functools.partial(report, len(chosen)))
        found = {run for number, run in enumerate(kept, base.size + len(characters)) if number not in used}
        if not found:
            return Learned(chosen, scores=[scores[piece] for piece in chosen])
        idle |= found


def _scores(base: BaseTokenizer, characters: Sequence[str], runs: Sequence[str], lowest: float) -> dict[str, float]:
    """The score of each run by its base pieces and characters."""
    known = [score for _, score in base.entries(characters, [lowest] * len(characters))]
    model = base.model_with(characters, scores=[lowest] * len(characters))
    parts = {run: [token.id for token in model.tokenize(run)] for run in runs}
    return {run: sum(known[number] for number in ids) + BONUS * (len(ids) - 1) for run, ids in parts.items()}


def _used(base: BaseTokenizer, tokens: Sequence[str], scores: Sequence[float], words: Counter[str], alive: Callable[[], None]) -> set[int]:
    """Ids that stand in the words of the corpus."""
    model = base.model_with(tokens, scores=scores)
    used: set[int] = set()
    for word in words:
        used.update(token.id for token in model.tokenize(word))
        alive()
    return used
