"""Which row is read when: a pure function of (seed, weights, sizes, position), so membership cannot change it.

Row `i` of a run is found in two steps, both without state:

    source   the run is cut into blocks of W = sum of the reduced weights; a block holds exactly w_k rows of source k, in an
             order shuffled by (seed, block)
    row      the n-th use of source k reads row perm(seed, k, epoch)(n mod N_k), epoch = n // N_k, so every row is read once
             before any is read again

Step s reads rows [sG, (s+1)G) and worker r of w takes r, r+w, … of them. The permutation is a Feistel network with
cycle-walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): O(1) memory, random access. It uses only
64-bit integer arithmetic of our own, because the streams of library generators may change between versions.

Letters: R = rows asked for, K = sources, W = rows in a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transfer_api.amount import count_of, format_amount
from transfer_api.errors import DataError, SpecError
from transfer_api.spec import MOST_EPOCHS
from transfer_api.stage import TrainingParameters

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_ROUNDS = 6  # four suffice for a pseudo-random permutation (Luby and Rackoff); two more for the small domains here
_BLOCK_KEY, _EPOCH_KEY = 1, 2  # keep the two uses of the seed apart


CHECKSUM = 2**44
HALF = 2**22
"""Control values are summed in float64: a whole checksum would be exact over 512 processes, its halves are over 2**31."""


def joined(high: float, low: float) -> int:
    """A sum of checksums, from the sums of what `divmod(checksum, HALF)` gives."""
    return int(high) * HALF + int(low)


def digest(checksums: int) -> str:
    """A sum of checksums as the ledger has it: hexadecimal."""
    return f"{checksums % CHECKSUM:011x}"


class Source(Protocol):
    """What is needed to know of one source of the index."""

    @property
    def name(self) -> str:
        """Shown in messages."""

    @property
    def weight(self) -> int:
        """Share of the rows."""

    @property
    def rows(self) -> int:
        """How many there are."""


@dataclass(frozen=True)
class RowIds:
    """Rows of the store. `sources` and `rows` are int64 [R], in the order in which the run reads them."""

    sources: Int64s
    rows: Int64s

    def __len__(self) -> int:
        return len(self.rows)

    def checksum(self) -> int:
        """Sum over the rows of a hash of (source, row), modulo `CHECKSUM`: those of the parts of a step add up to that of the step."""
        hashes = _mix(_mix(self.sources.astype(np.uint64)) ^ self.rows.astype(np.uint64)) % np.uint64(CHECKSUM)
        return int(hashes.sum()) % CHECKSUM


@dataclass(frozen=True)
class RowOrder:
    """The reading order of a run.

    Args:
        seed: of the experiment.
        weights: share of each source; 0 leaves a source out.
        sizes: rows of each source.

    Raises:
        SpecError: every weight is zero.
        DataError: a source with a weight has no row.
    """

    seed: int
    weights: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not any(self.weights):
            raise SpecError(
                "every weight is zero, so there is nothing to train on", field="spec.pretraining.mixture", value=list(self.weights),
                allowed="at least one weight above 0", next_step="Give a source a weight",
            )  # fmt: skip
        for index, (weight, size) in enumerate(zip(self.weights, self.sizes, strict=True)):
            if weight and not size:
                raise DataError(
                    f"source {index} has a weight but no row", field=f"spec.pretraining.mixture[{index}]", value=weight,
                    next_step="Add text to it, shorten sequenceLength, or set its weight to 0",
                )  # fmt: skip

    @functools.cached_property
    def reduced(self) -> tuple[int, ...]:
        """The weights divided by their greatest common divisor."""
        divisor = math.gcd(*self.weights)
        return tuple(weight // divisor for weight in self.weights)

    @functools.cached_property
    def block(self) -> int:
        """Rows in a block."""
        return sum(self.reduced)

    def ids(self, positions: Int64s) -> RowIds:
        """The rows at these positions of the run; `positions` is int64 [R], any order."""
        sources, uses = self._uses(np.asarray(positions, dtype=np.int64))
        rows = np.empty_like(uses)
        for source, size in enumerate(self.sizes):
            chosen = sources == source
            if not chosen.any():
                continue
            epochs, offsets = uses[chosen] // size, uses[chosen] % size
            found = np.empty_like(offsets)
            for epoch in np.unique(epochs):
                at = epochs == epoch
                found[at] = permute(offsets[at], size, _key(self.seed, _EPOCH_KEY, source, int(epoch)))
            rows[chosen] = found
        return RowIds(sources, rows)

    def step(self, step: int, rows_per_step: int) -> RowIds:
        """All rows of step `step` (from 0)."""
        return self.ids(np.arange(step * rows_per_step, (step + 1) * rows_per_step, dtype=np.int64))

    def share(self, step: int, rows_per_step: int, rank: int, world_size: int) -> RowIds:
        """The rows of step `step` that worker `rank` of `world_size` reads; may be none."""
        return self.ids(np.arange(step * rows_per_step + rank, (step + 1) * rows_per_step, world_size, dtype=np.int64))

    def uses(self, rows: int) -> tuple[int, ...]:
        """How many of the first `rows` rows of the run come from each source."""
        full, rest = divmod(rows, self.block)
        sources, _ = self._uses(np.arange(full * self.block, full * self.block + rest, dtype=np.int64))
        partial = np.bincount(sources, minlength=len(self.weights))
        return tuple(full * weight + int(more) for weight, more in zip(self.reduced, partial, strict=True))

    def _uses(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Source and number of its use (from 0) for each position, both int64 [R]."""
        if len(positions) == 0:
            return positions, positions
        blocks, offsets = positions // self.block, positions % self.block
        first, last = int(blocks.min()), int(blocks.max())
        sources_BW, ranks_BW = _block_order(self.seed, self.reduced, first, last)
        sources = sources_BW[blocks - first, offsets]
        return sources, blocks * np.asarray(self.reduced, dtype=np.int64)[sources] + ranks_BW[blocks - first, offsets]


