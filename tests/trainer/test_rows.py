"""The reading order: exact shares, every row once an epoch, the same from any place and for any number of workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pods import training_stage
from transfer_api.errors import DataError, SpecError, TransferError
from transfer_api.stage import TrainingParameters
from transfer_trainer.rows import CHECKSUM, HALF, RowOrder, digest, joined, permute, total_steps

SEEDS = st.integers(0, 2**31 - 1)
# Of seed 7, weights 3:1, sizes 10 and 5. A finished run is only understood by this order: it may not change.
GOLDEN_SOURCES = [0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
GOLDEN_ROWS = [6, 0, 9, 5, 4, 7, 2, 2, 1, 1, 3, 8]


@st.composite
def orders(draw: st.DrawFn) -> RowOrder:
    weights = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
    sizes = draw(st.lists(st.integers(1, 50), min_size=len(weights), max_size=len(weights)))
    return RowOrder(draw(SEEDS), tuple(weights), tuple(sizes))


@dataclass
class Source:
    name: str
    weight: int
    rows: int


def positions(first: int, last: int) -> np.ndarray:
    return np.arange(first, last, dtype=np.int64)


@given(SEEDS, st.integers(1, 3000))
def test_a_permutation_gives_every_row_once(key: int, size: int) -> None:
    permuted = permute(positions(0, size), size, np.uint64(key))
    assert sorted(permuted.tolist()) == list(range(size))


@given(orders())
def test_every_block_holds_exactly_the_weights(order: RowOrder) -> None:
    sources = order.ids(positions(0, 3 * order.block)).sources
    for block in sources.reshape(3, order.block):
        assert [int((block == source).sum()) for source in range(len(order.weights))] == list(order.reduced)


@given(orders(), st.integers(0, 400))
def test_every_row_is_read_once_before_any_is_read_again(order: RowOrder, rows: int) -> None:
    ids = order.ids(positions(0, rows))
    seen = Counter(zip(ids.sources.tolist(), ids.rows.tolist(), strict=True))
    for source, size in enumerate(order.sizes):
        counts = [seen[source, row] for row in range(size)]
        assert max(counts) - min(counts) <= 1
    assert order.uses(rows) == tuple(int((ids.sources == source).sum()) for source in range(len(order.weights)))


@given(orders(), st.integers(0, 300), st.integers(1, 60))
def test_any_part_is_the_same_as_in_the_whole(order: RowOrder, first: int, count: int) -> None:
    whole, part = order.ids(positions(0, first + count)), order.ids(positions(first, first + count))
    assert whole.sources[first:].tolist() == part.sources.tolist()
    assert whole.rows[first:].tolist() == part.rows.tolist()


@given(orders(), st.integers(0, 20), st.integers(1, 40), st.integers(1, 9))
def test_the_workers_of_a_step_read_all_of_it_and_nothing_twice(order: RowOrder, step: int, per_step: int, workers: int) -> None:
    whole = order.step(step, per_step)
    rows = np.full(per_step, -1)
    for rank in range(workers):
        share = order.share(step, per_step, rank, workers)
        assert (rows[rank::workers] == -1).all()
        rows[rank::workers] = share.rows
    assert rows.tolist() == whole.rows.tolist()
    assert whole.rows.tolist() == order.ids(positions(step * per_step, (step + 1) * per_step)).rows.tolist()


def test_the_order_never_changes_between_versions() -> None:
    ids = RowOrder(7, (3, 1), (10, 5)).ids(positions(0, 12))
    assert ids.sources.tolist() == GOLDEN_SOURCES
    assert ids.rows.tolist() == GOLDEN_ROWS


def test_seeds_give_different_orders() -> None:
    first, second = (RowOrder(seed, (1,), (1000,)).ids(positions(0, 1000)).rows for seed in (0, 1))
    assert (first == second).mean() < 0.01


def test_neighbours_are_scattered() -> None:
    rows = RowOrder(0, (1,), (10_000,)).ids(positions(0, 10_000)).rows
    assert abs(np.corrcoef(np.arange(10_000), rows)[0, 1]) < 0.05
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.005


def parameters(steps: int | None = None, **changes: object) -> TrainingParameters:
    found = training_stage("a" * 32, "d" * 32, steps=steps, **changes).typed_parameters()
    assert isinstance(found, TrainingParameters)
    return found  # 7 rows of 32 tokens a step


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        pytest.param({"tokens": 5 * 224 + 223}, 5, id="tokens are rounded down to whole steps"),
        pytest.param({"steps": 9}, 9, id="steps are taken as they are"),
        pytest.param({"epochs": 1}, 400 // 7, id="an epoch lasts as long as the source that lasts longest"),
        pytest.param({"epochs": 3}, 1200 // 7, id="epochs multiply before rounding"),
    ],
)
def test_the_budget_gives_steps(changes: dict[str, object], steps: int) -> None:
    assert total_steps(parameters(**changes), [Source("id", 3, 300), Source("en", 1, 100)], max_epochs=1) == steps


@given(orders(), st.integers(0, 9), st.integers(1, 20), st.integers(1, 9))
def test_what_the_workers_read_adds_up_to_the_digest_of_the_step(order: RowOrder, step: int, rows: int, workers: int) -> None:
    read = [divmod(order.share(step, rows, rank, workers).checksum(), HALF) for rank in range(workers)]
    high, low = (float(sum(half)) for half in zip(*read, strict=True))
    assert digest(joined(high, low)) == digest(order.step(step, rows).checksum())


def test_a_digest_is_exact_over_far_more_than_512_processes_added_in_float64() -> None:
    random = np.random.default_rng(0)
    checksums = CHECKSUM - random.integers(1, 1000, 100_000)  # as large as they can be
    high, low = (np.add.accumulate(half.astype(np.float64))[-1] for half in np.divmod(checksums, HALF))  # one after the other
    assert int(digest(joined(high, low)), 16) == sum(map(int, checksums)) % CHECKSUM
    assert np.add.accumulate(checksums.astype(np.float64))[-1] != sum(map(int, checksums)), "a sum of whole ones is not"


@pytest.mark.parametrize("section", ["spec.pretraining", "spec.instructionTuning"])
@pytest.mark.parametrize(
    ("epochs", "sources", "rows"),
    [
        pytest.param(1, [Source("only", 1, 3)], 3, id="one pass"),
        pytest.param(2, [Source("only", 1, 3)], 3, id="two passes"),
        pytest.param(1, [Source("id", 3, 3), Source("en", 1, 1)], 4, id="several sources"),
    ],
)
def test_epochs_with_fewer_rows_than_a_batch_are_refused_and_the_ways_out_work(
    section: str, epochs: int, sources: list[Source], rows: int
) -> None:
    with pytest.raises(SpecError) as raised:
        total_steps(parameters(epochs=epochs), sources, section=section)
    error = raised.value
    assert (error.field, error.value) == (f"{section}.globalBatchTokens", 7 * 32)
    assert error.allowed == f"at most {epochs * rows * 32}"
    assert f"{rows} rows of 32 tokens, {epochs} epoch" in error.problem
    words = (error.next_step or "").replace(",", "").split()
    needed = int(words[words.index("epochs:") + 1])
    assert total_steps(parameters(epochs=needed), sources) == 1
    with pytest.raises(SpecError):
        total_steps(parameters(epochs=needed - 1), sources)
    assert total_steps(parameters(epochs=epochs, rows_per_step=epochs * rows), sources) == 1


def test_more_epochs_than_there_may_be_are_no_way_out() -> None:
    with pytest.raises(SpecError) as raised:
        total_steps(parameters(epochs=1, rows_per_step=1001), [Source("only", 1, 1)])
    assert raised.value.next_step == "Lower globalBatchTokens, or add data"


@pytest.mark.parametrize(
    ("changes", "sources", "error", "says"),
    [
        pytest.param({"tokens": 223}, [Source("id", 1, 9)], SpecError, "tokens: is less than one step", id="less than a step"),
        pytest.param({"tokens": 224}, [Source("id", 0, 9)], SpecError, "every weight is zero", id="no weight"),
        pytest.param({"tokens": 224}, [Source("id", 1, 0)], DataError, "mixture[0]", id="weight without rows"),
        pytest.param({"tokens": 224 * 100}, [Source("id", 3, 40), Source("en", 1, 900)], DataError, "Epochs: 14", id="too many tokens"),
        pytest.param({"steps": 100}, [Source("id", 1, 40)], DataError, "at most 5 steps", id="too many steps"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_work_is_refused(
    changes: dict[str, object], sources: list[Source], error: type[TransferError], says: str
) -> None:
    with pytest.raises(error) as raised:
        total_steps(parameters(**changes), sources, max_epochs=1)
    assert says in str(raised.value)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_the_way_out_that_the_error_names_works(rows: int, others: int, weight: int, other: int, epochs: int) -> None:
    sources = [Source("id", weight, rows), Source("en", other, others)]
    with pytest.raises(DataError) as raised:
        total_steps(parameters(steps=2000), sources, max_epochs=epochs)
    words = raised.value.next_step.replace(",", "").split()  # type: ignore[union-attr]
    assert total_steps(parameters(steps=2000), sources, max_epochs=int(words[words.index("maxEpochs:") + 1])) == 2000
    if "most" in words:
        most = int(words[words.index("most") + 1])
        assert total_steps(parameters(steps=most), sources, max_epochs=epochs) == most
        with pytest.raises(DataError):
            total_steps(parameters(steps=most + 1), sources, max_epochs=epochs)
