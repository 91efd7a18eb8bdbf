"""Of two that make the same stage the newer one may write, whoever of them wrote last; the older one ends, and does not come back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.experiment import wait_for
from tests.support.pods import Cluster, cluster, make_storage, training_stage
from transfer_api.errors import Superseded
from transfer_pod.context import PodContext
from transfer_trainer.fence import FENCE, Fence, FencedError, Term

ALONE = Term(lineage="experiment", attempt=2, generation=3, incarnation="")
MEETING = Term(lineage="experiment", attempt=2, generation=0, incarnation="store")


def change(term: Term, **fields: object) -> Term:
    return dataclasses.replace(term, **fields)


def is_over(folder: Path, term: Term, round_: int = 9) -> bool:
    """Whether a term cannot take the fence."""
    before = (folder / FENCE).read_text()
    try:
        Fence.take(folder, term, round_)
    except Superseded:
        assert (folder / FENCE).read_text() == before, "it left no trace"
        return True
    return False


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        pytest.param(ALONE, change(ALONE, generation=4), id="the next generation of a pod that trains alone"),
        pytest.param(ALONE, change(ALONE, attempt=3, generation=1), id="the next attempt of a pod that trains alone"),
        pytest.param(MEETING, change(MEETING, attempt=3, incarnation="its store"), id="the next attempt of pods that meet"),
        pytest.param(ALONE, change(MEETING, attempt=3), id="the next attempt meets"),
        pytest.param(MEETING, change(ALONE, attempt=3), id="the next attempt trains alone"),
        pytest.param(MEETING, change(MEETING, incarnation="new store"), id="the same attempt with a new store"),
        pytest.param(ALONE, change(ALONE, lineage="another", attempt=1, generation=1), id="another experiment"),
    ],
)
def test_the_newer_one_takes_over_and_the_older_one_never_comes_back(tmp_path: Path, older: Term, newer: Term) -> None:
    zombie = Fence.take(tmp_path, older, 5)
    fence = Fence.take(tmp_path, newer, 0)
    with pytest.raises(Superseded, match=r"attempt .* has taken the stage over"):
        zombie.check()
    assert is_over(tmp_path, older)
    fence.check()
    again = Fence.take(tmp_path, newer, 1)
    again.check()
    assert is_over(tmp_path, older)


def test_an_older_one_that_comes_for_the_first_time_comes_too_late(tmp_path: Path) -> None:
    fence = Fence.take(tmp_path, ALONE, 0)
    assert is_over(tmp_path, change(ALONE, generation=2))
    assert is_over(tmp_path, change(ALONE, attempt=1, generation=7))
    assert is_over(tmp_path, change(MEETING, attempt=1))
    fence.check()


def test_an_older_round_ends_but_its_pod_may_join_the_next_one(tmp_path: Path) -> None:
    fifth = Fence.take(tmp_path, MEETING, 5)
    sixth = Fence.take(tmp_path, MEETING, 6)
    with pytest.raises(FencedError):
        fifth.check()
    with pytest.raises(FencedError):
        Fence.take(tmp_path, MEETING, 4)
    sixth.check()
    Fence.take(tmp_path, MEETING, 7).check()


@pytest.mark.parametrize("newer", [(MEETING, 6), (change(MEETING, attempt=3), 0)], ids=["a later round", "a later attempt"])
def test_an_older_one_that_writes_over_a_newer_one_loses_the_fence_again(tmp_path: Path, newer: tuple[Term, int]) -> None:
    zombie = Fence.take(tmp_path, MEETING, 5)
    written = (tmp_path / FENCE).read_text()
    fence = Fence.take(tmp_path, *newer)
    (tmp_path / FENCE).write_text(written)  # both had read the fence before either wrote
    fence.check()
    with pytest.raises((FencedError, Superseded)):
        zombie.check()
    fence.check()


def test_an_experiment_may_take_back_what_another_took_over_by_its_next_attempt(tmp_path: Path) -> None:
    other = change(ALONE, lineage="another")
    Fence.take(tmp_path, ALONE, 0)
    Fence.take(tmp_path, other, 0)
    Fence.take(tmp_path, change(ALONE, attempt=3), 0).check()
    assert is_over(tmp_path, other)
    assert is_over(tmp_path, ALONE)


def test_pods_that_nobody_numbers_take_over_from_one_another(tmp_path: Path) -> None:
    Fence.take(tmp_path, ALONE, 0)
    nobody = PodContext(stage=training_stage("a" * 32, "d" * 32, steps=1), storage=tmp_path, pod="by hand")
    Fence.take(tmp_path, Term.of(nobody, ""), 0)
    Fence.take(tmp_path, Term.of(nobody, ""), 0).check()


def test_the_fence_does_not_grow_with_every_attempt(tmp_path: Path) -> None:
    sizes = []
    for attempt in range(10, 30):
        for incarnation in ("one", "two"):
            Fence.take(tmp_path, change(MEETING, attempt=attempt, incarnation=incarnation), 0)
        sizes.append((tmp_path / FENCE).stat().st_size)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"incarnation": "store", "round": 3, "token": "0"})])
def test_a_fence_that_says_nothing_is_free_to_take_and_stops_whoever_had_it(tmp_path: Path, content: str) -> None:
    fence = Fence.take(tmp_path, MEETING, 5)
    (tmp_path / FENCE).write_text(content)
    with pytest.raises(FencedError):
        fence.check()
    Fence.take(tmp_path, MEETING, 6).check()


# Whole pods.


def trains(group: Cluster, since: int = 0) -> None:
    wait_for(lambda: group.ledger.steps > since, what=f"it trains past step {since}")


def test_a_pod_that_trains_alone_ends_for_good_beside_its_replacement(tmp_path: Path) -> None:
    with cluster(tmp_path, training_stage("a" * 32, make_storage(tmp_path), steps=4000), max_nodes=1) as group:
        zombie = group.start(0)
        trains(group, since=5)
        replacement = group.start(0)
        assert zombie.wait() == 78
        assert zombie.message is not None
        assert "attempt 1, generation 2 of experiment has taken the stage over" in zombie.message.message
        trains(group, since=group.ledger.steps + 10)
        assert replacement.process.poll() is None


def test_no_pod_of_an_older_attempt_goes_on_beside_the_next_one(tmp_path: Path) -> None:
    stage = training_stage("a" * 32, make_storage(tmp_path), steps=4000)
    with cluster(tmp_path, stage, max_nodes=2, min_nodes=2) as old, cluster(tmp_path, stage, max_nodes=2, number=2) as new:
        zombies = [old.start(0), old.start(1)]
        trains(old, since=5)
        pod = new.start(0)
        # One finds the fence taken; the other, which would wait for a second node for ever, the rendezvous closed.
        assert [zombie.wait() for zombie in zombies] == [78, 78]
        trains(new, since=new.ledger.steps + 10)
        assert pod.process.poll() is None