@functools.lru_cache(maxsize=2)  # weights such as 999983:1 make blocks longer than a step; then every step asks for the same one
def _block_order(seed: int, weights: tuple[int, ...], first: int, last: int) -> tuple[Int64s, Int64s]:
    """Source of each slot of blocks first..last, and its rank among the block's slots of that source; both [blocks, W]."""
    width = sum(weights)
    slots = np.arange(width, dtype=np.uint64)
    keys = np.stack([_mix(slots ^ _key(seed, _BLOCK_KEY, block)) for block in range(first, last + 1)])
    order = np.argsort(keys, axis=1, kind="stable")
    sources = np.repeat(np.arange(len(weights), dtype=np.int64), weights)[order]
    ranks = np.zeros_like(sources)
    for source, weight in enumerate(weights):
        if weight:
            chosen = sources == source
            ranks[chosen] = np.tile(np.arange(weight, dtype=np.int64), len(sources))
    return sources, ranks


def permute(values: Int64s, size: int, key: np.uint64) -> Int64s:
    """A keyed bijection of [0, size): int64 [R] to int64 [R].

    A value that the network puts outside [0, size) is walked on until it falls inside: less than four rounds on average,
    because the domain is the next power of four.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [_key(int(key), number) for number in range(_ROUNDS)]

    def network(x: UInt64s) -> UInt64s:
        left, right = x >> half, x & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half) | right

    result = network(values.astype(np.uint64))
    while (outside := result >= np.uint64(size)).any():
        result[outside] = network(result[outside])
    return result.astype(np.int64)


def _key(*parts: int) -> np.uint64:
    """One 64-bit key from several numbers."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = _mix(state ^ np.array([part % 2**64], dtype=np.uint64))
    return np.uint64(state[0])


