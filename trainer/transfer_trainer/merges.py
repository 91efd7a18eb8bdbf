"""Continues byte-pair encoding where a base tokenizer stopped (continued BPE training, arXiv 2512.03989).

New merges are learned on words that are already split by the base tokenizer, and rank behind all of its merges. So the
tokens are learned in the very states that encoding passes through, and every one of them can be reached; appending whole
strings to a vocabulary leaves tokens that no merge leads to.

Words are counted once; then the most frequent pair is merged, again and again, and only the counts around it change. Pure
Python: 3,000 merges over a megabyte take seconds.

"String" below means text in the tokenizer's alphabet: in a byte-level one, one printable character for each byte.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Pair = tuple[int, int]
MOST_TOKEN_BYTES = 48  # 16 Han characters or one long word: longer tokens are sentences that the corpus happens to repeat
LEAST_COUNT = 2  # a pair seen once is chance


def byte_of_character() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the rest for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = byte_of_character()


def to_bytes(string: str) -> bytes | None:
    """The bytes of a byte-level string; None for anything else."""
    try:
        return bytes(_BYTES[character] for character in string)
    except KeyError:
        return None


def is_sound(data: bytes) -> bool:
    """Whether bytes are whole characters, or a part of one: the end of one character and the start of the next are not a token."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        continued = all(0x80 <= byte < 0xC0 for byte in data[1:])
        return continued and len(data) <= 3 and data[0] >= 0x80
    return True


def chunks(word: str, longest: int) -> list[str]:
    """A byte-level word in parts of at most `longest` bytes, cut between characters.

    Scripts without spaces give words as long as a sentence; parts keep the cost of a merge bounded, and what is learned inside
    a part holds inside the whole word.
    """
    parts, start = [], 0
    while len(word) - start > longest:
        cut = start + longest
        while cut > start + 1 and 0x80 <= _BYTES.get(word[cut], 0) < 0xC0:
            cut -= 1
        parts.append(word[start:cut])
        start = cut
    return [*parts, word[start:]]


@dataclass(frozen=True)
class Learned:
    """What was learned, in order."""

    tokens: list[str] = field(default_factory=list)
    """New strings; the n-th has the id `first_id + n`."""
    merges: list[tuple[str, str]] = field(default_factory=list)
    """May be more than tokens: one may lead to a string of the base vocabulary that no base merge led to."""
    scores: list[float] = field(default_factory=list)
    """Of a Unigram vocabulary, which has no merges: log-probability of each token."""


