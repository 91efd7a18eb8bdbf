"""Which documents of a source are kept: by length, repetition and language, and whether they were there before.

The first three look at one document, so each piece is sieved where it is tokenised. What was there before can only be told of
the whole source: where a piece is tokenised a digest and a MinHash signature (Broder, "On the resemblance and containment of
documents", 1997) of each document are kept, and whoever packs compares them, band by band (locality-sensitive hashing:
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3). It is numpy of our own: `datasketch` does a document at a time in
Python and keeps every key in a dictionary, about 1 kB a document; here a band is one array of 8 bytes a document.

Pieces of 10 characters are compared, not words: it is the same for scripts without spaces.

Letters: C = characters of a document, S = its different pieces, H = hash functions, D = documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_api.errors import SpecError
from transfer_api.language import primary
from transfer_api.spec import Deduplication, TextFilter

DIGEST = np.dtype("<u8,<u8")
HASHES = 128
SIGNATURE = np.dtype(("<u4", HASHES))
SIMILAR = 0.8
_BANDS = 16  # of 8 hashes: of two documents of similarity 0.8 95 % meet in a band, of 0.9 all but 1 in 10,000
_SHINGLE = 10
_WINDOW = 1000
_BASE = np.uint64(0x9E3779B97F4A7C15)
# The languages with which documents are compared besides those that are asked for: a choice among one would always be that one.
_AT_HAND = ("ar", "bn", "de", "en", "es", "fr", "hi", "id", "ja", "pt", "ru", "sw", "ur", "vi", "zh")

UInt64s = npt.NDArray[np.uint64]


class Sieve:
    """Says why a document is dropped.

    Args:
        wanted: what to keep; None for everything.
        field: place of the filter in the experiment file.

    Raises:
        SpecError: a language that cannot be told.
    """

    def __init__(self, wanted: TextFilter | None, field: str) -> None:
        self._wanted = wanted or TextFilter()
        self._repetition = float(Decimal(self._wanted.max_repetition)) if self._wanted.max_repetition is not None else None
        self._languages = {primary(language) for language in self._wanted.languages}
        self._identifier = _identifier(self._languages, field) if self._languages else None

    def reason(self, text: str) -> str | None:
        """Why the document is dropped, as its count is called; None where it is kept."""
        wanted = self._wanted
        if wanted.min_characters is not None and len(text) < wanted.min_characters:
            return "dropped_short"
        if wanted.max_characters is not None and len(text) > wanted.max_characters:
            return "dropped_long"
        if self._repetition is not None and repetition(text) > self._repetition:
            return "dropped_repetitive"
        if self._identifier is not None and self._identifier.classify(text)[0] not in self._languages:
            return "dropped_language"
        return None


def _identifier(languages: set[str], field: str) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    known = set(identifier.labels)
    if unknown := sorted(languages - known):
        raise SpecError(
            "is a language that py3langid cannot tell", field=f"{field}.languages", value=unknown[0], allowed=", ".join(sorted(known)),
            next_step="Leave it out; without `languages` every document is kept",
        )  # fmt: skip
    identifier.set_languages(sorted(languages.union(_AT_HAND)))
    return identifier


def repetition(text: str) -> float:
    """Share of the pieces of 10 characters that stood in the same window of 1,000 before; 0 for a text that has none."""
    hashes_C = _shingles(text)
    different = sum(len(np.unique(hashes_C[start : start + _WINDOW])) for start in range(0, len(hashes_C), _WINDOW))
    return 1 - different / len(hashes_C)


def digest(text: str) -> bytes:
    """16 bytes of a document's hash, white space aside."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def signature(text: str) -> npt.NDArray[np.uint32]:
    """MinHash signature of a document, uint32 [H]: for each hash function the least hash of its pieces, upper half.

    Case and white space do not count.
    """
    hashes_S = np.unique(_shingles(" ".join(text.casefold().split())))
    least = np.array([(hashes_S * factor + more).min() for factor, more in zip(_FACTORS, _MORE, strict=True)])
    return (least >> np.uint64(32)).astype(np.uint32)


def _shingles(text: str) -> UInt64s:
    """Hash of every piece of 10 characters, or of the whole of a shorter text; uint64 [max(1, C - 9)]."""
    characters = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    size = min(_SHINGLE, len(characters))
    count = max(1, len(characters) - size + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(size):
        hashes = hashes * _BASE + characters[place : place + count]
    return _mix(hashes)


def _mix(x: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# Not from a library's generator, whose streams may change between versions: the artifact depends on them.
_FACTORS = _mix(np.arange(1, HASHES + 1, dtype=np.uint64) * _BASE) | np.uint64(1)
_MORE = _mix(np.arange(HASHES + 1, 2 * HASHES + 1, dtype=np.uint64) * _BASE)


def repeated(digests: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which documents are in the source already, [D]; of equal ones the first is not."""
    first, second = digests["f0"], digests["f1"]
    order = np.lexsort((second, first))  # stable: equal ones stay in the order of the source
    again = (first[order][1:] == first[order][:-1]) & (second[order][1:] == second[order][:-1])
    found = np.zeros(len(digests), bool)
    found[order[1:][again]] = True
    return found


def nearly_repeated(signatures: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.bool_]:
    """Which documents resemble an earlier one, [D]; that one may itself resemble one before.

    Args:
        signatures: uint32 [D, H], in pieces that need not be in memory.
    """
    found = np.zeros(sum(map(len, signatures)), bool)
    rows = HASHES // _BANDS
    for band in range(_BANDS):
        keys = np.concatenate([_key(piece[:, band * rows : (band + 1) * rows]) for piece in signatures])
        order = np.argsort(keys, kind="stable")
        begins = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
        first = np.repeat(order[begins], np.diff([*begins, len(order)]))
        candidates = (first != order) & ~found[order]
        if candidates.any():
            later, earlier = order[candidates], first[candidates]
            found[later[_similarity(signatures, later, earlier) >= SIMILAR]] = True
    return found


def _key(band: npt.NDArray[np.uint32]) -> UInt64s:
    """One number for the hashes of a band; uint32 [D, rows] to uint64 [D]."""
    key = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        key = _mix(key * _BASE + band[:, column])
    return key


def _similarity(signatures: Sequence[npt.NDArray[np.uint32]], later: npt.NDArray[Any], earlier: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Share of equal hashes, which estimates the Jaccard similarity of the sets of pieces."""
    starts = np.cumsum([0, *map(len, signatures)])
    shares = np.empty(len(later))
    for block in range(0, len(later), _WINDOW):
        pair = [_rows(signatures, starts, side[block : block + _WINDOW]) for side in (later, earlier)]
        shares[block : block + _WINDOW] = (pair[0] == pair[1]).mean(axis=1)
    return shares


def _rows(signatures: Sequence[npt.NDArray[np.uint32]], starts: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    rows = np.empty((len(wanted), HASHES), np.uint32)
    pieces = np.searchsorted(starts, wanted, side="right") - 1
    for piece in np.unique(pieces):
        at = pieces == piece
        rows[at] = signatures[piece][wanted[at] - starts[piece]]
    return rows


def needs_signature(wanted: Deduplication | None) -> bool:
    """Whether near duplicates are looked for."""
    return wanted is Deduplication.NEAR
