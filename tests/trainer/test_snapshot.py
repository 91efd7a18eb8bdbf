"""Snapshots: the model of a step, kept once, whole or not at all, and without any say in the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.documents import changed, document
from tests.support.pods import LENGTH, ROWS_PER_STEP, SOURCES, losses, make_storage, training_stage
from transfer_api.cost import ModelSize, stage_cost
from transfer_api.errors import ArtifactError, SpecError
from transfer_api.load import SpecErrors, experiment_from
from transfer_api.progress import Progress
from transfer_api.stage import StagePlan, plan_stages, snapshot_key
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.fence import Fence, FencedError, Term
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team
from transfer_trainer.snapshot import Snapshots, snapshot_steps

STEP = LENGTH * ROWS_PER_STEP
KEY, OTHER = "a" * 32, "b" * 32


class KilledError(Exception):
    """Ends a run in the middle, as kill -9 does: nothing is saved on the way out."""


@pytest.fixture
def storage(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path, make_storage(tmp_path)


def training(
    folder: Path, stage: StagePlan, asked: Callable[[], bool] = lambda: False, report: Callable[[Progress], None] = lambda progress: None
) -> Training:
    return Training(PodContext(stage=stage, storage=folder, pod="pod"), Team(), asked, report)


def killed_after(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KilledError

    return report


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


def artifact(folder: Path, stage: StagePlan) -> Path:
    return ArtifactStore(folder).open(stage.kind, stage.key)


def kept(folder: Path, stage: StagePlan, tokens: int) -> Path:
    """The model of a snapshot, every file of it checked."""
    return ArtifactStore(folder).open(stage.kind, snapshot_key(stage.key, tokens)) / "model"


def amounts(folder: Path, stage: StagePlan) -> list[int]:
    """Snapshots that are there."""
    found = ArtifactStore(folder).path(stage.kind, stage.key).parent.glob(f"{stage.key}-at-*")
    return sorted(int(path.name.rpartition("-")[2]) for path in found)


def test_they_are_the_model_of_their_step_and_change_no_loss(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    marks = [2 * STEP - 1, 4 * STEP, 6 * STEP + 5]
    plain = training_stage(KEY, dataset, steps=None, tokens=6 * STEP + 7)
    marked = training_stage(OTHER, dataset, steps=None, tokens=6 * STEP + 7, snapshot_tokens=marks)
    left = iter([False] * 4 + [True])
    stopped = training(folder, plain, lambda: next(left))
    assert not stopped.run()
    after_four = {name: value.clone() for name, value in stopped.model.state_dict().items()}
    assert training(folder, plain).run()
    assert training(folder, marked).run()
    without, having = artifact(folder, plain), artifact(folder, marked)
    assert losses(read_ledger(having / LEDGER)) == losses(read_ledger(without / LEDGER))
    assert amounts(folder, marked) == marks
    first, second, third = (weights(kept(folder, marked, mark)) for mark in marks)
    for name, value in weights(having / "model").items():
        assert torch.equal(second[name], after_four[name])
        assert torch.equal(third[name], value), "beyond the last whole step it is the last model"
    assert not torch.equal(first["model.norm.weight"], after_four["model.norm.weight"])
    assert AutoTokenizer.from_pretrained(kept(folder, marked, marks[0]))("Semua orang")["input_ids"]


def test_one_is_there_and_told_of_as_soon_as_its_step_is_done(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=6, checkpoint_steps=100, snapshot_tokens=[2 * STEP, 5 * STEP])
    told: list[tuple[int, list[int]]] = []

    def report(progress: Progress) -> None:
        assert amounts(folder, stage)[: len(progress.snapshots)] == progress.snapshots
        told.append((progress.step, progress.snapshots))

    left = iter([False] * 3 + [True])
    assert not training(folder, stage, lambda: next(left), report).run()
    assert told[-1] == (3, [2 * STEP])
    first = len(told)
    assert training(folder, stage, report=report).run()
    assert (3, [2 * STEP]) in told[first:], "who goes on tells of those that were made before"
    assert told[-1] == (6, [2 * STEP, 5 * STEP])


def test_one_that_was_made_before_a_kill_is_not_made_again(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=6, checkpoint_steps=100, snapshot_tokens=[2 * STEP, 5 * STEP])
    with pytest.raises(KilledError):
        training(folder, stage, report=killed_after(4)).run()
    made = kept(folder, stage, 2 * STEP) / "model.safetensors"
    inode, content = made.stat().st_ino, made.read_bytes()
    assert training(folder, stage).run(), "from the start, past both"
    assert amounts(folder, stage) == [2 * STEP, 5 * STEP]
    again = kept(folder, stage, 2 * STEP) / "model.safetensors"
    assert (again.stat().st_ino, again.read_bytes()) == (inode, content)


def test_a_kill_in_the_middle_of_writing_one_leaves_nothing_that_counts(storage: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=3, checkpoint_steps=1, snapshot_tokens=[2 * STEP])
    work = ArtifactStore(folder).work(stage.kind, KEY)

    def kill(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(ArtifactStore, "commit", kill)
        with pytest.raises(KilledError):
            training(folder, stage).run()
    assert len(list(work.glob("snapshot.*"))) == 1
    resumed = training(folder, stage)
    assert resumed.step == 1, "the step it belongs to is in no checkpoint"
    assert not list(work.glob("snapshot.*"))
    assert amounts(folder, stage) == []
    assert resumed.run()
    assert amounts(folder, stage) == [2 * STEP]


def test_one_that_is_gone_cannot_be_made_any_more(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=4, snapshot_tokens=[STEP])
    left = iter([False, False, True])
    assert not training(folder, stage, lambda: next(left)).run()
    work = ArtifactStore(folder).work(stage.kind, KEY)
    kept(folder, stage, STEP).parent.rename(folder / "elsewhere")
    with pytest.raises(ArtifactError, match="is missing") as raised:
        training(folder, stage)
    assert raised.value.next_step == f"Remove {work} to start again"


def test_an_older_round_puts_none_in_place(tmp_path: Path) -> None:
    term = Term("lineage", 1, 0, "store")
    stage, store = training_stage(KEY, OTHER, steps=1), ArtifactStore(tmp_path)
    work = store.work(stage.kind, KEY)
    old = Snapshots(store, stage, {100: 1}, Team(), Fence.take(work, term, 0))
    new = Snapshots(store, stage, {100: 1}, Team(round=1), Fence.take(work, term, 1))

    def save(part: Path) -> None:
        part.mkdir()
        (part / "config.json").write_text("{}")

    with pytest.raises(FencedError):
        old.write(100, save)
    assert new.due(1) == [100]

    def overtaken(part: Path) -> None:
        new.check(0)  # removes what it takes for a dead round's
        (part / "config.json").write_text("{}")

    with pytest.raises(FencedError):
        old.write(100, overtaken)
    new.write(100, save)
    assert (new.due(1), new.due(2)) == ([], [])
    assert amounts(tmp_path, stage) == [100]


def test_that_of_adapters_is_merged(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    stage = training_stage(KEY, dataset, steps=2, lora=True, snapshot_tokens=[STEP, 2 * STEP])
    assert training(folder, stage).run()
    places = kept(folder, stage, STEP), kept(folder, stage, 2 * STEP), artifact(folder, stage) / "model"
    assert not list(places[0].parent.rglob("adapter*"))
    first, last, model = map(weights, places)
    assert all(torch.equal(last[name], model[name]) for name in model)
    assert not torch.equal(first["model.layers.0.self_attn.q_proj.weight"], model["model.layers.0.self_attn.q_proj.weight"])


def test_with_epochs_the_run_says_where_they_end(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    steps = 4 * SOURCES["en"][1] // ROWS_PER_STEP  # of four rows one is of en, which lasts longer than id
    stage = training_stage(KEY, dataset, steps=None, epochs=1, snapshot_tokens=[steps * STEP, steps * STEP + 1])
    with pytest.raises(SpecError, match="epochs") as raised:
        training(folder, stage)
    assert (raised.value.field, raised.value.allowed) == ("spec.pretraining.snapshotTokens", f"at most {steps * STEP}")
    parameters: Any = training_stage(KEY, dataset, steps=None, epochs=1, snapshot_tokens=[1, STEP, STEP + 1]).typed_parameters()
    assert snapshot_steps(parameters, steps, "") == {1: 1, STEP: 1, STEP + 1: 2}


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        pytest.param({"snapshotTokens": ["2K", "4K", "4000"]}, "snapshotTokens[2]", "more than the one before it (4K)", id="twice"),
        pytest.param({"snapshotTokens": ["4K", "2K"]}, "snapshotTokens[1]", "more than the one before it (4K)", id="falling"),
        pytest.param({"snapshotTokens": ["2K", "42K"]}, "snapshotTokens[1]", "at most the budget (41000 tokens)", id="beyond the tokens"),
        pytest.param(
            {"snapshotTokens": [2049], "tokens": None, "steps": 2}, "snapshotTokens[0]", "at most the budget (2048 tokens)",
            id="beyond the steps",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_with_the_way_out(changes: dict[str, Any], field: str, allowed: str) -> None:
    wanted = document()
    wanted["spec"]["pretraining"] = {key: value for key, value in (wanted["spec"]["pretraining"] | changes).items() if value is not None}
    with pytest.raises(SpecErrors) as raised:
        experiment_from(wanted)
    (error,) = raised.value.errors
    assert (error.field, error.allowed) == (f"spec.pretraining.{field}", allowed)
    assert error.value is not None
    assert error.next_step


def test_they_are_part_of_the_stage_and_of_its_cost() -> None:
    def stage(marks: list[Any]) -> StagePlan:
        spec = experiment_from(changed(document(), "spec.pretraining.snapshotTokens", marks)).spec
        return next(one for one in plan_stages(spec) if one.name == "pretraining")

    none = stage([])
    assert "snapshotTokens" not in none.parameters, "so the keys of stages without are what they were"
    assert stage(["2K"]).key == stage([2000]).key != none.key
    size = ModelSize.like_llama(1_000_000, "declared")
    assert stage_cost(stage([2000, 3000]), size, None).artifact_bytes == 3 * stage_cost(none, size, None).artifact_bytes