class MergeLearner:
    """Learns merges from counted words.

    Args:
        vocabulary: string to id of the base tokenizer.
        merges: its merges, by rank.
        words: ids of each word as the base tokenizer splits it, and how often it occurs.
        first_id: id of the first new token.
        reserved: strings that must not become tokens (special tokens).
        text_of: the bytes of a string; None for one that must not become a token.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        words: Sequence[tuple[list[int], int]],
        first_id: int,
        reserved: frozenset[str] = frozenset(),
        text_of: Callable[[str], bytes | None] = to_bytes,
    ) -> None:
        self._ids = dict(vocabulary)
        self._strings = {number: string for string, number in vocabulary.items()}
        self._ranks: dict[Pair, tuple[int, int]] = {}
        for rank, (left, right) in enumerate(merges):
            self._ranks[self._ids[left], self._ids[right]] = rank, self._ids[left + right]
        self._next_id = first_id
        self._reserved = reserved
        self._text_of = text_of
        self._learned = Learned()
        self._words = [list(symbols) for symbols, _ in words]
        self._frequency = [frequency for _, frequency in words]
        self._counts: defaultdict[Pair, int] = defaultdict(int)
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        self._mergeable: dict[Pair, bool] = {}
        for index, symbols in enumerate(self._words):
            self._count(index, symbols, +1)
        self._heap = [(-count, *pair) for pair, count in self._counts.items() if count >= LEAST_COUNT]
        heapq.heapify(self._heap)

    def learn(self, tokens: int, report: Callable[[int], None] = lambda learned: None) -> Learned:
        """Learns up to `tokens` new tokens; fewer when no allowed pair occurs twice. `report` is told how many there are."""
        while len(self._learned.tokens) < tokens and (pair := self._best()) is not None:
            self._merge(pair)
            report(len(self._learned.tokens))
        return self._learned

    def _best(self) -> Pair | None:
        """The most frequent allowed pair; of equals, that with the smallest ids. Counts in the heap may be out of date."""
        while self._heap:
            negative, left, right = heapq.heappop(self._heap)
            pair = left, right
            count = self._counts.get(pair, 0)
            if count < LEAST_COUNT or not self._allowed(pair):
                continue
            if count == -negative:
                return pair
            heapq.heappush(self._heap, (-count, left, right))
        return None

    def _allowed(self, pair: Pair) -> bool:
        if pair not in self._mergeable:
            string = self._strings[pair[0]] + self._strings[pair[1]]
            data = self._text_of(string)
            self._mergeable[pair] = (
                data is not None and len(data) <= MOST_TOKEN_BYTES and string not in self._reserved and is_sound(data)
            )  # fmt: skip
        return self._mergeable[pair]

    def _merge(self, pair: Pair) -> None:
        left, right = self._strings[pair[0]], self._strings[pair[1]]
        string = left + right
        known = string in self._ids
        if not known:
            self._ids[string], self._strings[self._next_id] = self._next_id, string
            self._learned.tokens.append(string)
            self._next_id += 1
        merged = self._ids[string]
        self._ranks[pair] = len(self._ranks), merged
        self._learned.merges.append((left, right))
        grown: set[Pair] = set()
        for index in self._where.pop(pair, set()):
            old = self._words[index]
            # Only a token that was there before can have merges of its own, which then go first.
            new = self.settle(old) if known else _replace(old, pair, merged)
            self._words[index] = new
            grown |= self._recount(index, old, new)
        for one in grown:
            if self._counts[one] >= LEAST_COUNT:
                heapq.heappush(self._heap, (-self._counts[one], *one))

    def settle(self, symbols: list[int]) -> list[int]:
        """Applies merges by rank, leftmost first, until none applies: what the tokenizer does from this state on."""
        symbols = list(symbols)
        while True:
            ranked = [(self._ranks[pair][0], place) for place, pair in enumerate(itertools.pairwise(symbols)) if pair in self._ranks]
            if not ranked:
                return symbols
            place = min(ranked)[1]
            symbols[place : place + 2] = [self._ranks[symbols[place], symbols[place + 1]][1]]

    def _recount(self, index: int, old: list[int], new: list[int]) -> set[Pair]:
        """Corrects the counts where a word changed; returns the pairs that it gained."""
        shorter = min(len(old), len(new))
        begin = next((n for n in range(shorter) if old[n] != new[n]), shorter)
        if begin == len(old) == len(new):
            return set()
        end = next((n for n in range(shorter - begin) if old[-1 - n] != new[-1 - n]), shorter - begin)
        first = max(0, begin - 1)
        self._count(index, old[first : len(old) - max(0, end - 1)], -1)
        return self._count(index, new[first : len(new) - max(0, end - 1)], +1)

    def _count(self, index: int, symbols: list[int], sign: int) -> set[Pair]:
        pairs = list(itertools.pairwise(symbols))
        for pair in pairs:
            self._counts[pair] += sign * self._frequency[index]
            if sign > 0:
                self._where[pair].add(index)
        return set(pairs)


def _replace(symbols: list[int], pair: Pair, merged: int) -> list[int]:
    """Every occurrence of the pair merged, from the left."""
    result: list[int] = []
    place = 0
    while place < len(symbols):
        if place + 1 < len(symbols) and symbols[place] == pair[0] and symbols[place + 1] == pair[1]:
            result.append(merged)
            place += 2
        else:
            result.append(symbols[place])
            place += 1
    return result
