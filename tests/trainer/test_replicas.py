"""Replicas train as one process does and as FSDP2 does, and each goes on from what the others saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.pods import ORDER, ROWS_PER_STEP, losses, make_dataset, steady_losses, training_stage
from tests.support.team import together, train
from tests.support.tiny import save_tiny_model
from transfer_api.spec import Ema, Optimizer, Sharding
from transfer_api.stage import StagePlan
from transfer_pod.artifact import ArtifactStore
from transfer_trainer.ledger import LEDGER, Summary, verify_ledger
from transfer_trainer.model import load_model
from transfer_trainer.replicas import Replicas

KEY, OTHER = "a" * 32, "b" * 32
STEPS = 12


@pytest.fixture
def storage(tmp_path: Path) -> tuple[Path, str]:
    save_tiny_model(tmp_path / "model", hidden=64)  # wide enough for moments of 8 bits
    return tmp_path, make_dataset(tmp_path)


def stage(key: str, dataset: str, **changes: Any) -> StagePlan:
    return training_stage(key, dataset, steps=STEPS, checkpoint_steps=1000, **changes)


def spread(stage: StagePlan, sharding: Sharding) -> StagePlan:
    return stage.model_copy(update={"execution": stage.execution.model_copy(update={"sharding": sharding})})


def ledger(folder: Path, stage: StagePlan) -> Summary:
    return verify_ledger(ArtifactStore(folder).path(stage.kind, stage.key) / LEDGER, ORDER, ROWS_PER_STEP, STEPS)


def exported(folder: Path, key: str, stage: StagePlan) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(
        ArtifactStore(folder).path(stage.kind, key) / "model"
    ).state_dict()
    return state


EVERYTHING = {"embeddings_first": "0.25", "z_loss": "1e-3", "ema": Ema(decay="0.9")}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(EVERYTHING, id="full"),
        pytest.param({"lora": True, "optimizer": Optimizer.ADAMW_8BIT}, id="adapters, moments of 8 bits"),
    ],
)
def test_a_run_that_goes_from_replicas_to_shards_to_replicas_to_one_process_is_the_steady_one(
    storage: tuple[Path, str], changes: dict[str, Any]
) -> None:
    folder, dataset = storage
    wanted = stage(KEY, dataset, **changes)
    replicas, shards = spread(wanted, Sharding.NONE), spread(wanted, Sharding.FULL)
    saved = ArtifactStore(folder).work(wanted.kind, KEY) / "checkpoints"
    train(folder, replicas, 2, until=3, number=0)
    of_replicas = [path.stat().st_size for path in saved.glob("step-00000003/*.distcp")]
    train(folder, shards, 2, until=6, number=1)
    of_shards = [path.stat().st_size for path in saved.glob("step-00000006/*.distcp")]
    train(folder, replicas, 3, until=9, number=2)
    train(folder, replicas, 1, number=3)
    summary = ledger(folder, wanted)
    assert (summary.lost_steps, {line.world_size for line in summary.lines}) == (0, {1, 2, 3})
    assert losses(summary) == pytest.approx(steady_losses(folder, wanted), rel=1e-5)
    assert sum(of_replicas) <= sum(of_shards), "nothing is saved twice"
    assert max(of_replicas) < 0.6 * sum(of_replicas), "each saves its share"


def test_two_replicas_are_as_one_process_and_as_two_shards(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    replicas, shards = stage(KEY, dataset, sharding=Sharding.NONE, **EVERYTHING), stage(OTHER, dataset, **EVERYTHING)
    for wanted in (replicas, shards):
        train(folder, wanted, 2)
    one, two, parted = steady_losses(folder, replicas), losses(ledger(folder, replicas)), losses(ledger(folder, shards))
    assert two == pytest.approx(one, rel=1e-5)
    assert two == pytest.approx(parted, rel=1e-5)
    expected = exported(folder, OTHER, shards)
    for name, weight in exported(folder, KEY, replicas).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


def test_a_layer_that_only_one_process_used_is_summed_and_one_that_none_used_has_no_gradient(tmp_path: Path) -> None:
    together("tests.support.experts", str(tmp_path), processes=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[11.0, 1.0, 10.0, None]"] * 2


@pytest.mark.usefixtures("group")
def test_passes_add_up_and_travel_once_from_the_end_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_model(tmp_path)
    plain, replica = load_model(folder), load_model(folder)
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def seen(tensor: torch.Tensor, **settings: Any) -> Any:
        sent.append(tensor.numel())
        return all_reduce(tensor, **settings)

    replicas = Replicas(replica, bucket_bytes=40_000)
    monkeypatch.setattr(dist, "all_reduce", seen)
    torch.manual_seed(0)
    for _ in range(2):
        sent.clear()
        replicas.begin()
        passes = torch.randint(3, 300, (3, 2, 16))
        for number, tokens_BT in enumerate(passes):
            plain(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
            assert not sent
            if number == len(passes) - 1:
                replicas.last()
            replica(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
        replicas.finish()
        parameters = list(replica.parameters())
        assert len(sent) > 2
        assert sum(sent) == sum(weight.numel() for weight in parameters) + len(parameters)
        for expected, weight in zip(plain.parameters(), parameters, strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, expected.grad, rtol=0, atol=0)
        plain.zero_grad()
    replicas.close()
    replica.zero_grad()
    replica(input_ids=passes[0], labels=passes[0]).loss.backward()
    assert all(isinstance(weight, nn.Parameter) and weight.grad is not None for weight in replica.parameters())
