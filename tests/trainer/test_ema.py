"""The average of the weights: what the formula says, the same through stops and sharding, exported, and no part of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.documents import PRETRAINING, document
from tests.support.pods import LENGTH, losses, make_storage, training_stage
from tests.support.tiny import SENTENCES, save_tiny_model
from transfer_api.cost import ModelSize, stage_cost
from transfer_api.load import experiment_from
from transfer_api.progress import Progress
from transfer_api.spec import Ema as Wanted
from transfer_api.spec import NamedText, Precision
from transfer_api.stage import StagePlan, plan_stages
from transfer_cli.card import _what
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.ema import Ema
from transfer_trainer.ledger import LEDGER, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.model import load_model
from transfer_trainer.parallel import Team, decoder_layers
from transfer_trainer.validation import bits_per_byte, tokenise

KEY, OTHER = "a" * 32, "b" * 32
DECAY = 0.8
WANTED = Wanted(decay=str(DECAY))


@pytest.fixture
def storage(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path, make_storage(tmp_path)


def training(
    folder: Path, stage: StagePlan, asked: Callable[[], bool] = lambda: False, report: Callable[[Progress], None] = lambda progress: None
) -> Training:
    return Training(PodContext(stage=stage, storage=folder, pod="pod"), Team(), asked, report)


def exported(folder: Path, stage: StagePlan) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(
        ArtifactStore(folder).open(stage.kind, stage.key) / "model"
    ).state_dict()
    return state


def test_the_exported_model_is_the_average_and_training_is_as_without(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    plain, averaged = training_stage(KEY, dataset, steps=6), training_stage(OTHER, dataset, steps=6, ema=WANTED)
    after: dict[int, dict[str, torch.Tensor]] = {}

    def report(progress: Progress) -> None:
        if progress.step and progress.step not in after:
            after[progress.step] = {name: value.double().clone() for name, value in run.model.state_dict().items()}

    run = training(folder, averaged, report=report)
    assert run.run()
    assert training(folder, plain).run()
    curves = [losses(read_ledger(ArtifactStore(folder).path(stage.kind, stage.key) / LEDGER)) for stage in (plain, averaged)]
    assert curves[0] == curves[1]
    shares = [DECAY ** (6 - step) for step in range(1, 7)]
    for name, value in exported(folder, averaged).items():
        expected = sum(share * after[step][name] for step, share in enumerate(shares, 1)) / sum(shares)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(run.model.state_dict()[name].double(), after[6][name]), "afterwards it is the model that was trained"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_stopped_at_any_step_averages_the_same(storage: tuple[Path, str], lora: bool) -> None:
    folder, dataset = storage
    steady = training_stage(KEY, dataset, steps=5, lora=lora, ema=WANTED)
    broken = training_stage(OTHER, dataset, steps=5, lora=lora, ema=WANTED, checkpoint_steps=100)
    assert training(folder, steady).run()
    for budget in (1, 2):
        left = iter([False] * budget + [True])
        assert not training(folder, broken, lambda left=left: next(left)).run()  # type: ignore[misc]
    assert training(folder, broken).run()
    here, there = exported(folder, steady), exported(folder, broken)
    assert all(torch.equal(value, there[name]) for name, value in here.items())


def test_the_average_is_what_is_measured_along_the_way(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    (folder / "held.txt").write_text("\n\n".join(SENTENCES))
    texts = [NamedText(path="held.txt", name="held")]
    stage = training_stage(
        KEY, dataset, steps=4, learning_rate="1e-2", ema=WANTED, validation_steps=2, validation_texts=texts, snapshot_tokens=[1]
    )
    assert training(folder, stage).run()
    made = ArtifactStore(folder).open(stage.kind, KEY)
    measured = json.loads((made / "training.json").read_text())["validation"]
    assert [point["step"] for point in measured] == [0, 2, 4]
    text = tokenise("held", SENTENCES, AutoTokenizer.from_pretrained(made / "model"), LENGTH)
    for point, model in ((measured[0], folder / "model"), (measured[-1], made / "model")):
        found = bits_per_byte(load_model(model), [text], Team(), Precision.FLOAT32, 256)
        assert point["bitsPerByte"]["held"] == pytest.approx(found["held"], rel=1e-5)


def steps(model: nn.Module, ema: Ema) -> list[torch.Tensor]:
    """Trains a little; returns what the average computes after each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    found = []
    for tokens_BT in torch.randint(3, 300, (3, 2, 16)):
        model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        with ema.applied(), torch.no_grad():
            found.append(model(input_ids=tokens_BT).logits)
    return found


@pytest.mark.usefixtures("group")
def test_a_sharded_model_averages_and_trains_as_one_in_a_piece(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    plain, sharded = load_model(folder), load_model(folder)
    for layer in decoder_layers(sharded):
        fully_shard(layer)
    fully_shard(sharded)
    one, other = Ema(plain, DECAY), Ema(sharded, DECAY)
    assert all(isinstance(average, DTensor) for average in other.state()["average"].values())
    for expected, got in zip(steps(plain, one), steps(sharded, other), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(sharded.get_parameter(name).full_tensor(), value, rtol=1e-5, atol=1e-6)  # type: ignore[operator]


def test_the_card_of_the_model_says_that_it_is_an_average() -> None:
    stage = training_stage(KEY, "d" * 32, steps=1, ema=WANTED)
    assert _what(stage, {}).startswith("all weights, averaged over the steps with decay 0.8; ")


def test_it_is_part_of_the_stage_and_of_its_memory() -> None:
    def stage(**changes: Any) -> StagePlan:
        spec = experiment_from(document(pretraining={**PRETRAINING, **changes})).spec
        return next(one for one in plan_stages(spec) if one.name == "pretraining")

    without, having = stage(), stage(ema={})
    assert "ema" not in without.parameters, "so the keys of stages without are what they were"
    assert len({without.key, having.key, stage(ema={"decay": "0.99"}).key}) == 3
    size = ModelSize.like_llama(1_000_000, "declared")
    assert stage_cost(having, size, None).state_bytes - stage_cost(without, size, None).state_bytes == 4_000_000
    assert stage_cost(having, size, None).work_bytes - stage_cost(without, size, None).work_bytes == 3 * 4_000_000