def _mix(x: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection of 64-bit numbers."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_order(seed: int, sources: Sequence[Source]) -> RowOrder:
    """The reading order over the sources of an index."""
    return RowOrder(seed, tuple(source.weight for source in sources), tuple(source.rows for source in sources))


def total_steps(
    parameters: TrainingParameters, sources: Sequence[Source], max_epochs: int | None = None, section: str = "spec.pretraining"
) -> int:
    """Optimizer steps of the whole run.

    Tokens and epochs are rounded down to whole steps. An epoch is one pass over the source that lasts longest at its weight.

    Raises:
        SpecError: the budget is less than one step.
        DataError: the budget needs a source more often than `max_epochs`, where that is set.
    """
    order = row_order(parameters.seed, sources)
    per_step = parameters.rows_per_step
    if per_step < 1:
        raise SpecError(
            "is less than one row", field=f"{section}.globalBatchTokens", allowed=f"at least sequenceLength ({parameters.sequence_length})",
            next_step="Raise it or shorten sequenceLength",
        )  # fmt: skip
    if parameters.epochs is not None:
        rows = max(size * order.block // weight for size, weight in zip(order.sizes, order.reduced, strict=True) if weight)
        if parameters.epochs * rows < per_step:
            raise too_large_batch(section, per_step=per_step, length=parameters.sequence_length, rows=rows, epochs=parameters.epochs)
        return parameters.epochs * rows // per_step
    if parameters.steps is not None:
        steps, field = parameters.steps, f"{section}.steps"
    else:
        steps, field = (parameters.tokens or 0) // (per_step * parameters.sequence_length), f"{section}.tokens"
    if steps < 1:
        raise SpecError(
            "is less than one step", field=field, value=parameters.tokens,
            allowed=f"at least globalBatchTokens ({per_step * parameters.sequence_length})",
            next_step="Raise it or lower globalBatchTokens",
        )  # fmt: skip
    if max_epochs is not None:
        _check_epochs(parameters, max_epochs, order, sources, steps, field)
    return steps


def too_large_batch(section: str, *, per_step: int, length: int, rows: int, epochs: int, at_most: bool = False) -> SpecError:
    """Says that one step reads more than all epochs have: to fill it, rows would be read more often than was asked.

    Args:
        section: of the file, such as ``spec.pretraining``.
        per_step: rows of a step.
        length: tokens of a row.
        rows: of one epoch, one or more.
        epochs: that are asked for.
        at_most: whether that many rows is a bound, because they are not counted yet.
    """
    needed = math.ceil(per_step / rows)
    bound, more = ("at most ", " or more") if at_most else ("", "")
    raising = f", or set epochs: {needed}{more}" if needed <= MOST_EPOCHS else ""
    return SpecError(
        f"is more than there is to read: {bound}{count_of(rows, 'row')} of {length} tokens, {count_of(epochs, 'epoch')}",
        field=f"{section}.globalBatchTokens", value=per_step * length, allowed=f"at most {epochs * rows * length}",
        next_step=f"Lower globalBatchTokens{raising}, or add data",
    )  # fmt: skip


def _check_epochs(
    parameters: TrainingParameters, max_epochs: int, order: RowOrder, sources: Sequence[Source], steps: int, field: str
) -> None:
    """Refuses a budget that would read a source more often than the experiment allows."""
    uses = order.uses(steps * parameters.rows_per_step)
    needed = [math.ceil(use / size) if use else 0 for use, size in zip(uses, order.sizes, strict=True)]
    if max(needed) <= max_epochs:
        return
    worst = max(range(len(needed)), key=lambda index: needed[index])
    length, epochs = parameters.sequence_length, needed[worst]
    enough = _most_steps(order, parameters.rows_per_step, max_epochs)
    by_tokens = f"{format_amount(enough * parameters.rows_per_step * length)} tokens"
    less = f"{enough} steps" if parameters.steps is not None else by_tokens
    raise DataError(
        f"asks for {format_amount(uses[worst] * length)} tokens of {sources[worst].name}, "
        f"which has {format_amount(order.sizes[worst] * length)}: {epochs} epochs where maxEpochs allows {max_epochs}",
        field=field, value=parameters.steps if parameters.steps is not None else parameters.tokens,
        next_step=f"Set maxEpochs: {epochs}" + (f", ask for at most {less}" if enough else "") + ", or add text",
    )  # fmt: skip


def _most_steps(order: RowOrder, rows_per_step: int, max_epochs: int) -> int:
    """The largest number of steps that reads no source more than `max_epochs` times."""
    rows = min(max_epochs * size * order.block // weight for size, weight in zip(order.sizes, order.reduced, strict=True) if weight)
    steps = rows // rows_per_step + 1
    while steps and any(use > max_epochs * size for use, size in zip(order.uses(steps * rows_per_step), order.sizes, strict=True)):
        steps -= 1
    return steps
